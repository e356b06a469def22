"""Faces in a picture, by a process that runs `worker.py`; small pictures are enlarged for it."""

import json
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from ferjax.annotation import environment
from ferjax.annotation.mesh import POINTS
from ferjax.errors import InputError

SMALL = 192  # pixels to which the longer side of a smaller picture is enlarged
BORDER = 0.25  # of the longer side, at each side: detectors want to see what is around a face


class Face(NamedTuple):
  """A face in a picture.

  Attributes:
    mesh: f64[478, 3], pixels of the picture.
    blendshapes: {name: 0 to 1}; empty where the model has none.
  """

  mesh: np.ndarray
  blendshapes: Mapping[str, float]

  @property
  def area(self) -> float:
    """Square pixels of the box around it."""
    return float(np.ptp(self.mesh[:, :2], axis=0).prod())


class DetectorError(Exception):
  """The process could not look at a picture."""


class Detector:
  """A process that finds faces; used by one thread at a time.

  Args:
    command: How to start it; see `worker.py` for what it reads and writes.

  Raises:
    InputError: it does not start.
  """

  def __init__(self, command: Sequence[str]):
    self._command = list(command)
    self._start()

  def _start(self) -> None:
    self._said = tempfile.TemporaryFile()
    try:
      self._process = subprocess.Popen(
        self._command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=self._said,
        env=environment.clean_environment() | {'GLOG_minloglevel': '2'},
      )
    except OSError as error:
      self._said.close()
      raise InputError(f'cannot run {self._command[0]}: {error.strerror}') from error
    try:
      self.version = self._receive()['ready']
    except DetectorError as error:
      self.close()
      raise InputError(f'MediaPipe does not start: {error}') from error

  def close(self) -> None:
    """Ends the process."""
    self._process.kill()
    self._process.wait()
    for stream in (self._process.stdin, self._process.stdout, self._said):
      try:
        stream.close()
      except BrokenPipeError:  # what it had not read yet
        pass

  def find(self, image: np.ndarray) -> list[Face]:
    """The faces of a picture u8[h, w, 3], RGB, the largest first.

    Raises:
      DetectorError: the process failed on this picture; it goes on with the next.
      InputError: it failed, and cannot be started again.
    """
    for view, scale, border in views(image):
      faces = self._ask(view)
      if faces:
        at = np.array([border, border, 0])
        half = np.array([0.5, 0.5, 0])
        seen = [f._replace(mesh=(f.mesh + half) / scale - half - at) for f in faces]
        return sorted(seen, key=lambda face: -face.area)
    return []

  def _ask(self, image: np.ndarray) -> list[Face]:
    height, width = image.shape[:2]
    try:
      request = json.dumps({'height': height, 'width': width})
      self._process.stdin.write(request.encode() + b'\n')
      self._process.stdin.write(np.ascontiguousarray(image))
      self._process.stdin.flush()
      answer = self._receive()
      count = answer['faces']
      content = self._process.stdout.read(count * POINTS * 3 * 4)
      if len(content) < count * POINTS * 3 * 4:
        raise BrokenPipeError
    except BrokenPipeError as error:
      reason = self._last_words()
      self.close()
      self._start()
      raise DetectorError(reason) from error
    meshes = np.frombuffer(content, '<f4').reshape(count, POINTS, 3).astype(np.float64)
    blendshapes = answer['blendshapes'] or [{}] * count
    return [Face(*both) for both in zip(meshes, blendshapes, strict=True)]

  def _receive(self) -> dict:
    line = self._process.stdout.readline()
    if not line.endswith(b'\n'):
      raise BrokenPipeError if hasattr(self, 'version') else DetectorError(self._last_words())
    message = json.loads(line)
    if 'error' in message:
      raise DetectorError(message['error'])
    return message

  def _last_words(self) -> str:
    status = self._process.wait()
    self._said.seek(0)
    lines = self._said.read().decode(errors='replace').strip().splitlines()
    return f'it ended with status {status}' + (f': {lines[-1]}' if lines else '')


def views(image: np.ndarray) -> Iterator[tuple[np.ndarray, float, int]]:
  """A picture as the detector should see it, and if it finds nothing, with a border.

  Yields:
    A view, the factor by which it is enlarged, and the pixels (of the picture) by which its edge
    was continued on each side before.
  """
  longer = max(image.shape[:2])
  border = round(BORDER * longer)
  scale = max(SMALL / longer, 1.0)
  if scale == 1.0:
    yield image, 1.0, 0
  padded = cv2.copyMakeBorder(image, *[border] * 4, cv2.BORDER_REPLICATE)
  if scale > 1.0:
    # a whole factor: each pixel is then enlarged by exactly that much
    scale = float(np.ceil(scale))
    padded = cv2.resize(padded, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
  yield padded, scale, border


def worker(python: Path, model: Path | None) -> list[str]:
  """The command of `Detector`: the face mesh, or the landmarker of a model file."""
  script = str(Path(__file__).with_name('worker.py'))
  kind = ['landmarker', str(model.resolve())] if model else ['mesh']
  return [str(python), '-I', script, *kind]
