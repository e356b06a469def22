"""Bilinear sampling of pictures (augmentation) and of feature maps.

Pixel centres have integer coordinates (x, y). Outside the map, the values of its border repeat.
"""

import jax.numpy as jnp
from jax import Array

from ferjax.ops import homography


def sample(image: Array, points: Array) -> Array:
  """Samples one map at points between its pixels.

  Args:
    image: f[h, w, c].
    points: f[..., 2], (x, y) in pixels of `image`; clamped to its border.

  Returns:
    f[..., c]. Gradients flow to `image`, and to the points inside the map.
  """
  height, width, channels = image.shape
  x = jnp.clip(points[..., 0], 0, width - 1)
  y = jnp.clip(points[..., 1], 0, height - 1)
  left, top = jnp.floor(x), jnp.floor(y)
  right_share, bottom_share = (x - left)[..., None], (y - top)[..., None]
  left, top = left.astype(jnp.int32), top.astype(jnp.int32)
  right, bottom = jnp.minimum(left + 1, width - 1), jnp.minimum(top + 1, height - 1)
  pixels = image.reshape(height * width, channels)
  upper = pixels[top * width + left] * (1 - right_share) + pixels[top * width + right] * right_share
  lower = (
    pixels[bottom * width + left] * (1 - right_share) + pixels[bottom * width + right] * right_share
  )
  return upper * (1 - bottom_share) + lower * bottom_share


def grid(height: int, width: int, dtype=jnp.float32) -> Array:
  """f[height, width, 2]: the (x, y) of every pixel centre."""
  y, x = jnp.meshgrid(
    jnp.arange(height, dtype=dtype), jnp.arange(width, dtype=dtype), indexing='ij'
  )
  return jnp.stack([x, y], -1)


def warp(image: Array, output_to_input: Array) -> Array:
  """Transforms a picture by a homography; the size stays the same.

  Args:
    image: f[h, w, c].
    output_to_input: f[3, 3], maps each output pixel to the input position that it shows.

  Returns:
    f[h, w, c].
  """
  points = grid(*image.shape[:2], dtype=output_to_input.dtype)
  return sample(image, homography.apply(output_to_input, points))
