"""Landmark graphs: directed edges i32[k, d] from each landmark to the d landmarks that it reads.

An edge to landmark j is stored as j. If it was drawn at random to complete the degree, it is stored
as k + j: such edges carry messages, but the mean edge length does not include them.

Reference: HRL (2022), equations 4 to 6 and table 8.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ferjax.errors import InputError


def check(landmarks: int, groups: int) -> None:
  """Checks that there are enough landmarks for the degree of the graph.

  Raises:
    InputError: there are fewer than groups + 1 landmarks.
  """
  if landmarks < groups + 1:
    raise InputError(
      f'a graph that connects each landmark to {groups} others needs at least {groups + 1} '
      f'landmarks, not {landmarks}: give more of them (config.data.landmarks) or a smaller '
      'config.method.groups'
    )


def uniform_rank(landmarks: Array, groups: int = 8) -> Array:
  """Edges to near and far landmarks: the nearest of each of n distance groups (equations 4 and 5).

  Let q = floor((k - 1) / n). Landmark i is connected to the landmarks at the ranks 1, 1 + q, ...,
  1 + (n - 1) q by distance from i. At equal distances, the lower index comes first.

  Args:
    landmarks: f[k, 2].
    groups: n.

  Returns:
    i32[k, n], nearest first.
  """
  count = len(landmarks)
  distance = ((landmarks[:, None] - landmarks[None]) ** 2).sum(-1)
  distance = jnp.where(jnp.eye(count, dtype=bool), -1, distance)
  order = jnp.argsort(distance, axis=1, stable=True)  # the landmark itself comes first
  ranks = 1 + (count - 1) // groups * np.arange(groups)
  return order[:, ranks].astype(jnp.int32)


def random(key: Array, landmarks: int, groups: int = 8) -> Array:
  """i32[k, n]: n distinct other landmarks for each of k landmarks, drawn at random."""
  draws = jax.random.uniform(key, (landmarks, landmarks), jnp.float32)
  draws = jnp.where(jnp.eye(landmarks, dtype=bool), 2, draws)
  return jnp.argsort(draws, axis=1)[:, :groups].astype(jnp.int32)


def delaunay(landmarks: np.ndarray, groups: int = 8) -> np.ndarray:
  """The nearest Delaunay neighbours, completed by random edges. Runs on the host.

  Args:
    landmarks: f[N, k, 2]. A face without a triangulation (all landmarks on a line) gets random
      edges only. If several landmarks of a face coincide, one of them gets random edges only.
    groups: n.

  Returns:
    i32[N, k, n], nearest first; k is added to random edges. Every face uses the same random draw,
    so the graph of a face depends on its own landmarks only.
  """
  from scipy.spatial import Delaunay, QhullError  # imported here to keep the start of training fast

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
  """The graph i32[k, n] of `landmarks[order]`; `order` int[k] is its own inverse (a flip)."""
  count, order = len(order), jnp.asarray(order, graph.dtype)
  graph = graph[order]
  return order[graph % count] + graph // count * count


def adjacency(graph: Array, dtype=jnp.float32) -> Array:
  """f[k, k]: 1 where row i reads column j. Unlike equation 6, the diagonal is 0."""
  return jax.nn.one_hot(graph % len(graph), len(graph), dtype=dtype).sum(1)


def mean_edge_length(graph: Array, landmarks: Array) -> Array:
  """f[]: mean length of the edges, in the unit of the landmarks. Random edges do not count; the
  result is 0 if there are no other edges."""
  drawn = graph >= len(graph)
  vector = landmarks[graph % len(graph)] - landmarks[:, None]
  length = jnp.where(drawn, 0, jnp.sqrt((vector**2).sum(-1)))
  return length.sum() / jnp.maximum((~drawn).sum(), 1)
