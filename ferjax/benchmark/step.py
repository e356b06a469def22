"""The training step of the softmax method, beside native convolutions and PyTorch.

All sides train the same ResNet with Adam on the same uint8 pictures, which come from the host and
are only normalised. Our step also computes the norms that ferjax logs; PyTorch's does not.
"""

import contextlib
import time
from typing import Any, NamedTuple
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ferjax import core, models, optim, parallel
from ferjax.benchmark import measure
from ferjax.data import augment
from ferjax.methods import softmax
from ferjax.ops import conv

MOST_COMPILATIONS = 3
MIB = 2**20


class Case(NamedTuple):
  """A network and its input."""

  model: str
  size: int
  batch: int = 32
  width: int = 64
  num_classes: int = 7

  @property
  def name(self) -> str:
    return f'{self.model}, {self.size} px, batch {self.batch}'


CASES = (Case('resnet18', 64), Case('resnet18', 112), Case('resnet50', 112))


@contextlib.contextmanager
def native_convolutions():
  """Networks traced in this block have XLA's own convolutions and max-pooling."""
  with (
    mock.patch.object(conv, 'conv_general_dilated', lax.conv_general_dilated),
    mock.patch.object(conv, 'max_pool', nn.max_pool),
  ):
    yield


CONVOLUTIONS = {'ferjax': contextlib.nullcontext, 'native': native_convolutions}


def run(bench: measure.Bench, cases: tuple[Case, ...] = CASES) -> list[dict[str, Any]]:
  """A row for each case: the sides `ferjax`, `native` and `torch`, and ratios.

  A side has `images_per_s`, the time of a step as in `measure.interleave`, `memory_mb`, and ours
  `compile`, the time of tracing and compilation. `memory_mb` is what XLA's plan says, and for
  PyTorch the growth of its process while it trains.
  """
  rows = []
  for case in cases:
    if bench.only in case.name:
      measure.progress(f'step: {case.name}')
      rows.append(_row(case, bench))
  return rows


def _row(case, bench):
  devices = parallel.make(devices=1)
  method, state = _start(case)
  batch = devices.shard(_host_batch(case))
  steps, compilations = {}, {name: [] for name in CONVOLUTIONS}
  for _ in range(min(bench.rounds, MOST_COMPILATIONS)):
    for name, convolutions in CONVOLUTIONS.items():
      measure.progress(f'  compiles: {name}')
      with convolutions():
        steps[name], seconds = _compile(devices, method, state, batch)
      compilations[name].append(seconds)
  sides = {
    name: measure.jax_turn(_call(step, devices.replicate(state), batch))
    for name, step in steps.items()
  }
  memory = {name: _memory(step) for name, step in steps.items()}
  if bench.torch:
    parameters = bench.torch.ask(do='step', case=case._asdict())['parameters']
    if parameters != sum(leaf.size for leaf in jax.tree.leaves(state.params)):
      raise AssertionError(f'{case.name}: PyTorch has {parameters} parameters')
    sides['torch'] = bench.torch.turn
  measure.progress('  trains')
  timed = measure.interleave(sides, bench)
  if bench.torch:
    memory['torch'] = bench.torch.ask(do='memory')['bytes'] / MIB
  for name, side in timed.items():
    side['images_per_s'] = case.batch / (side['median_ms'] / 1000)
    side['memory_mb'] = memory[name]
    if name in compilations:
      side['compile'] = measure.summary(compilations[name])
  compiled = [timed[name]['compile']['median_ms'] for name in ('ferjax', 'native')]
  return {
    'case': case.name,
    **case._asdict(),
    **timed,
    'faster_than_native': measure.ratio(timed, 'native'),
    'faster_than_torch': measure.ratio(timed, 'torch'),
    'cpu_less_than_torch': measure.ratio(timed, 'torch', 'cpu_ms'),
    'compile_ratio': compiled[0] / compiled[1],
  }


def _start(case):
  """The method and its first state."""
  model = getattr(models, case.model)(width=case.width)
  method = softmax.make(model, num_classes=case.num_classes)
  example = {'image': jnp.zeros((1, case.size, case.size, 3))}
  params, extra = method.init(jax.random.key(0), example, {})
  tx, _ = optim.make(params, 1, 1)
  step = jnp.zeros((), jnp.int32)
  return method, core.TrainState(step, params, tx.init(params), extra, jax.random.key(1))


def _host_batch(case):
  rng = np.random.default_rng(0)
  return {
    'image': rng.integers(0, 256, (case.batch, case.size, case.size, 3), np.uint8),
    'label': rng.integers(0, case.num_classes, case.batch).astype(np.int32),
    'position': np.arange(case.batch, dtype=np.int32),
  }


def _compile(devices, method, state, batch):
  """The compiled step, and the (wall, CPU) seconds that it took, without any cache."""
  tx, _ = optim.make(state.params, 1, 1)
  train_step = core.make_train_step(method, tx, lambda keys, batch: augment.evaluation(batch), {})
  compiled = devices.compile(train_step, donate=0)
  state = devices.replicate(state)
  jax.clear_caches()
  with _no_compilation_cache():
    wall, cpu = time.perf_counter(), time.process_time()
    step = compiled.lower(state, batch).compile()
    return step, (time.perf_counter() - wall, time.process_time() - cpu)


@contextlib.contextmanager
def _no_compilation_cache():
  enabled = jax.config.jax_enable_compilation_cache
  jax.config.update('jax_enable_compilation_cache', False)
  try:
    yield
  finally:
    jax.config.update('jax_enable_compilation_cache', enabled)


def _call(step, state, batch):
  """() -> metrics, with the state going on from call to call."""
  states = [jax.tree.map(jnp.copy, state)]

  def call():
    state, metrics = step(states.pop(), batch)
    states.append(state)
    return state, metrics

  return call


def _memory(step):
  """Arguments, results and temporaries of a compiled step in MiB, or None if XLA does not say."""
  analysis = step.memory_analysis()
  if analysis is None:
    return None
  results = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
  return (analysis.argument_size_in_bytes + results + analysis.temp_size_in_bytes) / MIB


def table(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
  """Columns for a reader."""

  def column(side, *keys):
    found = []
    for row in rows:
      value = row.get(side)
      for key in keys:
        value = value and value[key]
      found.append(value)
    return found

  sides = {'native XLA': 'native', 'ferjax': 'ferjax', 'PyTorch': 'torch'}
  return {
    'step': [row['case'] for row in rows],
    **{f'{name}, images/s': column(side, 'images_per_s') for name, side in sides.items()},
    'ferjax / native': [row['faster_than_native'] for row in rows],
    'ferjax / PyTorch': [row['faster_than_torch'] for row in rows],
    'ferjax, CPU s': [ms / 1000 for ms in column('ferjax', 'cpu_ms')],
    'PyTorch, CPU s': [ms and ms / 1000 for ms in column('torch', 'cpu_ms')],
    'compile, s': [ms / 1000 for ms in column('ferjax', 'compile', 'median_ms')],
    'to native': [row['compile_ratio'] for row in rows],
    'ferjax, MiB': column('ferjax', 'memory_mb'),
    'PyTorch, MiB': column('torch', 'memory_mb'),
  }
