"""Trains a model, continues a run, or evaluates it: `python -m ferjax.main --config=FILE.py`."""

import logging
import os
import sys
import time
import traceback
from pathlib import Path

import jax
from absl import app, flags
from ml_collections import config_flags

from ferjax.cli import console
from ferjax.cli.console import find_modules_here, keep_programs, show_messages
from ferjax.cli.flags import config_flag, parse_flags
from ferjax.distributed import hosts, parallel
from ferjax.errors import InputError
from ferjax.training import loop
from ferjax.training.logs import NonFiniteError

WORKDIR = flags.DEFINE_string(
  'workdir', None, "The run's folder; an existing run continues. Default: runs/<config>/<time>."
)
MODE = flags.DEFINE_enum('mode', 'train', ['train', 'eval'], 'Train, or evaluate a trained model.')
CHECKPOINT = flags.DEFINE_string(
  'checkpoint', 'last', 'With --mode=eval: last, best (by validation accuracy), or a step.'
)
COORDINATOR = flags.DEFINE_string(
  'coordinator_address', None, 'With several processes: HOST:PORT of process 0.'
)
NUM_PROCESSES = flags.DEFINE_integer(
  'num_processes', None, 'The number of processes; 1 for a single process, also on a cluster.'
)
PROCESS_ID = flags.DEFINE_integer(
  'process_id', None, 'With several processes: the number of this process, from 0.'
)
HEARTBEAT = flags.DEFINE_integer(
  'heartbeat_timeout', 100, 'With several processes: seconds of silence until one counts as dead.'
)


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise InputError(f"unexpected argument '{argv[1]}': flags begin with --, such as --config=FILE")
  console.keep_freed_memory()
  show_messages()
  find_modules_here()
  hosts.connect(
    coordinator_address=COORDINATOR.value,
    num_processes=NUM_PROCESSES.value,
    process_id=PROCESS_ID.value,
    heartbeat_timeout=HEARTBEAT.value,
  )
  if not parallel.first_process():
    logging.getLogger('ferjax').setLevel(logging.ERROR)
  keep_programs()
  train_or_evaluate()
  hosts.wait('end of the command')  # at exit, JAX itself waits only five minutes for the others


def train_or_evaluate() -> None:
  """Trains or evaluates, depending on the flags."""
  if MODE.value == 'eval':
    if not WORKDIR.value:
      raise InputError('give --workdir=RUN, the folder of the trained model to evaluate')
    from ferjax.evaluation import evaluate  # imported here: training starts without its libraries

    print_evaluation(evaluate.evaluate_run(Path(WORKDIR.value), CHECKPOINT.value, config_flag()))
    return
  config = config_flag()
  if config is None:
    raise InputError('give a config, such as --config=configs/softmax.py')
  if not WORKDIR.value and jax.process_count() > 1:
    raise InputError('give --workdir=RUN, a folder that all of the processes see')
  workdir = Path(WORKDIR.value or _new_workdir())
  if parallel.first_process():
    print(f'workdir: {workdir}')
  summary = loop.train(config, workdir)
  if summary:
    print_summary(summary)


def _new_workdir() -> str:
  path, _, variant = config_flags.get_config_filename(flags.FLAGS['config']).partition(':')
  name = Path(path).stem + (f'-{variant}' if variant else '')
  return f'runs/{name}/{time.strftime("%Y%m%d-%H%M%S")}'


def print_summary(summary) -> None:
  """Prints the last result, the mean of the last five, and the two best ones."""
  for key in ('last', 'mean_last_5', 'best_by_val', 'best_by_test'):
    found = summary[key]
    if found:
      accuracies = '  '.join(
        f'{split} accuracy {100 * found[split]["acc"]:.2f} %'
        for split in ('val', 'test')
        if split in found
      )
      note = '  (chosen on the test set, as in the literature)' if key == 'best_by_test' else ''
      print(f'{key:12}  step {found["step"]:6}  {accuracies}{note}')
    elif key == 'best_by_val' and summary['last']:
      print(f'{key:12}  none: there are no validation rows')
  print_sets(summary)


def print_evaluation(summary) -> None:
  """Prints the accuracy on each split, and on each of several data sets."""
  for name, values in summary.items():
    if isinstance(values, dict) and 'acc' in values:
      print(f'{name:20}  accuracy {100 * values["acc"]:.2f} %')
  print_sets(summary)


def print_sets(summary) -> None:
  """Prints the accuracy on each of several data sets, and the averages."""
  for name, values in summary.get('sets', {}).items():
    print(f'{name:20}  {values["rows"]:6} rows  accuracy {100 * values["acc"]:.2f} %')
  for group, values in summary.get('averages', {}).items():
    name = f'mean of {group}'
    print(f'{name:20}  {values["sets"]:6} sets  accuracy {100 * values["acc"]:.2f} %')


def run(argv: list[str] | None = None) -> None:
  """Runs the command. Errors that a user can correct are printed to stderr without a traceback.

  Args:
    argv: The program's name and its flags; None for those of this process.
  """
  try:
    app.run(main, argv, flags_parser=parse_flags)
  except (InputError, NonFiniteError) as error:
    hosts.abandon(f'ferjax: {error}')
    sys.exit(f'ferjax: {error}')
  except KeyboardInterrupt:
    hosts.abandon('ferjax: interrupted')
    print('ferjax: interrupted', file=sys.stderr, flush=True)
    os._exit(130)  # XLA's threads may still compile, which a normal exit does not survive
  except Exception:
    hosts.abandon(traceback.format_exc())
    raise


if __name__ == '__main__':
  run()
