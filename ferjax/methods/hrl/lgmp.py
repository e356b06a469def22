"""Landmark-guided graph message propagation (LGMP), and the landmark head that it is compared with.

Every cell of a feature map belongs to the landmark whose features are most like its own, and takes
in the features of the landmarks that this one is connected with, sampled a learned step away from
them. Maps are f[h, w, K]; points are (x, y) in cells of the map, clamped to its border.

Reference: HRL (2022), section 3.2.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax

from ferjax.models.resnet import batch_norm
from ferjax.ops import bilinear, landmark_graph
from ferjax.ops.cells import Cells, resample


def pool_points(feature_map: Array, points: Array, size: int = 3) -> Array:
  """Mean of size x size samples a cell apart, around each point (equations 7 and 8).

  Args:
    feature_map: f[h, w, K].
    points: f[k, 2]; they get no gradient.
    size: Odd.

  Returns:
    f[k, K].
  """
  height, width, channels = feature_map.shape
  points = lax.stop_gradient(points)
  steps = jnp.arange(size, dtype=points.dtype) - size // 2

  def shares(places, cells):
    """f[k, cells]: the part that each row or column has in the mean; both axes are separable."""
    places = jnp.clip(places[:, None] + steps, 0, cells - 1)
    distance = jnp.abs(places[..., None] - jnp.arange(cells, dtype=places.dtype))
    return jnp.maximum(1 - distance, 0).mean(1)

  rows, columns = shares(points[:, 1], height), shares(points[:, 0], width)
  weight = (rows[:, :, None] * columns[:, None]).reshape(-1, height * width)
  pixels = feature_map.reshape(-1, channels)
  return jnp.matmul(weight.astype(feature_map.dtype), pixels, precision='highest')


def assign(feature_map: Array, landmark_features: Array) -> Array:
  """The landmark whose features f[k, K] are nearest to each cell's (equation 9); no gradient.

  Returns:
    i32[h, w]; the lowest of equals.
  """
  cells, nodes = lax.stop_gradient((feature_map, landmark_features))
  wide = jnp.promote_types(cells.dtype, jnp.float32)
  product = jnp.einsum(
    'hwc,kc->hwk', cells, nodes, precision='highest', preferred_element_type=wide
  )
  return ((nodes.astype(wide) ** 2).sum(-1) - 2 * product).argmin(-1).astype(jnp.int32)


def propagate(
  feature_map: Array, points: Array, walk: Array, graph: Array, cluster: Array
) -> Array:
  """The sum of each cell's own features and those of its nodes (equations 3 and 10, before W).

  A node's features do not depend on the cell that receives them. So each of the k nodes is sampled
  once and summed over the edges of each landmark once; a cell then adds the sum of its landmark.

  Args:
    feature_map: f[h, w, K].
    points: f[k, 2], the landmarks.
    walk: f[k, 2], each landmark's random walk.
    graph: i32[k, d], see `ops/landmark_graph.py`.
    cluster: i32[h, w], see `assign`.

  Returns:
    f[h, w, K].
  """
  nodes = bilinear.sample(feature_map, points + walk).astype(feature_map.dtype)
  adjacency = landmark_graph.adjacency(graph, nodes.dtype)
  messages = jnp.matmul(adjacency, nodes, precision='highest')
  return feature_map + messages[cluster]


def propagate_literally(
  feature_map: Array, points: Array, walk: Array, graph: Array, cluster: Array
) -> Array:
  """As `propagate`, sampling every node anew for each cell: `walk` may also be f[h, w, 2], one for
  each receiving cell."""
  neighbours = graph[cluster] % len(points)
  total = feature_map
  for edge in range(graph.shape[1]):
    node = neighbours[..., edge]
    step = walk[node] if walk.ndim == 2 else walk
    total += bilinear.sample(feature_map, points[node] + step).astype(feature_map.dtype)
  return total


class Merge(nn.Module):
  """Maps of several sizes in one: bilinear to the largest, joined, a 1x1 convolution to `width`.

  The convolution is linear, so each map is convolved before it is enlarged: the same sum for less.
  """

  width: int
  dtype: Any
  param_dtype: Any

  @nn.compact
  def __call__(self, maps: Sequence[Array], cells: Sequence[Cells]) -> Array:
    """Maps f[b, h_i, w_i, c_i], the largest first, and where their cells look
    -> f[b, h_0, w_0, width]."""
    inputs, size = sum(feature_map.shape[-1] for feature_map in maps), maps[0].shape[1:3]
    init = nn.initializers.normal(inputs**-0.5)
    merged = 0
    for number, feature_map in enumerate(maps):
      reduced = nn.Dense(
        self.width,
        use_bias=False,
        kernel_init=init,
        dtype=self.dtype,
        param_dtype=self.param_dtype,
        name=f'reduce{number + 1}',
      )(feature_map)
      merged += resample(reduced, cells[number], size, cells[0])
    return merged


class MessagePropagation(nn.Module):
  """One LGMP module, without an activation.

  Attributes:
    width: Features of the output.
    pool_size: Of the point pooling.
    offsets: `landmark` for a random walk from each landmark's features, or `pixel` for one from
      each receiving cell's.
    normalise: Whether W sees the mean of the own features and those of the nodes, or their sum.
    pooled: Whether to return the mean over cells; W is linear, so it is taken before.
  """

  width: int
  pool_size: int
  offsets: str
  normalise: bool
  pooled: bool
  dtype: Any
  param_dtype: Any

  @nn.compact
  def __call__(self, feature_map: Array, points: Array, graph: Array) -> Array:
    """f[b, h, w, K], landmarks f[b, k, 2] in cells, i32[b, k, d] -> f[b, h, w, width]."""
    landmark_features = jax.vmap(pool_points, (0, 0, None))(feature_map, points, self.pool_size)
    cluster = jax.vmap(assign)(feature_map, landmark_features)
    by_landmark = self.offsets == 'landmark'
    walk = nn.Dense(
      2,
      kernel_init=nn.initializers.zeros,
      dtype=self.param_dtype,
      param_dtype=self.param_dtype,
      name='random_walk',
    )(landmark_features if by_landmark else feature_map)
    send = propagate if by_landmark else propagate_literally
    received = jax.vmap(send)(feature_map, points, walk, graph, cluster)
    if self.normalise:
      received /= 1 + graph.shape[-1]
    if self.pooled:
      received = received.mean((1, 2))
    kinds = {'dtype': self.dtype, 'param_dtype': self.param_dtype}
    return nn.Dense(self.width, use_bias=False, name='weight', **kinds)(received)


class LandmarkGraphHead(nn.Module):
  """Two LGMP modules in cascade, over the last three stages of an encoder.

  Attributes:
    widths: Features of the two modules and of the 1x1 convolutions before them.
    activations: Whether a BatchNorm and a ReLU follow each module.
  """

  num_classes: int
  widths: tuple[int, int]
  pool_size: int
  offsets: str
  normalise: bool
  activations: bool
  dtype: Any
  param_dtype: Any

  @nn.compact
  def __call__(
    self,
    maps: Sequence[Array],
    cells: Sequence[Cells],
    landmarks: Array,
    graph: Array,
    train: bool,
  ) -> Array:
    """Logits f[b, C].

    Args:
      maps: f[b, h, w, c] of every stage.
      cells: Where the cells of every map look.
      landmarks: f[b, k, 2] in pixels of the pictures.
      graph: i32[b, k, d].
      train: Whether BatchNorm uses the statistics of the batch.
    """
    kinds = {'dtype': self.dtype, 'param_dtype': self.param_dtype}
    options = {'pool_size': self.pool_size, 'offsets': self.offsets, 'normalise': self.normalise}
    merged = Merge(self.widths[0], name='merge1', **kinds)(maps[-3:-1], cells[-3:-1])
    points = cells[-3].at(landmarks)
    first = MessagePropagation(self.widths[0], pooled=False, name='lgmp1', **options, **kinds)
    both = [self.activated(first(merged, points, graph), train, 'lgmp1_bn'), maps[-1]]
    merged = Merge(self.widths[1], name='merge2', **kinds)(both, [cells[-3], cells[-1]])
    pooled = not self.activations
    last = MessagePropagation(self.widths[1], pooled=pooled, name='lgmp2', **options, **kinds)
    received = self.activated(last(merged, points, graph), train, 'lgmp2_bn')
    return _classifier(self)(received if pooled else received.mean((1, 2)))

  def activated(self, feature_map, train, name):
    if not self.activations:
      return feature_map
    kinds = {'dtype': self.dtype, 'param_dtype': self.param_dtype}
    return nn.relu(batch_norm(train, name=name, **kinds)(feature_map))


class LandmarkDenseHead(nn.Module):
  """The baseline: fully connected layers on the joined features of all landmarks.

  Attributes:
    reduction: Features of each landmark, after a 1x1 convolution over the last three stages.
    widths: Of the hidden layers.
  """

  num_classes: int
  reduction: int
  widths: Sequence[int]
  pool_size: int
  dtype: Any
  param_dtype: Any

  @nn.compact
  def __call__(
    self,
    maps: Sequence[Array],
    cells: Sequence[Cells],
    landmarks: Array,
    graph: Array,
    train: bool,
  ) -> Array:
    """As `LandmarkGraphHead`; the graph is not used."""
    kinds = {'dtype': self.dtype, 'param_dtype': self.param_dtype}
    merged = Merge(self.reduction, name='merge', **kinds)(maps[-3:], cells[-3:])
    points = cells[-3].at(landmarks)
    x = jax.vmap(pool_points, (0, 0, None))(merged, points, self.pool_size)
    x = x.reshape(x.shape[0], -1)
    for number, width in enumerate(self.widths):
      x = nn.relu(nn.Dense(width, name=f'hidden{number + 1}', **kinds)(x))
    return _classifier(self)(x)


class NaiveHead(nn.Module):
  """Pooled features, hidden layers if any, a linear layer."""

  num_classes: int
  widths: Sequence[int]
  param_dtype: Any

  @nn.compact
  def __call__(self, embedding: Array) -> Array:
    """f[b, d] -> f[b, C]."""
    x, kinds = embedding, {'dtype': self.param_dtype, 'param_dtype': self.param_dtype}
    for number, width in enumerate(self.widths):
      x = nn.relu(nn.Dense(width, name=f'hidden{number + 1}', **kinds)(x))
    return _classifier(self)(x)


def _classifier(head):
  kinds = {'dtype': head.param_dtype, 'param_dtype': head.param_dtype}
  return nn.Dense(head.num_classes, name='classifier', **kinds)
