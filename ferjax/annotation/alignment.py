"""Aligned crops: where a face lies in a crop, and the pixels. Pixel centres are whole numbers."""

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from ferjax.annotation import mesh


def five_points(landmarks: np.ndarray) -> np.ndarray:
  """Centres of the right and the left eye, tip of the nose, right and left corner of the mouth.

  Args:
    landmarks: f[68, 2], iBUG points.

  Returns:
    f[5, 2].
  """
  eyes = [landmarks[36:42].mean(0), landmarks[42:48].mean(0)]
  return np.stack([*eyes, landmarks[30], landmarks[48], landmarks[54]])


def target(size: int, margin: float, pitch: float = 0.0, yaw: float = 0.0) -> np.ndarray:
  """The average face's 68 points f64[68, 2] in a crop, turned about its own axes, in the middle.

  Its size is the same in every pose: seen from the front, the larger of its width and height fills
  the crop but for the margin.

  Args:
    size: Pixels of the crop's side.
    margin: Share of the crop on each side.
    pitch: Radians, as `mesh.pose` gives them; a roll is what alignment takes away.
    yaw: Radians.
  """
  scale = size * (1 - 2 * margin) / np.ptp(mesh.AVERAGE_FACE[:, :2], axis=0).max()
  turned = Rotation.from_euler('xyz', (pitch, yaw, 0.0)).apply(mesh.AVERAGE_FACE)
  points = turned[:, :2] * (scale, -scale)
  return points - (points.min(0) + points.max(0)) / 2 + (size - 1) / 2


def similarity(source: np.ndarray, destination: np.ndarray) -> np.ndarray:
  """The rotation, scale and shift f64[2, 3] that carries points onto others with the least squared
  distance; it never mirrors (Umeyama, 1991, equations 40 to 42).

  Args:
    source: f[k, 2].
    destination: f[k, 2].
  """
  a = (source - source.mean(0)) @ (1, 1j)
  b = (destination - destination.mean(0)) @ (1, 1j)
  turn = np.vdot(a, b) / np.vdot(a, a).real  # a plane's rotation and scale are one complex factor
  linear = np.array([[turn.real, -turn.imag], [turn.imag, turn.real]])
  return np.column_stack([linear, destination.mean(0) - linear @ source.mean(0)])


def apply(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
  """Points f[..., 2 or 3] carried by a similarity f[2, 3]; a depth is scaled along."""
  plane = points[..., :2] @ matrix[:, :2].T + matrix[:, 2]
  return np.concatenate([plane, points[..., 2:] * np.hypot(*matrix[:, 0])], -1)


def crop(image: np.ndarray, matrix: np.ndarray, size: int) -> np.ndarray:
  """The crop u8[size, size, c]; the picture's edge is continued beyond it.

  Args:
    image: u8[h, w, c].
    matrix: The similarity from the picture's pixels to the crop's, f[2, 3].
    size: Pixels.
  """
  factor = int(1 / np.hypot(*matrix[:, 0]))
  if factor > 1:  # a bilinear sample would miss most pixels: average them first
    height, width = image.shape[:2]
    shape = max(width // factor, 1), max(height // factor, 1)
    ratio = np.array([width / shape[0], height / shape[1]])
    image = cv2.resize(image, shape, interpolation=cv2.INTER_AREA)
    shift = matrix[:, :2] @ (ratio / 2 - 0.5) + matrix[:, 2]
    matrix = np.column_stack([matrix[:, :2] * ratio, shift])
  return cv2.warpAffine(
    image, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
  )
