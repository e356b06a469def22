#!/usr/bin/env python3
"""Tests and measures ferjax on one GPU, in eight minutes at most.

  .venv/bin/python launch/gpu.py --out=runs/gpu --torch-python=/path/to/python

In the order of worth: the tests whose results depend on the device; a training step of ResNet-18
and ResNet-50 at 224 px, batch 256, in bfloat16 with augmentation, beside PyTorch (torch.compile,
channels last) in the same run, and LA-Net's; prediction; HRL's step; graphs of 300,000 rows. Each
timed step is also profiled: its costliest operations are listed.

OUT/tests.txt is the tests' output, OUT/results.json and OUT/results.md are the measurements. Both
are written after every part, so whatever ends the script, the parts before are there. A part that
fails does not end the others. What does not fit in --minutes is left out.

--parts=step,graphs runs these parts only. --tiny does all of it in small, on any device, to see
that the script works; such figures say nothing.

Exit code: 0 if every part is done and all tests pass; 1 otherwise, with a list.
"""

import argparse
import os
import shlex
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TESTS = (
  'tests/distributed/test_device.py',
  'tests/data/test_neighbours.py',
  'tests/ops/test_bilinear.py',
  'tests/runs/test_before.py::test_a_model_predicts_what_it_did',
)
TESTS_AT_MOST = 120  # seconds
LEAST = 20  # seconds; a part is not begun with less time left
ROUNDS, TURN = 5, 0.5
TINY = {'model': 'resnet10', 'size': 16, 'batch': 10, 'width': 4}


def parse(argv: list[str]) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    prog='launch/gpu.py', description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('--out', type=Path, required=True, help='the folder for the results')
  parser.add_argument('--torch-python', help='a Python with PyTorch for this GPU')
  parser.add_argument('--minutes', type=float, default=8.0, help='everything together')
  parser.add_argument('--parts', default=','.join(PARTS), help='which parts to run')
  parser.add_argument('--tiny', action='store_true', help='small sizes, on any device')
  options = parser.parse_args(argv)
  options.parts = options.parts.split(',')
  for part in options.parts:
    if part not in PARTS:
      parser.error(f"no part '{part}'; there are: {', '.join(PARTS)}")
  return options


def tests(options: argparse.Namespace, left: float) -> None:
  """Runs the tests on the device, in a process of their own.

  Raises:
    AssertionError: a test failed, or they took too long.
  """
  # float32 products are exact to float32 there: by default a GPU rounds their factors to 10 bits.
  environment = os.environ | {'JAX_DEFAULT_MATMUL_PRECISION': 'highest'}
  if not options.tiny:
    environment['JAX_PLATFORMS'] = 'cuda,cpu'
  command = [sys.executable, '-m', 'pytest', '-p', 'no:cacheprovider', '-rfEs', *TESTS]
  with (options.out / 'tests.txt').open('w') as output:
    try:
      ended = subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        stdout=output,
        stderr=subprocess.STDOUT,
        timeout=min(TESTS_AT_MOST, left),
      )
    except subprocess.TimeoutExpired as error:
      raise AssertionError(f'the tests took longer than {error.timeout:.0f} s') from None
  lines = (options.out / 'tests.txt').read_text().splitlines()
  print(lines[-1] if lines else 'no output', flush=True)
  if ended.returncode:
    raise AssertionError(f'tests failed: see {options.out / "tests.txt"}')


def step_groups(tiny: bool) -> list[list[Any]]:
  """Cases that are timed together, each group with softmax on the same network."""
  from ferjax.benchmark import step

  large = step.Case('resnet18', 224, 256, 'bfloat16', augmented=True)
  deep = large._replace(model='resnet50')
  cases = [large, large._replace(method='lanet'), deep, deep._replace(batch=64, method='hrl')]
  groups = {}
  for case in cases:
    case = case._replace(**TINY) if tiny else case
    groups.setdefault(case._replace(method='softmax'), []).append(case)
  return [list(dict.fromkeys(group)) for group in groups.values()]


def steps(bench, tiny, of_landmark_graphs) -> dict[str, Any]:
  """Rows and tables of the training steps; `of_landmark_graphs`: of HRL alone, or of the others.

  PyTorch takes part where softmax is asked for.
  """
  from ferjax.benchmark import measure, profiler, step

  rows = []
  for group in step_groups(tiny):
    group = [case for case in group if (case.method == 'hrl') is of_landmark_graphs]
    if group:
      asked = any(case.method == 'softmax' for case in group)
      rows += step.run(bench._replace(torch=bench.torch if asked else None), group)
  tables = [step.table(rows), *map(profiler.table, rows)]
  return {'rows': rows, 'tables': [measure.markdown(table) for table in tables]}


