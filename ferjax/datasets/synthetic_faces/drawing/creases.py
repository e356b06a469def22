"""Skin creases that deepen with action units: forehead, frown, nose, cheeks, mouth, chin."""

import functools

import cv2
import numpy as np

from ferjax.datasets.synthetic_faces.drawing import head, points, render
from ferjax.datasets.synthetic_faces.drawing.action_units import ACTION_UNITS

# Creases on the left half of the sheet: the weights of action units that deepen it, depth, width in
# millimetres, and the line. The first number of each point grows away from the nose.
_CREASES = (
  ({'AU01': 0.55, 'AU02': 0.45}, 0.24, 1.7, ((0, 50), (16, 51), (36, 49), (50, 42))),
  ({'AU01': 0.55, 'AU02': 0.45}, 0.22, 1.7, ((0, 40), (16, 41), (36, 40), (52, 34))),
  ({'AU01': 0.6, 'AU02': 0.3}, 0.2, 1.5, ((0, 32), (14, 33), (34, 33))),
  ({'AU04': 1.0}, 0.55, 1.3, ((5, 12), (6, 20), (6.5, 30))),
  ({'AU04': 0.6, 'AU09': 0.5}, 0.40, 1.2, ((0, 9), (5, 8.5), (9, 10))),
  ({'AU09': 1.0}, 0.50, 1.1, ((1, 1), (6, -3), (10, -9))),
  ({'AU09': 1.0}, 0.50, 1.1, ((1, -6), (6, -10), (10, -16))),
  ({'AU06': 1.0}, 0.34, 0.9, ((54, 3), (60, 7), (66, 9))),
  ({'AU06': 1.0}, 0.34, 0.9, ((55, -1), (62, -2), (68, -3))),
  ({'AU06': 0.7, 'AU07': 0.5}, 0.32, 1.2, ((21, -9), (30, -11.5), (40, -10), (47, -6))),
  (
    {'AU12': 0.7, 'AU10': 0.6, 'AU09': 0.55, 'AU14': 0.3, 'AU20': 0.3},
    0.58,
    1.6,
    ((17, -40), (22, -47), (27, -56), (31, -67)),
  ),
  ({'AU12': 0.6, 'AU14': 1.0, 'AU20': 0.6}, 0.45, 1.4, ((30, -62), (31.5, -69), (30, -75))),
  ({'AU15': 1.0, 'AU17': 0.3}, 0.50, 1.5, ((27, -71), (30, -78), (31, -88))),
  ({'AU17': 1.0}, 0.45, 1.6, ((0, -87), (8, -88), (15, -92))),
  ({'AU17': 0.8}, 0.22, 1.8, ((4, -97), (8, -102), (3, -107))),
  ({'AU10': 0.6, 'AU09': 0.5}, 0.25, 1.4, ((15, -50), (14, -57), (17, -60))),
)
_WINDOW = ((-78.0, 66.0), (78.0, -116.0))  # the part of the sheet that has creases
_ZOOM = 0.5  # texels of the crease maps per texel of the texture, along each axis


@functools.cache
def _maps():
  """Crease maps f32[2k, h * w], one for each crease and side; weights of their action units
  f32[2k, a]; shape (h, w); and place (column, row, scale)."""
  (x0, y0), (x1, y1) = head.texel(np.array(_WINDOW)).astype(int) // 2 * 2
  maps, units = [], []
  density = head.TEXELS_PER_MM * _ZOOM
  for weights, depth, width, line in _CREASES:
    by_unit = np.array([weights.get(name, 0.0) for name in ACTION_UNITS], np.float32)
    for side in (1, -1):
      canvas = np.zeros(head.SHEET[::-1], np.uint8)
      nodes = np.round(head.texel(points.curve(line) * (side, 1)) * 8).astype(np.int32)
      cv2.polylines(canvas, [nodes], False, 255, 2, cv2.LINE_AA, 3)
      canvas = canvas[y0:y1, x0:x1].astype(np.uint16)
      quarters = canvas[0::2, 0::2] + canvas[0::2, 1::2] + canvas[1::2, 0::2] + canvas[1::2, 1::2]
      canvas = (quarters // 4).astype(np.uint8)
      sharp = cv2.GaussianBlur(canvas, (0, 0), width * density)
      wide = cv2.GaussianBlur(canvas, (0, 0), 2.6 * width * density)
      crease = sharp / float(sharp.max()) - 0.45 * wide / float(wide.max())
      maps.append((depth * crease.ravel()).astype(np.float32))
      units.append(by_unit)
  shift = 0.5 / _ZOOM - 0.5  # between the texel centres of the two scales
  return np.stack(maps), np.stack(units), canvas.shape, (x0 + shift, y0 + shift, _ZOOM)


def draw(
  left: np.ndarray, right: np.ndarray, age: float
) -> tuple[np.ndarray, tuple[float, float, float]]:
  """The darkening of the skin by creases, u8[h, w], and its place; see `render.Surface`.

  Args:
    left: Intensities f32[a], 0..5, of the subject's left half.
    right: Intensities f32[a], 0..5, of the right half.
    age: 0..1, depth of the creases of a face at rest.
  """
  maps, units, extent, at = _maps()
  intensity = np.stack([left, right]).astype(np.float32) / 5
  strength = np.empty(len(maps), np.float32)
  strength[0::2] = (units[0::2] * intensity[0]).sum(axis=1)
  strength[1::2] = (units[1::2] * intensity[1]).sum(axis=1)
  strength = np.minimum(strength * (0.75 + 0.5 * age) + 0.22 * age, 1.2).astype(np.float32)
  dark = render.combine(strength, maps).reshape(extent)
  return np.clip(np.rint(100 + 100 * dark), 0, 255).astype(np.uint8), at
