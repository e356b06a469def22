"""What a person looks like besides the shape: skin, brows, lips, hair, eyes, as a texture."""

import functools
from typing import NamedTuple

import cv2
import numpy as np

from ferjax.datasets.synthetic_faces.drawing import head, points, resample, surface

_SKIN = np.array(
  [
    (238, 206, 186),
    (230, 190, 164),
    (218, 172, 142),
    (192, 143, 110),
    (156, 108, 78),
    (116, 76, 54),
    (86, 57, 43),
    (66, 45, 36),
  ],
  float,
)
_HAIR = np.array(
  [
    (28, 24, 24),
    (48, 34, 28),
    (82, 54, 36),
    (120, 80, 46),
    (178, 140, 88),
    (128, 50, 26),
    (150, 146, 142),
    (206, 200, 194),
  ],
  float,
)
_IRIS = np.array([(52, 32, 22), (86, 54, 30), (104, 92, 52), (84, 112, 132), (96, 122, 96)], float)


class Appearance(NamedTuple):
  """Everything of a person that does not change from picture to picture."""

  texture: np.ndarray  # u8[h, w, 3], RGB
  hair: float  # thickness in millimetres
  long_hair: bool
  age: float  # 0..1, how deep the lines are at rest
  skin: float  # mean of the skin's red, green and blue, 0..255


class _Patch(NamedTuple):
  """Coverage of a window of the sheet."""

  rows: slice
  columns: slice
  mask: np.ndarray  # f32[h, w]

  def times(self, factor):
    """The same window, scaled by a number or by a map of the whole sheet, within 0..1."""
    if isinstance(factor, np.ndarray):
      factor = factor[self.rows, self.columns]
    return self._replace(mask=np.clip(self.mask * factor, 0, 1))


def _window(low, high):
  """Slices of the sheet between two texels."""
  low = np.clip(np.floor(low).astype(int), 0, np.array(head.SHEET) - 1)
  high = np.clip(np.ceil(high).astype(int) + 1, low + 1, head.SHEET)
  return slice(low[1], high[1]), slice(low[0], high[0])


def _mask(polygons, blur):
  """Coverage of polygons of the sheet, mirrored to both sides; blur in millimetres."""
  both = [np.asarray(polygon) * (side, 1) for polygon in polygons for side in (1, -1)]
  corners = np.concatenate([head.texel(polygon) for polygon in both])
  margin = 4 * blur * head.TEXELS_PER_MM + 2
  rows, columns = _window(corners.min(axis=0) - margin, corners.max(axis=0) + margin)
  canvas = np.zeros((rows.stop - rows.start, columns.stop - columns.start), np.uint8)
  for polygon in both:
    places = head.texel(polygon) - (columns.start, rows.start)
    eighths = np.round(places * 8).astype(np.int32)
    cv2.fillPoly(canvas, [eighths], 255, cv2.LINE_AA, 3)
  if blur:
    canvas = cv2.GaussianBlur(canvas, (0, 0), blur * head.TEXELS_PER_MM)
  return _Patch(rows, columns, canvas.astype(np.float32) / 255)


def _spot(x, y, width, height):
  """Two soft spots at (+-x, y) of the sheet."""
  reach = np.array([x + 3 * width, 3 * height])
  low, high = head.texel([(-reach[0], y + reach[1]), (reach[0], y - reach[1])])
  rows, columns = _window(low, high)
  across = np.arange(columns.start, columns.stop) / head.TEXELS_PER_MM - points.BACK
  up = surface.TOP - np.arange(rows.start, rows.stop) / head.TEXELS_PER_MM
  across = np.exp(-0.5 * ((np.abs(across) - x) / width) ** 2)
  return _Patch(
    rows, columns, np.outer(np.exp(-0.5 * ((up - y) / height) ** 2), across).astype(np.float32)
  )


