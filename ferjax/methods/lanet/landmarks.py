"""Landmark localisation on an encoder's feature maps: two heads and their errors.

Errors are those of coordinates or of heatmaps; points that are not visible do not count.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from ferjax.ops import bilinear
from ferjax.ops.cells import Cells


def visible(landmarks: Array, height: int, width: int) -> Array:
  """bool[..., k]: which landmarks f[..., k, 2] (pixels) lie inside the picture."""
  size = jnp.array([width, height], landmarks.dtype)
  return ((landmarks > -0.5) & (landmarks < size - 0.5)).all(-1)


def coordinate_error(predicted: Array, target: Array, seen: Array) -> Array:
  """Mean squared error of coordinates, example by example.

  Args:
    predicted, target: f[b, k, 2], both as shares of the picture's width and height.
    seen: bool[b, k].

  Returns:
    f[b]; 0 where no landmark is seen.

  Example:
    >>> import jax.numpy as jnp
    >>> predicted = jnp.array([[[0.5, 0.5], [0.0, 0.0]]])
    >>> print(coordinate_error(predicted, jnp.zeros((1, 2, 2)), jnp.array([[True, False]])))
    [0.25]
  """
  error = jnp.where(seen, ((predicted - target) ** 2).mean(-1), 0)
  return error.sum(-1) / jnp.maximum(seen.sum(-1), 1)


def gaussian_heatmaps(points: Array, height: int, width: int, sigma: float) -> Array:
  """f[..., k, height, width]: exp(-d^2 / (2 sigma^2)) around points f[..., k, 2], all in cells."""
  offset = bilinear.grid(height, width, points.dtype) - points[..., None, None, :]
  return jnp.exp(-(offset**2).sum(-1) / (2 * sigma**2))


def adaptive_wing(
  predicted: Array,
  target: Array,
  alpha: float = 2.1,
  omega: float = 14.0,
  epsilon: float = 1.0,
  theta: float = 0.5,
) -> Array:
  """Adaptive Wing loss of heatmaps, cell by cell.

  Reference: Wang et al., "Adaptive Wing Loss for Robust Face Alignment via Heatmap Regression",
  ICCV 2019.

  Example:
    >>> import jax.numpy as jnp, numpy as np
    >>> print(np.asarray(adaptive_wing(jnp.array([0.5, 0.9]), jnp.array([0.5, 0.0]))).round(3))
    [0.    7.384]
  """
  error = jnp.abs(predicted - target)
  power = alpha - target
  at_theta = (theta / epsilon) ** power
  slope = omega * power / (1 + at_theta) * (theta / epsilon) ** (power - 1) / epsilon
  offset = theta * slope - omega * jnp.log1p(at_theta)
  near = jnp.minimum(error, theta)  # the branch not taken must not overflow
  wing = omega * jnp.log1p((near / epsilon) ** power)
  return jnp.where(error < theta, wing, slope * error - offset)


def heatmap_error(predicted: Array, points: Array, seen: Array, sigma: float = 1.5) -> Array:
  """Adaptive Wing loss against Gaussians, ten times as heavy near the points.

  Args:
    predicted: f[b, h, w, k].
    points: f[b, k, 2], in cells of the maps.
    seen: bool[b, k].
    sigma: Of the Gaussians, in cells.

  Returns:
    f[b], the mean over the cells of all maps whose landmark is seen; 0 where none is.
  """
  height, width = predicted.shape[1:3]
  target = gaussian_heatmaps(points, height, width, sigma)
  error = adaptive_wing(jnp.moveaxis(predicted, -1, 1), target)
  error = jnp.where(target >= 0.2, 10, 1) * error
  error = jnp.where(seen, error.mean((-2, -1)), 0)
  return error.sum(-1) / jnp.maximum(seen.sum(-1), 1)


class CoordinateHead(nn.Module):
  """Pooled features and a linear layer that gives coordinates."""

  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, maps: Sequence[Array], landmarks: Array, size: tuple[int, int], cells: Cells
  ) -> tuple[Array, Array]:
    """The embedding of the faces, and the error of their landmarks.

    Args:
      maps: f[b, h, w, c] of every stage.
      landmarks: f[b, k, 2], in pixels of the pictures.
      size: Height and width of the pictures.
      cells: Where the cells of the first map look.

    Returns:
      f[b, d] and f[b], the mean squared error of coordinates as shares of width and height.
    """
    embedding = maps[-1].mean((1, 2), dtype=self.param_dtype)
    points = landmarks.shape[1]
    kinds = {'dtype': self.param_dtype, 'param_dtype': self.param_dtype}
    predicted = nn.Dense(2 * points, **kinds)(embedding).reshape(-1, points, 2)
    target = (landmarks + 0.5) / jnp.array(size[::-1], landmarks.dtype)
    seen = visible(landmarks, *size)
    return embedding, coordinate_error(predicted, target, seen)


class HeatmapHead(nn.Module):
  """A top-down path over the maps of all stages, then a heatmap for every landmark.

  Reference of the path: Lin et al., "Feature Pyramid Networks for Object Detection", CVPR 2017.

  Attributes:
    width: Channels of the path, hence of the embedding.
    sigma: Of the target Gaussians, in cells of the largest map.
  """

  width: int = 256
  sigma: float = 1.5
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, maps: Sequence[Array], landmarks: Array, size: tuple[int, int], cells: Cells
  ) -> tuple[Array, Array]:
    """As `CoordinateHead`, with the Adaptive Wing error of heatmaps."""
    kinds = {'dtype': self.dtype, 'param_dtype': self.param_dtype}
    path = None
    for number, feature_map in reversed(list(enumerate(maps))):
      lateral = nn.Dense(self.width, name=f'lateral{number + 1}', **kinds)(feature_map)
      if path is None:
        path = lateral
      else:
        path = lateral + jax.image.resize(path, lateral.shape, 'nearest')
    embedding = path.mean((1, 2), dtype=self.param_dtype)
    predicted = nn.Dense(landmarks.shape[1], name='heatmaps', **kinds)(path)
    seen = visible(landmarks, *size)
    points = cells.at(landmarks)
    error = heatmap_error(predicted.astype(self.param_dtype), points, seen, self.sigma)
    return embedding, error
