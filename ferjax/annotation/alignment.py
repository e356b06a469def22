"""Aligned crops of faces: their geometry and their pixels. Pixel centres are whole numbers."""

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from ferjax.annotation import mesh


def five_points(landmarks: np.ndarray) -> np.ndarray:
  """Centres of the right and left eye, tip of the nose, right and left corner of the mouth.

  Args:
    landmarks: f[68, 2], iBUG points; right and left are the subject's own.

  Returns:
    f[5, 2].
  """
  eyes = [landmarks[36:42].mean(0), landmarks[42:48].mean(0)]
  return np.stack([*eyes, landmarks[30], landmarks[48], landmarks[54]])


def target(size: int, margin: float, pitch: float = 0.0, yaw: float = 0.0) -> np.ndarray:
  """The 68 points of the average face f64[68, 2], in the middle of a crop, turned by a pose.

  The size of the face is the same in every pose: seen from the front, the larger of its width and
  height fills the crop except for the margin.

  Args:
    size: Size of the crop in pixels.
    margin: Margin on each side, as a share of the crop.
    pitch, yaw: Radians, with the signs of `mesh.pose`. There is no roll, because alignment removes
      it.
  """
  scale = size * (1 - 2 * margin) / np.ptp(mesh.AVERAGE_FACE[:, :2], axis=0).max()
  turned = Rotation.from_euler('xyz', (pitch, yaw, 0.0)).apply(mesh.AVERAGE_FACE)
  points = turned[:, :2] * (scale, -scale)
  return points - (points.min(0) + points.max(0)) / 2 + (size - 1) / 2


def similarity(source: np.ndarray, destination: np.ndarray) -> np.ndarray:
  """The rotation, scale and shift that map points to others with the least squared distance.

  It never mirrors. Reference: Umeyama, 1991, equations 40 to 42.

  Args:
    source: f[k, 2].
    destination: f[k, 2].

  Returns:
    f64[2, 3].
  """
  a = (source - source.mean(0)) @ (1, 1j)
  b = (destination - destination.mean(0)) @ (1, 1j)
  turn = np.vdot(a, b) / np.vdot(a, a).real  # in the plane, rotation and scale: a complex factor
  linear = np.array([[turn.real, -turn.imag], [turn.imag, turn.real]])
  return np.column_stack([linear, destination.mean(0) - linear @ source.mean(0)])


def apply(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
  """Applies a similarity f[2, 3] to points f[..., 2 or 3]. A depth is only scaled."""
  plane = points[..., :2] @ matrix[:, :2].T + matrix[:, 2]
  return np.concatenate([plane, points[..., 2:] * np.hypot(*matrix[:, 0])], -1)


def crop(image: np.ndarray, matrix: np.ndarray, size: int) -> np.ndarray:
  """Cuts out a crop. Beyond the edges of the picture, the pixels at the edge are repeated.

  Args:
    image: u8[h, w, c].
    matrix: The similarity from pixels of the picture to pixels of the crop, f[2, 3].
    size: Size of the crop in pixels.

  Returns:
    u8[size, size, c].
  """
  factor = int(1 / np.hypot(*matrix[:, 0]))
  if factor > 1:  # bilinear samples would skip most pixels, so average them first
    height, width = image.shape[:2]
    shape = max(width // factor, 1), max(height // factor, 1)
    ratio = np.array([width / shape[0], height / shape[1]])
    image = cv2.resize(image, shape, interpolation=cv2.INTER_AREA)
    shift = matrix[:, :2] @ (ratio / 2 - 0.5) + matrix[:, 2]
    matrix = np.column_stack([matrix[:, :2] * ratio, shift])
  return cv2.warpAffine(
    image, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
  )
