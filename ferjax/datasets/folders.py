"""Finds files in the folders of data sets."""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from ferjax.errors import InputError, nearest


def wrong_folder(folder: Path, layout: str, what: str = 'it does not have the expected layout'):
  """The InputError for a folder that does not hold the data set.

  Args:
    folder: The folder.
    layout: The expected layout.
    what: What is wrong.
  """
  return InputError(f'{folder}: {what}. Expected:\n{layout.strip()}')


def choose(option: str, value: str, values: Sequence[str]) -> str:
  """Returns `value` if it is one of `values`.

  Raises:
    InputError: it is not. The message lists the values.
  """
  if value not in values:
    raise InputError(
      f"{option} is '{value}'.{nearest(str(value), values)} There are: {', '.join(values)}"
    )
  return value


def refuse(error: OSError) -> None:
  """Raises the InputError for a folder that cannot be read."""
  raise InputError(f'cannot read {error.filename}: {error.strerror}') from error


def files(folder: Path, trouble: Callable[[OSError], None] = refuse) -> list[str]:
  """All files below a folder, sorted, as POSIX paths relative to it.

  Hidden files are skipped. A folder that several links lead to is visited once.

  Args:
    folder: The folder to search.
    trouble: Called with the error for a folder that cannot be read.

  Raises:
    InputError: a folder cannot be read, unless `trouble` accepts that.
  """

  def is_new(path):
    try:
      status = os.stat(path)
    except OSError as error:
      trouble(error)
      return False
    identity = status.st_dev, status.st_ino
    if identity in visited:
      return False
    visited.add(identity)
    return True

  found, visited = [], set()
  is_new(folder)
  for place, folders, names in os.walk(folder, onerror=trouble, followlinks=True):
    folders[:] = sorted(name for name in folders if not _hidden(name))
    folders[:] = [name for name in folders if is_new(os.path.join(place, name))]
    below = Path(place).relative_to(folder).as_posix()
    prefix = '' if below == '.' else f'{below}/'
    found += [prefix + name for name in sorted(names) if not _hidden(name)]
  return found


def _hidden(name: str) -> bool:
  return name.startswith('.') or name in ('__MACOSX', 'Thumbs.db', 'desktop.ini')


def find(folder: Path, *pattern: str, depth: int = 3) -> Path | None:
  """The shallowest path below a folder whose last names match regular expressions.

  Args:
    folder: The folder to search.
    *pattern: A case-insensitive expression for each name, such as `'EmoLabel', r'list\\.txt'`.
    depth: The number of folders that may be between `folder` and these names.

  Raises:
    InputError: a folder cannot be read.
  """
  level = [folder]
  for _ in range(depth + 1):
    for place in level:
      found = _descend(place, pattern)
      if found:
        return found
    level = [child for place in level for child in _children(place) if child.is_dir()]
  return None


def _descend(place: Path, pattern: Sequence[str]) -> Path | None:
  if not pattern:
    return place
  for child in _children(place):
    if re.fullmatch(pattern[0], child.name, re.IGNORECASE):
      found = _descend(child, pattern[1:])
      if found:
        return found
  return None


def _children(place: Path) -> list[Path]:
  if not place.is_dir():
    return []
  try:
    with os.scandir(place) as entries:
      return [place / name for name in sorted(e.name for e in entries) if not _hidden(name)]
  except OSError as error:
    raise InputError(f'cannot read {error.filename}: {error.strerror}') from error
