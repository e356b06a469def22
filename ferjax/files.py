"""Files that are whole or not there, and folders that one command at a time writes in."""

import contextlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from ferjax import files
from ferjax.errors import InputError

try:
  import fcntl
except ImportError:  # Windows
  fcntl = None

LOGGER = logging.getLogger(__name__)


@contextlib.contextmanager
def locked(path: Path, busy: str) -> Iterator[None]:
  """Makes the folder of `path` and keeps others that lock the same file from this block, where
  platform and file system have locks; a process that dies lets go of it.

  Args:
    path: The file; it stays.
    busy: What to say where another process has it.

  Raises:
    InputError: it is locked, or the folder cannot be written.
  """
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open('w')
  except OSError as error:
    raise InputError(f'cannot write in {path.parent}: {error.strerror}') from error
  with file:
    try:
      if fcntl:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise InputError(busy) from error
    except OSError as error:  # a file system without locks
      LOGGER.warning('cannot lock %s (%s): let no other command write there', path, error.strerror)
    yield


@contextlib.contextmanager
def replacing(path: Path, mode: str = 'w') -> Iterator[IO]:
  """Opens a file beside `path`, and renames it into place once it is written without an error.

  Args:
    path: The file to write; an older one stays until the rename.
    mode: `w` for text (UTF-8, line ends as written) or `wb`.
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
  """A path beside `path` with the same ending, for what writes a file by its name; the file there
  is renamed into place if there is no error."""
  partial = path.with_name(f'{path.stem}.{os.getpid()}.partial{path.suffix}')
  try:
    yield partial
    os.replace(partial, path)
  finally:
    partial.unlink(missing_ok=True)


def write_json(path: Path, value) -> None:
  """Writes JSON, then renames it into place, so that a half-written file is never seen."""
  with files.replacing(path) as file:
    file.write(json.dumps(value, indent=2, allow_nan=False) + '\n')
