"""Finds faces in a picture with a process that runs `worker.py`. Small pictures are enlarged."""

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

SMALL = 192  # pixels; smaller pictures are enlarged until their longer side has at least these
BORDER = 0.25  # of the longer side, at each side: detectors need the surroundings of a face


class Face(NamedTuple):
  """A face in a picture.

  Attributes:
    mesh: f64[478, 3], pixels of the picture.
    blendshapes: {name: 0 to 1}; empty if the model has none.
  """

  mesh: np.ndarray
  blendshapes: Mapping[str, float]

  @property
  def area(self) -> float:
    """Area of the bounding box in square pixels."""
    return float(np.ptp(self.mesh[:, :2], axis=0).prod())


class View(NamedTuple):
  """A part of a picture, enlarged.

  Attributes:
    image: u8[h, w, 3].
    scale: The factor of the enlargement.
    origin: The pixel of the picture, x and y, at which the view starts.
  """

  image: np.ndarray
  scale: int
  origin: tuple[int, int]


class DetectorError(Exception):
  """The process failed on a picture."""


class Detector:
  """A process that finds faces. Only one thread may use it at a time.

  Args:
    command: The command that starts the process; `worker.py` describes its input and output.

  Raises:
    InputError: the process does not start.
  """

  def __init__(self, command: Sequence[str]):
    self._command = list(command)
    self._start()

  def _start(self) -> None:
    self._messages = tempfile.TemporaryFile()
    try:
      self._process = subprocess.Popen(
        self._command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=self._messages,
        env=environment.clean_environment() | {'GLOG_minloglevel': '2'},
      )
    except OSError as error:
      self._messages.close()
      raise InputError(f'cannot run {self._command[0]}: {error.strerror}') from error
    try:
      self.version = self._receive()['ready']
    except (BrokenPipeError, DetectorError) as error:
      reason = str(error) or self._last_words()
      self.close()
      raise InputError(f'MediaPipe does not start: {reason}') from error

  def close(self) -> None:
    """Ends the process."""
    self._process.kill()
    self._process.wait()
    for stream in (self._process.stdin, self._process.stdout, self._messages):
      try:
        stream.close()
      except BrokenPipeError:  # the process had not read everything
        pass

  def find(self, image: np.ndarray, every: bool = False) -> list[Face]:
    """The faces of a picture, the largest first.

    Args:
      image: u8[h, w, 3], RGB.
      every: Also search for small faces if large ones are found.

    Raises:
      DetectorError: the process failed on this picture; the next one can be searched.
      InputError: the process failed and cannot be started again.
    """
    faces = []
    for views in searches(image):
      for view in views:
        seen = [face for face in self._look(view) if _is_in(face, image.shape)]
        whole = [face for face in seen if not _is_cut(face, view, image.shape)]
        faces += [self._again(image, face) if _is_small(face, view) else face for face in whole]
      if faces and not every:
        break
    return _distinct(sorted(faces, key=lambda face: -face.area))

  def _look(self, view: View) -> list[Face]:
    at, half = np.array([*view.origin, 0.0]), np.array([0.5, 0.5, 0.0])
    faces = self._ask(view.image)
    return [f._replace(mesh=(f.mesh + half) / view.scale - half + at) for f in faces]

  def _again(self, image: np.ndarray, face: Face) -> Face:
    """The face from a closer view; the same face if none is found there."""
    return max(self._look(closer(image, face)), key=lambda found: found.area, default=face)

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
      raise BrokenPipeError
    message = json.loads(line)
    if 'error' in message:
      raise DetectorError(message['error'])
    return message

  def _last_words(self) -> str:
    status = self._process.wait()
    self._messages.seek(0)
    lines = self._messages.read().decode(errors='replace').strip().splitlines()
    return f'it ended with status {status}' + (f': {lines[-1]}' if lines else '')


