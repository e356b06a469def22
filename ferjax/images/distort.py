"""Distorted test pictures, computed on the device.

They are the same for every run and every batch size, except that float64 runs draw other ones.

Reference: HRL (2022), table 7.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from ferjax.distributed.parallel import example_keys
from ferjax.errors import InputError, nearest
from ferjax.images import augment
from ferjax.ops import bilinear, homography

OURS = ('rotation', 'perspective', 'occlusion')
TORCHVISION = ('rotation_torchvision', 'perspective_torchvision')
DISTORTIONS = OURS + TORCHVISION
OCCLUDED = 50 / 224  # side of the square, as a share of the picture's side


def check(names) -> None:
  """Checks the names of distortions.

  Raises:
    InputError: a name is unknown. The message gives the nearest known name.
  """
  for name in names:
    if name not in DISTORTIONS:
      raise InputError(
        f"config.eval.distortions names '{name}'.{nearest(name, DISTORTIONS)} "
        f'There are: {", ".join(DISTORTIONS)}'
      )


def make(name: str, seed: int, dtype=jnp.float32) -> Callable[[dict[str, Array]], dict[str, Array]]:
  """A distortion of the pictures of a batch. The random draw depends on the row of the data set.

  `rotation` turns by up to 15 degrees to either side. `perspective` moves each corner inwards by up
  to a quarter of the side. `occlusion` blurs a square of 50/224 of the side at a random place.
  Outside the picture, its border repeats. `rotation_torchvision` and `perspective_torchvision` are
  like torchvision's RandomRotation(15) and RandomPerspective(0.5, p=0.5): black outside the
  picture, and half of the pictures keep their perspective. Both sample bilinearly here.

  Args:
    name: One of `DISTORTIONS`.
    seed: Seed of all draws.
    dtype: Floating-point dtype of the pictures.

  Returns:
    A function of a batch with `image` u8[b, h, w, 3], `index` i32[b] and optionally `landmarks`. It
    returns the batch with `image` f[b, h, w, 3], distorted and normalised, and the landmarks moved
    with the picture.
  """
  check([name])
  apply = {
    'rotation': augment.make(flip=0.0, rotation=15.0, dtype=dtype),
    'perspective': augment.make(flip=0.0, perspective=0.5, dtype=dtype),
    'occlusion': lambda keys, batch: occlude(keys, augment.evaluation(batch, dtype)),
    'rotation_torchvision': partial(_on_black, _turned, dtype),
    'perspective_torchvision': partial(_on_black, _tilted, dtype),
  }[name]

  def distort(batch):
    key = jax.random.fold_in(jax.random.key(seed), DISTORTIONS.index(name))
    return apply(example_keys(key, batch['index']), batch)

  return distort


def _on_black(draw, dtype, keys, batch):
  """Moves the pictures of a batch, and the landmarks, by homographies drawn for each. What shows no
  part of the picture is black."""

  def example(key, image):
    size = image.shape[:2]
    matrix = homography.in_pixels(draw(jax.random.uniform(key, (9,), dtype)), *size)
    points = homography.apply(matrix, bilinear.grid(*size, dtype))
    edge = jnp.array(size[::-1], dtype) - 0.5
    inside = ((points >= -0.5) & (points <= edge)).all(-1)
    moved = bilinear.sample(image.astype(dtype), points)
    return augment.normalise(jnp.where(inside[..., None], moved, 0), dtype), matrix

  image, output_to_input = jax.vmap(example)(keys, batch['image'])
  batch = batch | {'image': image}
  if 'landmarks' not in batch:
    return batch
  back = jax.vmap(homography.inverse)(output_to_input)
  return batch | {'landmarks': jax.vmap(homography.apply)(back, batch['landmarks'].astype(dtype))}


def _turned(draws):
  return homography.rotation(jnp.deg2rad(15 * (2 * draws[0] - 1)))


def _tilted(draws):
  inwards = jnp.where(draws[8] < 0.5, 0.5 * draws[:8], 0).reshape(4, 2)
  return homography.inverse(homography.perspective(inwards))


def occlude(keys: Array, batch: dict[str, Array]) -> dict[str, Array]:
  """Blurs a square of each picture f[b, h, w, 3]. The paper does not give the standard deviation of
  the blur; here it is a quarter of the square's side."""

  def example(key, image):
    height, width = image.shape[:2]
    side = OCCLUDED * jnp.array([width, height], image.dtype)
    start = jax.random.uniform(key, (2,), image.dtype) * (jnp.array([width, height]) - side)
    points = bilinear.grid(height, width, image.dtype) + 0.5
    inside = ((points >= start) & (points < start + side)).all(-1)
    rows, columns = _gaussian(height, side[1] / 4), _gaussian(width, side[0] / 4)
    blurred = jnp.einsum('yh,xw,hwc->yxc', rows, columns, image, precision='highest')
    return jnp.where(inside[..., None], blurred, image)

  return batch | {'image': jax.vmap(example)(keys, batch['image'])}


def _gaussian(size, sigma):
  """f[size, size]: each row has the weights of a Gaussian around its cell, cut off at the
  border."""
  place = jnp.arange(size, dtype=sigma.dtype)
  weight = jnp.exp(-(((place[:, None] - place) / sigma) ** 2) / 2)
  return weight / weight.sum(1, keepdims=True)
