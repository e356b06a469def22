"""Graphs of the 4 nearest neighbours among artificial faces: approximate against exact search.

Landmarks are a 20-dimensional shape and pose with a little noise. Action units are sparse
intensities with two decimals. The exact search is timed for some of the rows, and the time is
scaled to all.
"""

import resource
import sys
from typing import Any

import numpy as np

from ferjax.benchmark import measure
from ferjax.data import neighbours

K = 4
EXACT_ROWS = 5000  # number of queries of the exact search


def run(bench: measure.Bench) -> list[dict[str, Any]]:
  """A row for each space.

  Each row has the sides `ferjax` (the approximate search) and `exact`, their ratio, the `recall`
  that the approximate search estimates itself, its `true_recall` on the rows of the exact search,
  and `memory_mb`, the peak memory of the process so far.
  """
  rows = []
  for space, make in SPACES.items():
    name = f'{space}, {bench.rows} rows'
    if bench.only in name:
      measure.progress(f'graphs: {name}')
      rows.append({'case': name, **_row(make(bench.rows), bench)})
  return rows


def action_units(rows: int) -> np.ndarray:
  """f32[rows, 17] within 0..5; three of ten are above 0."""
  rng = np.random.default_rng(0)
  active = rng.random((rows, 17)) < 0.3
  intensity = np.clip(np.round(rng.gamma(1.5, 1.0, (rows, 17)), 2), 0, 5)
  return np.where(active, intensity, 0).astype(np.float32)


def landmarks(rows: int) -> np.ndarray:
  """f32[rows, 136] in pixels at 224: 20 directions with falling standard deviations, and noise of
  half a pixel."""
  rng = np.random.default_rng(0)
  basis = rng.standard_normal((20, 136)) * (7.5 / np.arange(1, 21))[:, None]
  shape = rng.standard_normal((rows, 20)) @ basis
  return (112 + shape + 0.5 * rng.standard_normal((rows, 136))).astype(np.float32)


SPACES = {'au': action_units, 'landmarks': landmarks}


def _row(points, bench):
  queries = np.random.default_rng(1).permutation(len(points))[:EXACT_ROWS]
  centred = points - points.mean(0)
  found = {}

  def search():
    found['approximate'] = neighbours.nearest_others(points, K, search='approximate')

  def search_some():
    found['exact'] = neighbours.exact(centred, K, queries)

  def scaled(calls):
    return np.array(measure.jax_turn(search_some)(calls)) * len(points) / len(queries)

  sides = {'ferjax': measure.jax_turn(search), 'exact': scaled}
  timed = measure.interleave(sides, bench, calls=1)
  memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  _, truth = found['exact']
  return {
    **timed,
    'faster_than_exact': measure.ratio(timed, 'exact'),
    'recall': found['approximate'].recall,
    'true_recall': neighbours.found_share(found['approximate'].distance[queries], truth),
    'memory_mb': memory / (2**20 if sys.platform == 'darwin' else 2**10),
  }


def table(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
  """Columns for printing. The quartiles are of the time, in % of its median."""

  def seconds(side, key='median_ms'):
    return [ms / 1000 for ms in measure.column(rows, side, key)]

  return {
    'graph of 4 neighbours': [row['case'] for row in rows],
    'approximate: wall, s': seconds('ferjax'),
    'quartiles': measure.spread(rows, 'ferjax'),
    'approximate: CPU, s': seconds('ferjax', 'cpu_ms'),
    'exact: wall, s': seconds('exact'),
    'exact: CPU, s': seconds('exact', 'cpu_ms'),
    'exact / approximate': [row['faster_than_exact'] for row in rows],
    'recall, estimated': [row['recall'] for row in rows],
    'recall': [row['true_recall'] for row in rows],
    'peak memory, MiB': [row['memory_mb'] for row in rows],
  }
