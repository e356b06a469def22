"""ResNet v1.5 in the layout of torchvision: the same layers, names and parameter shapes.

The layers are `conv1 bn1 layer1_0 ... layer4_1`; each block has `conv1 bn1 conv2 bn2 [conv3 bn3]
[downsample_0 downsample_1]`. Reference: He et al., "Deep Residual Learning for Image Recognition",
CVPR 2016. In v1.5, the 3x3 convolution of a bottleneck has the stride.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from ferjax.distributed.parallel import AXIS
from ferjax.errors import InputError
from ferjax.ops import conv
from ferjax.ops.cells import PIXELS, Cells

EPSILON = 1e-5  # of BatchNorm
KERNEL_INIT = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')


def options(module: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
  """The dtypes of a module, for `batch_norm`; and with `onednn`, for `convolution` and blocks."""
  kinds = {'dtype': module.dtype, 'param_dtype': module.param_dtype}
  return kinds, {**kinds, 'onednn': module.onednn}


def convolution(
  features,
  kernel,
  stride=1,
  dilation=1,
  *,
  groups=1,
  padding=None,
  dtype,
  param_dtype,
  onednn,
  name,
):
  """A convolution without bias. Its padding is that of PyTorch's ResNets, the same on both sides,
  or ((above, below), (left, right)) if `padding` is given."""
  half = dilation * (kernel - 1) // 2
  return nn.Conv(
    features,
    (kernel, kernel),
    (stride, stride),
    padding=padding or ((half, half),) * 2,
    kernel_dilation=(dilation, dilation),
    feature_group_count=groups,
    use_bias=False,
    kernel_init=KERNEL_INIT,
    conv_general_dilated=conv.form(onednn),
    dtype=dtype,
    param_dtype=param_dtype,
    name=name,
  )


def batch_norm(
  train: bool, *, dtype, param_dtype, name, scale_init=nn.initializers.ones, affine=True
):
  """BatchNorm, with scale and shift if `affine`. In training, its statistics are those of the
  global batch, over all devices."""
  return nn.BatchNorm(
    use_running_average=not train,
    momentum=0.9,
    epsilon=EPSILON,
    axis_name=AXIS if train else None,
    scale_init=scale_init,
    use_scale=affine,
    use_bias=affine,
    dtype=dtype,
    param_dtype=param_dtype,
    name=name,
  )


def check_output_stride(output_stride: int) -> None:
  """Checks that an output stride is 8, 16 or 32.

  Raises:
    InputError: it is not. The message gives the valid values.
  """
  if output_stride not in (8, 16, 32):
    raise InputError(f'config.model.output_stride={output_stride}: use 8, 16 or 32')


def dilated(strides: Sequence[int], reached: int, output_stride: int) -> list[tuple[int, int, int]]:
  """Replaces strides by dilations where the output stride would be exceeded.

  Args:
    strides: The stride of each group of layers.
    reached: Input pixels to a cell before the first group.
    output_stride: The most input pixels to a cell.

  Returns:
    For each group its stride, the dilation of its first block, and the dilation of the others.
  """
  found, dilation = [], 1
  for stride in strides:
    entry_dilation = dilation
    if reached * stride > output_stride:
      dilation, stride = dilation * stride, 1
    reached *= stride
    found.append((stride, entry_dilation, dilation))
  return found


class BasicBlock(nn.Module):
  """Two 3x3 convolutions and a shortcut."""

  features: int
  stride: int = 1
  entry_dilation: int = 1
  dilation: int = 1
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32
  onednn: bool = False
  pre_activation = False

  @nn.compact
  def __call__(self, x: Array, train: bool) -> Array:
    kinds, forms = options(self)
    y = convolution(self.features, 3, self.stride, self.entry_dilation, name='conv1', **forms)(x)
    y = nn.relu(batch_norm(train, name='bn1', **kinds)(y))
    y = convolution(self.features, 3, 1, self.dilation, name='conv2', **forms)(y)
    y = batch_norm(train, name='bn2', **kinds)(y)
    return nn.relu(y + _shortcut(self, x, y.shape[-1], train))


class Bottleneck(nn.Module):
  """1x1 reduction, 3x3, 1x1 expansion to four times the features, and a shortcut."""

  features: int
  stride: int = 1
  entry_dilation: int = 1
  dilation: int = 1
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32
  onednn: bool = False
  pre_activation = False

  @nn.compact
  def __call__(self, x: Array, train: bool) -> Array:
    kinds, forms = options(self)
    y = convolution(self.features, 1, name='conv1', **forms)(x)
    y = nn.relu(batch_norm(train, name='bn1', **kinds)(y))
    y = convolution(self.features, 3, self.stride, self.entry_dilation, name='conv2', **forms)(y)
    y = nn.relu(batch_norm(train, name='bn2', **kinds)(y))
    y = convolution(self.features * 4, 1, name='conv3', **forms)(y)
    y = batch_norm(train, name='bn3', **kinds)(y)
    return nn.relu(y + _shortcut(self, x, y.shape[-1], train))


def _shortcut(block, x, features, train):
  if block.stride == 1 and x.shape[-1] == features:
    return x
  kinds, forms = options(block)
  x = convolution(features, 1, block.stride, name='downsample_0', **forms)(x)
  return batch_norm(train, name='downsample_1', **kinds)(x)


class ResNet(nn.Module):
  """The stages of a ResNet.

  Attributes:
    block: `BasicBlock`, `Bottleneck`, or a block with `pre_activation`. With the latter, BatchNorm
      and ReLU follow the last stage instead of the stem's convolution.
    stage_sizes: Number of blocks in each stage.
    width: Features of the first stage (64 in the paper); each later stage doubles them.
    output_stride: Input pixels to a cell of the last map: 32, 16 or 8. For 16 and 8, later stages
      are dilated instead of strided; at the cells of the coarse grid they compute the same values.
    first, last: The stages first..last - 1 of 0..3 that this module holds. The stem belongs to
      stage 0.
    dtype: dtype of the computation.
    param_dtype: dtype of the parameters and statistics.
    onednn: Whether oneDNN computes convolutions on a CPU; see `ops.conv`.
  """

  block: Any
  stage_sizes: Sequence[int]
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
      x = convolution(self.width, 7, 2, name='conv1', **forms)(x)
      if not self.block.pre_activation:
        x = nn.relu(batch_norm(train, name='bn1', **kinds)(x))
      x = conv.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
    maps, stages = [], self._stages()
    for stage, blocks in enumerate(self.stage_sizes):
      if not self.first <= stage < self.last:
        continue
      stride, entry_dilation, dilation = stages[stage]
      for number in range(blocks):
        x = self.block(
          features=self.width * 2**stage,
          stride=stride if number == 0 else 1,
          entry_dilation=entry_dilation if number == 0 else dilation,
          dilation=dilation,
          name=f'layer{stage + 1}_{number}',
          **forms,
        )(x, train)
      maps.append(x)
    if self.block.pre_activation and self.last >= len(self.stage_sizes):
      maps[-1] = nn.relu(batch_norm(train, name='bn', **kinds)(x))
    return maps

  @nn.nowrap
  def cells(self, side: int) -> list[Cells]:
    """Where the cells of every map look; the same for pictures of any size. Only the first 3x3
    convolution of a stage has a stride; its shortcut, 1x1, has the same centres."""
    found, cells = [], PIXELS.after(7, 2).after(3, 2)
    for stride, dilation, _ in self._stages():
      cells = cells.after(3, stride, dilation)
      found.append(cells)
    return found[self.first : self.last]

  @nn.nowrap
  def _stages(self):
    return dilated([1] + [2] * (len(self.stage_sizes) - 1), 4, self.output_stride)


def resnet(block, stage_sizes, width, output_stride, dtype, param_dtype) -> ResNet:
  """A whole ResNet; see `ResNet` for the arguments. Raises InputError for other output strides than
  8, 16 and 32."""
  check_output_stride(output_stride)
  return ResNet(block, stage_sizes, width, output_stride, dtype=dtype, param_dtype=param_dtype)


def resnet10(
  *, width: int = 64, output_stride: int = 32, dtype=jnp.float32, param_dtype=jnp.float32
) -> ResNet:
  """ResNet-10, with one block in each stage, for quick tests. The arguments and errors are those of
  `resnet18`."""
  return resnet(BasicBlock, (1, 1, 1, 1), width, output_stride, dtype, param_dtype)


def resnet18(
  *, width: int = 64, output_stride: int = 32, dtype=jnp.float32, param_dtype=jnp.float32
) -> ResNet:
  """ResNet-18; see `ResNet` for the arguments. Raises InputError for other output strides than 8,
  16 and 32."""
  return resnet(BasicBlock, (2, 2, 2, 2), width, output_stride, dtype, param_dtype)


def resnet34(
  *, width: int = 64, output_stride: int = 32, dtype=jnp.float32, param_dtype=jnp.float32
) -> ResNet:
  """ResNet-34. The arguments and errors are those of `resnet18`."""
  return resnet(BasicBlock, (3, 4, 6, 3), width, output_stride, dtype, param_dtype)


def resnet50(
  *, width: int = 64, output_stride: int = 32, dtype=jnp.float32, param_dtype=jnp.float32
) -> ResNet:
  """ResNet-50. The arguments and errors are those of `resnet18`."""
  return resnet(Bottleneck, (3, 4, 6, 3), width, output_stride, dtype, param_dtype)
