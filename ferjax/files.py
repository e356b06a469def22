"""Files that are written completely or not at all, and locks against a second process."""

import contextlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import filelock

from ferjax.errors import InputError

LOGGER = logging.getLogger(__name__)


def cache_folder() -> Path:
  """The folder for files that can be made again: `$XDG_CACHE_HOME/ferjax` or `~/.cache/ferjax`."""
  return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'ferjax'


@contextlib.contextmanager
def locked(path: Path, busy: str) -> Iterator[None]:
  """Makes the folder of `path`, and locks the file until the block ends or the process dies.

  On a file system without locks, the block runs after a warning.

  Args:
    path: The file to lock; it stays there.
    busy: The message of the error when another process holds the lock.

  Raises:
    InputError: another process holds the lock, or the folder cannot be written.
  """
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.open('a').close()
  except OSError as error:
    raise InputError(f'cannot write in {path.parent}: {error.strerror}') from error
  # The library's fallback is not used, because a killed process would leave its lock behind.
  lock = filelock.FileLock(path, blocking=False, fallback_to_soft=False)
  try:
    lock.acquire()
  except filelock.Timeout as error:
    raise InputError(busy) from error
  except OSError as error:
    LOGGER.warning('cannot lock %s (%s): let no other command write there', path, error.strerror)
  try:
    yield
  finally:
    lock.release()


def check_out(path: Path) -> None:
  """Checks the flag `--out` of a command that writes a file.

  Raises:
    InputError: there is no folder for it, or it is a folder itself.
  """
  if not path.parent.is_dir():
    raise InputError(f'--out={path}: there is no folder {path.parent}')
  if path.is_dir():
    raise InputError(f'--out={path} is a folder: give a file')


@contextlib.contextmanager
def replacing(path: Path, mode: str = 'w') -> Iterator[IO]:
  """Opens a temporary file next to `path`. It replaces `path` when the block ends without an error.

  Args:
    path: The file to write; an existing file stays until then.
    mode: `w` for text (UTF-8, line ends unchanged) or `wb`.
  """
  partial = path.with_name(f'{path.name}.{os.getpid()}.partial')
  text = {} if 'b' in mode else {'encoding': 'utf-8', 'newline': ''}
  try:
    with partial.open(mode, **text) as file:
      yield file
    os.replace(partial, path)
  finally:
    partial.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_path(path: Path) -> Iterator[Path]:
  """A temporary path next to `path` with the same ending, for code that writes a file by name.

  The file there replaces `path` when the block ends without an error.
  """
  partial = path.with_name(f'{path.stem}.{os.getpid()}.partial{path.suffix}')
  try:
    yield partial
    os.replace(partial, path)
  finally:
    partial.unlink(missing_ok=True)


def write_json(path: Path, value) -> None:
  """Writes a JSON file. The file appears when it is complete."""
  with replacing(path) as file:
    file.write(json.dumps(value, indent=2, allow_nan=False) + '\n')
