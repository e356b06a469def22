"""`config.json`: what a run was started with, and whether it may go on."""

import importlib.metadata
import json
import logging
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import ml_collections

from ferjax.config import base, flat, plain
from ferjax.errors import InputError
from ferjax.files import write_json
from ferjax.runs import checkpoint

LOGGER = logging.getLogger(__name__)


PACKAGES = ('ferjax', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy')


# Where a run lies, how fast it goes, how long it lasts: the rest decides what it computes.
FREE_TO_CHANGE = (
  'data.dir',
  'data.manual_dir',
  'parallel.',
  'reading.',
  'profile.',
  'early_stop.',
)


LENGTHS = ('epochs', 'steps')


def make(config: ml_collections.ConfigDict, facts: Mapping[str, Any]) -> dict[str, Any]:
  """What `config.json` holds: the config, versions, git revision, devices and further facts.

  Args:
    config: The resolved config.
    facts: At least `steps`, the length of the run; `fingerprint` and `labels_sha256` of its data.
  """
  return {
    'config': plain(config),
    'versions': {name: importlib.metadata.version(name) for name in PACKAGES},
    'git_revision': git_revision(),
    'process_count': jax.process_count(),
    'device_count': jax.device_count(),
    'local_device_count': jax.local_device_count(),
    'device_kind': jax.devices()[0].device_kind,
    **facts,
  }


def write(workdir: Path, record: Mapping[str, Any]) -> None:
  """Writes `config.json`.

  Where a run has saved something already, checks that it may go on with this config: only keys that
  lengthen the run, or that cannot change its result, may differ. Different versions give a warning.

  Args:
    workdir: The run's folder.
    record: See `make`.

  Raises:
    InputError: names the keys that differ, or the folder cannot be written.
  """
  if checkpoint.exist(workdir):
    old = read(workdir)
    check_same_run(old, record, workdir)
    record = {**old, **record}  # with what only the start of a run knows, such as its weights
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(workdir / 'config.json', record)
  except OSError as error:
    raise InputError(f'cannot write to --workdir={workdir}: {error}') from error


def read(workdir: Path) -> dict[str, Any]:
  """The `config.json` of a run.

  Raises:
    InputError: there is none, or it is not what `write` wrote.
  """
  path = Path(workdir) / 'config.json'
  try:
    record = json.loads(path.read_text(encoding='utf-8'))
    lacking = {'config', 'classes', 'steps', 'fingerprint', 'labels_sha256'} - set(record)
  except FileNotFoundError:
    raise InputError(f'{workdir} is no run: it has no config.json') from None
  except OSError as error:
    raise InputError(f'{workdir} is no folder of a run: {error.strerror}') from error
  except (ValueError, TypeError) as error:
    raise InputError(f'{path} is damaged ({error}): use another --workdir') from error
  if lacking:
    raise InputError(f"{path} is damaged (it lacks '{min(lacking)}'): use another --workdir")
  return record


def check_same_run(old: Mapping[str, Any], new: Mapping[str, Any], workdir: Path) -> None:
  """Whether a run may go on under a new record; see `write`.

  Raises:
    InputError: names the keys that differ, with both values.
  """
  defaults = flat(plain(base()))  # what an older version, without a key of today, stood for
  before, now = defaults | flat(old['config']), defaults | flat(new['config'])
  differing = []
  for key in sorted(before.keys() | now.keys()):
    a, b = before.get(key), now.get(key)
    grows = key in LENGTHS and new['steps'] >= old['steps']
    read_before = key == 'model.weights' and 'weights' in old  # and never again
    if a != b and not (grows or read_before or key.startswith(FREE_TO_CHANGE)):
      differing.append(f'  config.{key}: {a!r} there, {b!r} now')
  if differing:
    listing = '\n'.join(differing)
    raise InputError(
      f'{workdir} holds a run with another config:\n{listing}\n'
      'Give the same values to go on with it, or another --workdir to start anew'
    )
  if any(old[what] != new[what] for what in ('fingerprint', 'labels_sha256')):
    raise InputError(
      f'{workdir} was trained on other data (its pictures or labels have changed since): '
      'use another --workdir'
    )
  if old['steps'] != new['steps']:
    LOGGER.warning(
      '%s: lengthened from %d to %d steps; schedule and sampler now aim at the new end, so the '
      'result is not that of a run which was this long from the start',
      workdir,
      old['steps'],
      new['steps'],
    )
  for what in ('versions', 'git_revision'):
    if old.get(what) != new[what]:
      LOGGER.warning('%s: %s were %s, now %s', workdir, what, old.get(what), new[what])
  for term, file in new.get('term_sources', {}).items():
    if old.get('term_sources', {}).get(term) != file:
      LOGGER.warning(
        '%s: the source of the loss config.terms.%s, %s, has changed since; the run goes on with '
        'what it says now',
        workdir,
        term,
        file['file'],
      )


def git_revision() -> str:
  """The commit that the package's own checkout is at, `+` when it has changes; '' elsewhere."""
  here = Path(__file__).parent

  def git(*args):
    return subprocess.run(
      ('git', '-C', str(here), *args), capture_output=True, text=True, check=True
    ).stdout.strip()

  try:
    if not git('ls-files', Path(__file__).name):
      return ''
    return git('rev-parse', 'HEAD') + ('+' if git('status', '--porcelain') else '')
  except (OSError, subprocess.CalledProcessError):
    return ''
