"""The drawn head as a FaceModel: skin, eyeballs, mouth, teeth, ears and long hair."""

import functools

import numpy as np

from ferjax.datasets.synthetic_faces.drawing import action_units, identity, mesh, points, surface
from ferjax.datasets.synthetic_faces.drawing.model import FaceModel

TEXELS_PER_MM = 1.25
SHEET = (int(2 * points.BACK * TEXELS_PER_MM) + 2, 412)  # columns, rows of the skin in the texture
EYE_TEXELS = 96  # side of the square with the iris
TEXTURE = (SHEET[0], SHEET[1] + EYE_TEXELS)
EYE_ORIGIN = (0, SHEET[1])
EYE_SPAN = 26.0  # side of the eye's square in millimetres
GUM, TONGUE, TOOTH, MARGIN, EAR = ((120 + 40 * i, SHEET[1] + 48) for i in range(5))
SWATCH = 14  # half the side of a square of one colour
# The average hairline on the sheet: arc length, height.
HAIRLINE = np.array(
  [(0, 60), (62, 52), (86, 38), (97, 20), (109, 4), (114, -16), (122, -14), (135, 8)]
  + [(150, -36), (166, -62), (points.BACK, -72)]
).T


class _Parts:
  """Collects vertices and triangles. Each vertex moves with a weighted mean of skin vertices."""

  def __init__(self, skin):
    self.vertices, self.triangles, self.texels = [skin.vertices], [skin.triangles], []
    self.follow = [(np.arange(len(skin.vertices))[:, None], np.ones((len(skin.vertices), 1)))]
    self.occlusion, self.gloss = [], []
    self.count = len(skin.vertices)

  def add(self, vertices, triangles, texels, follow, share, occlusion, gloss):
    """Adds a part. `follow` i[n, m] are the skin vertices with which a vertex moves, `share` f[n,
    m] their weights."""
    n = len(vertices)
    start = self.count
    self.vertices.append(np.asarray(vertices, float))
    self.triangles.append(np.asarray(triangles) + start)
    self.texels.append(np.broadcast_to(np.asarray(texels, float), (n, 2)))
    self.follow.append((np.asarray(follow), np.asarray(share, float)))
    self.occlusion.append(np.broadcast_to(np.asarray(occlusion, float), (n,)))
    self.gloss.append(np.broadcast_to(np.asarray(gloss, float), (n,)))
    self.count += n
    return start


def texel(domain: np.ndarray) -> np.ndarray:
  """Column and row in the texture, f64[n, 2], of points of the sheet f64[n, 2]."""
  domain = np.asarray(domain, float)
  return (
    np.stack([(domain[..., 0] + points.BACK), (surface.TOP - domain[..., 1])], axis=-1)
    * TEXELS_PER_MM
  )


def _strip(rows, columns, turn=False):
  """Triangles of a grid of rows x columns vertices."""
  at = np.arange(rows * columns).reshape(rows, columns)
  a, b, c, d = at[:-1, :-1], at[:-1, 1:], at[1:, :-1], at[1:, 1:]
  triangles = np.concatenate(
    [np.stack([a, c, b], -1).reshape(-1, 3), np.stack([b, c, d], -1).reshape(-1, 3)]
  )
  return triangles[:, ::-1] if turn else triangles


def _eyeball(parts, names, side):
  """Adds the front of an eyeball; returns its vertices."""
  centre = surface.EYE_CENTRE * (side, 1, 1)
  polar = np.linspace(0, np.radians(78), 8)
  around = np.linspace(0, 2 * np.pi, 17)
  p, a = np.meshgrid(polar, around, indexing='ij')
  cornea = 0.9 * np.exp(-((p / 0.42) ** 2))
  r = surface.EYE_RADIUS + cornea
  offset = np.stack([r * np.sin(p) * np.cos(a), r * np.sin(p) * np.sin(a), r * np.cos(p)], -1)
  flat = np.stack([np.cos(a), -np.sin(a)], -1) * (surface.EYE_RADIUS * p)[..., None]
  texels = np.array(EYE_ORIGIN) + (flat / EYE_SPAN + 0.5) * EYE_TEXELS
  vertices = centre + offset.reshape(-1, 3)
  shade = np.clip(0.7 - 0.9 * np.maximum(np.sin(p) * np.sin(a), 0), 0.2, 1)
  follow = np.tile([names['eye_in'], names['eye_out']], (len(vertices), 1))
  share = np.zeros(follow.shape)
  start = parts.add(
    vertices, _strip(8, 17), texels.reshape(-1, 2), follow, share, shade.ravel(), 1.0
  )
  return np.arange(start, start + len(vertices))


