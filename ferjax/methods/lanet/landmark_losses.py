"""Errors of predicted landmarks, as coordinates or as heatmaps; points that are not visible do not
count."""

import jax.numpy as jnp
from jax import Array

from ferjax.ops import bilinear


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
