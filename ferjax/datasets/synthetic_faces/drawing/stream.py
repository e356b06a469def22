"""Draws many pictures in order, with several processes.

The processes run the module `worker`. They are not forked, so threads of the caller do no harm, and
the main module of the caller does not run again.
"""

import json
import os
import queue
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from ferjax.datasets.synthetic_faces.drawing import sample
from ferjax.datasets.synthetic_faces.drawing.action_units import ACTION_UNITS
from ferjax.distributed.processes import available_processes
from ferjax.labels import CLASSES

QUALITY = 93  # JPEG quality
_LENGTHS = (2 * 68, len(ACTION_UNITS), 3, len(CLASSES))
_QUEUE = 512
_ROWS_PER_PROCESS = 150  # with fewer rows, a further process does not save time


class Encoded(NamedTuple):
  """A sample with its picture as JPEG bytes."""

  image: bytes
  landmarks: np.ndarray  # f32[68, 2]
  au: np.ndarray  # f32[a]
  pose: np.ndarray  # f32[3]
  distribution: np.ndarray  # f32[C]


def encode(drawn: sample.Sample) -> Encoded:
  """Compresses the picture of a sample."""
  done, image = cv2.imencode('.jpg', drawn.image[..., ::-1], (cv2.IMWRITE_JPEG_QUALITY, QUALITY))
  if not done:
    raise RuntimeError('OpenCV could not write a JPEG: was it built without that format?')
  return Encoded(image.tobytes(), *drawn[1:])


def write(encoded: Encoded, out) -> None:
  """Writes a sample to a binary stream."""
  out.write(struct.pack('<I', len(encoded.image)))
  out.write(encoded.image)
  out.write(np.concatenate([part.ravel() for part in encoded[1:]]).astype('<f4').tobytes())


def read(stream) -> Encoded | None:
  """Reads a sample that `write` wrote; None at the end of the stream."""
  header = stream.read(4)
  if len(header) < 4:
    return None
  image = stream.read(struct.unpack('<I', header)[0])
  values = np.frombuffer(stream.read(4 * sum(_LENGTHS)), '<f4').astype(np.float32)
  if len(values) < sum(_LENGTHS):
    return None
  landmarks, au, pose, distribution = np.split(values, np.cumsum(_LENGTHS)[:-1])
  return Encoded(image, landmarks.reshape(68, 2), au, pose, distribution)


def share(rows: Sequence[sample.Row], processes: int, which: int) -> list[sample.Row]:
  """The rows of process number `which`: whole subjects, in turn over the processes."""
  order = {subject: i for i, subject in enumerate(dict.fromkeys(row.subject for row in rows))}
  return [row for row in rows if order[row.subject] % processes == which]


def _start(config, processes, which):
  root = str(Path(sample.__file__).resolve().parents[4])
  path = os.pathsep.join([root, *filter(None, [os.environ.get('PYTHONPATH')])])
  one_thread = dict.fromkeys(('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS'), '1')
  task = json.dumps({'config': config._asdict(), 'processes': processes, 'which': which})
  return subprocess.Popen(
    [sys.executable, '-P', '-m', 'ferjax.datasets.synthetic_faces.drawing.worker', task],
    stdin=subprocess.DEVNULL,
    stdout=subprocess.PIPE,
    env={**os.environ, **one_thread, 'PYTHONPATH': path},
  )


def _feed(worker, received, stop):
  """Moves the samples of a worker to a queue, and None at the end."""
  while not stop.is_set():
    item = read(worker.stdout)
    while not stop.is_set():
      try:
        received.put(item, timeout=0.2)
        break
      except queue.Full:
        continue
    if item is None:
      return


def draw_all(
  config: sample.Config, *, processes: int | None = None
) -> Iterator[tuple[sample.Row, Encoded]]:
  """Draws all pictures in order. The bytes do not depend on the number of processes.

  Args:
    config: The set.
    processes: Number of processes; by default one for each processor, and fewer for small sets.
      With one, this process draws itself.

  Yields:
    Each row with its picture and labels.

  Raises:
    InputError: `config.ict_face_model` is not a folder with that model.
    RuntimeError: A process ended early. Its own message is on the standard error stream.
  """
  rows = sample.rows(config)
  sample.face_model(config.ict_face_model)  # reports a wrong folder once, before processes start
  if processes is None:
    processes = min(available_processes(), max(len(rows) // _ROWS_PER_PROCESS, 1))
  if processes <= 1:
    yield from ((row, encode(sample.draw(config, row))) for row in rows)
    return
  order = {subject: i for i, subject in enumerate(dict.fromkeys(row.subject for row in rows))}
  stop = threading.Event()
  workers = [_start(config, processes, which) for which in range(processes)]
  queues = [queue.Queue(_QUEUE) for _ in workers]
  threads = [
    threading.Thread(target=_feed, args=(worker, received, stop), daemon=True)
    for worker, received in zip(workers, queues, strict=True)
  ]
  try:
    for thread in threads:
      thread.start()
    for row in rows:
      which = order[row.subject] % processes
      item = queues[which].get()
      if item is None:
        raise RuntimeError(
          f'a process that draws faces ended before row {row.index} (exit status '
          f'{workers[which].wait()}); see its message above. It may have run out of memory'
        )
      yield row, item
  finally:
    stop.set()
    for worker in workers:
      worker.terminate()
    for worker, thread in zip(workers, threads, strict=True):
      worker.wait()
      thread.join()
      worker.stdout.close()
