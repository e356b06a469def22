"""LA-Net's networks: two branches, their projections, and the scores of neighbours.

Reference: LA-Net (Wu and Cui, ICCV 2023).
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from ferjax.core import Batch, PyTree
from ferjax.methods.lanet.landmarks import CoordinateHead, HeatmapHead
from ferjax.models.resnet import batch_norm
from ferjax.ops.distances import unit_length

EMBEDDINGS = {'expression': 'embedding', 'landmark': 'landmark_embedding'}
HEADS = {'coordinates': CoordinateHead, 'heatmap': HeatmapHead}
MAKES_KEYS = {  # the parts of the networks that the momentum encoder follows
  'shared',
  'expression',
  'landmark',
  'landmark_head',
  'expression_projection',
  'landmark_projection',
}


class Projection(nn.Module):
  """Two layers, then length 1: the heads of the contrastive loss.

  Attributes:
    centre: Whether a BatchNorm without scale and shift precedes the length. Pooled features are
      positive, so their projections point nearly the same way; it moves their mean to 0 and their
      deviation along each axis to 1.
    dtype: Type of the computation and of the parameters.
  """

  centre: bool
  dtype: Any

  @nn.compact
  def __call__(self, x, features, train):
    """f[b, d] -> f[b, features]."""
    x = nn.relu(nn.Dense(x.shape[-1], dtype=self.dtype, param_dtype=self.dtype)(x))
    x = nn.Dense(features, dtype=self.dtype, param_dtype=self.dtype)(x)
    if self.centre:
      kinds = {'dtype': self.dtype, 'param_dtype': self.dtype}
      x = batch_norm(train, affine=False, name='centre', **kinds)(x)
    return unit_length(x)


class ContributionScore(nn.Module):
  """How much a neighbour says about an example, before the sigmoid (equation 3)."""

  dtype: Any

  @nn.compact
  def __call__(self, x, neighbour):
    """Features f[B, d] and f[B, K, d] -> f[B, K]."""
    width = x.shape[-1]

    def dense(features, name):
      return nn.Dense(features, dtype=self.dtype, param_dtype=self.dtype, name=name)

    own = dense(width // 2, 'g1')(x)[:, None]
    other = dense(width // 2, 'g2')(neighbour)
    pair = jnp.concatenate([jnp.broadcast_to(own, other.shape), other], -1)
    hidden = nn.relu(dense(width // 2, 'f1')(pair))
    hidden = nn.relu(dense(width // 4, 'f2')(hidden))
    return dense(1, 'f3')(hidden)[..., 0]


class Networks(nn.Module):
  """All networks of LA-Net.

  Attributes:
    shared: The stem and first stage of both branches, or None.
    expression: The rest of the expression branch.
    landmark: The rest of the landmark branch, or None.
    landmark_head: What finds the landmarks on the maps of that branch.
    num_classes: C.
    centre: See `Projection`.
    dtype: Type of everything after the encoders.
  """

  shared: nn.Module | None
  expression: nn.Module
  landmark: nn.Module | None
  landmark_head: nn.Module | None
  num_classes: int
  centre: bool
  dtype: Any

  def setup(self):
    self.classifier = nn.Dense(self.num_classes, dtype=self.dtype, param_dtype=self.dtype)
    self.expression_projection = Projection(self.centre, self.dtype)
    self.landmark_projection = Projection(self.centre, self.dtype)
    self.expression_score = ContributionScore(self.dtype)
    self.landmark_score = ContributionScore(self.dtype)

  def stem(self, image: Array, train: bool) -> Sequence[Array]:
    """Maps of what both branches share; the pictures where they share nothing."""
    return [image] if self.shared is None else self.shared(image, train)

  def pooled(self, last_map: Array) -> Array:
    """f[b, h, w, d] -> f[b, d]."""
    return last_map.mean((1, 2), dtype=self.dtype)

  def encode(self, image: Array, landmarks: Array | None, train: bool) -> dict[str, Array]:
    """Features of both branches.

    Args:
      image: f[b, h, w, 3].
      landmarks: f[b, k, 2], pixels; None where there is no landmark branch.
      train: Whether BatchNorm uses the statistics of the batch.

    Returns:
      `embedding` f[b, d], and with a landmark branch `landmark_embedding` f[b, d'] and
      `landmark_error` f[b].
    """
    stem = self.stem(image, train)
    features = {'embedding': self.pooled(self.expression(stem[-1], train)[-1])}
    if self.landmark is None:
      return features
    maps = [*(stem if self.shared is not None else ()), *self.landmark(stem[-1], train)]
    size = image.shape[1:3]
    cells = (self.shared or self.landmark).cells(size[0])[0]
    embedding, error = self.landmark_head(maps, landmarks, size, cells)
    return features | {'landmark_embedding': embedding, 'landmark_error': error}

  def classify(self, image: Array, train: bool, delta: Array | None = None) -> dict[str, Array]:
    """The expression branch alone: `logits`, `embedding`, and with `delta` the `last_map`."""
    last_map = self.expression(self.stem(image, train)[-1], train)[-1]
    if delta is not None:
      last_map = last_map + delta
    embedding = self.pooled(last_map)
    outputs = {'logits': self.classifier(embedding), 'embedding': embedding}
    return outputs if delta is None else outputs | {'last_map': last_map}

  def both(self, image: Array, landmarks: Array | None, train: bool) -> dict[str, Array]:
    """As `encode`, with `logits` f[b, C]."""
    features = self.encode(image, landmarks, train)
    return features | {'logits': self.classifier(features['embedding'])}

  def project(self, outputs: dict[str, Array], train: bool) -> dict[str, Array]:
    """f[b, e] of both spaces; e is 64 for the 512 features of a ResNet-18, 256 for 2048."""
    u, v = outputs['embedding'], outputs['landmark_embedding']
    features = max(1, u.shape[-1] // 8)
    return {
      'expression': self.expression_projection(u, features, train),
      'landmark': self.landmark_projection(v, features, train),
    }

  def queries(self, image: Array, landmarks: Array, train: bool) -> dict[str, Array]:
    """As `both`, with `expression_query` and `landmark_query` f[b, e]."""
    outputs = self.both(image, landmarks, train)
    return outputs | {f'{space}_query': q for space, q in self.project(outputs, train).items()}

  def keys(self, image: Array, landmarks: Array, train: bool) -> dict[str, Array]:
    """`expression_key` and `landmark_key` f[b, e]."""
    projected = self.project(self.encode(image, landmarks, train), train)
    return {f'{space}_key': k for space, k in projected.items()}

  def initialise(
    self, image: Array, landmarks: Array | None, scored: Sequence[str], projects: bool
  ) -> None:
    """Calls once every module that is trained: the scores of the spaces `scored`, and where it
    `projects` the projections."""
    outputs = self.both(image, landmarks, False)
    for space in scored:
      features = outputs[EMBEDDINGS[space]]
      self.score(space, features, features[:, None])
    if projects:
      self.project(outputs, False)

  def score(self, space: str, features: Array, neighbour: Array) -> Array:
    """Contribution scores before the sigmoid, f[b, K], in the space `expression` or `landmark`, of
    features f[b, d] and those of their neighbours f[b, K, d] (equation 3)."""
    return getattr(self, f'{space}_score')(features, neighbour)


def make(
  model: nn.Module,
  num_classes: int,
  landmark_head: str,
  two_branches: bool,
  shared_stem: bool,
  centre: bool,
) -> Networks:
  """The networks around a model; see `lanet.make`. One branch alone shares nothing."""
  shares = shared_stem and two_branches
  first = 1 if shares else 0
  return Networks(
    shared=model.clone(last=1) if shares else None,
    expression=model.clone(first=first),
    landmark=model.clone(first=first) if two_branches else None,
    landmark_head=HEADS[landmark_head](dtype=model.dtype, param_dtype=model.param_dtype),
    num_classes=num_classes,
    centre=centre,
    dtype=model.param_dtype,
  )


def forward(
  network: Networks, views: int, params: PyTree, extra: PyTree, batch: Batch, keys: Array
) -> tuple[PyTree, PyTree]:
  """The training pass: the networks, and where there is one the momentum encoder.

  Args:
    network: See `make`.
    views: 1, or 2 where `image` and `landmarks` have them as their second axis: the first one for
      the networks, the second one for the momentum encoder.
    params: Of the networks.
    extra: `batch_stats`, and for keys `momentum`; see `state.py`.
    batch: `image`, `landmarks`.
    keys: Not used.

  Returns:
    What `Networks.queries` and `Networks.keys` return, together, or `Networks.both`; and the
    `batch_stats` that the networks moved. Keys carry no gradient to `params`.
  """

  def run(params, view, what):
    image, points = batch['image'], batch.get('landmarks')
    if views > 1:
      image, points = image[:, view], points[:, view]
    variables = {'params': params, 'batch_stats': extra['batch_stats']}
    return network.apply(variables, image, points, True, method=what, mutable=['batch_stats'])

  if 'momentum' not in extra:
    return run(params, 0, 'both')
  outputs, carry = run(params, 0, 'queries')
  made, _ = run(extra['momentum'], 1, 'keys')
  return outputs | made, carry


def predict(
  network: Networks, params: PyTree, extra: PyTree, batch: Batch, delta: Array | None = None
) -> dict[str, Array]:
  """The expression branch on `image` f[b, h, w, 3]; see `Networks.classify`."""
  variables = {'params': params, 'batch_stats': extra['batch_stats']}
  return network.apply(variables, batch['image'], False, delta, method='classify')
