"""Graphs of the 4 nearest neighbours among made-up faces: approximate beside exact search.

Landmarks are a 20-dimensional shape and pose and a little noise, action units sparse intensities
with two decimals. Each search runs once; the exact one for a part of the rows, its time scaled up.
"""

import resource
import sys
import time
from typing import Any

import numpy as np

from ferjax.benchmark import measure
from ferjax.ops import knn

K = 4
EXACT_ROWS = 5000  # queries of the exact search


def run(bench: measure.Bench) -> list[dict[str, Any]]:
  """A row for each space.

  Each has, of `approximate` and `exact`, `wall_s` and `cpu_s` (all threads of the process), of the
  approximate search its own estimate `recall` and `true_recall` on the rows of the exact one, and
  `memory_mb`, the largest memory of the process so far.
  """
  rows = []
  for space, make in SPACES.items():
    name = f'{space}, {bench.rows} rows'
    if bench.only in name:
      measure.progress(f'knn: {name}')
      rows.append({'case': name, **_row(make(bench.rows))})
  return rows


def action_units(rows: int) -> np.ndarray:
  """f32[rows, 17] within 0..5: three of ten are active."""
  rng = np.random.default_rng(0)
  active = rng.random((rows, 17)) < 0.3
  intensity = np.clip(np.round(rng.gamma(1.5, 1.0, (rows, 17)), 2), 0, 5)
  return np.where(active, intensity, 0).astype(np.float32)


def landmarks(rows: int) -> np.ndarray:
  """f32[rows, 136] in pixels at 224: 20 directions of falling deviation, and half a pixel of
  noise."""
  rng = np.random.default_rng(0)
  basis = rng.standard_normal((20, 136)) * (7.5 / np.arange(1, 21))[:, None]
  shape = rng.standard_normal((rows, 20)) @ basis
  return (112 + shape + 0.5 * rng.standard_normal((rows, 136))).astype(np.float32)


SPACES = {'au': action_units, 'landmarks': landmarks}


def _row(points):
  found, approximate = _timed(lambda: knn.nearest_others(points, K, search='approximate'))
  memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  queries = np.random.default_rng(1).permutation(len(points))[:EXACT_ROWS]
  centred = points - points.mean(0)
  (_, truth), exact = _timed(lambda: knn.exact(centred, K, queries))
  share = len(points) / len(queries)
  return {
    'approximate': approximate,
    'exact': {name: share * value for name, value in exact.items()},
    'recall': found.recall,
    'true_recall': knn.found_share(found.distance[queries], truth),
    'memory_mb': memory / (2**20 if sys.platform == 'darwin' else 2**10),
  }


def _timed(call):
  wall, cpu = time.perf_counter(), time.process_time()
  result = call()
  seconds = {'wall_s': time.perf_counter() - wall, 'cpu_s': time.process_time() - cpu}
  return result, seconds


def table(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
  """Columns for a reader."""
  return {
    'graph of 4 neighbours': [row['case'] for row in rows],
    'approximate: wall, s': [row['approximate']['wall_s'] for row in rows],
    'approximate: CPU, s': [row['approximate']['cpu_s'] for row in rows],
    'exact: wall, s': [row['exact']['wall_s'] for row in rows],
    'exact: CPU, s': [row['exact']['cpu_s'] for row in rows],
    'recall, estimated': [row['recall'] for row in rows],
    'recall': [row['true_recall'] for row in rows],
    'peak memory, MiB': [row['memory_mb'] for row in rows],
  }
