"""The skin as a triangle mesh. One half is triangulated on the flat sheet, then mirrored."""

from typing import NamedTuple

import numpy as np

from ferjax.datasets.synthetic_faces.drawing import points, surface


class Skin(NamedTuple):
  """The mesh of the skin, without eyeballs and mouth."""

  vertices: np.ndarray  # f64[n, 3], millimetres
  domain: np.ndarray  # f64[n, 2], signed arc length and height on the sheet
  triangles: np.ndarray  # i32[t, 3]
  mirror: np.ndarray  # i32[n], the vertex on the other side
  left: dict[str, int]  # vertex of each named point on the subject's left
  right: dict[str, int]  # and on the right


def _spacing(s, y):
  """Desired distance between points of the sheet, in millimetres."""
  face = np.maximum(np.maximum(s - 95, 0) / 12, np.maximum(np.maximum(y - 40, -118 - y), 0) / 6)
  eye = np.hypot((s - 33) / 1.4, y - 2) - 12
  mouth = np.hypot(s / 1.3, y + 68) - 17
  nose = np.hypot(s / 0.7, (y + 32) / 1.5) - 12
  near = np.clip(np.minimum(np.minimum(eye, mouth), nose), 0, 30)
  return np.clip(4.0 + 0.16 * near + face, 4.0, 22.0)


def _fill(fixed):
  """Adds points to the fixed ones until they cover the half sheet evenly; f64[n, 2]."""
  rng = np.random.default_rng(20240)
  accepted = np.empty((4000, 2))
  accepted[: len(fixed)] = fixed
  count = len(fixed)
  edge_heights = np.concatenate(
    [np.arange(surface.BOTTOM, -118, 12.0), np.arange(-116, 46, 4.0), np.arange(46, 112, 8.0)]
  )
  edges = [np.stack([np.zeros_like(edge_heights), edge_heights], axis=-1)]
  back = np.arange(surface.BOTTOM, surface.TOP, 20.0)
  edges.append(np.stack([np.full_like(back, points.BACK), back], axis=-1))
  around = np.linspace(0, points.BACK, 10)
  for y in (surface.BOTTOM, 97.0, 105.0, 109.5, surface.TOP):
    edges.append(np.stack([around, np.full_like(around, y)], axis=-1))
  jaw = np.linspace(0, 2.2, 34)
  wider = 1 + 2 * np.clip((jaw - 0.7) / 0.7, 0, 1) ** 2
  for above in (-5.0, -0.3, 0.8, 2.2, 6.5, 10.0):
    edges.append(np.stack([jaw * points.ARC, surface.jaw_height(jaw) + above * wider], axis=-1))
  columns = np.arange(1.5, points.BACK - 4, 2.0)
  rows = np.arange(surface.BOTTOM + 4, surface.TOP - 3, 2.0)
  lattice = np.stack(np.meshgrid(columns, rows), axis=-1).reshape(-1, 2)
  lattice = lattice + rng.uniform(-0.9, 0.9, lattice.shape)
  order = np.argsort(_spacing(*lattice.T) + rng.uniform(0, 0.5, len(lattice)), kind='stable')
  for group, slack in ((np.concatenate(edges), 0.2), (lattice[order], 1.0)):
    spacing = _spacing(*group.T) * slack
    for candidate, wanted in zip(group, spacing, strict=True):
      gap = accepted[:count] - candidate
      if np.min(np.einsum('ij,ij->i', gap, gap)) > wanted**2:
        accepted[count] = candidate
        count += 1
  return accepted[:count].copy()


def _inside(polygon, at):
  """Whether points lie in a polygon, bool[n]."""
  x, y = at.T
  ax, ay = polygon.T
  bx, by = np.roll(polygon, -1, axis=0).T
  crosses = (ay[:, None] > y) != (by[:, None] > y)
  with np.errstate(divide='ignore', invalid='ignore'):
    edge = ax[:, None] + (y - ay[:, None]) * (bx - ax)[:, None] / (by - ay)[:, None]
  return (np.sum(crosses & (x < edge), axis=0) % 2) == 1


