"""Times several sides in turn, and describes the machine and the results."""

import importlib.metadata
import math
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tabulate import tabulate

from ferjax.benchmark.torch_process import TorchProcess

MOST_CALLS = 1000  # in a turn
PAUSE = 0.02  # seconds between turns, in which idle threads of the last side stop spinning
MIB = 2**20
PACKAGES = ('ferjax', 'jax', 'jaxlib', 'flax', 'optax', 'numpy', 'scikit-learn', 'faiss-cpu')

Turn = Callable[[int], tuple[float, float]]


class Bench(NamedTuple):
  """What every benchmark needs.

  Attributes:
    rounds: How many turns each side gets.
    turn: Least length of a turn, seconds.
    only: Only cases whose name contains this text are run.
    torch: PyTorch in another process, or None.
    rows: Rows of the tables that are searched.
    profile: Whether the operations of training steps are measured.
  """

  rounds: int
  turn: float
  only: str
  torch: TorchProcess | None
  rows: int = 30_000
  profile: bool = False


def on_cpu(bench: Bench) -> Bench:
  """The same without PyTorch where JAX does not run on a CPU: most of the counterparts run on CPUs
  only."""
  return bench if jax.default_backend() == 'cpu' else bench._replace(torch=None)


def each(
  name: str, cases: Sequence[Any], row: Callable[[Any, Bench], dict[str, Any]], bench: Bench
) -> list[dict[str, Any]]:
  """row(case, bench) of the cases whose name contains `bench.only`; prints the name of each case
  before it runs."""
  rows = []
  for case in cases:
    if bench.only in case.name:
      progress(f'{name}: {case.name}')
      rows.append(row(case, bench))
  return rows


def jax_turn(call: Callable[[], Any]) -> Turn:
  """Times `call` until the JAX arrays that it returns are there: calls -> wall seconds, CPU seconds
  of the process."""

  def turn(calls):
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(calls):
      jax.block_until_ready(call())
    return time.perf_counter() - wall, time.process_time() - cpu

  return turn


def interleave(
  sides: Mapping[str, Turn], bench: Bench, calls: int = 0
) -> dict[str, dict[str, Any]]:
  """Times all sides in turn, A B C A B C, so that other work on the machine slows all of them.

  Args:
    sides: Name -> turn(calls) -> wall seconds, CPU seconds of them all.
    bench: Rounds and length of the turns.
    calls: Calls in a turn, without a warm-up; 0 for as many as fill the turn, after a warm-up.

  Returns:
    For each side, of one call: `median_ms`, `quartiles_ms` and `cpu_ms` (median of the process's
    CPU time) over the rounds, `faults` (median of this process's page faults; 0 for a side in
    another process), and `calls` in a turn.
  """
  counts = {name: calls or _calls(turn, bench) for name, turn in sides.items()}
  seconds, faults = {name: [] for name in sides}, {name: [] for name in sides}
  for _ in range(bench.rounds):
    for name, turn in sides.items():
      time.sleep(PAUSE)
      before = page_faults()
      seconds[name].append(np.array(turn(counts[name])) / counts[name])
      faults[name].append((page_faults() - before) / counts[name])
  return {
    name: summary(seconds[name]) | {'faults': float(np.median(faults[name])), 'calls': counts[name]}
    for name in sides
  }


def page_faults() -> int:
  """Minor page faults of this process so far."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def _calls(turn, bench):
  turn(1)
  wall, _ = turn(1)
  return min(MOST_CALLS, max(1, math.ceil(bench.turn / max(wall, 1e-9))))


def summary(seconds: Sequence[tuple[float, float]]) -> dict[str, Any]:
  """Median and quartiles, in ms, of (wall, CPU) seconds."""
  wall, cpu = 1000 * np.array(seconds).T
  return {
    'median_ms': float(np.median(wall)),
    'quartiles_ms': [float(q) for q in np.percentile(wall, (25, 75))],
    'cpu_ms': float(np.median(cpu)),
  }


def ratio(sides: Mapping[str, dict], other: str, key: str = 'median_ms') -> float | None:
  """How many times faster ferjax is than another side, or None where the other did not run."""
  return sides[other][key] / sides['ferjax'][key] if other in sides else None


def sizes(arrays: Any) -> list[float]:
  """Mean absolute value of each array of a pytree: equal for sides that do the same work."""
  return [float(jnp.abs(leaf).mean()) for leaf in jax.tree.leaves(arrays)]


def check_equal(sizes: Mapping[str, Sequence[float]], name: str) -> None:
  """Checks that all sides have the `sizes` of the first one.

  Raises:
    AssertionError: names the case.
  """
  first, *others = sizes.values()
  for found in others:
    np.testing.assert_allclose(found, first, rtol=1e-3, err_msg=name)


def column(rows: Sequence[Mapping[str, Any]], side: str, key: str = 'median_ms') -> list[Any]:
  """The value of a key of one side in every row; None where that side did not run."""
  return [row[side][key] if side in row else None for row in rows]


def spread(rows: Sequence[Mapping[str, Any]], side: str) -> list[str | None]:
  """Both quartiles of one side's time in every row, in % of the median."""

  def text(found):
    low, high = (100 * q / found['median_ms'] for q in found['quartiles_ms'])
    return f'{low:.0f}-{high:.0f}'

  return [text(row[side]) if side in row else None for row in rows]


