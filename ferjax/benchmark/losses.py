"""Losses that compare all examples of a batch, with gradients, against PyTorch.

`LDE` is LA-Net's estimate of label distributions in one space (features of a ResNet-18): the
nearest neighbours, their contribution scores, the weighted mean. `EL` is LA-Net's
expression-landmark contrast against a full queue. `triplets` is the batch-hard triplet loss of
embeddings. PyTorch's versions are written plainly, with matrix products.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ferjax.benchmark import measure
from ferjax.losses import triplet
from ferjax.losses.divergence import kl_divergence
from ferjax.methods.lanet import contrast, estimation, networks

CLASSES = 7
NEIGHBOURS = 8
TEMPERATURE = 0.1
MARGIN = 0.2


class Case(NamedTuple):
  """A loss of a batch.

  Attributes:
    what: `LDE`, `EL` or `triplets`.
    batch: B.
    width: Number of features or length of the embeddings.
    queue: Number of keys in the queue of EL.
  """

  what: str
  batch: int
  width: int
  queue: int = 8192

  @property
  def name(self) -> str:
    return f'{self.what}, batch {self.batch}'


WIDTHS = {'LDE': 512, 'EL': 64, 'triplets': 64}
BATCHES = (128, 512, 2048, 4096)
CASES = tuple(Case(what, batch, width) for what, width in WIDTHS.items() for batch in BATCHES)


def run(bench: measure.Bench, cases: tuple[Case, ...] = CASES) -> list[dict[str, Any]]:
  """A row for each case: the sides `ferjax` and `torch`, and a ratio."""
  return measure.each('losses', cases, _row, measure.on_cpu(bench))


def _row(case, bench):
  made = ARRAYS[case.what](case, np.random.default_rng(0))
  inputs, fixed = jax.tree.map(jnp.asarray, made)
  step = jax.jit(jax.value_and_grad(LOSSES[case.what]))
  sides = {'ferjax': measure.jax_turn(lambda: step(inputs, fixed))}
  sizes = {'ferjax': measure.sizes(step(inputs, fixed))}
  if bench.torch:
    sizes['torch'] = bench.torch.ask(do='loss', case=case._asdict())['sizes']
    sides['torch'] = bench.torch.turn
  measure.check_equal(sizes, case.name)
  timed = measure.interleave(sides, bench)
  return {'case': case.name, **timed, 'faster_than_torch': measure.ratio(timed, 'torch')}


def _lde_arrays(case, rng):
  """The arrays with gradients, and those without. `torch_side.py` draws the same numbers."""
  normal, half, quarter = rng.standard_normal, case.width // 2, case.width // 4
  features = normal((case.batch, case.width), np.float32)
  logits = normal((case.batch, CLASSES), np.float32)
  layers = {'g1': (case.width, half), 'g2': (case.width, half), 'f1': (2 * half, half)}
  layers |= {'f2': (half, quarter), 'f3': (quarter, 1)}
  score = {
    name: {
      'kernel': normal(shape, np.float32) / np.float32(shape[0] ** 0.5),
      'bias': np.zeros(shape[1], np.float32),
    }
    for name, shape in layers.items()
  }
  return {'features': features, 'logits': logits, 'score': score}, {}


def _el_arrays(case, rng):
  sizes = (case.batch, case.batch, case.queue)
  query, key, queue_key = (_unit(rng.standard_normal((n, case.width), np.float32)) for n in sizes)
  label, queue_label = (rng.integers(0, CLASSES, n) for n in (case.batch, case.queue))
  fixed = {'key': key, 'label': label, 'queue_key': queue_key, 'queue_label': queue_label}
  return {'query': query}, fixed


def _triplet_arrays(case, rng):
  embedding = _unit(rng.standard_normal((case.batch, case.width), np.float32))
  return {'embedding': embedding}, {'label': rng.integers(0, CLASSES, case.batch)}


def _unit(x):
  return x / np.linalg.norm(x, axis=1, keepdims=True)


def lde(inputs: dict[str, Any], fixed: dict[str, Any]) -> jax.Array:
  """f[]: divergence of the predictions from the estimated label distributions."""
  features, logits = inputs['features'], inputs['logits']
  index = jnp.arange(len(features))
  found, exists = estimation.nearest_neighbours(features, index, NEIGHBOURS)
  network = networks.ContributionScore(jnp.float32)
  score = network.apply({'params': inputs['score']}, features, features[found])
  shares = jax.nn.softmax(logits)[found]
  estimated = estimation.neighbour_distribution(score, shares, exists)
  return kl_divergence(estimated, jax.nn.log_softmax(logits)).mean()


def el(inputs: dict[str, Any], fixed: dict[str, Any]) -> jax.Array:
  """f[]: contrast of the queries with the keys of the batch and of the queue."""
  filled = jnp.ones(len(fixed['queue_label']), bool)
  queue = (fixed['queue_key'], fixed['queue_label'], filled)
  keys = (fixed['key'], fixed['label'], *queue)
  return contrast.cross_view_contrast(inputs['query'], *keys, TEMPERATURE).mean()


def triplets(inputs: dict[str, Any], fixed: dict[str, Any]) -> jax.Array:
  """f[]: the batch-hard triplet loss."""
  distance = triplet.squared_distances(inputs['embedding'])
  return triplet.batch_hard(distance, *triplet.class_masks(fixed['label']), MARGIN)


ARRAYS = {'LDE': _lde_arrays, 'EL': _el_arrays, 'triplets': _triplet_arrays}
LOSSES = {'LDE': lde, 'EL': el, 'triplets': triplets}


def table(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
  """Columns for printing. The quartiles are of the time, in % of its median."""
  return {
    'loss, forward and backward, ms': [row['case'] for row in rows],
    'ferjax': measure.column(rows, 'ferjax'),
    'PyTorch': measure.column(rows, 'torch'),
    'PyTorch / ferjax': [row['faster_than_torch'] for row in rows],
    'quartiles, ferjax': measure.spread(rows, 'ferjax'),
    'quartiles, PyTorch': measure.spread(rows, 'torch'),
  }
