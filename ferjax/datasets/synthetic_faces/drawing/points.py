"""Named points of the left half of the average face, in millimetres.

The face is defined on a flat sheet (the domain: arc length around the head, height), on which eyes
and mouth are open. Then the sheet is put on the head, and the mouth is closed.
"""

from typing import NamedTuple

import numpy as np

from ferjax.datasets.synthetic_faces.drawing import surface

ARC = 80.0  # millimetres of arc length per radian
BACK = np.pi * ARC


class Points(NamedTuple):
  """Points of the left half of the face, x >= 0."""

  names: tuple[str, ...]
  domain: np.ndarray  # f64[n, 2], arc length and height on the sheet
  height: np.ndarray  # f64[n], height on the head, mouth closed
  lift: np.ndarray  # f64[n], distance of the point from the surface, outwards


EYE_UPPER = ('eye_in', 'up1', 'up2', 'up3', 'up4', 'up5', 'eye_out')
EYE_LOWER = ('eye_in', 'lo1', 'lo2', 'lo3', 'lo4', 'lo5', 'eye_out')
LIP_UPPER = ('mouth_top', 'mt1', 'mt2', 'mt3', 'mt4', 'corner')
LIP_LOWER = ('mouth_bottom', 'mb1', 'mb2', 'mb3', 'mb4', 'corner')
INNER_UPPER = ('it0', 'it1', 'it2', 'it3', 'it4', 'inner_corner')
INNER_LOWER = ('ib0', 'ib1', 'ib2', 'ib3', 'ib4', 'inner_corner')

_EYES = {
  'eye_in': (16.0, -2.0),
  'up1': (20.0, 2.2),
  'up2': (25.0, 4.6),
  'up3': (30.5, 5.5),
  'up4': (36.0, 4.8),
  'up5': (41.5, 2.8),
  'eye_out': (46.0, 0.2),
  'lo1': (20.5, -3.6),
  'lo2': (25.5, -4.8),
  'lo3': (31.0, -5.2),
  'lo4': (36.5, -4.6),
  'lo5': (41.5, -2.8),
}
_BROWS = {
  'brow0': (13.0, 19.5),
  'brow1': (23.0, 23.0),
  'brow2': (33.5, 24.5),
  'brow3': (44.0, 22.5),
  'brow4': (53.0, 16.0),
}
_NOSE = {
  'bridge0': (0.0, 5.0),
  'bridge1': (0.0, -9.0),
  'bridge2': (0.0, -21.0),
  'tip': (0.0, -34.0),
  'base0': (0.0, -48.0),
  'base1': (6.5, -47.0),
  'base2': (13.0, -44.0),
  'wing': (14.5, -38.5),
}
_LIPS = {
  'mouth_top': (0.0, -61.2),
  'mt1': (3.2, -60.4),
  'mt2': (6.8, -60.4),
  'mt3': (14.5, -63.2),
  'mt4': (20.5, -66.3),
  'corner': (25.5, -68.8),
  'mouth_bottom': (0.0, -80.0),
  'mb1': (4.0, -79.8),
  'mb2': (8.0, -79.0),
  'mb3': (15.5, -75.5),
  'mb4': (21.0, -71.8),
}
_INNER_X = (0.0, 3.6, 7.2, 13.0, 18.0)
_CHEEKS = {
  'cheek': (33.0, -22.0),
  'cheek_out': (47.0, -20.0),
  'infra': (31.0, -11.0),
  'crow': (53.0, 0.0),
  'nose_side': (9.5, -20.0),
  'nl0': (20.0, -41.0),
  'nl1': (25.0, -51.0),
  'nl2': (31.0, -63.0),
  'marionette': (28.0, -80.0),
  'chin': (0.0, -101.0),
  'chin_side': (14.0, -97.0),
  'mental': (0.0, -88.0),
  'jowl': (42.0, -78.0),
  'under_nose': (0.0, -54.5),
  'under_wing': (11.0, -53.5),
  'glabella': (0.0, 17.0),
  'forehead0': (12.0, 42.0),
  'forehead1': (38.0, 44.0),
}
_JAW = ((0, None), (11, None), (23, None), (37, None), (54, None), (70, None))
_JAW_HIGH = ((78, -40.0), (82, -20.0), (84, 0.0))