def _noise(rng, grain):
  """Smooth noise of about unit deviation over the sheet, f32[h, w]; grain in millimetres."""
  columns, rows = (max(int(n / (grain * head.TEXELS_PER_MM)), 2) for n in head.SHEET)
  coarse = rng.standard_normal((rows, columns), dtype=np.float32)
  coarse = np.clip(128 + 40 * coarse, 0, 255).astype(np.uint8)
  fine = cv2.resize(coarse, head.SHEET, interpolation=cv2.INTER_LINEAR_EXACT)
  return (fine.astype(np.float32) - 128) / np.float32(40)


@functools.cache
def _sheet_points():
  named = points.named()
  return dict(zip(named.names, named.domain, strict=True))


def _outline(names):
  at = _sheet_points()
  return np.array([at[name] for name in names])


def _blend(canvas, patch, colour):
  """Lays a colour, or a picture of the patch's size, over a window of the canvas, in place."""
  part = canvas[patch.rows, patch.columns]
  part += patch.mask[..., None] * (np.asarray(colour, np.float32) - part)


def _paint_brows(canvas, rng, colour, grain):
  thick = rng.uniform(5.0, 9.5)
  taper = rng.uniform(0.25, 0.6)
  density = rng.uniform(0.72, 0.95)
  line = points.curve(_outline([f'brow{i}' for i in range(5)]))
  t = np.linspace(0, 1, len(line))
  half = thick / 2 * np.minimum(1, 0.75 + 3 * t) * (1 - (1 - taper) * t**2)
  middle = line - np.stack([np.zeros_like(t), 0.25 * half], -1)
  up = np.stack([np.zeros_like(t), half], -1)
  mask = _mask([np.concatenate([middle + up, (middle - up)[::-1]])], 0.55)
  _blend(canvas, mask.times(density * (0.85 + 0.15 * grain)), colour)


def _paint_lips(canvas, rng, skin):
  depth = rng.uniform(0.35, 1.0)
  red = skin * (0.80, 0.56, 0.58) + (30, 6, 10) * np.array(depth)
  colour = skin + (red - skin) * (0.45 + 0.5 * depth)
  outer = np.concatenate([_outline(points.LIP_UPPER), _outline(points.LIP_LOWER)[-2::-1]])
  _blend(canvas, _mask([outer], 0.7).times(0.95), colour)
  upper = np.concatenate([_outline(points.LIP_UPPER), _outline(points.INNER_UPPER)[::-1]])
  _blend(canvas, _mask([upper], 0.7).times(0.30), colour * 0.6)
  inner = np.concatenate([_outline(points.INNER_UPPER), _outline(points.INNER_LOWER)[-2::-1]])
  _blend(canvas, _mask([inner], 0.9).times(1.2), colour * 0.38)


def _paint_lids(canvas, rng, skin):
  upper, lower = _outline(points.EYE_UPPER), _outline(points.EYE_LOWER)
  centre = (upper.mean(axis=0) + lower.mean(axis=0)) / 2
  eye = np.concatenate([upper, lower[-2:0:-1]])
  shade = _mask([centre + (eye - centre) * (1.35, 2.1)], 3)
  _blend(canvas, shade.times(0.28), skin * (0.7, 0.55, 0.55))
  lash = np.concatenate(
    [points.curve(upper) + (0, rng.uniform(1.3, 2.2)), points.curve(upper)[::-1] - (0, 3)]
  )
  _blend(canvas, _mask([lash], 0.35).times(0.95), np.array([24, 18, 18]))
  lower_lash = np.concatenate([points.curve(lower) - (0, 0.7), points.curve(lower)[::-1] + (0, 2)])
  _blend(canvas, _mask([lower_lash], 0.4).times(0.5), skin * 0.35)
  crease = points.curve(upper[1:]) + (0.5, rng.uniform(3.6, 5.0))
  crease = np.concatenate([crease, (crease - (0, 1.2))[::-1]])
  _blend(canvas, _mask([crease], 0.6).times(rng.uniform(0.25, 0.6)), skin * 0.45)


