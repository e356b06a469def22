"""Random erasing: a rectangle of a picture gets the mean colour.

Reference: Zhong et al., "Random Erasing Data Augmentation", AAAI 2020.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array

from ferjax.errors import InputError
from ferjax.ops import bilinear


def check(where: str, probability: float, area: Sequence[float], ratio: Sequence[float]) -> None:
  """Refuses a probability outside 0..1, reversed ranges, and rectangles larger than the picture.

  Args:
    where: The config's section, such as `config.augment`.
    probability, area, ratio: See `erase`.

  Raises:
    InputError: names the key.
  """
  if not 0 <= probability <= 1:
    raise InputError(f'{where}.erasing={probability} lies outside 0..1')
  for name, limits in {'erasing_scale': area, 'erasing_ratio': ratio}.items():
    if len(limits) != 2 or not 0 < limits[0] <= limits[1]:
      raise InputError(f'{where}.{name}={tuple(limits)}: give (low, high), 0 < low <= high')
  if area[1] > 1:
    raise InputError(
      f'{where}.erasing_scale={tuple(area)}: the rectangle is at most the whole picture, 1'
    )


def erase(
  draws: Array, image: Array, probability: float, area: Sequence[float], ratio: Sequence[float]
) -> Array:
  """The picture, perhaps without a rectangle.

  Args:
    draws: f[5] from [0, 1): area, ratio, the place along x and y, whether it is erased.
    image: f[h, w, c], normalised: the mean colour is 0.
    probability: Of the erasing.
    area: Range of the rectangle's area as a share of the picture's.
    ratio: Range of its width / height, drawn on a log scale.
  """
  height, width = image.shape[:2]
  share = area[0] + (area[1] - area[0]) * draws[0]
  low, high = np.log(ratio)
  shape = jnp.exp(low + (high - low) * draws[1])
  box_width = jnp.minimum(jnp.sqrt(share * shape), 1) * width
  box_height = jnp.minimum(jnp.sqrt(share / shape), 1) * height
  left, top = draws[2] * (width - box_width), draws[3] * (height - box_height)
  points = bilinear.grid(height, width, image.dtype) + 0.5
  inside = (points[..., 0] >= left) & (points[..., 0] < left + box_width)
  inside &= (points[..., 1] >= top) & (points[..., 1] < top + box_height)
  return jnp.where((inside & (draws[4] < probability))[..., None], 0, image)