def ibug68() -> tuple[tuple[str, bool], ...]:
  """The 68 iBUG points in order, each as (name, whether it is on the subject's right)."""
  jaw = [(f'jaw{8 - i}', True) for i in range(8)] + [(f'jaw{i}', False) for i in range(9)]
  brows = [(f'brow{4 - i}', True) for i in range(5)] + [(f'brow{i}', False) for i in range(5)]
  nose = [(name, False) for name in ('bridge0', 'bridge1', 'bridge2', 'tip')]
  nose += [('base2', True), ('base1', True), ('base0', False), ('base1', False), ('base2', False)]
  eyes = [(name, True) for name in ('eye_out', 'up4', 'up2', 'eye_in', 'lo2', 'lo4')]
  eyes += [(name, False) for name in ('eye_in', 'up2', 'up4', 'eye_out', 'lo4', 'lo2')]
  lips = [('corner', True), ('mt3', True), ('mt2', True), ('mouth_top', False), ('mt2', False)]
  lips += [('mt3', False), ('corner', False), ('mb3', False), ('mb2', False)]
  lips += [('mouth_bottom', False), ('mb2', True), ('mb3', True)]
  inner = [('inner_corner', True), ('it2', True), ('it0', False), ('it2', False)]
  inner += [('inner_corner', False), ('ib2', False), ('ib0', False), ('ib2', True)]
  return tuple(jaw + brows + nose + eyes + lips + inner)


def _seam(x):
  """Height of the line of the closed mouth."""
  return -68.2 - 0.6 * (x / 20) ** 2 + 0.27 * np.exp(-0.5 * (x / 3) ** 2)


def named() -> Points:
  """All named points, in a fixed order."""
  flat = {**_EYES, **_BROWS, **_NOSE, **_LIPS, **_CHEEKS}
  height = {name: y for name, (_, y) in flat.items()}
  lift = dict.fromkeys(flat, 0.0)
  for i, x in enumerate(_INNER_X):
    for row, side, gap in (('it', 1, 3.4), ('ib', -1, 3.4)):
      flat[f'{row}{i}'] = (x, -68.2 + side * gap * np.sqrt(max(1 - (x / 21.5) ** 2, 0)))
      height[f'{row}{i}'] = _seam(x) + side * 0.22
      lift[f'{row}{i}'] = 1.2 * (1 - (x / 22) ** 2)
  flat['inner_corner'] = (21.5, -68.6)
  height['inner_corner'] = -68.6
  lift['inner_corner'] = -0.6
  for upper, outer, inner, out in (
    ('um', LIP_UPPER, INNER_UPPER, 3.4),
    ('lm', LIP_LOWER, INNER_LOWER, 4.2),
  ):
    for i in range(5):
      (x0, y0), (x1, y1) = flat[outer[i]], flat[inner[i]]
      name = f'{upper}{i}'
      flat[name] = ((x0 + x1) / 2, (y0 + y1) / 2)
      height[name] = (height[outer[i]] + height[inner[i]]) / 2
      lift[name] = out * (1 - (x1 / 22) ** 2) + 0.4
  for name in (*LIP_UPPER[:-1], *LIP_LOWER[:-1]):
    lift[name] = 0.5
  lift['corner'] = -0.8
  names = list(flat)
  x, y = np.array([flat[name] for name in names]).T
  domain = np.stack([surface.angle_at(x, np.array([height[n] for n in names])) * ARC, y], axis=-1)
  domain[x == 0, 0] = 0.0
  jaw_angle = np.radians([angle for angle, _ in (*_JAW, *_JAW_HIGH)])
  jaw_height = surface.jaw_height(jaw_angle) + 4.0 + 5 * np.clip(jaw_angle - 0.6, 0, 1)
  for i, (_, y) in enumerate(_JAW_HIGH):
    jaw_height[len(_JAW) + i] = y
  names += [f'jaw{i}' for i in range(9)]
  domain = np.concatenate([domain, np.stack([jaw_angle * ARC, jaw_height], axis=-1)])
  heights = np.concatenate([[height[n] for n in flat], jaw_height])
  return Points(
    tuple(names), domain, heights, np.concatenate([[lift[n] for n in flat], np.zeros(9)])
  )


def curve(nodes: np.ndarray, count: int = 24) -> np.ndarray:
  """A smooth line through nodes f64[n, 2], sampled at even steps: f64[count, 2]."""
  nodes = np.asarray(nodes, float)
  length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(nodes, axis=0), axis=1))])
  t = np.linspace(0, length[-1], count)
  padded = np.concatenate([2 * nodes[:1] - nodes[1:2], nodes, 2 * nodes[-1:] - nodes[-2:-1]])
  i = np.clip(np.searchsorted(length, t, side='right') - 1, 0, len(nodes) - 2)
  f = ((t - length[i]) / (length[i + 1] - length[i]))[:, None]
  p, q, r, s = (padded[i + k] for k in range(4))
  return q + 0.5 * f * (r - p + f * (2 * p - 5 * q + 4 * r - s + f * (3 * (q - r) + s - p)))