def matmul_rate(bench: Bench, size: int = 2048) -> float:
  """FLOPs per second of the faster side in a float32 product of square matrices."""
  a = jnp.asarray(np.random.default_rng(0).normal(size=(size, size)), jnp.float32)
  multiply = jax.jit(jnp.matmul)
  sides = {'ferjax': jax_turn(lambda: multiply(a, a))}
  if bench.torch:
    bench.torch.ask(do='matmul', size=size)
    sides['torch'] = bench.torch.turn
  fastest = min(side['median_ms'] for side in interleave(sides, bench).values())
  return 2 * size**3 / (fastest / 1000)


def cores() -> int:
  """How many cores this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


def machine() -> dict[str, Any]:
  """The devices, the processor and its load."""
  info = Path('/proc/cpuinfo')
  lines = info.read_text(encoding='utf-8').splitlines() if info.is_file() else []
  models = [line.partition(': ')[2] for line in lines if line.startswith('model name')]
  return {
    'processor': models[0] if models else platform.processor(),
    'cores': cores(),
    'load': os.getloadavg()[0] if hasattr(os, 'getloadavg') else None,
    'platform': platform.platform(),
    'devices': sorted({device.device_kind for device in jax.devices()}),
  }


def versions() -> dict[str, str]:
  """Versions of Python and of the packages that determine the speed."""
  found = {distribution.name for distribution in importlib.metadata.distributions()}
  packages = {name: importlib.metadata.version(name) for name in PACKAGES if name in found}
  return {'python': platform.python_version(), **packages}


def heading(results: Mapping[str, Any]) -> str:
  """Command, machine and versions in three lines."""
  facts, packages = results['machine'], results['versions']
  load = '' if facts['load'] is None else f', load {facts["load"]:.1f} before the run'
  return (
    f'`{results["command"]}`\n'
    f'{facts["processor"]}, {facts["cores"]} cores, devices: {", ".join(facts["devices"])}{load}\n'
    + ', '.join(f'{name} {version}' for name, version in packages.items())
    + f'; {results["date"]}'
  )


def markdown(columns: Mapping[str, Sequence[Any]]) -> str:
  """A table of {heading: cells}: numbers with three digits and to the right, None as a dash."""
  return tabulate(
    {name: [_cell(value) for value in column] for name, column in columns.items()},
    headers='keys',
    tablefmt='pipe',
    disable_numparse=True,
    colalign=[
      'left' if any(isinstance(value, str) for value in column) else 'right'
      for column in columns.values()
    ],
  )


def over_launches(tables: Sequence[Mapping[str, Sequence[Any]]]) -> dict[str, list[Any]]:
  """One table {heading: cells} of those of several launches: of each number the median, and in
  brackets the least and the greatest."""
  return {
    name: [_over(cells) for cells in zip(*(table[name] for table in tables), strict=True)]
    for name in tables[0]
  }


def _over(cells):
  if not all(isinstance(cell, float) for cell in cells) or len(set(cells)) == 1:
    return cells[0]
  return f'{_cell(float(np.median(cells)))} ({_cell(min(cells))}-{_cell(max(cells))})'


def _cell(value):
  if value is None:
    return '-'
  if isinstance(value, float):
    return f'{value:.0f}' if abs(value) >= 100 else f'{value:#.3g}'.rstrip('.')
  return str(value)


def progress(text: str) -> None:
  """A line on stderr that shows how far a long run is."""
  print(text, file=sys.stderr, flush=True)
