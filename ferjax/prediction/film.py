"""An annotated video, written frame by frame."""

from collections.abc import Sequence
from pathlib import Path

import cv2

from ferjax.errors import InputError
from ferjax.prediction import overlay, reading

CODECS = {'.mp4': 'mp4v', '.mov': 'mp4v', '.mkv': 'mp4v', '.avi': 'MJPG', '.webm': 'VP80'}


class Film:
  """An annotated video, written frame by frame. `CODECS` has the allowed endings."""

  def __init__(self, path: Path, classes: Sequence[str]):
    self._path, self._classes = path, classes
    self._video, self._frames, self._faces = None, 0, []

  def add(self, item: reading.Item, faces: Sequence[overlay.Shown]) -> None:
    """Writes a frame. A skipped frame shows the faces of the last frame that was not skipped.

    Raises:
      InputError: OpenCV cannot write such a file.
    """
    if not item.skipped:
      self._faces = faces
    image = overlay.frame(item.image, self._faces, self._classes)
    if self._video is None:
      codec = cv2.VideoWriter_fourcc(*CODECS[self._path.suffix.lower()])
      size = image.shape[1::-1]
      self._video = cv2.VideoWriter(str(self._path), codec, item.fps, size)
      if not self._video.isOpened():
        raise InputError(f'OpenCV cannot write {self._path}: try another ending, such as .avi')
    self._video.write(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    self._frames += 1

  def release(self) -> None:
    """Closes the file, even if it is not complete."""
    if self._video is not None:
      self._video.release()

  def close(self) -> None:
    """Closes the video and checks it.

    Raises:
      InputError: it has no frame, or not all frames were written.
    """
    if self._video is None:
      raise InputError('the video has no frame that can be read: no video is written')
    self.release()
    written = cv2.VideoCapture(str(self._path))
    count = written.get(cv2.CAP_PROP_FRAME_COUNT)
    written.release()
    if count < self._frames:
      raise InputError(
        f'only {count:.0f} of {self._frames} frames were written: check that the disk is not full'
      )