def _lid_margin(parts, skin, names, side):
  """Adds the thickness of the lids: a strip from their rim back to the eyeball."""
  ring = [names[n] for n in (*points.EYE_UPPER, *points.EYE_LOWER[-2:0:-1])]
  ring.append(ring[0])
  rim = skin.vertices[ring]
  centre = surface.EYE_CENTRE * (side, 1, 1)
  back = rim + (centre - rim) * 0.16
  back[:, :2] = rim[:, :2] + (centre[:2] - rim[:, :2]) * 0.04
  vertices = np.concatenate([rim, back])
  follow = np.tile(np.array(ring)[:, None], (2, 1))
  parts.add(
    vertices, _strip(2, len(ring), turn=side > 0), MARGIN, follow, np.ones(follow.shape), 0.75, 0.2
  )


def _mouth(parts, skin):
  """Adds a dark cavity behind the lips, two rows of teeth and a tongue."""
  left, right = skin.left, skin.right
  upper = [right[n] for n in points.INNER_UPPER[:0:-1]] + [left[n] for n in points.INNER_UPPER]
  lower = [left[n] for n in points.INNER_LOWER[-2::-1]]
  lower += [right[n] for n in points.INNER_LOWER[1:-1]]
  ring = np.array([*upper, *lower, upper[0]])
  rim = skin.vertices[ring]
  deep = rim + np.array([0, 0, -9.0])
  bag = rim * (0.8, 1, 1) + np.array([0, 0, -34.0])
  is_lower = np.array([0] * len(upper) + [1] * len(lower) + [0])
  bag[:, 1] += np.where(is_lower, -6, 6)
  end = bag.mean(axis=0) + np.array([0, 0, -6.0])
  vertices = np.concatenate([rim, deep, bag, end[None]])
  n = len(ring)
  triangles = _strip(3, n)
  last = 2 * n + np.arange(n - 1)
  fan = np.stack([last, last + 1, np.full(n - 1, 3 * n)], -1)
  follow = np.concatenate([np.tile(ring, 3), [left['ib0']]])[:, None]
  share = np.concatenate([np.ones(n), np.full(n, 0.9), np.full(n, 0.8), [0.5]])[:, None]
  occlusion = np.concatenate([np.full(n, 0.55), np.full(n, 0.18), np.full(n, 0.05), [0.02]])
  parts.add(vertices, np.concatenate([triangles, fan[:, ::-1]]), GUM, follow, share, occlusion, 0.1)

  across = np.linspace(-1, 1, 11)
  for name, heights, share in (('top', (-58.0, -69.4), 0.0), ('bottom', (-69.2, -77.0), 1.0)):
    x = across * (19.0 if name == 'top' else 17.0)
    z = (86.0 if name == 'top' else 82.5) - 0.034 * x**2
    rows = [np.stack([x, np.full_like(x, y), z], -1) for y in heights]
    vertices = np.concatenate(rows)
    follow = np.full((len(vertices), 1), left['chin'])
    share = np.full(follow.shape, share)
    shade = np.tile((0.72 if name == 'top' else 0.42) * (1 - 0.75 * across**2), 2)
    parts.add(vertices, _strip(2, 11), TOOTH, follow, share, shade, 0.5)
  angle = np.linspace(-1, 1, 7)
  x, depth = np.meshgrid(angle * 15, np.linspace(0, 1, 4))
  tongue = np.stack(
    [x * (1 - 0.1 * depth), -78 + 6 * depth - 0.02 * x**2, 62 + 20 * (1 - depth) - 0.03 * x**2], -1
  ).reshape(-1, 3)[::-1]
  follow = np.full((len(tongue), 1), left['chin'])
  parts.add(tongue, _strip(4, 7), TONGUE, follow, np.full(follow.shape, 0.95), 0.3, 0.3)


