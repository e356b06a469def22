"""The average head as a smooth analytic surface around a vertical axis, in millimetres.

The origin is on the axis at the height of the eyes. A point is given by its angle (0 in front, pi/2
at the subject's left ear, pi behind) and its height y.
"""

import numpy as np

TOP, BOTTOM = 112.0, -215.0

_HEIGHTS = np.array(
  [-215, -160, -130, -110, -90, -60, -30, 0, 30, 60, 80, 95, 105, 109, 111.3, 112]
)
_WIDTH = np.array([52, 52, 52, 52, 55, 62, 69.5, 74, 76, 70.5, 60, 46.5, 31, 20, 10, 0.5])
_FRONT = np.array([85, 85, 83, 82, 85, 86, 86, 86, 90, 85, 72, 55, 37, 24, 12, 0.5])
_BACK = np.array([60, 60, 60, 62, 66, 74, 87, 100, 103, 95, 81, 62, 42, 27, 13, 0.5])

_NECK_HEIGHTS = np.array([-215, -190, -170, -150, -130, -100, -60, 112.0])
_NECK_WIDTH = np.array([185, 165, 115, 64, 51, 48, 50, 50.0])
_NECK_FRONT = np.array([60, 55, 45, 36, 33, 32, 34, 34.0])
_NECK_BACK = np.array([95, 92, 82, 74, 70, 70, 72, 72.0])

_JAW_ANGLES = np.radians([0, 11, 23, 37, 56, 75, 86, 110, 135, 180])
_JAW_HEIGHTS = np.array([-114, -112, -105, -93, -80, -70, -66, -62, -62, -72.0])

_NOSE_HEIGHTS = np.array([-60, -53, -49.5, -47, -43.5, -39, -34, -27, -18, -8, 2, 9, 18, 30.0])
_NOSE_DEPTH = np.array([0, 0.5, 3, 8.5, 15.5, 20, 21.5, 19.5, 14.5, 9.5, 5.0, 3.2, 1.5, 0])
_NOSE_WIDTH = np.array([6, 7, 9, 10, 10.5, 10.5, 10, 8.5, 7.2, 6.5, 6.5, 7.5, 9, 9.0])

EYE_CENTRE = np.array([31.0, 0.0, 65.5])
EYE_RADIUS = 12.8


def _smooth(heights, values, y):
  """A piecewise cubic through the knots. Limited slopes prevent overshoot."""
  step = np.diff(heights)
  slope = np.diff(values) / step
  inner = np.where(
    slope[:-1] * slope[1:] > 0,
    2 * slope[:-1] * slope[1:] / np.where(slope[:-1] + slope[1:] == 0, 1, slope[:-1] + slope[1:]),
    0.0,
  )
  tangent = np.concatenate([slope[:1], inner, slope[-1:]])
  y = np.clip(y, heights[0], heights[-1])
  i = np.clip(np.searchsorted(heights, y, side='right') - 1, 0, len(step) - 1)
  t = (y - heights[i]) / step[i]
  return (
    values[i] * (1 + 2 * t) * (1 - t) ** 2
    + values[i + 1] * t**2 * (3 - 2 * t)
    + step[i] * t * (1 - t) * (tangent[i] * (1 - t) - tangent[i + 1] * t)
  )


def _ellipse(angle, width, front, back):
  depth = np.where(np.cos(angle) >= 0, front, back)
  return 1 / np.sqrt((np.sin(angle) / width) ** 2 + (np.cos(angle) / depth) ** 2)


def jaw_height(angle: np.ndarray) -> np.ndarray:
  """Height at which the face meets the neck, f64[n]."""
  return _smooth(_JAW_ANGLES, _JAW_HEIGHTS, np.abs(angle))


def radius(angle: np.ndarray, y: np.ndarray) -> np.ndarray:
  """Distance of the head, without features, from its axis, f64[n]."""
  angle = np.abs(angle)
  head = _ellipse(angle, *(_smooth(_HEIGHTS, knots, y) for knots in (_WIDTH, _FRONT, _BACK)))
  neck = _ellipse(
    angle, *(_smooth(_NECK_HEIGHTS, k, y) for k in (_NECK_WIDTH, _NECK_FRONT, _NECK_BACK))
  )
  fade = 9 + 20 * np.clip((angle - 0.7) / 0.7, 0, 1) ** 2 + 15 * np.clip(angle - 1.6, 0, 1)
  t = np.clip((y - jaw_height(angle)) / fade, 0, 1)
  face = np.sqrt(1 - (1 - t) ** 2)  # the quarter circle of the jaw's edge
  return neck + (head - neck) * face


def angle_at(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """The angle within +-pi/2 at which the surface has this x, f64[n]."""
  low, high = np.full_like(x, -np.pi / 2), np.full_like(x, np.pi / 2)
  for _ in range(48):
    middle = (low + high) / 2
    left = radius(middle, y) * np.sin(middle) < x
    low, high = np.where(left, middle, low), np.where(left, high, middle)
  return (low + high) / 2


def bump(x, y, x0, y0, width, height):
  """A Gaussian hill at (+-x0, y0), f64[n]."""
  return np.exp(-0.5 * (((np.abs(x) - x0) / width) ** 2 + ((y - y0) / height) ** 2))


def relief(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """Height of the features over the plain head, f64[n] along z, for its front."""
  nose_width = _smooth(_NOSE_HEIGHTS, _NOSE_WIDTH, y)
  nose = _smooth(_NOSE_HEIGHTS, _NOSE_DEPTH, y) * np.exp(-(np.abs(x / nose_width) ** 2.4))
  hills = (
    (3.5, 27, 15, 17, 6),  # brow ridge
    (1.5, 0, 18, 12, 8),  # glabella
    (-10, 19, 1, 7, 9),  # inner eye socket
    (-5, 36, 2, 13, 8),  # outer eye socket
    (6.5, 12.5, -41, 3.8, 4.6),  # nostril wings
    (-5, 17.5, -44, 3, 7),  # the fold next to the wings
    (4.5, 46, -24, 14, 11),  # cheek bone
    (2.5, 33, -34, 13, 12),  # cheek
    (-2.5, 46, -62, 11, 15),  # hollow of the cheek
    (7, 0, -67, 21, 17),  # muzzle
    (-1.5, 0, -55, 2.5, 4),  # philtrum
    (-5, 0, -88, 15, 5),  # fold above the chin
    (6, 0, -102, 15, 8),  # chin
    (-2.0, 29, -71, 5, 7),  # next to the corners of the mouth
    (2.5, 32, 58, 20, 16),  # forehead
  )
  return nose + sum(
    height * bump(x, y, x0, y0, width, tall) for height, x0, y0, width, tall in hills
  )


def position(angle: np.ndarray, y: np.ndarray) -> np.ndarray:
  """Points of the average head, f64[n, 3]; eyelids are bent around the eyeballs."""
  distance = radius(angle, y)
  x, z = distance * np.sin(angle), distance * np.cos(angle)
  front = np.clip(np.cos(angle) / 0.5, 0, 1)
  z = z + relief(x, y) * front
  away = (np.abs(x) - EYE_CENTRE[0]) ** 2 + (y - EYE_CENTRE[1]) ** 2
  lid = EYE_CENTRE[2] + np.sqrt(np.maximum((EYE_RADIUS + 1.6) ** 2 - away, 0))
  softness = 2.0
  gap = np.clip((lid - z) / softness, -20, 20)
  bent = z + softness * np.log1p(np.exp(gap))
  z = np.where((away < (EYE_RADIUS + 6) ** 2) & (z > 0), bent, z)
  return np.stack([x, y, z], axis=-1)
