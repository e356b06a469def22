"""`python -m ferjax.main --config=configs/NAME.py`: trains, goes on, or evaluates."""

import logging
import os
import sys
import time
import traceback
from pathlib import Path

import jax
import ml_collections
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from ferjax.distributed import hosts, parallel
from ferjax.training import loop
from ferjax.errors import InputError
from ferjax.training.logs import NonFiniteError

CONFIG = config_flags.DEFINE_config_file('config', None, 'The config: configs/NAME.py[:VARIANT].')
WORKDIR = flags.DEFINE_string(
  'workdir', None, "The run's folder; one that exists goes on. Default: runs/<config>/<time>."
)
MODE = flags.DEFINE_enum('mode', 'train', ['train', 'eval'], 'What to do.')
CHECKPOINT = flags.DEFINE_string(
  'checkpoint', 'last', 'With --mode=eval: last, best (by validation accuracy), or a step.'
)
COORDINATOR = flags.DEFINE_string(
  'coordinator_address', None, 'Of several processes: HOST:PORT of process 0.'
)
NUM_PROCESSES = flags.DEFINE_integer(
  'num_processes', None, 'Of several processes: how many; 1 for a process alone, wherever it runs.'
)
PROCESS_ID = flags.DEFINE_integer(
  'process_id', None, 'Of several processes: which of them this one is, from 0.'
)
HEARTBEAT = flags.DEFINE_integer(
  'heartbeat_timeout', 100, 'Of several processes: seconds of silence until one counts as dead.'
)


def cache_folder() -> Path:
  """Where ferjax keeps what it can make again: `$XDG_CACHE_HOME/ferjax` or `~/.cache/ferjax`."""
  return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'ferjax'


def keep_programs() -> None:
  """Keeps compiled programs in the cache folder, if no other one is set: small ones too, of which a
  start has many."""
  if not jax.config.jax_compilation_cache_dir:
    jax.config.update('jax_compilation_cache_dir', str(cache_folder() / 'xla'))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)


def find_modules_here() -> None:
  """Lets `config.terms` name functions of the working directory, as under `python -m`, when the
  console script runs."""
  here = os.getcwd()
  if not {'', here} & set(sys.path):
    sys.path.append(here)


def show_messages() -> None:
  """Shows ferjax's own messages as plain lines, and only the errors of the libraries below it."""
  absl_logging.set_verbosity(absl_logging.ERROR)
  logger = logging.getLogger('ferjax')
  if not logger.handlers:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter('%(message)s'))
    logger.addHandler(handler)
  logger.setLevel(logging.INFO)
  logger.propagate = False


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'unexpected argument: {argv[1]}')
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
  parallel.keep_freed_memory()
  train_or_evaluate()
  hosts.wait('end of the command')  # at an exit of its own, JAX waits five minutes for the others


def train_or_evaluate() -> None:
  """What the flags ask for."""
  if MODE.value == 'eval':
    if not WORKDIR.value:
      raise InputError('--mode=eval needs --workdir=RUN, the folder of a trained model')
    from ferjax.assembly import restore  # here, so that training starts without what it imports

    print_sets(restore.evaluate_run(Path(WORKDIR.value), CHECKPOINT.value, config_flag()))
    return
  config = config_flag()
  if config is None:
    raise InputError('give a config, such as --config=configs/softmax.py')
  if not WORKDIR.value and jax.process_count() > 1:
    raise InputError('several processes need --workdir=RUN, a folder that all of them see')
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
  """The three results side by side."""
  for key in ('last', 'best_by_val', 'best_by_test'):
    found = summary[key]
    if found:
      accuracies = '  '.join(
        f'{split} accuracy {100 * found[split]["acc"]:.2f} %'
        for split in ('val', 'test')
        if split in found
      )
      note = '  (chosen on the test set, as in the literature)' if key == 'best_by_test' else ''
      print(f'{key:12}  step {found["step"]:6}  {accuracies}{note}')
  print_sets(summary)


def print_sets(summary) -> None:
  """The accuracy on each of several data sets, and the averages."""
  for name, values in summary.get('sets', {}).items():
    print(f'{name:20}  {values["rows"]:6} rows  accuracy {100 * values["acc"]:.2f} %')
  for group, values in summary.get('averages', {}).items():
    name = f'mean of {group}'
    print(f'{name:20}  {values["sets"]:6} sets  accuracy {100 * values["acc"]:.2f} %')


def parse_flags(argv: list[str]) -> list[str]:
  """Reads the flags.

  Raises:
    InputError: an unknown flag, a value that does not fit, or a `--config.KEY` that the config does
      not have; names the nearest.
  """
  try:
    return flags.FLAGS(argv)
  except flags.Error as error:
    raise InputError(str(error).rpartition('ferjax.errors.InputError: ')[2]) from error
  except (AttributeError, KeyError) as error:
    cause = error.args[0]
    text = cause.args[0] if isinstance(cause, KeyError) else cause
    raise InputError(f'the config has no key {text}') from error


def config_flag() -> ml_collections.ConfigDict | None:
  """The value of `--config`.

  Raises:
    InputError: there is no such file, or it cannot be read.
  """
  config = CONFIG.value
  try:
    if config is not None:
      config.to_dict()  # a config that could not be loaded raises at its first use
  except OSError as error:
    raise InputError(str(error).partition(': ')[2]) from error
  return config


def run() -> None:
  """The console script: mistakes that a user can mend are told in a line, without a traceback."""
  try:
    app.run(main, flags_parser=parse_flags)
  except (InputError, NonFiniteError) as error:
    hosts.abandon(f'ferjax: {error}')
    sys.exit(f'ferjax: {error}')
  except (Exception, KeyboardInterrupt):
    hosts.abandon(traceback.format_exc())
    raise


if __name__ == '__main__':
  run()
