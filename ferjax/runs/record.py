"""Reads and writes `config.json`, the record of a run, and checks whether the run may continue."""

import hashlib
import importlib.metadata
import json
import logging
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from ferjax.config import base, flat, plain
from ferjax.errors import InputError
from ferjax.files import write_json
from ferjax.runs import checkpoint

LOGGER = logging.getLogger(__name__)


PACKAGES = ('ferjax', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy')


# These keys define where a run is stored, how fast it is and when it ends. The others define what
# it computes.
FREE_TO_CHANGE = (
  'data.dir',
  'data.manual_dir',
  'parallel.',
  'reading.',
  'profile.',
  'early_stop.',
)


LENGTHS = ('epochs', 'steps')
STARTS = ('model.weights', 'model.weights_head')


def make(config: ml_collections.ConfigDict, facts: Mapping[str, Any]) -> dict[str, Any]:
  """The content of `config.json`: the config, versions, git revision, devices and further facts.

  Args:
    config: The resolved config.
    facts: At least `steps`, the length of the run, and `fingerprint` and `labels_sha256` of its
      data.
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


def labels_sha256(label: np.ndarray) -> str:
  """SHA-256 of labels int[N], in hexadecimal."""
  return hashlib.sha256(label.tobytes()).hexdigest()


def write(workdir: Path, record: Mapping[str, Any]) -> None:
  """Writes `config.json`.

  If the run has saved a checkpoint, this checks that it may continue with this config: only keys
  that lengthen the run, or that cannot change its result, may differ. Different versions cause a
  warning.

  Args:
    workdir: The run's folder.
    record: See `make`.

  Raises:
    InputError: other keys differ (the message names them), or the folder cannot be written.
  """
  if checkpoint.exist(workdir):
    old = read(workdir)
    check_same_run(old, record, workdir)
    record = {**old, **record}  # keep facts that only the start of a run has, such as its weights
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(workdir / 'config.json', record)
  except OSError as error:
    raise InputError(f'cannot write to --workdir={workdir}: {error}') from error


def read(workdir: Path) -> dict[str, Any]:
  """The `config.json` of a run.

  Raises:
    InputError: there is none, or it is damaged.
  """
  path = Path(workdir) / 'config.json'
  try:
    record = json.loads(path.read_text(encoding='utf-8'))
    missing = {'config', 'classes', 'steps', 'fingerprint', 'labels_sha256'} - set(record)
  except FileNotFoundError:
    if not Path(workdir).is_dir():
      raise InputError(f'there is no folder {workdir}: give the folder of a run') from None
    raise InputError(f'{workdir} is not a run: it has no config.json') from None
  except OSError as error:
    raise InputError(f'{workdir} is not the folder of a run: {error.strerror}') from error
  except (ValueError, TypeError) as error:
    raise InputError(f'{path} is damaged ({error}): use another --workdir') from error
  if missing:
    raise InputError(f"{path} is damaged (it lacks '{min(missing)}'): use another --workdir")
  return record


def check_same_run(old: Mapping[str, Any], new: Mapping[str, Any], workdir: Path) -> None:
  """Checks whether a run may continue with a new record; see `write`.

  Raises:
    InputError: it may not. The message names the keys that differ, with both values.
  """
  defaults = flat(plain(base()))  # for current keys that an older version did not have
  before, now = defaults | flat(old['config']), defaults | flat(new['config'])
  differing = []
  for key in sorted(before.keys() | now.keys()):
    a, b = before.get(key), now.get(key)
    grows = key in LENGTHS and new['steps'] >= old['steps']
    read_before = key in STARTS and 'weights' in old  # weights are read only at the start
    if a != b and not (grows or read_before or key.startswith(FREE_TO_CHANGE)):
      differing.append(f'  config.{key}: {a!r} in the run, {b!r} now')
  if differing:
    listing = '\n'.join(differing)
    raise InputError(
      f'{workdir} holds a run with another config:\n{listing}\n'
      'Give the same values to continue it, or another --workdir to start a new run'
    )
  if any(old[what] != new[what] for what in ('fingerprint', 'labels_sha256')):
    raise InputError(
      f'{workdir} was trained on other data (its pictures or labels have changed): '
      'use another --workdir'
    )
  if old['steps'] != new['steps']:
    LOGGER.warning(
      '%s: lengthened from %d to %d steps; schedule and sampler now use the new length, so the '
      'result differs from that of a run with this length from the start',
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
        '%s: the source of the loss config.terms.%s, %s, has changed; the run continues with the '
        'new source',
        workdir,
        term,
        file['file'],
      )


def git_revision() -> str:
  """The commit of the package's checkout, with `+` if it has changes; '' outside a checkout."""
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