def prediction(bench, tiny) -> dict[str, Any]:
  """Rows and table of prediction: from memory and from files."""
  from ferjax.benchmark import measure, predict

  small = {'size': 16, 'model': 'resnet10', 'batch': 8, 'pictures': 16, 'width': 4}
  case = predict.Case(**small) if tiny else predict.Case(224, batch=64, pictures=2000)
  rows = predict.run(bench, (case, case._replace(stored=2 * case.size if tiny else 224)))
  return {'rows': rows, 'tables': [measure.markdown(predict.table(rows))]}


def neighbour_graphs(bench, tiny) -> dict[str, Any]:
  """Rows and table of the graphs. On a GPU ferjax searches exactly, the second of the two times."""
  from ferjax.benchmark import graphs, measure

  rows = graphs.run(bench._replace(rounds=1, rows=1000 if tiny else 300_000))
  return {'rows': rows, 'tables': [measure.markdown(graphs.table(rows))]}


PARTS = {
  'tests': None,  # in a process of their own, and before JAX is started here
  'step': lambda bench, tiny: steps(bench, tiny, False),
  'predict': prediction,
  'hrl': lambda bench, tiny: steps(bench, tiny, True),
  'graphs': neighbour_graphs,
}


def measured(options: argparse.Namespace, attempt: Callable) -> None:
  """Runs the parts that measure, and writes the results after each."""
  import jax

  from ferjax.benchmark import measure, torch_process
  from ferjax.files import replacing, write_json

  if not options.tiny and jax.default_backend() != 'gpu':
    raise AssertionError('JAX sees no GPU: install ferjax[cuda13], or give --tiny')
  with torch_process.start(options.torch_python) as torch:
    rounds, turn = (1, 0.0) if options.tiny else (ROUNDS, TURN)
    bench = measure.Bench(rounds, turn, '', torch, profile=True)
    results = {
      'command': shlex.join(['launch/gpu.py', *options.given]),
      'date': time.strftime('%Y-%m-%d %H:%M:%S'),
      'machine': measure.machine(),
      'versions': measure.versions() | (torch.versions if torch else {}),
    }
    texts = [measure.heading(results)]
    print(texts[0], flush=True)
    for name in options.parts:
      if name == 'tests':
        continue
      found = attempt(name, lambda left, run=PARTS[name]: run(bench, options.tiny))
      if found:
        texts += [f'## {name}', *found['tables']]
        print('\n\n'.join(texts[-len(found['tables']) - 1 :]), flush=True)
        results[name] = found['rows']
        write_json(options.out / 'results.json', results)
        with replacing(options.out / 'results.md') as file:
          file.write('\n\n'.join(texts) + '\n')


def main(argv: list[str]) -> int:
  """Runs the parts; returns the exit code."""
  options = parse(argv)
  options.given = argv
  options.out = options.out.resolve()
  options.out.mkdir(parents=True, exist_ok=True)
  end, wrong = time.monotonic() + 60 * options.minutes, []

  def attempt(name, run):
    left = end - time.monotonic()
    if left < LEAST:
      wrong.append(f'{name}: no time left')
      return None
    began = time.monotonic()
    try:
      found = run(left)
    except Exception as error:  # the other parts still count
      traceback.print_exc()
      wrong.append(f'{name}: {error or type(error).__name__}')
      return None
    print(f'{name}: {time.monotonic() - began:.0f} s', file=sys.stderr, flush=True)
    return found

  if 'tests' in options.parts:
    attempt('tests', lambda left: tests(options, left))
  if options.parts != ['tests']:
    over = threading.Timer(end - time.monotonic(), out_of_time, [options.minutes, wrong])
    over.daemon = True
    over.start()
    attempt('measurements', lambda left: measured(options, attempt))
    over.cancel()
  return report(wrong)


def report(wrong: list[str]) -> int:
  """Prints what is missing; the exit code."""
  for line in wrong:
    print(line, file=sys.stderr, flush=True)
  return 1 if wrong else 0


def out_of_time(minutes: float, wrong: list[str]) -> None:
  """Ends the process, also in the middle of a compilation; the parts that are done are written."""
  report([*wrong, f'stopped after {minutes:g} minutes, in the middle of a part'])
  os._exit(1)


if __name__ == '__main__':
  sys.path.insert(0, str(ROOT))
  # Otherwise JAX reserves most of the memory at its start, and too little is left for PyTorch.
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  sys.exit(main(sys.argv[1:]))
