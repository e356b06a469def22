"""Recognises a manifest that was prepared before, without parsing it.

A file in the folder of prepared data sets is named after the bytes of the manifest and the options.
It holds the pictures, a digest of their sizes and dates, and the name of the prepared data.
"""

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ferjax import files

LOGGER = logging.getLogger(__name__)

VERSION = 1


def find(root: Path, path: Path, options: Any) -> str | None:
  """The name of the prepared data of a manifest; None if the manifest is not known, or one of its
  pictures has changed.

  Args:
    root: The folder of prepared data sets.
    path: The manifest.
    options: What else the prepared data depend on; its `repr` is used.
  """
  try:
    found = json.loads(_place(root, path, options).read_text(encoding='utf-8'))
    name, paths, pictures = found['name'], found['paths'], found['pictures']
    same = re.fullmatch(r'[\w-]+', name) and pictures == statuses(path.parent, paths)
  except (OSError, ValueError, LookupError, TypeError):
    return None
  return name if same else None


def keep(root: Path, path: Path, options: Any, name: str, pictures: list[str]) -> None:
  """Makes a manifest known, unless the folder cannot be written.

  Args:
    root, path, options: See `find`.
    name: Of the prepared data.
    pictures: Their paths in the manifest.
  """
  place = _place(root, path, options)
  try:
    found = {'name': name, 'pictures': statuses(path.parent, pictures), 'paths': pictures}
    place.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(place) as file:
      file.write(json.dumps(found))
  except OSError as error:
    LOGGER.info('%s cannot be written (%s): the manifest is parsed at every start', place, error)


def _place(root, path, options):
  digest = hashlib.sha256(repr((VERSION, path.parent.resolve().name, options)).encode())
  digest.update(path.read_bytes())
  return root / 'manifest' / f'known-{digest.hexdigest()[:32]}.json'


def statuses(folder: Path, paths: Iterable[str]) -> str:
  """SHA-256 of the sizes and dates of files below a folder.

  Raises:
    OSError: a file cannot be found.
  """
  digest = hashlib.sha256()
  for path in paths:
    status = os.stat(f'{folder}/{path}')
    digest.update(b'%d %d\n' % (status.st_size, status.st_mtime_ns))
  return digest.hexdigest()
