"""SGM's network: an encoder and a linear layer."""

from typing import Any

import flax.linen as nn
from jax import Array

from ferjax.core import Batch, PyTree
from ferjax.models.resnet import batch_norm
from ferjax.ops.distances import unit_length


class Embedder(nn.Module):
  """A network, global average pooling and a linear layer, to length 1 where `normalise` is set.

  Embeddings of random networks, whose features are positive, all point the same way. `centre` moves
  their mean to 0 and their deviation along each axis to 1, so that at length 1 they do not lie in
  one place from the start.

  Attributes:
    model: pictures f[b, h, w, 3], train -> feature maps of every stage.
    width: d.
    gain: Factor on the first weights of the linear layer.
    normalise: Whether embeddings have length 1.
    centre: Whether they pass a BatchNorm without scale and shift before.
    num_classes: C of a linear layer that classifies embeddings; 0 for none.
    dtype: Type of everything after the model.
  """

  model: nn.Module
  width: int
  gain: float
  normalise: bool
  centre: bool
  num_classes: int
  dtype: Any

  @nn.compact
  def __call__(self, image: Array, train: bool, delta: Array | None = None) -> dict[str, Array]:
    """`embedding` f[b, d], `classifier_logits` f[b, C] where it classifies, and with `delta`, which
    is added to it, the `last_map`."""
    last_map = self.model(image, train)[-1]
    if delta is not None:
      last_map = last_map + delta
    x = last_map.mean((1, 2), dtype=self.dtype)
    x = nn.Dense(
      self.width,
      kernel_init=nn.initializers.variance_scaling(self.gain**2, 'fan_in', 'truncated_normal'),
      dtype=self.dtype,
      param_dtype=self.dtype,
      name='embedding',
    )(x)
    if self.centre:
      kinds = {'dtype': self.dtype, 'param_dtype': self.dtype}
      x = batch_norm(train, affine=False, name='centre', **kinds)(x)
    outputs = {'embedding': unit_length(x) if self.normalise else x}
    if self.num_classes:
      scores = nn.Dense(
        self.num_classes, dtype=self.dtype, param_dtype=self.dtype, name='classifier'
      )
      outputs['classifier_logits'] = scores(outputs['embedding'])
    return outputs if delta is None else outputs | {'last_map': last_map}


def forward(
  network: Embedder, params: PyTree, extra: PyTree, batch: Batch, keys: Array
) -> tuple[PyTree, PyTree]:
  """The training pass on `image` f[b, h, w, 3]: what `Embedder` returns, and the `batch_stats` that
  it moved; the keys are not used."""
  variables = {'params': params, 'batch_stats': extra['batch_stats']}
  return network.apply(variables, batch['image'], True, mutable=['batch_stats'])


def embed(
  network: Embedder, params: PyTree, extra: PyTree, batch: Batch, delta: Array | None = None
) -> dict[str, Array]:
  """What `Embedder` returns at inference."""
  variables = {'params': params, 'batch_stats': extra['batch_stats']}
  return network.apply(variables, batch['image'], False, delta=delta)
