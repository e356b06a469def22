"""Landmark localisation on an encoder's feature maps, and the embedding that goes with it."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from ferjax.methods.lanet import landmark_losses as losses
from ferjax.ops import bilinear


class CoordinateHead(nn.Module):
  """Pooled features and a linear layer that gives coordinates."""

  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, maps: Sequence[Array], landmarks: Array, size: tuple[int, int]):
    """The embedding of the faces, and the error of their landmarks.

    Args:
      maps: f[b, h, w, c] of every stage.
      landmarks: f[b, k, 2], in pixels of the pictures.
      size: Height and width of the pictures.

    Returns:
      f[b, d] and f[b], the mean squared error of coordinates as shares of width and height.
    """
    embedding = maps[-1].mean((1, 2), dtype=self.param_dtype)
    points = landmarks.shape[1]
    kinds = {'dtype': self.param_dtype, 'param_dtype': self.param_dtype}
    predicted = nn.Dense(2 * points, **kinds)(embedding).reshape(-1, points, 2)
    target = (landmarks + 0.5) / jnp.array(size[::-1], landmarks.dtype)
    seen = losses.visible(landmarks, *size)
    return embedding, losses.coordinate_error(predicted, target, seen)


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
  def __call__(self, maps: Sequence[Array], landmarks: Array, size: tuple[int, int]):
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
    points = bilinear.rescale(landmarks, size, path.shape[1:3])
    seen = losses.visible(landmarks, *size)
    error = losses.heatmap_error(predicted.astype(self.param_dtype), points, seen, self.sigma)
    return embedding, error