def _ears(parts, skin):
  """Adds two bowls with a rim, turned backwards."""
  near = np.argmin(np.linalg.norm(skin.vertices - (74, -8, -4), axis=1))
  for side, anchor in ((1, near), (-1, skin.mirror[near])):
    around = np.linspace(0, 2 * np.pi, 19)
    rings = np.array([0.0, 0.45, 0.7, 0.9, 1.0, 0.93])
    lift = np.array([-2.0, -2.0, 1.5, 4.5, 2.0, -6.0])
    r, a = np.meshgrid(rings, around, indexing='ij')
    h = np.broadcast_to(lift[:, None], r.shape)
    u = r * np.cos(a) * 13.5 * (1 + 0.22 * np.minimum(np.sin(a), 0))
    v = r * np.sin(a) * 26.5
    tilt = np.radians(32)
    back = -u + 5
    out = 74 + np.maximum(back, -8) * np.sin(tilt) * 0.9 + h * np.cos(tilt) + 2.5
    z = -6 - back * np.cos(tilt) + h * np.sin(tilt) * 0.6
    vertices = np.stack([side * out, -13 + v - back * 0.12, z], -1).reshape(-1, 3)
    follow = np.full((len(vertices), 1), anchor)
    shade = np.repeat(np.array([0.35, 0.5, 0.7, 1.0, 0.95, 0.6]), len(around))
    triangles = _strip(len(rings), len(around), turn=side > 0)
    parts.add(vertices, triangles, EAR, follow, np.ones(follow.shape), shade, 0.3)


def _mane(parts):
  """Adds long hair behind the ears; returns its triangles and the first vertex of the inner
  layer."""
  angles = np.radians(np.linspace(84, 276, 23))
  heights = np.array([64.0, 45, 25, 0, -25, -50, -75, -98, -118])
  angle, y = np.meshgrid(angles, heights)
  beyond = np.pi - np.abs(np.pi - angle)
  above = np.linspace(0, 1, 12)[:, None, None] * (70 - y) + y
  reach = surface.radius(np.broadcast_to(beyond, above.shape), above).max(axis=0)
  away = reach + 5 + 6 * np.clip((20 - y) / 100, 0, 1)
  triangles, start = [], None
  lock = 2.0 * np.cos(np.arange(23) * 2.1)
  for depth, shade, turn in ((0.0, 0.95, False), (4.0, 0.35, True)):
    r = away + lock * np.clip((40 - y) / 60, 0, 1) - depth
    place = np.stack([r * np.sin(angle), y - 3 * lock * (y < -90), r * np.cos(angle)], -1)
    side = np.where(angle > np.pi, -1, 1)
    texels = texel(np.stack([beyond * points.ARC * side, 80 + 0.3 * y], -1)).reshape(-1, 2)
    n = place.size // 3
    follow, share = np.zeros((n, 1), int), np.zeros((n, 1))
    grid = _strip(len(heights), len(angles), turn=turn)
    start = parts.add(place.reshape(-1, 3), grid[:0], texels, follow, share, shade, 0.25)
    triangles.append(grid + start)
  return np.concatenate(triangles), start


def _occlusion(vertices):
  """The share of the ambient light that reaches the skin, for each vertex."""
  x, y, z = vertices.T
  front = np.clip(z / 40, 0, 1)
  shade = 0.45 * surface.bump(x, y, 18, 6, 6, 6) + 0.25 * surface.bump(x, y, 33, 9, 12, 4)
  shade += 0.55 * surface.bump(x, y, 0, -50, 9, 3) + 0.35 * surface.bump(x, y, 18, -44, 3, 6)
  shade += 0.3 * surface.bump(x, y, 0, -86, 13, 4) + 0.2 * surface.bump(x, y, 0, -68.5, 24, 1.6)
  below = np.clip((-118 - y) / 10, 0, 1) * np.clip((185 + y) / 40, 0, 1)
  return 1 - shade * front - 0.5 * below


