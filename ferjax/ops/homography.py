"""Homographies: f[3, 3] matrices that map points (x, y).

The factories use normalised coordinates, in which the picture is the square [-1, 1]^2. `in_pixels`
converts a matrix to pixel coordinates (pixel centres at integers). Products use full precision on
every processor, because the default precision would move points by tenths of a pixel.
"""

import functools

import jax.numpy as jnp
from jax import Array


def compose(*matrices: Array) -> Array:
  """The product of f[3, 3] matrices. The last matrix is applied first."""
  return functools.reduce(functools.partial(jnp.matmul, precision='highest'), matrices)


def apply(matrix: Array, points: Array) -> Array:
  """Maps points f[..., 2] by a homography f[3, 3]. Returns f[..., 2]."""
  moved = jnp.matmul(points, matrix[:, :2].T, precision='highest') + matrix[:, 2]
  return moved[..., :2] / moved[..., 2:]


def inverse(matrix: Array) -> Array:
  """The inverse of f[3, 3] in closed form. Its columns are cross products of the rows."""
  a, b, c = matrix
  columns = jnp.stack([jnp.cross(b, c), jnp.cross(c, a), jnp.cross(a, b)], -1)
  return columns / (a * columns[:, 0]).sum()


def _affine(xx, xy, x, yx, yy, y) -> Array:
  one, zero = jnp.ones_like(xx), jnp.zeros_like(xx)
  rows = ((xx, xy, x), (yx, yy, y), (zero, zero, one))
  return jnp.stack([jnp.stack([jnp.broadcast_to(v, one.shape) for v in row]) for row in rows])


def scaling(x: Array, y: Array) -> Array:
  """f[3, 3] that scales by f[] factors along x and y about the centre."""
  zero = jnp.zeros_like(x)
  return _affine(x, zero, zero, zero, y, zero)


def translation(x: Array, y: Array) -> Array:
  """f[3, 3] that moves points by (x, y), f[] each, in half picture sizes."""
  one, zero = jnp.ones_like(x), jnp.zeros_like(x)
  return _affine(one, zero, x, zero, one, y)


def rotation(radians: Array) -> Array:
  """f[3, 3] that turns points about the centre, from +x towards +y, by f[] radians."""
  cos, sin, zero = jnp.cos(radians), jnp.sin(radians), jnp.zeros_like(radians)
  return _affine(cos, -sin, zero, sin, cos, zero)


def square_to_quadrilateral(corners: Array) -> Array:
  """The homography that maps the corners of the square to four given points.

  Args:
    corners: f[4, 2], the images of (-1, -1), (1, -1), (1, 1), (-1, 1); convex.

  Returns:
    f[3, 3]. Closed form from Heckbert, "Fundamentals of Texture Mapping", 1989, section 2.2.3.
  """
  (x0, y0), (x1, y1), (x2, y2), (x3, y3) = corners
  dx1, dx2, sx = x1 - x2, x3 - x2, x0 - x1 + x2 - x3
  dy1, dy2, sy = y1 - y2, y3 - y2, y0 - y1 + y2 - y3
  determinant = dx1 * dy2 - dx2 * dy1
  g = (sx * dy2 - dx2 * sy) / determinant
  h = (dx1 * sy - sx * dy1) / determinant
  unit_square_to_quadrilateral = jnp.stack(
    [
      jnp.stack([x1 - x0 + g * x1, x3 - x0 + h * x3, x0]),
      jnp.stack([y1 - y0 + g * y1, y3 - y0 + h * y3, y0]),
      jnp.stack([g, h, jnp.ones_like(g)]),
    ]
  )
  half = jnp.full_like(g, 0.5)
  to_unit_square = _affine(half, 0 * half, half, 0 * half, half, half)
  return compose(unit_square_to_quadrilateral, to_unit_square)


def perspective(inwards: Array) -> Array:
  """The homography that moves the picture's corners inwards.

  Args:
    inwards: f[4, 2], the distances along x and y, as shares of half the side. The order of the
      corners is that of `square_to_quadrilateral`.

  Returns:
    f[3, 3].
  """
  square = jnp.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], inwards.dtype)
  return square_to_quadrilateral(square * (1 - inwards))


def in_pixels(matrix: Array, height: int, width: int) -> Array:
  """The same homography, between pixel coordinates of a picture of height x width pixels.

  Flips, and quarter turns of a square, keep exact integers.
  """
  half = jnp.array([width / 2, height / 2, 1], matrix.dtype)
  centred = matrix * (half[:, None] / half)
  x, y = (width - 1) / 2, (height - 1) / 2
  last = centred[:, 2] - x * centred[:, 0] - y * centred[:, 1]
  moved = centred.at[:, 2].set(last)
  return moved + jnp.array([x, y, 0], matrix.dtype)[:, None] * moved[2]
