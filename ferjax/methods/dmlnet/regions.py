"""Networks that see a face and regions of it side by side, and the fusion of what they find.

Reference: DML-Net (Liu et al., 2021), section 3.2.2 and algorithm 2.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax

from ferjax.ops import bilinear

BOXES = ('landmarks', 'picture')
SHARE = 0.4  # of the landmarks' box, which lacks the forehead: a third of the face


def upper_and_lower_third(image: Array, resize: bool) -> tuple[Array, Array]:
  """The eyes' and the mouth's part of a picture that the face fills: its top and bottom third.

  Args:
    image: f[b, h, w, 3].
    resize: Whether they are enlarged to h x w, bilinearly.

  Returns:
    f[b, round(h / 3), w, 3] twice, or like `image`.
  """
  height = max(1, round(image.shape[1] / 3))
  starts = 0, image.shape[1] - height
  parts = tuple(lax.slice_in_dim(image, start, start + height, axis=1) for start in starts)
  if resize:
    parts = tuple(jax.image.resize(part, image.shape, 'linear') for part in parts)
  return parts


def upper_and_lower_part(image: Array, landmarks: Array, resize: bool) -> tuple[Array, Array]:
  """The eyes' and the mouth's part of a face: the top and the bottom `SHARE` of the box around its
  landmarks, bilinear.

  Args:
    image: f[b, h, w, 3].
    landmarks: f[b, k, 2], pixels, from the brows to the chin or the lower lip. Places outside the
      picture look like its border.
    resize: Whether the parts are as large as the picture.

  Returns:
    f[b, round(h / 3), w, 3] twice, or like `image`.
  """
  height, width = image.shape[1:3]
  rows = height if resize else max(1, round(height / 3))
  low, high = landmarks.min(1), landmarks.max(1)
  size = jnp.maximum(high - low, 1) * jnp.array([1, SHARE], low.dtype)
  steps = size / jnp.array([width, rows], low.dtype)
  offsets = bilinear.grid(rows, width, low.dtype) + 0.5

  def part(start):
    points = start[:, None, None] + offsets * steps[:, None, None]
    return jax.vmap(bilinear.sample)(image, points.astype(image.dtype))

  return part(low), part(low + (high - low) * jnp.array([0, 1 - SHARE], low.dtype))


class RegionFeatures(nn.Module):
  """Pooled features of a face; with `regions`, fused with those of eyes and mouth.

  f1 = relu([v2, v3] W1 + b1), f2 = relu([v1, f1] W2 + b2), with v1, v2, v3 the pooled last maps of
  the networks for face, eyes and mouth.

  Attributes:
    model: pictures f[b, h, w, 3], train -> feature maps of every stage; each region has its own.
    regions: Whether there are networks for eyes and mouth; without, the features are v1.
    boxes: One of `BOXES`: parts of the box of the landmarks where there are some, or thirds of the
      picture.
    resize: Whether their parts are enlarged to the size of the picture.
    width: Of both fusion layers.
    kernel_init: Their initialiser.
    dtype: Type of everything behind the networks.
  """

  model: nn.Module
  regions: bool
  boxes: str
  resize: bool
  width: int
  kernel_init: Any
  dtype: Any

  def setup(self):
    self.face = self.model.clone()
    if self.regions:
      self.eyes, self.mouth = self.model.clone(), self.model.clone()
      self.local_fusion, self.fusion = (
        nn.Dense(self.width, kernel_init=self.kernel_init, dtype=self.dtype, param_dtype=self.dtype)
        for _ in range(2)
      )

  def __call__(
    self, image: Array, train: bool, landmarks: Array | None = None, delta: Array | None = None
  ) -> dict[str, Array]:
    """Fused features.

    Args:
      image: f[b, h, w, 3].
      train: Whether BatchNorm uses the statistics of the batch.
      landmarks: f[b, k, 2], pixels, or None.
      delta: Added to the last map of the whole face, or None.

    Returns:
      `features` f[b, d], and `last_map` f[b, h', w', c] of the whole face.
    """
    last_map = self.face(image, train)[-1]
    if delta is not None:
      last_map = last_map + delta
    features = self._pooled(last_map)
    if self.regions:
      if self.boxes == 'landmarks' and landmarks is not None:
        parts = upper_and_lower_part(image, landmarks, self.resize)
      else:
        parts = upper_and_lower_third(image, self.resize)
      found = [
        self._pooled(network(part, train)[-1])
        for network, part in zip((self.eyes, self.mouth), parts, strict=True)
      ]
      local = nn.relu(self.local_fusion(jnp.concatenate(found, -1)))
      features = nn.relu(self.fusion(jnp.concatenate([features, local], -1)))
    return {'features': features, 'last_map': last_map}

  def _pooled(self, last_map):
    return last_map.mean((1, 2), dtype=self.dtype)
