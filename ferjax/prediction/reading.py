"""Reads faces for a model from pictures and videos, in order and with bounded memory."""

import collections
import functools
import itertools
import math
import queue
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from ferjax.annotation import detector as detectors
from ferjax.annotation.faces import NO_FACE, describe
from ferjax.errors import InputError
from ferjax.images import files
from ferjax.prediction import inputs, overlay
from ferjax.terminal.progress import Progress

HELD = 2**26  # bytes of frames that wait to be read, and as many that wait for prediction
USUAL_FPS = 25.0  # for a video without a frame rate


class Detection(NamedTuple):
  """Settings of face detection.

  Attributes:
    command: The command of a process that finds faces; see `detector.worker`.
    size: Size of a crop in pixels.
    margin: Margin on each side of an average face, as a share of the crop.
    small: Also search for small faces if large ones are found.
  """

  command: Sequence[str]
  size: int = 112
  margin: float = 0.1
  small: bool = False


class Crop(NamedTuple):
  """A face, ready for the model.

  Attributes:
    image: u8[s, s, 3], in the size of the model.
    landmarks: f32[k, 2], pixels of `image`, or None.
    box: x0, y0, x1, y1 in pixels of the picture, or None.
    thumb: The picture for a sheet (see `overlay.thumbnail`), or None.
  """

  image: np.ndarray
  landmarks: np.ndarray | None
  box: tuple[int, int, int, int] | None
  thumb: np.ndarray | None


class Item(NamedTuple):
  """A picture or frame.

  Attributes:
    file: The picture or video.
    frame: The frame's number from 0, or None.
    time: Seconds, or None.
    crops: Its faces.
    error: The reason why there are none.
    image: u8[h, w, 3] for an annotated video, or None.
    fps: Frames per second of the video.
    skipped: Whether it is only shown, with the faces of the frame before it, and not predicted.
  """

  file: Path
  frame: int | None = None
  time: float | None = None
  crops: tuple[Crop, ...] = ()
  error: str = ''
  image: np.ndarray | None = None
  fps: float = 0.0
  skipped: bool = False


class Reader(NamedTuple):
  """Reads the faces of a picture. Several threads can use it.

  Attributes:
    size: Picture size of the model in pixels.
    landmarks: Whether the model uses landmarks.
    detection: Settings of face detection, or None.
    pool: Running detectors.
    thumbs: () -> whether a sheet needs pictures.
  """

  size: int
  landmarks: bool
  detection: Detection | None
  pool: queue.SimpleQueue
  thumbs: Callable[[], bool]

  def picture(self, source: inputs.Source) -> Item:
    """Reads a picture. If it cannot be read, the item has its error."""
    if source.error:
      return Item(source.path, error=source.error)
    try:
      image = files.read(source.path)
    except InputError as error:
      return Item(source.path, error=f'cannot be read: {error}')
    return self._faces(Item(source.path), image, source.landmarks)

  def frame(self, item: Item, image: np.ndarray, keep: bool) -> Item:
    """Reads the faces of a frame u8[h, w, 3], BGR. With `keep`, the item also holds the frame."""
    image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    item = item._replace(image=image if keep else None)
    return item if item.skipped else self._faces(item, image, None)

  def _faces(self, item, image, landmarks):
    if self.detection:
      return self._detected(item, image)
    if not self.landmarks:
      landmarks = None
    elif landmarks is not None and not np.isfinite(landmarks).all():
      return item._replace(error='its landmarks are not finite numbers')
    return item._replace(crops=(self._crop(image, landmarks, None, image),))

  def _detected(self, item, image):
    size, margin = self.detection.size, self.detection.margin
    detector = self.pool.get()
    try:
      found = detector.find(image, self.detection.small)
    except detectors.DetectorError as error:
      return item._replace(error=f'the detector failed: {error}')
    finally:
      self.pool.put(detector)
    crops = []
    for face in found:
      fields, crop = describe(image, face, size, margin)
      count = sum(name.startswith('x_') for name in fields)
      points = [[float(fields[f'{axis}_{i}']) for axis in 'xy'] for i in range(count)]
      landmarks = np.array(points, np.float32) if self.landmarks else None
      crops.append(self._crop(crop, landmarks, _box(face, image.shape), image))
    return item._replace(crops=tuple(crops), error='' if crops else NO_FACE)

  def _crop(self, image, landmarks, box, whole):
    if landmarks is not None:
      landmarks = files.rescale(landmarks, np.array(image.shape[1::-1]), self.size)
    thumb = overlay.thumbnail(whole, box) if self.thumbs() else None
    return Crop(files.resize(image, self.size), landmarks, box, thumb)


