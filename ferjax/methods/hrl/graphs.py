"""The graphs of landmarks that LGMP sends messages along, of a batch of faces.

Reference: HRL (2022), equations 4 to 6; the single graphs are in `ops/landmark_graph.py`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from ferjax.core import Batch
from ferjax.ops import landmark_graph

GRAPHS = ('uniform_rank', 'random', 'delaunay')


def edges(graph: str, groups: int, batch: Batch, keys: Array | None = None) -> Array | None:
  """The edges of each face's landmarks.

  Args:
    graph: One of `GRAPHS`.
    groups: Edges of each landmark.
    batch: `landmarks` f[b, k, 2]; of a Delaunay graph also `landmark_graph` i32[b, k, groups].
    keys: key[b], for random graphs drawn anew for each face; without them one fixed draw.

  Returns:
    i32[b, k, groups]; None where the batch has no landmarks.

  Raises:
    InputError: too few landmarks.
  """
  if 'landmarks' not in batch:
    return None
  points = batch['landmarks']
  landmark_graph.check(points.shape[1], groups)
  if graph == 'delaunay':
    return batch['landmark_graph']
  if graph == 'uniform_rank':
    return jax.vmap(landmark_graph.uniform_rank, (0, None))(points, groups)
  if keys is None:
    drawn = landmark_graph.random(jax.random.key(0), points.shape[1], groups)
    return jnp.broadcast_to(drawn, (points.shape[0], *drawn.shape))
  draw = jax.vmap(landmark_graph.random, (0, None, None))
  return draw(keys, points.shape[1], groups)


def no_edges(batch: Batch, keys: Array | None = None) -> None:
  """As `edges`, for a branch that needs no graph."""
  return None


def derived(graph: str, groups: int) -> dict[str, Callable]:
  """What is made of a split's table on the host: `landmark_graph` i32[N, k, groups], of a Delaunay
  graph; nothing for the others."""
  if graph != 'delaunay':
    return {}
  return {'landmark_graph': lambda table: landmark_graph.delaunay(table['landmarks'], groups)}
