"""ResNet-18 with pre-activation: BatchNorm and ReLU come before each convolution.

Layers have the names of `models/resnet.py`: `conv1 layer1_0 ... layer4_1 bn`, each block with
`bn1 conv1 bn2 conv2 [downsample_0]`. Reference: He et al., "Identity Mappings in Deep Residual
Networks", ECCV 2016.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from ferjax.models.resnet import ResNet, batch_norm, convolution, options, resnet


class PreActivationBlock(nn.Module):
  """Twice BatchNorm, ReLU and a 3x3 convolution, and a shortcut without activation."""

  features: int
  stride: int = 1
  entry_dilation: int = 1
  dilation: int = 1
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32
  onednn: bool = False
  pre_activation = True

  @nn.compact
  def __call__(self, x: Array, train: bool) -> Array:
    kinds, forms = options(self)
    y = nn.relu(batch_norm(train, name='bn1', **kinds)(x))
    if self.stride > 1 or x.shape[-1] != self.features:
      x = convolution(self.features, 1, self.stride, name='downsample_0', **forms)(y)
    y = convolution(self.features, 3, self.stride, self.entry_dilation, name='conv1', **forms)(y)
    y = nn.relu(batch_norm(train, name='bn2', **kinds)(y))
    return x + convolution(self.features, 3, 1, self.dilation, name='conv2', **forms)(y)


def preact_resnet18(
  *, width: int = 64, output_stride: int = 32, dtype=jnp.float32, param_dtype=jnp.float32
) -> ResNet:
  """PreActResNet-18. The arguments and errors are those of `resnet.resnet18`."""
  return resnet(PreActivationBlock, (2, 2, 2, 2), width, output_stride, dtype, param_dtype)