def searches(image: np.ndarray) -> Iterator[list[View]]:
  """The views of a picture to search for faces, for large faces first.

  These are the whole picture, if it is not small; the picture with a border of repeated edge
  pixels, enlarged if it is small; then squares of a half and of a quarter of the longer side, which
  overlap by half, if they are not small.

  Yields:
    Views to search together.
  """
  longer = max(image.shape[:2])
  factor = -(-SMALL // longer)  # an integer, so that all pixels are enlarged equally
  if factor == 1:
    yield [View(image, 1, (0, 0))]
  border = round(BORDER * longer)
  padded = cv2.copyMakeBorder(image, *[border] * 4, cv2.BORDER_REPLICATE)
  if factor > 1:
    padded = cv2.resize(padded, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
  yield [View(padded, factor, (-border, -border))]
  for side in (longer // 2, longer // 4):
    if side >= SMALL:
      places = [(x, y) for y in _steps(image.shape[0], side) for x in _steps(image.shape[1], side)]
      yield [View(image[y : y + side, x : x + side], 1, (x, y)) for x, y in places]


def closer(image: np.ndarray, face: Face) -> View:
  """The square around a face with twice its size, enlarged if it is small."""
  low, high = face.mesh[:, :2].min(0), face.mesh[:, :2].max(0)
  half = (high - low).max()
  x0, y0 = np.maximum((low + high) / 2 - half, 0).astype(int)
  x1, y1 = np.maximum((low + high) / 2 + half, (x0 + 1, y0 + 1)).astype(int)
  part = image[y0:y1, x0:x1]
  factor = -(-SMALL // max(part.shape[:2]))
  part = cv2.resize(part, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
  return View(part, factor, (int(x0), int(y0)))


def _is_in(face: Face, shape: Sequence[int]) -> bool:
  """Whether a part of a face is in the picture; its mesh may reach beyond the edges."""
  low, high = face.mesh[:, :2].min(0), face.mesh[:, :2].max(0)
  return bool((low < (shape[1], shape[0])).all() and (high >= 0).all())


def _is_small(face: Face, view: View) -> bool:
  """Whether a face is smaller than a quarter of its view; its mesh may then be inaccurate."""
  return np.sqrt(face.area) * view.scale < max(view.image.shape[:2]) / 4


def _steps(length: int, side: int) -> list[int]:
  """The starts of parts of `side` pixels, which overlap by half and cover `length`."""
  last = max(length - side, 0)
  count = -(-2 * last // side) + 1
  return [last * i // max(count - 1, 1) for i in range(count)]


def _is_cut(face: Face, view: View, shape: Sequence[int]) -> bool:
  """Whether a face reaches beyond an edge of its view that is not an edge of the picture. Another
  view then overlaps with this one and has the whole face."""
  low, high = face.mesh[:, :2].min(0), face.mesh[:, :2].max(0)
  start = np.array(view.origin)
  end = start + np.array(view.image.shape[1::-1]) / view.scale
  inner = end < (shape[1], shape[0])
  return bool(((start > 0) & (low < start)).any() or (inner & (high > end - 1)).any())


def _distinct(faces: Sequence[Face]) -> list[Face]:
  """Removes faces whose box overlaps (IoU above 1/3) with that of an earlier face."""
  kept = []
  for face in faces:
    if all(_overlap(face, other) <= 1 / 3 for other in kept):
      kept.append(face)
  return kept


def _overlap(a: Face, b: Face) -> float:
  """Intersection over union of the boxes of two faces."""
  low = np.maximum(a.mesh[:, :2].min(0), b.mesh[:, :2].min(0))
  high = np.minimum(a.mesh[:, :2].max(0), b.mesh[:, :2].max(0))
  both = np.maximum(high - low, 0).prod()
  return both / max(a.area + b.area - both, 1e-9)


def worker(python: Path, model: Path | None) -> list[str]:
  """The command for `Detector`: the face mesh, or the landmarker of a model file."""
  script = str(Path(__file__).with_name('worker.py'))
  kind = ['landmarker', str(model.resolve())] if model else ['mesh']
  return [str(python), '-I', script, *kind]