def _hair_edge(rng, receding):
  """The outline of the hair on the left half of the sheet: the average one, moved at random."""
  arc, height = head.HAIRLINE.copy()
  height[0] += 4 * rng.normal() + 16 * receding
  height[1] += 4 * rng.normal() + 24 * receding
  height[2] += 3 * rng.normal() + 12 * receding
  height[5:7] -= rng.uniform(-3, 12)
  arc = np.concatenate([arc, [points.BACK + 2, points.BACK + 2, 0]])
  height = np.concatenate([height, [height[-1], surface.TOP + 4, surface.TOP + 4]])
  edge = np.stack([arc, height], axis=-1)
  return np.concatenate([points.curve(edge[:3], 12), edge[3:]])


def _paint_eye(canvas, rng, light):
  side = head.EYE_TEXELS
  per_mm = side / head.EYE_SPAN
  middle = (side - 1) / 2
  row, column = np.indices((side, side)) - middle
  away = np.hypot(row, column) / per_mm
  chances = np.array([0.35, 0.3, 0.12 * light, 0.15 * light**2, 0.08 * light**2])
  colour = _IRIS[rng.choice(len(_IRIS), p=chances / chances.sum())] * rng.uniform(0.75, 1.2)
  white = np.array([228, 222, 216]) - np.clip(away - 6, 0, 8)[..., None] * (5, 9, 9)

  def disc(reach):
    return np.clip((reach - away) * per_mm + 0.5, 0, 1)[..., None]

  spokes = 1 + 0.18 * np.sin(np.arctan2(row, column) * 17)
  eye = white + disc(6.8) * (colour * 0.45 - white)
  eye += disc(6.1) * (colour * (spokes * (0.7 + 0.09 * away))[..., None] - eye)
  eye += disc(rng.uniform(2.0, 2.8)) * (np.array([10, 8, 8]) - eye)
  glint = np.clip((1.15 - np.hypot(row / per_mm + 2.2, column / per_mm + 2.0)) * 2, 0, 1)
  eye += glint[..., None] * (255 - eye)
  x, y = head.EYE_ORIGIN
  canvas[y : y + side, x : x + side] = eye


def _paint_skin(canvas, rng, skin, hair, light, fine):
  """Blotches, blush, shadows, perhaps freckles and a beard; `fine` is noise of the sheet's size."""
  blotches = 0.020 * _noise(rng, 14.0) + 0.018 * _noise(rng, 4.0) + 0.015 * fine
  canvas *= 1 + blotches[..., None]
  blush = rng.uniform(0.1, 0.6) * (0.4 + 0.6 * light)
  for share, place in ((0.5, (38, -28, 16, 13)), (0.6, (0, -36, 12, 9)), (0.2, (0, -98, 14, 10))):
    _blend(canvas, _spot(*place).times(share * blush), skin * (1.0, 0.70, 0.68))
  _blend(canvas, _spot(26, -11, 10, 4).times(rng.uniform(0.1, 0.45)), skin * (0.72, 0.66, 0.70))
  if rng.uniform() < 0.25:
    dots = 0.8 * np.clip(_noise(rng, 1.6) - 1.1, 0, 0.6)
    _blend(canvas, _spot(22, -21, 26, 14).times(dots), skin * (0.68, 0.55, 0.48))
  if rng.uniform() < 0.35:
    density = rng.uniform(0.6, 0.85) if rng.uniform() < 0.35 else 0.3
    shadow = density * np.clip(0.9 + 0.3 * fine, 0, 1)
    for place in ((0, -100, 40, 16), (50, -80, 16, 18), (8, -55, 14, 4.0)):
      patch = _spot(*place)
      patch = patch._replace(mask=np.clip(1.5 * patch.mask - 0.25, 0, 1))
      _blend(canvas, patch.times(shadow), np.minimum(hair * 0.8, skin * 0.7))
  _blend(canvas, _spot(6.2, -46.2, 2.6, 1.4).times(0.9), skin * 0.16)
  _blend(canvas, _spot(15.5, -41, 1.6, 5).times(0.28), skin * (0.5, 0.4, 0.4))


