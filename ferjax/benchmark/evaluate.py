"""Metrics of embeddings, compared with PyTorch and scikit-learn.

Embeddings of 64 features are spread around one mean for each of seven classes. `kNN` classifies
queries by the 11 nearest stored rows, with as many queries as rows. scikit-learn uses its
`KNeighborsClassifier`; PyTorch multiplies blocks of queries with all rows and takes the nearest. In
`Recall@K`, every row searches the others. `NMI` includes ten runs of scikit-learn's k-means, so it
is not compared.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.neighbors import KNeighborsClassifier

from ferjax.benchmark import measure
from ferjax.metrics import retrieval
from ferjax.metrics.embeddings import USUAL

WIDTH = 64
CLASSES = 7


def run(bench: measure.Bench) -> list[dict[str, Any]]:
  """A row for each metric: the sides `ferjax`, `sklearn` and `torch`, ratios, and `values`, the
  metrics from ferjax. All sides must agree in them."""
  stored, label, query, query_label = drawn(bench.rows)
  sides = {
    'kNN': {
      'ferjax': lambda: _vote(stored, label, query, query_label),
      'sklearn': lambda: _scikit_learn(stored, label, query, query_label),
    },
    'Recall@K': {'ferjax': lambda: retrieval.retrieval(stored, label)},
    'NMI': {'ferjax': lambda: retrieval.clustering(stored, label)},
  }
  rows = []
  with tempfile.TemporaryDirectory() as folder:
    arrays = {'stored': stored, 'label': label, 'query': query, 'query_label': query_label}
    for name, array in arrays.items():
      np.save(Path(folder) / name, array)
    for what, calls in sides.items():
      name = f'{what}, {bench.rows} rows'
      if bench.only in name:
        measure.progress(f'evaluate: {name}')
        rows.append({'case': name, **_row(what, calls, folder, bench)})
  return rows


def drawn(rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """Stored embeddings f32[rows, 64] and labels i64[rows], and as many queries with labels."""
  rng = np.random.default_rng(0)
  means = 0.25 * rng.standard_normal((CLASSES, WIDTH))

  def part():
    label = rng.integers(0, CLASSES, rows)
    return (means[label] + rng.standard_normal((rows, WIDTH))).astype(np.float32), label

  return *part(), *part()


def _vote(stored, label, query, query_label):
  """The classification of `embeddings.measure`."""
  found = retrieval.nearest_neighbours(stored, query, USUAL)
  return {'acc': float((retrieval.vote(label[found], CLASSES) == query_label).mean())}


def _scikit_learn(stored, label, query, query_label):
  classifier = KNeighborsClassifier(USUAL, algorithm='brute').fit(stored, label)
  return {'acc': float((classifier.predict(query) == query_label).mean())}


def _row(what, calls, folder, bench):
  values = {name: call() for name, call in calls.items()}
  sides = {name: measure.jax_turn(call) for name, call in calls.items()}
  if bench.torch and what != 'NMI':
    case = {'folder': folder, 'neighbours': USUAL, 'counts': retrieval.RETRIEVED}
    values['torch'] = bench.torch.ask(do='search', case=case | {'what': what})['found']
    sides['torch'] = bench.torch.turn
  for name, value in values.items():
    pairs = np.array([(value[key], expected) for key, expected in values['ferjax'].items()])
    np.testing.assert_allclose(*pairs.T, atol=1e-3, err_msg=f'{what}: {name}')
  timed = measure.interleave(sides, bench, calls=1)
  return {
    **timed,
    'values': values['ferjax'],
    'faster_than_sklearn': measure.ratio(timed, 'sklearn'),
    'faster_than_torch': measure.ratio(timed, 'torch'),
  }


def table(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
  """Columns for printing. The quartiles are of the time, in % of its median."""

  def seconds(side):
    return [ms and ms / 1000 for ms in measure.column(rows, side)]

  return {
    'evaluation': [row['case'] for row in rows],
    'ferjax, s': seconds('ferjax'),
    'scikit-learn, s': seconds('sklearn'),
    'PyTorch, s': seconds('torch'),
    'scikit-learn / ferjax': [row['faster_than_sklearn'] for row in rows],
    'PyTorch / ferjax': [row['faster_than_torch'] for row in rows],
    'quartiles, ferjax': measure.spread(rows, 'ferjax'),
    'value': [next(iter(row['values'].values())) for row in rows],
  }
