"""Start-up time: imports compared with JAX's own, and the time to the first step of training.

Each start is a new process, and the kinds take turns. `python -m ferjax.main` with the demo's
config is stopped when it reports its first step. This is done three times in a row: with an empty
cache folder, with the prepared data set, and with the compiled programs too.
"""

import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from ferjax.benchmark import measure

IMPORTS = ('jax', 'ferjax', 'ferjax.main')
MOST_STARTS = 3  # most rounds of whole starts
HEAVIEST = 8
CONFIG = """
from ferjax.config import base

def get_config():
  config = base()
  config.log_every = 1
  return config
"""
TRAINS = (sys.executable, '-m', 'ferjax.main')
FIRST = 'step 1/'


def run(bench: measure.Bench) -> list[dict[str, Any]]:
  """A row for each kind of start.

  All imports are timed together if `bench.only` is in the name of one of them; likewise all starts.
  Each row has `start`, its times as in `measure.interleave`, and `compared`, its median divided by
  that of the first row of its kind. Rows of imports have `heaviest`, milliseconds by package,
  without the imports inside the package.
  """
  rows = []
  sides = {f'import {name}': _imports(name) for name in IMPORTS}
  if any(bench.only in name for name in sides):
    measure.progress('start: imports')
    rows += _rows(measure.interleave(sides, bench))
    for row, name in zip(rows, IMPORTS, strict=True):
      row['heaviest'] = heaviest(name)
  with tempfile.TemporaryDirectory() as folder:
    sides = _starts(Path(folder))
    if any(bench.only in name for name in sides):
      few = bench._replace(rounds=min(bench.rounds, MOST_STARTS))
      rows += _rows(measure.interleave(sides, few, calls=1))
  return rows


def _rows(timed):
  first = next(iter(timed.values()))
  return [
    {'case': name, 'start': side, 'compared': side['median_ms'] / first['median_ms']}
    for name, side in timed.items()
  ]


def _imports(name):
  command = [sys.executable, '-c', f'import {name}']

  def turn(calls):
    return np.sum([_timed(command, '') for _ in range(calls)], 0)

  return turn


def _timed(command, until, **environment):
  """Wall and CPU seconds from the start of a process to the line on stderr that begins with
  `until`, or to the end of the process if `until` is empty."""
  used, began, lines = _cpu_of_children(), time.perf_counter(), []
  streams = {'stdout': subprocess.DEVNULL, 'stderr': subprocess.PIPE, 'text': True}
  with subprocess.Popen(command, **streams, env=os.environ | environment) as process:
    for line in process.stderr:
      lines.append(line)
      if until and line.startswith(until):
        process.kill()
        break
    wall = time.perf_counter() - began
  if process.returncode != (-signal.SIGKILL if until else 0):
    raise RuntimeError(f'{" ".join(command)} failed: {"".join(lines[-20:])}')
  return wall, _cpu_of_children() - used


def _cpu_of_children():
  """CPU seconds of all child processes that have ended."""
  used = resource.getrusage(resource.RUSAGE_CHILDREN)
  return used.ru_utime + used.ru_stime


def heaviest(name: str) -> dict[str, float]:
  """The packages in which the import of a module spends most time, in ms, without the time of the
  imports inside them; measured by `python -X importtime`."""
  command = [sys.executable, '-X', 'importtime', '-c', f'import {name}']
  log = subprocess.run(command, check=True, capture_output=True, text=True).stderr
  spent = Counter()
  for line in log.splitlines():
    own, _, module = line.removeprefix('import time:').split('|')
    if own.strip().isdigit():
      spent[module.strip().partition('.')[0]] += int(own) / 1000
  return dict(spent.most_common(HEAVIEST))


def _starts(folder):
  """Turns in which each kind leaves the cache in the state that the next kind needs."""
  config, cache, workdir = folder / 'demo.py', folder / 'cache', folder / 'run'
  config.write_text(CONFIG)
  command = [*TRAINS, f'--config={config}', f'--workdir={workdir}']
  places = {
    'XDG_CACHE_HOME': str(cache),
    'TFDS_DATA_DIR': str(cache / 'tensorflow_datasets'),
    'JAX_COMPILATION_CACHE_DIR': '',
  }

  def without(part):
    def turn(calls):
      for path in (part, workdir):
        shutil.rmtree(path, ignore_errors=True)
      return _timed(command, FIRST, **places)

    return turn

  return {
    'first step, nothing cached': without(cache),
    'first step, data set there': without(cache / 'ferjax' / 'xla'),
    'first step, programs too': without(workdir),
  }


def table(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
  """Columns for printing. The quartiles are of the time, in % of its median."""
  return {
    'start': [row['case'] for row in rows],
    's': [row['start']['median_ms'] / 1000 for row in rows],
    'CPU, s': [row['start']['cpu_ms'] / 1000 for row in rows],
    'quartiles': measure.spread(rows, 'start'),
    'to the first of its kind': [row['compared'] for row in rows],
    'heaviest packages, ms': [
      ', '.join(f'{name} {ms:.0f}' for name, ms in row.get('heaviest', {}).items()) for row in rows
    ],
  }
