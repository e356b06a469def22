"""DML-Net's networks: fused features, their heads and their embedding.

Reference: DML-Net (Liu et al., 2021), section 3.
"""

from typing import Any

import flax.linen as nn
import jax
from jax import Array

from ferjax.core import Batch, PyTree
from ferjax.ops.distances import unit_length

HEADS_ON = ('fused', 'embedding')


class Head(nn.Module):
  """A hidden layer and scores.

  Attributes:
    classes: Scores of an example.
    width: Of the hidden layer.
    hidden_init, scores_init: Initialisers of both layers' weights.
    dtype: Of both layers.
  """

  classes: int
  width: int
  hidden_init: Any
  scores_init: Any
  dtype: Any

  @nn.compact
  def __call__(self, x):
    """f[b, d] -> f[b, classes]."""
    kinds = {'dtype': self.dtype, 'param_dtype': self.dtype}
    x = nn.relu(nn.Dense(self.width, kernel_init=self.hidden_init, name='hidden', **kinds)(x))
    return nn.Dense(self.classes, kernel_init=self.scores_init, name='scores', **kinds)(x)


class Networks(nn.Module):
  """All networks of DML-Net; `pose_head` and `embedding` may be missing.

  Attributes:
    features: pictures f[b, h, w, 3], train, landmarks, delta -> `features` and `last_map`; see
      `regions.RegionFeatures`.
    expression_head, pose_head: f[b, d] -> scores.
    embedding: f[b, d] -> f[b, e].
    normalise: Whether the embedding gets length 1.
    heads_on: One of `HEADS_ON`, what the heads get.
  """

  features: nn.Module
  expression_head: nn.Module
  pose_head: nn.Module | None
  embedding: nn.Module | None
  normalise: bool
  heads_on: str

  def __call__(self, image, train, landmarks=None, delta=None):
    """The scores and the embedding of pictures.

    Args:
      image: f[b, h, w, 3].
      train: Whether BatchNorm uses the statistics of the batch.
      landmarks: f[b, k, 2], pixels, or None; see `regions.RegionFeatures`.
      delta: Added to the last map of the whole face, or None.

    Returns:
      `logits` f[b, C], `embedding` f[b, e] (the features f[b, d] where there is none), `last_map`
      f[b, h', w', c], and with a head of poses `pose_logits` f[b, P].
    """
    found = self.features(image, train, landmarks, delta)
    seen = embedding = found['features']
    if self.embedding is not None:
      embedding = self.embedding(seen)
      embedding = unit_length(embedding) if self.normalise else embedding
    if self.heads_on == 'embedding':
      seen = embedding
    outputs = {
      'logits': self.expression_head(seen),
      'embedding': embedding,
      'last_map': found['last_map'],
    }
    if self.pose_head is not None:
      outputs['pose_logits'] = self.pose_head(seen)
    return outputs


def init(network: Networks, rng: Array, batch: Batch, table) -> tuple[PyTree, PyTree]:
  """Parameters, and `batch_stats` as the other state; the table is not used."""
  initialise = jax.jit(network.init, static_argnums=2)
  variables = initialise(rng, batch['image'], False, batch.get('landmarks'))
  return variables['params'], {'batch_stats': variables['batch_stats']}


def forward(
  network: Networks, params: PyTree, extra: PyTree, batch: Batch, keys: Array
) -> tuple[PyTree, PyTree]:
  """The training pass: the outputs of `Networks` without the map, and the `batch_stats` that it
  moved; the keys are not used."""
  variables = {'params': params, **extra}
  inputs = batch['image'], True, batch.get('landmarks')
  outputs, carry = network.apply(variables, *inputs, mutable=['batch_stats'])
  del outputs['last_map']
  return outputs, carry


def predict(
  network: Networks, params: PyTree, extra: PyTree, batch: Batch, delta: Array | None = None
) -> dict[str, Array]:
  """The outputs of `Networks`, `last_map` with `delta` only."""
  inputs = batch['image'], False, batch.get('landmarks'), delta
  outputs = network.apply({'params': params, **extra}, *inputs)
  if delta is None:
    del outputs['last_map']
  return outputs