def _follow(parts, moves):
  """Displacements f64[a, v, 3] of the skin's vertices and of the vertices that move with them."""
  others = [
    np.einsum('nm,anmd->and', share, moves[:, follow]) for follow, share in parts.follow[1:]
  ]
  return np.concatenate([moves, *others], axis=1)


@functools.cache
def build() -> FaceModel:
  """Builds the head. It is the same in every call."""
  skin = mesh.build()
  parts = _Parts(skin)
  parts.texels.append(texel(skin.domain))
  parts.occlusion.append(_occlusion(skin.vertices))
  gloss = 0.35 + 0.5 * surface.bump(*skin.vertices[:, :2].T, 0, -25, 7, 18)
  parts.gloss.append(gloss + 0.4 * surface.bump(*skin.vertices[:, :2].T, 0, -72, 16, 6))
  eyes, lids = [], []
  for which, (names, side) in enumerate(((skin.right, -1), (skin.left, 1))):
    ball = _eyeball(parts, names, side)
    eyes.append(np.stack([ball, np.full_like(ball, which)], -1))
    _lid_margin(parts, skin, names, side)
    away = np.linalg.norm(skin.vertices - surface.EYE_CENTRE * (side, 1, 1), axis=1)
    close = np.flatnonzero(away < surface.EYE_RADIUS + 4)
    lids.append(np.stack([close, np.full_like(close, which)], -1))
  _mouth(parts, skin)
  _ears(parts, skin)
  before = parts.count
  mane, inner = _mane(parts)
  vertices = np.concatenate(parts.vertices)

  moves = _follow(parts, action_units.displacements(skin))
  shapes = identity.displacements(vertices)
  texels = np.concatenate(parts.texels)
  inside = np.flatnonzero(np.isin(texels[:, 0], (TOOTH[0], TONGUE[0])) & (texels[:, 1] == TOOTH[1]))
  not_jaw = [i for i, name in enumerate(action_units.ACTION_UNITS) if name != 'AU26']
  moves[np.ix_(not_jaw, inside)] = 0
  for rigid, middle in (
    (inside, (0, -90, 88)),
    (eyes[0][:, 0], (-31, 0, 78)),
    (eyes[1][:, 0], (31, 0, 78)),
  ):
    shapes[:, rigid] = identity.displacements(np.array([middle]))
  arc, height = np.abs(skin.domain[:, 0]), skin.domain[:, 1]
  hair = np.zeros(len(vertices))
  hair[: len(arc)] = np.clip((height - np.interp(arc, *HAIRLINE)) / 16, 0, 1)
  hair[before:inner] = 0.6
  pairs = [(skin.left[f'it{i}'], skin.left[f'ib{i}']) for i in range(5)]
  pairs += [(skin.right[f'it{i}'], skin.right[f'ib{i}']) for i in range(1, 5)]
  sides = (skin.left, skin.right)
  return FaceModel(
    vertices=np.round(vertices, 4).astype(np.float32),
    triangles=np.concatenate(parts.triangles).astype(np.int32),
    mane=mane.astype(np.int32),
    identity=np.round(shapes, 4).astype(np.float32),
    action_units=np.round(moves, 4).astype(np.float32),
    landmarks=np.array([sides[right][name] for name, right in points.ibug68()], np.int32),
    texels=np.round(texels, 4).astype(np.float32),
    occlusion=np.round(np.concatenate(parts.occlusion), 5).astype(np.float32),
    gloss=np.round(np.concatenate(parts.gloss), 5).astype(np.float32),
    eyes=np.concatenate(eyes).astype(np.int32),
    eye_centres=(surface.EYE_CENTRE * np.array([[-1, 1, 1], [1, 1, 1]])).astype(np.float32),
    eye_radius=surface.EYE_RADIUS,
    lids=np.concatenate(lids).astype(np.int32),
    lips=np.array(pairs, np.int32),
    hair=np.round(hair, 5).astype(np.float32),
  )
