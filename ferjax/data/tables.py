"""The tables of a prepared data set, kept beside its records: one memory-mapped file a column.

`table-<split>.json` names the folder of the columns, their checksums, and the stamp of the records
that they were read from. It is written last, at once. A table that does not fit the records, or is
damaged, counts as missing.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import uuid
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ferjax.data.splits import Table

LOGGER = logging.getLogger(__name__)

VERSION = 2
TAIL = 2**16  # bytes; the end of a file of records says where each record begins
DESCRIPTIONS = ('dataset_info.json', 'features.json', 'metadata.json', '*.labels.txt')


def stamp(folder: Path, shards: Iterable[Path]) -> str:
  """Identifies the records of a split: SHA-256 of the description of the data set, and of the size
  and end of each of its files. A copy of the folder has the same stamp.

  Args:
    folder: The folder of the prepared data set.
    shards: The split's files of records.
  """
  digest = hashlib.sha256()
  for pattern in DESCRIPTIONS:
    for path in sorted(folder.glob(pattern)):
      digest.update(f'{path.name} '.encode() + path.read_bytes())
  for path in shards:
    with path.open('rb') as file:
      size = file.seek(0, os.SEEK_END)
      file.seek(max(size - TAIL, 0))
      digest.update(f'{path.name} {size} '.encode() + file.read())
  return digest.hexdigest()


def read(folder: Path, split: str, stamp: str, rows: int) -> Table | None:
  """Reads the stored table of a split.

  Args:
    folder: The folder of the prepared data set.
    split: The split's name.
    stamp: Of its records; see `stamp`.
    rows: Number of its records.

  Returns:
    The columns, read-only and memory-mapped; None if there is no table of these records, or it is
    damaged.
  """
  try:
    index = json.loads((folder / f'table-{split}.json').read_text(encoding='utf-8'))
    if (index['version'], index['stamp']) != (VERSION, stamp):
      return None
    place = _columns_folder(folder, split, index)
    columns = {name: _column(place, name, index['columns'][name]) for name in index['columns']}
  except (OSError, ValueError, LookupError, TypeError):
    return None
  return columns if {len(column) for column in columns.values()} == {rows} else None


def write(folder: Path, split: str, stamp: str, table: Table) -> bool:
  """Stores the table of a split; see `read` for the arguments.

  Several processes may write at the same time: each writes columns of its own, and the first table
  that is complete stays.

  Returns:
    Whether the table is stored; False, after a warning, if the folder cannot be written.
  """
  place = folder / f'table-{split}-{uuid.uuid4().hex}'
  stored = False
  try:
    place.mkdir()
    sums = {}
    for name, column in table.items():
      np.save(place / f'{name}.npy', column, allow_pickle=False)
      sums[name] = _checksum(place / f'{name}.npy')
    index = {'version': VERSION, 'stamp': stamp, 'folder': place.name, 'columns': sums}
    (place / 'index.json').write_text(json.dumps(index, indent=2) + '\n', encoding='utf-8')
    rows = len(next(iter(table.values())))
    if read(folder, split, stamp, rows) is None:
      before = _stored_folder(folder, split)
      os.replace(place / 'index.json', folder / f'table-{split}.json')
      stored = True
      if before:
        shutil.rmtree(before, ignore_errors=True)
  except OSError as error:
    LOGGER.warning(
      'the table of labels cannot be kept in %s (%s): every start reads all records',
      folder,
      error.strerror or error,
    )
    return False
  finally:
    if not stored:
      shutil.rmtree(place, ignore_errors=True)
  return True


def _stored_folder(folder, split):
  """The folder of columns that an index names, which may fit or not; None if it names none."""
  try:
    index = json.loads((folder / f'table-{split}.json').read_text(encoding='utf-8'))
    return _columns_folder(folder, split, index)
  except (OSError, ValueError, LookupError, TypeError):
    return None


def _columns_folder(folder, split, index):
  if not re.fullmatch(rf'table-{re.escape(split)}-[0-9a-f]{{32}}', index['folder']):
    raise ValueError(f'{index["folder"]} is no folder of columns')
  return folder / index['folder']


def _column(place, name, checksum):
  if not re.fullmatch(r'\w+', name):
    raise ValueError(f'{name} is no column')
  path = place / f'{name}.npy'
  if _checksum(path) != checksum:
    raise ValueError(f'{path} is damaged')
  return np.asarray(np.load(path, mmap_mode='r', allow_pickle=False))


def _checksum(path):
  return zlib.crc32(np.memmap(path, np.uint8, 'r'))