def _box(face: detectors.Face, shape: Sequence[int]) -> tuple[int, int, int, int]:
  """The box of a face in a picture: x0, y0 inclusive, x1, y1 exclusive."""
  low, high = face.mesh[:, :2].min(0) + 0.5, face.mesh[:, :2].max(0) + 0.5
  x0, y0 = np.floor(np.clip(low, 0, (shape[1] - 1, shape[0] - 1))).astype(int)
  x1, y1 = np.ceil(np.clip(high, (x0 + 1, y0 + 1), (shape[1], shape[0]))).astype(int)
  return int(x0), int(y0), int(x1), int(y1)


Task = tuple[int, Callable[[], Item]]  # bytes that it holds until it is done, and the function


def tasks(
  sources: Iterable[inputs.Source], reader: Reader, every: int, keep: bool, progress: Progress
) -> Iterator[Task]:
  """The tasks of reading all items, in order. Frames are decoded here, one after the other.

  Args:
    sources: Pictures and videos.
    reader: Reads their faces.
    every: Every Nth frame of a video is read.
    keep: Whether all frames are needed for an annotated video.
    progress: Its total is increased by the number of frames of a video.
  """
  for source in sources:
    if source.is_video:
      yield from _frames(source.path, reader, every, keep, progress)
    else:
      yield HELD // 128, functools.partial(reader.picture, source)


def _frames(path, reader, every, keep, progress) -> Iterator[Task]:
  def failed(number, text):
    return 0, lambda: Item(path, number, error=text)

  video = cv2.VideoCapture(str(path)) if path.is_file() else None
  if video is None or not video.isOpened():
    trouble = 'it is not a video that OpenCV can read' if path.is_file() else 'it is not a file'
    yield failed(None, f'cannot be read: {trouble}')
    return
  try:
    promised = video.get(cv2.CAP_PROP_FRAME_COUNT)
    fps = _fps(video)
    if promised > 0:
      progress.total += math.ceil(promised / every) - 1
    readable = False
    for number in itertools.count():
      looked_at = number % every == 0
      if not video.grab():
        break
      if not (looked_at or keep):
        continue
      milliseconds = video.get(cv2.CAP_PROP_POS_MSEC)
      done, image = video.retrieve()
      if not done:
        yield failed(number, 'the frame cannot be read')
        continue
      readable = True
      seconds = milliseconds / 1000 if milliseconds > 0 else number / fps
      item = Item(path, number, seconds, fps=fps, skipped=not looked_at)
      yield 2 * image.nbytes, functools.partial(reader.frame, item, image, keep)
    if not readable:
      yield failed(None, 'cannot be read: it has no frame that can be decoded')
    elif number + max(2, 0.01 * promised) < promised:  # some containers only estimate the number
      text = f'the video is damaged: {number} of {promised:.0f} frames can be read'
      yield failed(number, text)
  finally:
    video.release()


def _fps(video: cv2.VideoCapture) -> float:
  fps = video.get(cv2.CAP_PROP_FPS)
  return fps if 0 < fps <= 1000 else USUAL_FPS


def ahead(pool: ThreadPoolExecutor, todo: Iterable[Task], limit: int = HELD) -> Iterator[Item]:
  """Items in order. The pool works in advance while waiting tasks hold at most `limit` bytes."""
  waiting, held = collections.deque(), 0
  for size, call in todo:
    waiting.append((size, pool.submit(call)))
    held += size
    while held > limit:
      size, future = waiting.popleft()
      yield future.result()
      held -= size
  for _, future in waiting:
    yield future.result()


def batches(items: Iterable[Item], rows: int, limit: int = HELD) -> Iterator[list[Item]]:
  """Batches of items in order. A batch ends when it has `rows` faces, holds `limit` bytes of
  frames, or has 16 times as many items as `rows`."""
  batch, faces, held = [], 0, 0
  for item in items:
    batch.append(item)
    faces += len(item.crops)
    held += 0 if item.image is None else item.image.nbytes
    if faces >= rows or held >= limit or len(batch) >= 16 * rows:
      yield batch
      batch, faces, held = [], 0, 0
  if batch:
    yield batch
