"""Renders a face model to a picture: shapes, camera, light and z-buffer, all in NumPy."""

from typing import NamedTuple

import cv2
import numpy as np

from ferjax.datasets.synthetic_faces.drawing import resample
from ferjax.datasets.synthetic_faces.drawing.model import FaceModel

_SLACK = np.float32(1e-3)  # pixels by which triangles overlap, so that there are no gaps
_PIVOT = np.array([0.0, -22.0, 14.0], np.float32)  # the point around which the head turns


class Camera(NamedTuple):
  """The view of the head. Angles are in degrees, right-handed around x, y, z.

  Yaw > 0 turns the nose to the image's right, pitch > 0 lowers it, roll > 0 turns the picture
  counter-clockwise. Pitch is applied first, and roll last.
  """

  yaw: float
  pitch: float
  roll: float
  scale: float  # pixels per millimetre at the head's centre
  centre: tuple[float, float]  # pixel of the head's centre
  distance: float  # millimetres


class Light(NamedTuple):
  """A directed light and an ambient light. Colours are factors of the surface's own colour."""

  direction: np.ndarray  # f32[3], towards the light
  colour: np.ndarray  # f32[3]
  ambient: np.ndarray  # f32[3]


class Surface(NamedTuple):
  """The texture and the creases of the skin."""

  texture: np.ndarray  # u8[h, w, 3], RGB
  creases: np.ndarray | None  # u8[ch, cw], 100 plus the percentage by which a window is darkened
  creases_at: tuple[float, float, float]  # the window's first column and row, and its scale


def combine(weights: np.ndarray, shapes: np.ndarray) -> np.ndarray:
  """Sum of weights f32[k] times shapes f32[k, ...], in order. The rounding of BLAS would vary."""
  total = np.zeros(shapes.shape[1:], np.float32)
  for weight, one in zip(weights, shapes, strict=True):
    if weight:
      total += weight * one
  return total


def shape(model: FaceModel, identity: np.ndarray) -> np.ndarray:
  """The neutral face of a person, f32[v, 3].

  Args:
    model: The face model.
    identity: Coefficients f32[i] in standard deviations.
  """
  return model.vertices + combine(np.asarray(identity, np.float32), model.identity)


def express(
  model: FaceModel, neutral: np.ndarray, left: np.ndarray, right: np.ndarray
) -> np.ndarray:
  """Moves a neutral face by action units, f32[v, 3].

  Args:
    model: The face model.
    neutral: f32[v, 3] from `shape`.
    left: Intensities f32[a], 0..5, of the subject's left half.
    right: Intensities f32[a], 0..5, of the right half.
  """
  # Rounded, because processors differ in the last bits of an exponential.
  across = model.vertices[:, :1].astype(np.float64)
  mostly_left = np.round(1 / (1 + np.exp(np.clip(across / -4, -60, 60))), 6).astype(np.float32)
  moved = [
    combine(np.asarray(side, np.float32) / np.float32(5), model.action_units)
    for side in (left, right)
  ]
  vertices = neutral + moved[0] * mostly_left + moved[1] * (1 - mostly_left)
  if len(model.lips):
    upper, lower = model.lips.T
    overlap = np.maximum(vertices[lower, 1] - vertices[upper, 1] + np.float32(0.3), 0) / 2
    vertices[upper, 1] += overlap
    vertices[lower, 1] -= overlap
  if len(model.lids):
    which = model.lids[:, 1]
    at = model.lids[:, 0]
    out = vertices[at] - eye_centres(model, neutral)[which]
    away = np.linalg.norm(out, axis=1, keepdims=True)
    least = np.float32(model.eye_radius + 0.9)
    vertices[at] += out * (np.maximum(least / np.maximum(away, 1e-3), 1) - 1)
  return vertices


def eye_centres(model: FaceModel, neutral: np.ndarray) -> np.ndarray:
  """Centres of the right and the left eyeball of a person, f32[2, 3]."""
  shift = [
    (neutral - model.vertices)[model.eyes[model.eyes[:, 1] == side, 0]].mean(axis=0)
    for side in (0, 1)
  ]
  return model.eye_centres + np.stack(shift)


def _turn(matrix, vectors):
  """Vectors f32[n, 3] times a matrix f32[3, 3], summed in order."""
  x, y, z = vectors.T
  return np.stack([row[0] * x + row[1] * y + row[2] * z for row in matrix], axis=-1)


def rotation(camera: Camera) -> np.ndarray:
  """The head's rotation matrix f32[3, 3]; apply it as `points @ rotation.T`."""
  x, y, z = np.radians([camera.pitch, camera.yaw, camera.roll])
  (sx, sy, sz), (cx, cy, cz) = np.sin([x, y, z]), np.cos([x, y, z])
  about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
  about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
  about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
  return np.einsum('ij,jk,kl->il', about_z, about_y, about_x).astype(np.float32)


