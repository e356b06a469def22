"""Where the cells of a feature map look.

Along either axis of a square picture, cell i is centred at pixel `first + i * stride`. A
convolution of kernel k, stride s and padding p moves the first centre by (k - 1) / 2 - p cells of
its input, and multiplies the stride by s. With PyTorch's paddings, p = (k - 1) / 2, the first
centre stays at pixel 0 whatever the size of the picture: cells are not spread evenly over it.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array


class Cells(NamedTuple):
  """The places of a map's cells.

  Attributes:
    stride: Pixels from one centre to the next.
    first: Pixel coordinate, x and y, of the centre of cell 0; pixel centres are integers.
  """

  stride: int
  first: float

  def after(
    self, kernel: int, stride: int = 1, dilation: int = 1, padding: int | None = None
  ) -> 'Cells':
    """The cells of the map that a convolution or a pooling makes of a map with these cells.

    Args:
      kernel, stride, dilation: Of the convolution.
      padding: Cells added at the left and above; by default those of PyTorch's ResNets,
        dilation * (kernel - 1) // 2.

    Example:
      >>> PIXELS.after(7, 2).after(3, 2), PIXELS.after(2, 2, padding=0)
      (Cells(stride=4, first=0.0), Cells(stride=2, first=0.5))
    """
    reach = dilation * (kernel - 1)
    padding = reach // 2 if padding is None else padding
    return Cells(self.stride * stride, self.first + self.stride * (reach / 2 - padding))

  def at(self, points):
    """Points f[...] in pixels -> in cells."""
    return (points - self.first) / self.stride

  def pixels(self, places):
    """Places f[...] in cells -> in pixels."""
    return self.first + self.stride * places


PIXELS = Cells(1, 0.0)  # of the pictures themselves


def resample(feature_map: Array, cells: Cells, size: tuple[int, int], new: Cells) -> Array:
  """The map, bilinear, at the centres of other cells; beyond its border, the border repeats.

  Args:
    feature_map: f[b, h, w, c].
    cells: Where its cells look.
    size: (height, width) of the result.
    new: Where the cells of the result look.

  Returns:
    f[b, height, width, c].
  """
  if (cells, feature_map.shape[1:3]) == (new, tuple(size)):
    return feature_map
  rows, columns = (
    jnp.asarray(_shares(cells.at(new.pixels(np.arange(wanted))), own), feature_map.dtype)
    for own, wanted in zip(feature_map.shape[1:3], size, strict=True)
  )
  return jnp.einsum('yh,xw,bhwc->byxc', rows, columns, feature_map, precision='highest')


def mirror(feature_map: Array, cells: Cells, width: int) -> tuple[Array, np.ndarray]:
  """The map of a mirrored picture at the cells of the picture itself, linear between columns.

  Args:
    feature_map: f[b, h, w, c], the map of the mirror image.
    cells: Where its cells look.
    width: Of the pictures, in pixels.

  Returns:
    f[b, h, w, c], and bool[w]: which columns have a counterpart, at most half a cell outside the
    centres of the map's outermost ones. The only column of a map is its own.
  """
  count = feature_map.shape[2]
  places = cells.at(width - 1 - cells.pixels(np.arange(count)))
  valid = (count == 1) | (places >= -0.5) & (places <= count - 0.5)
  shares = jnp.asarray(_shares(places, count), feature_map.dtype)
  return jnp.einsum('xw,bhwc->bhxc', shares, feature_map, precision='highest'), valid


def _shares(places, count):
  """f[n, count]: the part that each of `count` cells has at places f[n], linear between them;
  beyond the first and the last, these repeat."""
  places = np.clip(places, 0, count - 1)
  return np.maximum(1 - np.abs(places[:, None] - np.arange(count)), 0)
