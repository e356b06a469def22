"""Distorted test pictures, computed on the device.

They are the same for every run and every batch size, except that float64 runs draw other ones.

Reference: HRL (2022), table 7.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from ferjax.distributed.parallel import example_keys
from ferjax.errors import InputError, nearest
from ferjax.images import augment
from ferjax.ops import bilinear

DISTORTIONS = ('rotation', 'perspective', 'occlusion')
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

  Args:
    name: `rotation`, `perspective` or `occlusion`.
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
  }[name]

  def distort(batch):
    key = jax.random.fold_in(jax.random.key(seed), DISTORTIONS.index(name))
    return apply(example_keys(key, batch['index']), batch)

  return distort


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
