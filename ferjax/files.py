"""Files that are whole or not there."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO


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
