"""The k nearest other rows of a matrix, by Euclidean distance.

Exact search computes blocks of the distance matrix on the device. Its only error is the rounding
to float32 when squares are much larger than distances. On a CPU it takes too long for many rows;
approximate search then uses an inverted file (faiss). Rows are in lists around centroids, and a
query searches the lists nearest to it. The number of lists is chosen on a sample of queries whose
true neighbours are computed.

Equal rows are neighbours at distance 0; only the row itself is left out.
"""

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ferjax.errors import InputError

EXACT_ROWS = 20_000  # up to here, exact search on a CPU takes a few seconds
BLOCK = 2**24  # distances that are computed at a time
SPARE = 4  # candidates beyond k; exact distances choose among all of them
CHUNK = 8192  # rows that the host processes at a time

Progress = Callable[[Iterable[int]], Iterable[int]]


class Neighbours(NamedTuple):
  """The k nearest other rows of each of n rows, nearest first; at equal distance, lower rows first.

  Attributes:
    index: i32[n, k], rows.
    distance: f32[n, k], Euclidean.
    recall: Share of the true k nearest that were found, estimated on a sample; 1 if exact.
  """

  index: np.ndarray
  distance: np.ndarray
  recall: float


def nearest_others(
  points: np.ndarray,
  k: int,
  *,
  search: str = 'auto',
  recall: float = 0.995,
  sample: int = 1000,
  progress: Progress = iter,
) -> Neighbours:
  """The k nearest other rows of every row.

  Args:
    points: f[n, d].
    k: Number of neighbours.
    search: `exact`, `approximate`, or `auto`: approximate for more than 20,000 rows on a CPU.
    recall: The recall that approximate search must reach, 0..1; 1 makes it exact, and slow.
    sample: Number of rows on which the recall is measured.
    progress: Wraps an iterable to show the progress of the search.

  Raises:
    InputError: there are not more than k rows, or a coordinate is not finite.
  """
  points = np.asarray(points, np.float32)
  if len(points) <= k:
    raise InputError(f'{len(points)} rows are too few: each needs {k} other rows as neighbours')
  if not np.isfinite(points).all():
    row = int(np.flatnonzero(~np.isfinite(points).all(1))[0])
    raise InputError(f'row {row} has a coordinate that is not finite')
  if search == 'auto':
    many = len(points) > EXACT_ROWS and jax.default_backend() == 'cpu'
    search = 'approximate' if many else 'exact'
  points = points - points.mean(0, dtype=np.float64).astype(np.float32)  # squares stay small
  if search == 'exact':
    return Neighbours(*exact(points, k, np.arange(len(points)), progress), 1.0)
  return _approximate(points, k, recall, sample, progress)


def exact(
  points: np.ndarray, k: int, rows: np.ndarray, progress: Progress = iter
) -> tuple[np.ndarray, np.ndarray]:
  """The k nearest other rows of the given rows, by exact search.

  Args:
    points: f32[n, d], their mean near 0.
    k: Number of neighbours, below n.
    rows: i[m].
    progress: See `nearest_others`.

  Returns:
    Index i32[m, k] and distance f32[m, k].
  """
  size = max(1, min(BLOCK // len(points), len(rows)))
  search = partial(_block, jnp.asarray(points), count=min(k + SPARE, len(points) - 1))
  found = []
  for start in progress(range(0, len(rows), size)):
    block = rows[start : start + size]
    found.append(np.asarray(search(np.resize(block, size).astype(np.int32)))[: len(block)])
  return _closest(points, rows, np.concatenate(found), k)


@partial(jax.jit, static_argnames='count')
def _block(points, rows, count):
  """i32[m, count]: the nearest other rows by |y|^2 - 2 x.y, which has the order of |x - y|^2."""
  product = jnp.matmul(points[rows], points.T, precision='highest')
  distance = (points**2).sum(1) - 2 * product
  itself = rows[:, None] == jnp.arange(len(points))
  return jax.lax.top_k(jnp.where(itself, -jnp.inf, -distance), count)[1]


def _closest(points, rows, candidates, k):
  """The k closest of the candidates i[m, c] of each row. A candidate that is -1 or the row itself
  has an infinite distance."""
  index, distance = [], []
  for start in range(0, len(rows), CHUNK):
    row, others = rows[start : start + CHUNK, None], candidates[start : start + CHUNK]
    difference = points[row] - points[others]
    lengths = np.sqrt(np.einsum('mcd,mcd->mc', difference, difference))
    lengths[(others < 0) | (others == row)] = np.inf
    order = np.lexsort((others, lengths))[:, :k]
    index.append(np.take_along_axis(others, order, 1).astype(np.int32))
    distance.append(np.take_along_axis(lengths, order, 1))
  return np.concatenate(index), np.concatenate(distance)


def _approximate(points, k, recall, sample, progress):
  import faiss  # imported here, so that training starts without it

  lists = min(round(4 * math.sqrt(len(points))), len(points))
  inverted = faiss.IndexIVFFlat(faiss.IndexFlatL2(points.shape[1]), points.shape[1], lists)
  inverted.cp.niter = 10
  inverted.cp.min_points_per_centroid, inverted.cp.max_points_per_centroid = 1, 40
  inverted.train(points)
  inverted.add(points)

  def search(rows):
    candidates = inverted.search(points[rows], k + 1 + SPARE)[1]
    return _closest(points, rows, candidates, k)

  rows = np.random.default_rng(0).permutation(len(points))[:sample]
  _, truth = exact(points, k, rows)
  inverted.nprobe = min(8, lists)
  while True:
    share = found_share(search(rows)[1], truth)
    if share >= recall or inverted.nprobe == lists:
      break
    inverted.nprobe = min(2 * inverted.nprobe, lists)

  parts = [
    search(np.arange(start, min(start + CHUNK, len(points))))
    for start in progress(range(0, len(points), CHUNK))
  ]
  index, distance = (np.concatenate(part) for part in zip(*parts, strict=True))
  missing = np.flatnonzero(np.isinf(distance).any(1))  # the searched lists hold fewer than k rows
  if len(missing):
    index[missing], distance[missing] = exact(points, k, missing)
  return Neighbours(index, distance, share)


def found_share(distance: np.ndarray, truth: np.ndarray) -> float:
  """Recall, from the distances f[m, k] of the neighbours found and of the true ones. Among equally
  near rows, any counts as found."""
  return float((distance <= truth[:, -1:] * (1 + 1e-5)).mean())
