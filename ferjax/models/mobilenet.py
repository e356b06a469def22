"""MobileNetV2 in the layout of torchvision: the same layers, names (dots as `_`) and shapes.

`features_0_0 features_0_1 features_1 ... features_17 features_18_0 features_18_1`, each block with
`conv_0_0 conv_0_1 [conv_1_0 conv_1_1] ...`. Reference: Sandler et al., "MobileNetV2: Inverted
Residuals and Linear Bottlenecks", CVPR 2018.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from ferjax.models.resnet import batch_norm, check_output_stride, convolution, dilated, options
from ferjax.ops.cells import PIXELS, Cells

# For each stage, groups of blocks: expansion, features, number of blocks, stride of the first block
# (table 2).
STAGES = (
  ((1, 16, 1, 1), (6, 24, 2, 2)),
  ((6, 32, 3, 2),),
  ((6, 64, 4, 2), (6, 96, 3, 1)),
  ((6, 160, 3, 2), (6, 320, 1, 1)),
)
STEM, HEAD = 32, 1280


class InvertedResidual(nn.Module):
  """1x1 expansion, depthwise 3x3, linear 1x1 reduction, and a shortcut if the shape is
  unchanged."""

  features: int
  expansion: int
  stride: int
  dilation: int
  dtype: Any
  param_dtype: Any
  onednn: bool = False

  @nn.compact
  def __call__(self, x: Array, train: bool) -> Array:
    kinds, forms = options(self)
    hidden, y, layer = self.expansion * x.shape[-1], x, 0
    if self.expansion > 1:
      y = convolution(hidden, 1, name='conv_0_0', **forms)(y)
      y = nn.relu6(batch_norm(train, name='conv_0_1', **kinds)(y))
      layer = 1
    depthwise = convolution(
      hidden, 3, self.stride, self.dilation, groups=hidden, name=f'conv_{layer}_0', **forms
    )
    y = nn.relu6(batch_norm(train, name=f'conv_{layer}_1', **kinds)(depthwise(y)))
    y = convolution(self.features, 1, name=f'conv_{layer + 1}', **forms)(y)
    y = batch_norm(train, name=f'conv_{layer + 2}', **kinds)(y)
    return x + y if self.stride == 1 and x.shape == y.shape else y


class MobileNetV2(nn.Module):
  """The stages of a MobileNetV2. Its maps have the same sizes as those of a ResNet.

  Attributes:
    width: 64 for the published network. All features are multiplied by width / 64 and rounded to
      multiples of 8. The last 1280 features are never reduced.
    output_stride: Input pixels to a cell of the last map: 32, 16 or 8. For 16 and 8, later stages
      are dilated instead of strided.
    first, last: The stages first..last - 1 of 0..3 that this module holds. The stem belongs to
      stage 0.
    dtype: dtype of the computation.
    param_dtype: dtype of the parameters and statistics.
    onednn: Whether oneDNN computes convolutions on a CPU; see `ops.conv`.
  """

  width: int = 64
  output_stride: int = 32
  first: int = 0
  last: int = 4
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32
  onednn: bool = False

  @nn.compact
  def __call__(self, x: Array, train: bool) -> list[Array]:
    """Feature maps f[b, h / s, w / s, c] of every stage of this module.

    Args:
      x: Pictures f[b, h, w, 3]; if `first` is above 0, the map of the stage before.
      train: Whether BatchNorm uses the statistics of the batch.
    """
    kinds, forms = options(self)
    x = x.astype(self.dtype)
    if self.first == 0:
      x = convolution(scaled(STEM, self.width), 3, 2, name='features_0_0', **forms)(x)
      x = nn.relu6(batch_norm(train, name='features_0_1', **kinds)(x))
    found = iter(self._groups())
    maps, number = [], 0
    for stage, groups in enumerate(STAGES):
      for expansion, features, blocks, _ in groups:
        stride, entry_dilation, dilation = next(found)
        for block in range(blocks):
          number += 1
          if self.first <= stage < self.last:
            x = InvertedResidual(
              scaled(features, self.width),
              expansion,
              stride if block == 0 else 1,
              entry_dilation if block == 0 else dilation,
              name=f'features_{number}',
              **forms,
            )(x, train)
      if self.first <= stage < self.last:
        if stage == len(STAGES) - 1:
          x = convolution(scaled(HEAD, max(self.width, 64)), 1, name='features_18_0', **forms)(x)
          x = nn.relu6(batch_norm(train, name='features_18_1', **kinds)(x))
        maps.append(x)
    return maps

  @nn.nowrap
  def cells(self, side: int) -> list[Cells]:
    """Where the cells of every map look; the same for pictures of any size."""
    found, cells, strided = [], PIXELS.after(3, 2), iter(self._groups())
    for groups in STAGES:
      for _ in groups:
        stride, dilation, _ = next(strided)
        cells = cells.after(3, stride, dilation)
      found.append(cells)
    return found[self.first : self.last]

  @nn.nowrap
  def _groups(self):
    strides = [stride for groups in STAGES for *_, stride in groups]
    return dilated(strides, 2, self.output_stride)


def scaled(features: int, width: int) -> int:
  """Features times width / 64, rounded to a multiple of 8; at least 8, and at least 90 % of the
  product."""
  wanted = features * width / 64
  rounded = max(8, int(wanted + 4) // 8 * 8)
  return rounded + 8 if rounded < 0.9 * wanted else rounded


def mobilenet_v2(
  *, width: int = 64, output_stride: int = 32, dtype=jnp.float32, param_dtype=jnp.float32
) -> MobileNetV2:
  """MobileNetV2; see `MobileNetV2` for the arguments. Raises InputError for other output strides
  than 8, 16 and 32."""
  check_output_stride(output_stride)
  return MobileNetV2(width, output_stride, dtype=dtype, param_dtype=param_dtype)
