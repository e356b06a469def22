"""Runs benchmarks, prints Markdown tables and saves JSON: `ferjax benchmark [name ...]`."""

import argparse
import importlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ferjax.benchmark import measure, profiler, torch_process
from ferjax.cli import console
from ferjax.errors import InputError, nearest
from ferjax.files import write_json

OPS = ('conv', 'bilinear', 'lgmp', 'losses')
NAMES = ('step', 'ops', 'input', 'graphs', 'evaluate', 'predict', 'start')


def parse(argv: list[str]) -> argparse.Namespace:
  parser = argparse.ArgumentParser(prog='ferjax benchmark', description=__doc__)
  names = f'benchmarks: {", ".join(NAMES)}; all by default. ops is {", ".join(OPS)}'
  parser.add_argument('names', nargs='*', help=names)
  parser.add_argument('--against', choices=['torch'], help='also time the same in PyTorch')
  python = 'the Python that has PyTorch, if not this one; implies --against=torch'
  parser.add_argument('--torch-python', help=python)
  parser.add_argument('--out', type=Path, help='a file for all results, as JSON')
  parser.add_argument('--only', default='', help='only cases whose name contains this text')
  parser.add_argument('--rounds', type=int, default=7, help='number of turns of each side')
  parser.add_argument('--turn', type=float, default=0.5, help='least seconds of a turn')
  parser.add_argument('--rows', type=int, default=30_000, help='rows for graphs and evaluate')
  launches = 'processes one after another, whose medians and ranges are printed'
  parser.add_argument('--launches', type=int, default=1, help=launches)
  costliest = 'step: also the costliest operations, by the profiler'
  parser.add_argument('--profile', action='store_true', help=costliest)
  return parser.parse_args(argv)


def main(argv: list[str]) -> dict | list[dict]:
  """Runs the benchmarks that the arguments name.

  Returns:
    The content of `--out`: `command`, `date`, `machine`, `versions`, `settings` and the rows of
    each benchmark; of several launches, a list of the contents of each.

  Raises:
    InputError: a benchmark is unknown, there is nothing to time or no folder for the results, or
      the Python lacks PyTorch.
  """
  options = parse(argv)
  known = [*NAMES, *OPS]
  for name in options.names:
    if name not in known:
      raise InputError(
        f"no benchmark '{name}'.{nearest(name, known)} There are: {', '.join(NAMES)}"
      )
  files = [file for name in options.names or NAMES for file in (OPS if name == 'ops' else (name,))]
  if options.rows < 100:
    raise InputError('--rows must be at least 100')
  if options.rounds < 1 or options.turn < 0:
    raise InputError('--rounds must be at least 1 and --turn at least 0')
  if options.out and not options.out.parent.is_dir():
    raise InputError(f'--out={options.out}: there is no folder {options.out.parent}')
  if options.launches < 1:
    raise InputError('--launches must be at least 1')
  if options.launches > 1:
    return _launch(argv, options, files)
  python = options.torch_python or (sys.executable if options.against else None)
  with torch_process.start(python) as torch:
    bench = measure.Bench(
      options.rounds, options.turn, options.only, torch, options.rows, options.profile
    )
    results = {
      'command': shlex.join(['ferjax', 'benchmark', *argv]),
      'date': time.strftime('%Y-%m-%d %H:%M:%S'),
      'machine': measure.machine(),
      'versions': measure.versions() | (torch.versions if torch else {}),
      'settings': {'rounds': options.rounds, 'turn_s': options.turn, 'rows': options.rows},
    }
    print(measure.heading(results), flush=True)
    for file in files:
      benchmark = importlib.import_module(f'ferjax.benchmark.{file}')
      rows = benchmark.run(bench)
      if not rows:
        continue
      results[file] = rows
      print(f'\n## {file}\n\n{measure.markdown(benchmark.table(rows))}', flush=True)
      for row in rows if options.profile and file == 'step' else ():
        print(f'\n{measure.markdown(profiler.table(row))}', flush=True)
      if options.out:
        write_json(options.out, results)
  if not results.keys() & set(files):
    raise InputError(f'--only={options.only}: no such case in {", ".join(files)}')
  return results


def _launch(argv: list[str], options: argparse.Namespace, files: list[str]) -> list[dict]:
  """Runs the command in several processes, and prints their tables as one."""
  launches = []
  with tempfile.TemporaryDirectory() as folder:
    out = Path(folder) / 'results.json'
    once = [sys.executable, '-m', 'ferjax', 'benchmark', *argv, '--launches=1', f'--out={out}']
    for number in range(options.launches):
      measure.progress(f'launch {number + 1} of {options.launches}')
      if subprocess.run(once, stdout=subprocess.DEVNULL).returncode:
        raise InputError(f'launch {number + 1} failed; its message is above')
      launches.append(json.loads(out.read_text(encoding='utf-8')))
      if options.out:
        write_json(options.out, launches)
  print(measure.heading(launches[0] | {'command': shlex.join(['ferjax', 'benchmark', *argv])}))
  for file in files:
    if file in launches[0]:
      benchmark = importlib.import_module(f'ferjax.benchmark.{file}')
      tables = [benchmark.table(launch[file]) for launch in launches]
      print(f'\n## {file}\n\n{measure.markdown(measure.over_launches(tables))}', flush=True)
  return launches


def run(argv: list[str]) -> None:
  """Runs the command in its own process."""
  # Otherwise JAX reserves most of a GPU's memory at its start, and too little is left for PyTorch.
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  console.keep_freed_memory()
  main(argv)
