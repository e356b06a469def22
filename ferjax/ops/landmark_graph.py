"""Graphs of landmarks: directed edges i32[k, d], the d landmarks that each landmark listens to.

An edge to landmark j is stored as j, or as k + j where it was drawn at random to fill up a degree:
such edges carry messages but have no part in the mean edge length.

Reference: HRL (2022), equations 4 to 6 and table 8.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ferjax.errors import InputError


def check(landmarks: int, groups: int) -> None:
  """Refuses too few landmarks for edges to so many others.

  Raises:
    InputError: fewer than groups + 1.
  """
  if landmarks < groups + 1:
    raise InputError(
      f'a graph that connects each landmark to {groups} others needs at least {groups + 1} '
      f'landmarks, not {landmarks}: give more of them (config.data.landmarks) or a smaller '
      'config.method.groups'
    )


def uniform_rank(landmarks: Array, groups: int = 8) -> Array:
  """Near and far others alike: the nearest of each of n groups by distance (equations 4 and 5).

  With q = floor((k - 1) / n), landmark i is connected to those that stand 1st, (1 + q)th, ...,
  (1 + (n - 1) q)th by distance from it; of equals the one with the lower index is nearer.

  Args:
    landmarks: f[k, 2].
    groups: n.

  Returns:
    i32[k, n], nearest first.
  """
  count = len(landmarks)
  distance = ((landmarks[:, None] - landmarks[None]) ** 2).sum(-1)
  distance = jnp.where(jnp.eye(count, dtype=bool), -1, distance)
  order = jnp.argsort(distance, axis=1, stable=True)  # each landmark itself is the first
  ranks = 1 + (count - 1) // groups * np.arange(groups)
  return order[:, ranks].astype(jnp.int32)


def random(key: Array, landmarks: int, groups: int = 8) -> Array:
  """i32[k, n]: n others of each of k landmarks, distinct, drawn at random."""
  draws = jax.random.uniform(key, (landmarks, landmarks), jnp.float32)
  draws = jnp.where(jnp.eye(landmarks, dtype=bool), 2, draws)
  return jnp.argsort(draws, axis=1)[:, :groups].astype(jnp.int32)


def delaunay(landmarks: np.ndarray, groups: int = 8) -> np.ndarray:
  """The nearest neighbours in the Delaunay triangulation, filled up with random edges; on the host.

  Args:
    landmarks: f[N, k, 2]. A face whose landmarks have no triangulation (all on a line) gets random
      edges only, and so does one landmark of several in the same place.
    groups: n.

  Returns:
    i32[N, k, n], nearest first; random edges have k added. The draw is the same for every face, so
    that its graph depends on its own landmarks alone.
  """
  from scipy.spatial import Delaunay, QhullError  # here, so that training starts without it

  count = landmarks.shape[1]
  check(count, groups)
  graphs = np.empty((len(landmarks), count, groups), np.int32)
  draw = np.random.default_rng(0).random((count, count))
  for number, points in enumerate(landmarks.astype(np.float64)):
    adjacent = np.zeros((count, count), bool)
    try:
      starts, ends = Delaunay(points).vertex_neighbor_vertices
      adjacent[np.repeat(np.arange(count), np.diff(starts)), ends] = True
    except QhullError:
      pass
    distance = np.linalg.norm(points[:, None] - points, axis=-1)
    fill = 2 * distance.max() + 1 + draw
    cost = np.where(adjacent, distance, fill)
    np.fill_diagonal(cost, np.inf)
    order = np.argsort(cost, axis=1, kind='stable')[:, :groups]
    graphs[number] = order + count * ~np.take_along_axis(adjacent, order, 1)
  return graphs


def reorder(graph: Array, order: np.ndarray) -> Array:
  """The graph i32[k, n] of `landmarks[order]`, where `order` int[k] is its own inverse (a flip)."""
  count, order = len(order), jnp.asarray(order, graph.dtype)
  graph = graph[order]
  return order[graph % count] + graph // count * count


def adjacency(graph: Array, dtype=jnp.float32) -> Array:
  """f[k, k]: 1 where row i listens to column j; without the diagonal of equation 6."""
  return jax.nn.one_hot(graph % len(graph), len(graph), dtype=dtype).sum(1)


def mean_edge_length(graph: Array, landmarks: Array) -> Array:
  """f[]: mean distance along the edges that are not random fill, in the landmarks' unit; 0 if
  there are none."""
  drawn = graph >= len(graph)
  vector = landmarks[graph % len(graph)] - landmarks[:, None]
  length = jnp.where(drawn, 0, jnp.sqrt((vector**2).sum(-1)))
  return length.sum() / jnp.maximum((~drawn).sum(), 1)
