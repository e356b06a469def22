"""The training step of every method, beside the softmax baseline on the same network and pictures.

Methods run with their default settings but for those in their names; the pictures are only
normalised. Images are the examples that pay a loss: the 8 neighbours of each do not count.
"""

import importlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ferjax import core, models, optim, parallel
from ferjax.benchmark import measure
from ferjax.data import augment

CLASSES, POSES, LANDMARKS, ROWS, NEIGHBOURS = 7, 5, 50, 5000, 8
METHODS = {  # name: the method's options
  'softmax': {},
  'lanet': {},
  'hrl': {},
  'hrl sifl=False': {'sifl': False},
  'hrl sifl=False branch=dense': {'sifl': False, 'branch': 'dense'},
  'dmlnet': {'num_poses': POSES},
  'ldl_alsg': {},
  'ldl_alsg neighbours=separate': {'neighbours': 'separate'},
}


class Case(NamedTuple):
  """A network and its input."""

  model: str
  size: int
  batch: int = 32
  width: int = 64
  methods: tuple[str, ...] = tuple(METHODS)

  @property
  def name(self) -> str:
    return f'{self.model}, {self.size} px, batch {self.batch}'


CASES = (
  Case('resnet18', 64),
  Case('resnet50', 112, 16, methods=tuple(n for n in METHODS if n.startswith(('softmax', 'hrl')))),
)


def run(bench: measure.Bench, cases: tuple[Case, ...] = CASES) -> list[dict[str, Any]]:
  """A row for each case and method.

  Each has the time of a step as in `measure.interleave`, `images_per_s`, `flops` (XLA's cost
  analysis of the compiled step), `parameters`, and the ratios `time_to_softmax` and
  `flops_to_softmax`.
  """
  return [row for case in cases if bench.only in case.name for row in _rows(case, bench)]


def _rows(case, bench):
  sides, facts = {}, {}
  for name in case.methods:
    measure.progress(f'methods: {case.name}: compiles {name}')
    sides[name], facts[name] = side(name, case, host_batch(case))
  rows = []
  timed = measure.interleave(sides, bench)
  for name in case.methods:
    row = {'case': case.name, 'method': name, **timed[name], **facts[name]}
    row['images_per_s'] = case.batch / (row['median_ms'] / 1000)
    row['time_to_softmax'] = row['median_ms'] / timed['softmax']['median_ms']
    row['flops_to_softmax'] = row['flops'] / facts['softmax']['flops']
    rows.append(row)
  return rows


def side(
  name: str, case: Case, batch: dict[str, np.ndarray]
) -> tuple[measure.Turn, dict[str, float]]:
  """The training step of one of `METHODS` on a batch: its turns, `flops` and `parameters`."""
  devices = parallel.make(devices=1)
  make = importlib.import_module(f'ferjax.methods.{name.split()[0]}').make
  model = getattr(models, case.model)(width=case.width)
  method = make(model, num_classes=CLASSES, **METHODS[name])
  batch = batch | (_neighbours(case) if name.startswith('ldl_alsg') else {})
  example = augment.evaluation({key: jnp.asarray(value[:1]) for key, value in batch.items()})
  params, extra = method.init(jax.random.key(0), example, {'label': np.zeros(ROWS, np.int32)})
  tx, _ = optim.make(params, 1, 1)
  start = core.TrainState(
    jnp.zeros((), jnp.int32), params, tx.init(params), extra, jax.random.key(1)
  )
  train_step = core.make_train_step(method, tx, lambda keys, batch: augment.evaluation(batch), {})
  states, batch = [devices.replicate(start)], devices.shard(batch)
  step = devices.compile(train_step, donate=0).lower(states[0], batch).compile()

  def call():
    state, metrics = step(states.pop(), batch)
    states.append(state)
    return metrics

  parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
  facts = {'flops': step.cost_analysis()['flops'], 'parameters': parameters}
  return measure.jax_turn(call), facts


def host_batch(case: Case) -> dict[str, np.ndarray]:
  """Pictures and labels drawn at random, as they come from the host."""
  rng = np.random.default_rng(0)
  return {
    'image': rng.integers(0, 256, (case.batch, case.size, case.size, 3), np.uint8),
    'label': rng.integers(0, CLASSES, case.batch).astype(np.int32),
    'landmarks': rng.uniform(0, case.size - 1, (case.batch, LANDMARKS, 2)).astype(np.float32),
    'index': rng.permutation(ROWS)[: case.batch].astype(np.int32),
    'position': np.arange(case.batch, dtype=np.int32),
    'pose': rng.integers(0, POSES, case.batch).astype(np.int32),
    'subject': rng.integers(0, 20, case.batch).astype(np.int32),
  }


def _neighbours(case):
  rng = np.random.default_rng(1)
  shape = (case.batch, NEIGHBOURS)
  return {
    'neighbour_image': rng.integers(0, 256, (*shape, case.size, case.size, 3), np.uint8),
    'affinity': rng.random(shape).astype(np.float32),
  }


def table(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
  """Columns for a reader."""
  return {
    'step': [row['case'] for row in rows],
    'method': [row['method'] for row in rows],
    'images/s': [row['images_per_s'] for row in rows],
    'time to softmax': [row['time_to_softmax'] for row in rows],
    'GFLOP': [row['flops'] / 1e9 for row in rows],
    'FLOPs to softmax': [row['flops_to_softmax'] for row in rows],
    'M parameters': [row['parameters'] / 1e6 for row in rows],
  }
