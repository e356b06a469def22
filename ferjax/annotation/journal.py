"""The progress of an annotation: one line of JSON for each picture, so that a killed command
continues."""

import contextlib
import json
import os
import queue
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ferjax import files
from ferjax.annotation import detector as detectors
from ferjax.errors import InputError
from ferjax.terminal.progress import Progress

FILE = 'annotate.jsonl'

Entry = dict[str, Any]


class Entries(Sequence):
  """The entries of pictures, in order, each read from the journal when it is asked for.

  Args:
    path: The journal.
    offsets: The place of each entry in it, bytes.
  """

  def __init__(self, path: Path, offsets: Sequence[int]):
    self.path, self.offsets = path, offsets

  def __len__(self) -> int:
    return len(self.offsets)

  def __getitem__(self, number: int) -> Entry:
    with self.path.open('rb') as file:
      file.seek(self.offsets[number])
      return json.loads(file.readline())

  def __iter__(self) -> Iterator[Entry]:
    with self.path.open('rb') as file:
      for offset in self.offsets:
        file.seek(offset)
        yield json.loads(file.readline())


@contextlib.contextmanager
def completed(
  out: Path,
  names: Sequence[str],
  look: Callable[[str, detectors.Detector], Entry],
  command: Sequence[str],
  *,
  settings: Mapping[str, Any],
  holds: Callable[[Entry], bool],
  workers: int,
) -> Iterator[Entries]:
  """Looks at the pictures that the journal in `out` lacks, then gives the entries of all.

  `out` is locked until the block ends.

  Args:
    out: The folder to write.
    names: The pictures.
    look: Annotates a picture: (name, detector) -> its entry, with the name as `picture`.
    command: The command of a process that finds faces; see `detector.worker`.
    settings: What entries depend on, as JSON; the version of the detector is added.
    holds: Whether an entry of the journal is still valid.
    workers: Number of processes that find faces.

  Raises:
    InputError: another command is writing to `out`, or `out` was started with other settings or
      another MediaPipe.
  """
  pool = queue.SimpleQueue()
  with contextlib.ExitStack() as stack:
    count = min(workers, len(names))
    for _ in range(count):
      detector = detectors.Detector(command)
      stack.callback(detector.close)
      pool.put(detector)
    settings = {**settings, 'detector': detector.version}
    busy = (
      f'another command is writing to {out}: wait for its end, or give another folder with --out'
    )
    stack.enter_context(files.locked(out / 'annotate.lock', busy))
    path = out / FILE
    done = _resume(path, settings, holds)
    todo = [name for name in names if name not in done]

    def one(name):
      detector = pool.get()
      try:
        return look(name, detector)
      finally:
        pool.put(detector)

    with path.open('ab') as file, ThreadPoolExecutor(count) as threads:
      try:
        with Progress('Annotating', len(names), done=len(names) - len(todo)) as progress:
          for entry in threads.map(one, todo):
            done[entry['picture']] = file.tell()
            file.write(json.dumps(entry).encode() + b'\n')
            file.flush()
            progress.update()
      except BaseException:
        threads.shutdown(wait=False, cancel_futures=True)
        raise
    yield Entries(path, [done[name] for name in names])


def _resume(
  path: Path, settings: Mapping[str, Any], holds: Callable[[Entry], bool]
) -> dict[str, int]:
  """{picture: place of its entry} for the entries that are still valid. If there is no journal, a
  new one is started.

  An incomplete last line is removed from the file.
  """
  try:
    if not path.exists():
      with files.replacing(path) as file:
        file.write(json.dumps({'settings': settings}) + '\n')
      return {}
    whole = path.read_bytes()
    end = whole.rfind(b'\n') + 1
    if end < len(whole):
      os.truncate(path, end)
  except OSError as error:
    raise InputError(f'cannot write in {path.parent}: {error.strerror}') from error
  damaged = f'{path} is damaged: delete it to start again'
  try:
    first, *lines = whole[:end].splitlines(keepends=True)
    former = dict(json.loads(first)['settings'])
  except (ValueError, LookupError, TypeError) as error:
    raise InputError(damaged) from error
  changed = [key for key in settings if former.get(key) != settings[key]]
  if changed:
    was = ', '.join(f'{key} {former.get(key)}, now {settings[key]}' for key in changed)
    raise InputError(
      f'{path.parent} was started with other settings ({was}): give another folder with --out'
    )
  done, place = {}, len(first)
  try:
    for line in lines:
      entry = json.loads(line)
      if holds(entry):
        done[entry['picture']] = place
      else:
        done.pop(entry['picture'], None)
      place += len(line)
  except (ValueError, LookupError, TypeError) as error:
    raise InputError(damaged) from error
  return done
