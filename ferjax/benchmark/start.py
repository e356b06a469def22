"""How soon a start gets somewhere: imports beside JAX's own, and the first step of training.

Each start is a fresh process; the kinds take turns. `python -m ferjax.main` with the demo's config
is ended as soon as it reports its first step, three times in a row: in an empty cache folder, with
the data set prepared, and with the compiled programs there too.
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
MOST_STARTS = 3  # rounds of whole starts
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

  Imports are timed together where `bench.only` is in the name of one, and so are starts. Each row
  has `start`, its times as in `measure.interleave`, and `compared`, its median over that of
  the first of its kind. `heaviest`, of the imports, are milliseconds by package, those of what it
  imports left out.
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
  """Wall and CPU seconds from the start of a process to the line on stderr that begins with a text,
  or to its end where that is empty."""
  used, began, said = _cpu_of_children(), time.perf_counter(), []
  streams = {'stdout': subprocess.DEVNULL, 'stderr': subprocess.PIPE, 'text': True}
  with subprocess.Popen(command, **streams, env=os.environ | environment) as process:
    for line in process.stderr:
      said.append(line)
      if until and line.startswith(until):
        process.kill()
        break
    wall = time.perf_counter() - began
  if process.returncode != (-signal.SIGKILL if until else 0):
    raise RuntimeError(f'{" ".join(command)} failed: {"".join(said[-20:])}')
  return wall, _cpu_of_children() - used


def _cpu_of_children():
  """CPU seconds of the processes that were started here and have ended."""
  used = resource.getrusage(resource.RUSAGE_CHILDREN)
  return used.ru_utime + used.ru_stime


def heaviest(name: str) -> dict[str, float]:
  """The packages that the import of a module spends most time in, in ms, without those that they
  import in turn; by `python -X importtime`."""
  command = [sys.executable, '-X', 'importtime', '-c', f'import {name}']
  said = subprocess.run(command, check=True, capture_output=True, text=True).stderr
  spent = Counter()
  for line in said.splitlines():
    own, _, module = line.removeprefix('import time:').split('|')
    if own.strip().isdigit():
      spent[module.strip().partition('.')[0]] += int(own) / 1000
  return dict(spent.most_common(HEAVIEST))


def _starts(folder):
  """Each kind leaves the cache as the next one needs it."""
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
  """Columns for a reader; quartiles are of the time, in % of its median."""
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
