"""ResNet-18 with pre-activation: BatchNorm and ReLU come before each convolution.

Named as `models/resnet.py`: `conv1 layer1_0 ... layer4_1 bn`, each block with `bn1 conv1 bn2 conv2
[downsample_0]`. Reference: He et al., "Identity Mappings in Deep Residual Networks", ECCV 2016.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from ferjax.models.resnet import batch_norm, check_output_stride, convolution, dilated
from ferjax.ops import conv


class PreActivationBlock(nn.Module):
  """BatchNorm, ReLU and 3x3 convolution, twice, and a shortcut that nothing is applied to."""

  features: int
  stride: int = 1
  entry_dilation: int = 1
  dilation: int = 1
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, train: bool) -> Array:
    kinds = {'dtype': self.dtype, 'param_dtype': self.param_dtype}
    y = nn.relu(batch_norm(train, name='bn1', **kinds)(x))
    if self.stride > 1 or x.shape[-1] != self.features:
      x = convolution(self.features, 1, self.stride, name='downsample_0', **kinds)(y)
    y = convolution(self.features, 3, self.stride, self.entry_dilation, name='conv1', **kinds)(y)
    y = nn.relu(batch_norm(train, name='bn2', **kinds)(y))
    return x + convolution(self.features, 3, 1, self.dilation, name='conv2', **kinds)(y)


class PreActResNet(nn.Module):
  """The stages of a pre-activation ResNet; attributes as of `resnet.ResNet`."""

  stage_sizes: Sequence[int]
  width: int = 64
  output_stride: int = 32
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, train: bool) -> list[Array]:
    """Feature maps f[b, h / s, w / s, c] of every stage, of pictures f[b, h, w, 3]; the last one
    after the BatchNorm and ReLU that end the network."""
    kinds = {'dtype': self.dtype, 'param_dtype': self.param_dtype}
    x = convolution(self.width, 7, 2, name='conv1', **kinds)(x.astype(self.dtype))
    x = conv.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
    maps, stages = [], dilated([1] + [2] * (len(self.stage_sizes) - 1), 4, self.output_stride)
    for stage, blocks in enumerate(self.stage_sizes):
      stride, entry_dilation, dilation = stages[stage]
      for number in range(blocks):
        x = PreActivationBlock(
          features=self.width * 2**stage,
          stride=stride if number == 0 else 1,
          entry_dilation=entry_dilation if number == 0 else dilation,
          dilation=dilation,
          name=f'layer{stage + 1}_{number}',
          **kinds,
        )(x, train)
      maps.append(x)
    maps[-1] = nn.relu(batch_norm(train, name='bn', **kinds)(x))
    return maps


def preact_resnet18(
  *, width: int = 64, output_stride: int = 32, dtype=jnp.float32, param_dtype=jnp.float32
) -> PreActResNet:
  """PreActResNet-18; arguments and errors as for `resnet.resnet18`."""
  check_output_stride(output_stride)
  return PreActResNet((2, 2, 2, 2), width, output_stride, dtype, param_dtype)