def project(vertices: np.ndarray, camera: Camera) -> np.ndarray:
  """Pixel coordinates and nearness of points, f32[v, 3]. Pixel centres are integers."""
  turned = _turn(rotation(camera), vertices - _PIVOT)
  near = np.float32(camera.distance) / (np.float32(camera.distance) - turned[:, 2])
  x = camera.centre[0] + camera.scale * turned[:, 0] * near
  y = camera.centre[1] - camera.scale * turned[:, 1] * near
  return np.stack([x, y, turned[:, 2]], axis=-1).astype(np.float32)


def normals(vertices: np.ndarray, triangles: np.ndarray) -> np.ndarray:
  """Unit normals of the vertices, f32[v, 3], weighted by the areas of their triangles."""
  a, b, c = (vertices[triangles[:, i]] for i in range(3))
  faces = np.cross(b - a, c - a)
  corner = triangles.T.ravel()
  summed = np.stack(
    [np.bincount(corner, np.tile(faces[:, axis], 3), minlength=len(vertices)) for axis in range(3)],
    axis=-1,
  )
  length = np.linalg.norm(summed, axis=1, keepdims=True)
  return (summed / np.maximum(length, 1e-9)).astype(np.float32)


def rasterise(
  projected: np.ndarray, triangles: np.ndarray, side: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Finds the visible triangle of each pixel.

  Args:
    projected: f32[v, 3], pixel coordinates and nearness.
    triangles: i32[t, 3]; those seen from behind are left out.
    side: Height and width of the picture in pixels.

  Returns:
    The covered pixels i64[p] (row * side + column), their triangles i32[p] as rows of `triangles`,
    and barycentric weights f32[p, 3].
  """
  x, y, z = (np.ascontiguousarray(column)[triangles.T] for column in projected.T)
  ux, uy, vx, vy = x[1] - x[0], y[1] - y[0], x[2] - x[0], y[2] - y[0]
  area = ux * vy - uy * vx
  top = np.ceil(np.maximum(np.minimum(np.minimum(y[0], y[1]), y[2]), 0))
  bottom = np.floor(np.minimum(np.maximum(np.maximum(y[0], y[1]), y[2]), side - 1))
  kept = np.flatnonzero((area < -1e-6) & (top <= bottom))
  x, y, z = x[:, kept], y[:, kept], z[:, kept]
  ux, uy, vx, vy, area = ux[kept], uy[kept], vx[kept], vy[kept], area[kept]

  first = top[kept].astype(np.int32)
  count = bottom[kept].astype(np.int32) - first + 1
  triangle = np.repeat(np.arange(len(kept), dtype=np.int32), count)
  row = np.arange(len(triangle), dtype=np.int32)
  row -= np.repeat(np.cumsum(count, dtype=np.int32) - count - first, count)
  height = row.astype(np.float32)
  left = np.zeros(len(row), np.float32)
  right = np.full(len(row), side - 1, np.float32)
  for i, j in ((0, 1), (1, 2), (2, 0)):
    rise = y[j] - y[i]
    slope = (x[j] - x[i]) / np.where(rise == 0, np.float32(1), rise)
    crossing = (x[i] - slope * y[i])[triangle] + slope[triangle] * height
    left = np.where((rise > 0)[triangle], np.maximum(left, crossing - _SLACK), left)
    right = np.where((rise < 0)[triangle], np.minimum(right, crossing + _SLACK), right)
  start, stop = np.ceil(left).astype(np.int32), np.floor(right).astype(np.int32)
  spans = np.flatnonzero(start <= stop)
  triangle, row, start, count = triangle[spans], row[spans], start[spans], (stop - start)[spans] + 1

  across = ((z[1] - z[0]) * vy - (z[2] - z[0]) * uy) / area
  down = ((z[2] - z[0]) * ux - (z[1] - z[0]) * vx) / area
  edge = (z[0] - across * x[0] - down * y[0])[triangle]
  edge += across[triangle] * start + down[triangle] * row
  edge = edge.astype(np.float32)
  within = np.arange(count.sum(), dtype=np.int32)
  before = np.cumsum(count, dtype=np.int32) - count
  within -= np.repeat(before, count)
  pixel = np.repeat(row * side + start, count) + within
  nearness = np.repeat(edge, count) + np.repeat(across[triangle], count) * within.astype(np.float32)
  nearest = np.full(side * side, -np.inf, np.float32)
  np.maximum.at(nearest, pixel, nearness)
  front = np.flatnonzero(nearness >= nearest[pixel])
  winner = np.full(side * side, -1, np.int32)
  winner[pixel[front]] = np.repeat(triangle, count)[front]
  seen = np.flatnonzero(winner >= 0)
  which = winner[seen]
  right = (seen % side).astype(np.float32) - x[0][which]
  down = (seen // side).astype(np.float32) - y[0][which]
  second = (right * vy[which] - down * vx[which]) / area[which]
  third = (down * ux[which] - right * uy[which]) / area[which]
  weights = np.clip(np.stack([1 - second - third, second, third], axis=-1), 0, 1)
  return seen, kept[which].astype(np.int32), weights.astype(np.float32)


def _unit(vector):
  vector = np.asarray(vector, float)
  return (vector / np.sqrt((vector * vector).sum())).astype(np.float32)


def illuminate(model: FaceModel, normal: np.ndarray, light: Light) -> np.ndarray:
  """The light from each vertex, f32[v, 4]: factors of red, green and blue, and the highlight."""
  direction = _unit(light.direction)
  towards, ahead = _turn(np.stack([direction, _unit(direction + (0, 0, 1))]), normal).T
  diffuse = np.clip((towards + 0.25) / 1.25, 0, None)[:, None]
  above = (0.78 + 0.22 * normal[:, 1:2]) * model.occlusion[:, None]
  lit = light.ambient * above + light.colour * diffuse * np.sqrt(model.occlusion)[:, None]
  squared = np.clip(ahead, 0, 1) ** 2
  shine = model.gloss * squared**2 * squared**2 * squared**2 * squared * light.colour.mean()
  return np.concatenate([lit, shine[:, None]], axis=-1).astype(np.float32)


def _read(texture, places, outside=0):
  """Bilinear samples of a texture u8[h, w, ...] at places f32[n, 2] (column, row)."""
  folded = np.zeros((-(-len(places) // 256), 256, 2), np.float32)
  folded.reshape(-1, 2)[: len(places)] = places
  read = cv2.remap(texture, folded, None, cv2.INTER_LINEAR, borderValue=outside)
  return read.reshape(-1, *texture.shape[2:])[: len(places)]


def render(
  model: FaceModel,
  vertices: np.ndarray,
  surface: Surface,
  camera: Camera,
  light: Light,
  background: np.ndarray,
  *,
  swell: np.ndarray | None = None,
  gaze: tuple[float, float] = (0.0, 0.0),
  long_hair: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
  """Draws a face over a background.

  Args:
    model: The face model.
    vertices: f32[v, 3] from `express`.
    surface: Texture and creases.
    camera: Pose and scale.
    light: The light.
    background: u8[side, side, 3], RGB.
    swell: f32[v], millimetres by which each vertex is moved outwards (hair).
    gaze: Texels by which the iris is moved right and down.
    long_hair: Whether the model's long hair is drawn.

  Returns:
    The picture u8[side, side, 3], RGB, and the landmarks f32[68, 2] in pixels, from the same
    projection.
  """
  size = background.shape[0]
  even = size + size % 2
  side = even // 2 * 3
  triangles = np.concatenate([model.triangles, model.mane]) if long_hair else model.triangles
  normal = normals(vertices, triangles)
  drawn = vertices if swell is None else vertices + normal * swell[:, None]
  projected = project(drawn, camera)
  landmarks = project(vertices[model.landmarks], camera)[:, :2]
  projected[:, :2] = (projected[:, :2] + 0.5) * 1.5 - 0.5
  seen, which, weights = rasterise(projected, triangles, side)

  texels = model.texels
  if len(model.eyes):
    texels = texels.copy()
    texels[model.eyes[:, 0]] -= np.asarray(gaze, np.float32)
  lit = illuminate(model, _turn(rotation(camera), normal), light)
  values = np.concatenate([texels, lit], axis=-1)
  corners = np.take(triangles, which, axis=0)
  at = np.take(values, corners[:, 0], axis=0) * weights[:, :1]
  at += np.take(values, corners[:, 1], axis=0) * weights[:, 1:2]
  at += np.take(values, corners[:, 2], axis=0) * weights[:, 2:]

  colour = _read(surface.texture, at[:, :2]).astype(np.float32)
  if surface.creases is not None:
    column, row, zoom = surface.creases_at
    window = (at[:, :2] - np.array([column, row], np.float32)) * np.float32(zoom)
    colour *= np.float32(0.01) * (np.float32(200) - _read(surface.creases, window, 100)[:, None])
  colour *= at[:, 2:5]
  colour += 90 * at[:, 5:]
  picture = cv2.resize(background, (side, side), interpolation=cv2.INTER_LINEAR_EXACT)
  picture.reshape(-1, 3)[seen] = np.clip(np.rint(colour), 0, 255).astype(np.uint8)
  return resample.reduce_3_to_2(picture)[:size, :size], landmarks
