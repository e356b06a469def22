"""Spatial invariance: the features of a transformed picture, transformed back, are the picture's.

Reference: HRL (2022), equations 11 to 14.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array, lax

from ferjax.distributed import parallel
from ferjax.ops import bilinear, homography
from ferjax.ops.cells import Cells


def random_transformation(key: Array, flip: float, rotation: float, perspective: float, dtype):
  """T of one example: a perspective, then a rotation, then a horizontal flip.

  Args:
    key: The example's.
    flip: Probability of the flip.
    rotation: Largest angle, degrees, either way.
    perspective: Each corner moves inwards by up to this share of half the side.
    dtype: Of the draws.

  Returns:
    f[3, 3] in normalised coordinates, which maps points of T(I) to the points of I that they show.
  """
  draws = jax.random.uniform(key, (10,), dtype)
  one = jnp.ones((), dtype)
  mirrored = homography.scaling(jnp.where(draws[0] < flip, -one, one), one)
  turned = homography.rotation(jnp.deg2rad(rotation * (2 * draws[1] - 1)))
  inwards = homography.perspective(perspective * draws[2:].reshape(4, 2))
  return homography.compose(homography.inverse(inwards), turned, mirrored)


def transform(
  flip: float, rotation: float, perspective: float, keys: Array, image: Array
) -> tuple[Array, Array]:
  """Draws T for each example of a batch, and applies it.

  Args:
    flip, rotation, perspective: See `random_transformation`.
    keys: key[b].
    image: f[b, h, w, 3].

  Returns:
    T(I) f[b, h, w, 3], and f[b, 3, 3], see `random_transformation`.
  """
  draw = jax.vmap(random_transformation, (0, None, None, None, None))
  output_to_input = draw(keys, flip, rotation, perspective, image.dtype)
  to_pixels = jax.vmap(homography.in_pixels, (0, None, None))
  transformed = jax.vmap(bilinear.warp)(image, to_pixels(output_to_input, *image.shape[1:3]))
  return transformed, output_to_input


def back(
  feature_map: Array, output_to_input: Array, cells: Cells, size: Sequence[int]
) -> tuple[Array, Array]:
  """T^-1 of a map.

  Args:
    feature_map: f[h, w, c], the map of T(I).
    output_to_input: f[3, 3] in normalised coordinates, from T(I) to I.
    cells: Where its cells look.
    size: (height, width) of the pictures.

  Returns:
    f[h, w, c], and bool[h, w]: which cells of it look into T(I), at most half a cell from the
    centre of the map's outermost cells. Maps do not reach all edges of their picture: the last cell
    of a ResNet is centred almost a cell before the right one.
  """
  grid = bilinear.grid(*feature_map.shape[:2], output_to_input.dtype)
  inverse = homography.in_pixels(homography.inverse(output_to_input), *size)
  pixels = homography.apply(inverse, cells.pixels(grid))
  points = cells.at(pixels)
  inside = _within(pixels, size) & _within(points, feature_map.shape[:2])
  return bilinear.sample(feature_map, points), inside


def _within(points, size):
  edge = jnp.array(size[::-1], points.dtype) - 0.5
  return ((points >= -0.5) & (points <= edge)).all(-1)


def deviation(feature_map: Array) -> Array:
  """The standard deviation f[c] of each channel of f[b, h, w, c], over the cells of the global
  batch; no gradient. Maps that are divided by it do not become more alike by becoming smaller."""
  feature_map = lax.stop_gradient(feature_map)
  mean = parallel.mean(feature_map.mean((0, 1, 2)))
  variance = parallel.mean(jnp.square(feature_map - mean).mean((0, 1, 2)))
  return jnp.sqrt(variance + 1e-6)


def spatial_invariance(
  original: Array,
  transformed: Array,
  output_to_input: Array,
  cells: Cells,
  size: Sequence[int],
  mask_outside: bool = True,
) -> Array:
  """Mean squared distance of f(I) and T^-1[f(T(I))] (equation 14).

  Args:
    original: f[h, w, c], f(I).
    transformed: f[h, w, c], f(T(I)).
    output_to_input: f[3, 3] in normalised coordinates, from T(I) to I.
    cells: Where the cells of both maps look.
    size: (height, width) of the pictures.
    mask_outside: Leaves out the cells that T moved outside the picture; False takes the mean over
      all, which see the border repeated.

  Returns:
    f[], the mean over cells and channels. Both maps have a gradient.

  Example:
    >>> import jax.numpy as jnp
    >>> from ferjax.ops.cells import PIXELS
    >>> row = jnp.array([[[1.0], [2.0], [4.0]]])
    >>> mirror = jnp.diag(jnp.array([-1.0, 1.0, 1.0]))
    >>> for other in (row[:, ::-1], row):
    ...   print(spatial_invariance(row, other, mirror, PIXELS, (1, 3)))
    0.0
    6.0
  """
  restored, inside = back(transformed, output_to_input, cells, size)
  error = ((original - restored) ** 2).mean(-1)
  if not mask_outside:
    return error.mean()
  return jnp.where(inside, error, 0).sum() / jnp.maximum(inside.sum(), 1)