def build() -> Skin:
  """Triangulates the average head. The mesh is symmetric to the last bit."""
  named = points.named()
  index = {name: i for i, name in enumerate(named.names)}
  rings = []
  eye = np.array([named.domain[index[n]] for n in (*points.EYE_UPPER, *points.EYE_LOWER[1:-1])])
  centre = eye.mean(axis=0)
  for scale, drop in ((1.22, 0.0), (1.5, 0.0)):
    rings.append(centre + (eye - centre) * (scale, scale * 1.12) + (0, drop))
  mouth = np.array([named.domain[index[n]] for n in (*points.LIP_UPPER, *points.LIP_LOWER[:-1])])
  rings.append((0, -69.5) + (mouth - (0, -69.5)) * (1.16, 1.3))
  rings = np.concatenate(rings)
  domain = _fill(np.concatenate([named.domain, rings[rings[:, 0] >= 0]]))
  height = domain[:, 1].copy()
  height[: len(named.height)] = named.height
  lift = np.zeros(len(domain))
  lift[: len(named.lift)] = named.lift

  from scipy.spatial import Delaunay  # imported here, because stored faces are read without it

  triangles = Delaunay(domain).simplices
  a, b, c = (domain[triangles[:, i]] for i in range(3))
  turn = (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (c[:, 0] - a[:, 0])
  triangles = np.where((turn > 0)[:, None], triangles, triangles[:, ::-1])[np.abs(turn) > 1e-6]
  middle = domain[triangles].mean(axis=1)
  opening = [index[n] for n in (*points.EYE_UPPER, *points.EYE_LOWER[-2:0:-1])]
  lips = [index[n] for n in (*points.INNER_UPPER, *points.INNER_LOWER[-2::-1])]
  hole = _inside(domain[opening], middle) | _inside(domain[lips], middle)
  triangles = triangles[~hole]

  on_axis = domain[:, 0] == 0
  position = surface.position(domain[:, 0] / points.ARC, height)
  position[:, 2] += lift
  position[on_axis, 0] = 0.0
  other = np.flatnonzero(~on_axis)
  mirror = np.arange(len(domain) + len(other))
  mirror[other] = len(domain) + np.arange(len(other))
  mirror[len(domain) :] = other
  left = {name: i for i, name in enumerate(named.names)}
  right = {name: int(mirror[i]) for name, i in left.items()}
  return Skin(
    np.concatenate([position, position[other] * (-1, 1, 1)]),
    np.concatenate([domain, domain[other] * (-1, 1)]),
    np.concatenate([triangles, mirror[triangles][:, ::-1]]).astype(np.int32),
    mirror.astype(np.int32),
    left,
    right,
  )


def spread(skin: Skin, controls: np.ndarray, length: float) -> np.ndarray:
  """How displacements of single vertices spread over the skin around them.

  Uses a Matern kernel along the sheet. It decays within about `length` millimetres, and does not
  cross from one lip or lid to the other.

  Args:
    skin: The mesh.
    controls: Vertices, i32[k].
    length: Reach in millimetres.

  Returns:
    f64[n, k], one column for each vertex of `controls`.
  """
  from scipy import sparse  # imported here for the same reason
  from scipy.sparse import linalg

  n = len(skin.domain)
  corners = skin.domain[skin.triangles]
  rows, columns, values = [], [], []
  area = np.zeros(n)
  for i in range(3):
    j, k = (i + 1) % 3, (i + 2) % 3
    u, v = corners[:, j] - corners[:, i], corners[:, k] - corners[:, i]
    twice = np.abs(u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0])
    cotangent = np.clip((u * v).sum(-1) / twice, -2, 8) / 2
    p, q = skin.triangles[:, j], skin.triangles[:, k]
    rows += [p, q, p, q]
    columns += [q, p, p, q]
    values += [-cotangent, -cotangent, cotangent, cotangent]
    np.add.at(area, skin.triangles[:, i], twice / 6)
  stiffness = sparse.coo_matrix(
    (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))), shape=(n, n)
  ).tocsc()
  area = np.maximum(area, 1e-3)
  once = (sparse.diags(area) + length**2 * stiffness).tocsc()
  right_side = np.zeros((n, len(controls)))
  right_side[controls, np.arange(len(controls))] = 1
  solve = linalg.splu(once).solve
  return solve(area[:, None] * solve(right_side))