def _paint_hair(canvas, rng, hair, age, bald):
  edge = _hair_edge(rng, rng.uniform(0, 1) ** 2 * (0.4 + 0.6 * age))
  long_strands, locks = (
    resample.enlarge(rng.standard_normal(shape, dtype=np.float32), *head.SHEET[::-1])
    for shape in ((9, 420), (4, 70))
  )
  soft = _mask([edge], 5.0)
  window = soft.rows, soft.columns
  ragged = 0.12 * long_strands[window] + rng.uniform(0.03, 0.22) * locks[window]
  ragged *= 4 * soft.mask * (1 - soft.mask)
  covered = soft._replace(mask=np.clip((soft.mask + ragged - 0.5) * 5 + 0.5, 0, 1))
  strands = np.clip(0.17 * long_strands[window] + 0.08 * _noise(rng, 20.0)[window], -0.5, 0.7)
  strands = hair.astype(np.float32) * (1 + strands[..., None])
  if bald:
    _blend(canvas, covered.times(rng.uniform(0, 0.25)), strands)
  else:
    _blend(canvas, covered, strands)


def paint(rng: np.random.Generator) -> Appearance:
  """Draws a person's look at random."""
  tone = rng.uniform(0, len(_SKIN) - 1)
  base = np.array([np.interp(tone, np.arange(len(_SKIN)), _SKIN[:, i]) for i in range(3)])
  skin = np.clip(base * (1 + rng.normal(0, 0.03) * np.array([1, 0.1, -1])), 20, 255)
  light = 1 - tone / (len(_SKIN) - 1)
  age = rng.uniform(0, 1) ** 1.5
  chances = np.array([0.26, 0.24, 0.16, 0.1, 0.12, 0.05, 0.04 + 0.16 * age, 0.03 + 0.1 * age])
  chances[3:6] *= light**2
  hair = _HAIR[rng.choice(len(_HAIR), p=chances / chances.sum())] * rng.uniform(0.85, 1.15)
  texture = np.zeros((head.TEXTURE[1], head.TEXTURE[0], 3), np.float32)
  canvas = np.broadcast_to(skin, (*head.SHEET[::-1], 3)).astype(np.float32)

  fine = _noise(rng, 1.2)
  _paint_skin(canvas, rng, skin, hair, light, fine)
  _paint_lids(canvas, rng, skin)
  _paint_lips(canvas, rng, skin)
  brow = hair * 0.75 if hair.mean() < 140 else hair * 0.55
  brow = np.minimum(brow, skin * 0.62)
  _paint_brows(canvas, rng, brow, fine)
  bald = rng.uniform() < 0.12 + 0.12 * age
  _paint_hair(canvas, rng, hair, age, bald)
  cloth = np.clip(rng.uniform(20, 235, 3) * 0.6 + rng.uniform(20, 235) * 0.4, 0, 255)
  collar = int((surface.TOP - rng.uniform(-162, -146)) * head.TEXELS_PER_MM)
  canvas[collar:] = cloth

  texture[: head.SHEET[1]] = canvas
  _paint_eye(texture, rng, light)
  for (x, y), colour in (
    (head.GUM, (112, 44, 42)),
    (head.TONGUE, (176, 88, 86)),
    (head.TOOTH, np.array([240, 232, 216]) * rng.uniform(0.88, 1.02)),
    (head.MARGIN, skin * (0.75, 0.52, 0.50)),
    (head.EAR, skin * (1.0, 0.88, 0.86)),
  ):
    texture[y - head.SWATCH : y + head.SWATCH, x - head.SWATCH : x + head.SWATCH] = colour
  thickness = 0.0 if bald else rng.uniform(3, 16)
  long_hair = not bald and rng.uniform() < 0.4
  texture = np.clip(texture, 0, 255, out=texture).astype(np.uint8)
  return Appearance(texture, thickness, bool(long_hair), float(age), float(skin.mean()))
