"""Networks without shortcuts: VGG-13 in the variant of FER+, AlexNet, and FMPNet.

They end with the last convolution. Their last max-pooling and fully connected layers are missing:
the methods pool the last map. Unlike in the papers, each convolution has BatchNorm instead of a
bias, and there is no dropout.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from ferjax.errors import InputError
from ferjax.models.resnet import batch_norm, convolution, options
from ferjax.ops import conv
from ferjax.ops.cells import PIXELS, Cells


class Layer(NamedTuple):
  """A convolution: its features as a multiple of the network's width, kernel, stride, padding."""

  features: float
  kernel: int = 3
  stride: int = 1
  padding: int = 1


class PlainNetwork(nn.Module):
  """Convolutions `conv1 bn1 conv2 bn2 ...`, with max-pooling between the stages.

  Attributes:
    stages: The layers of every stage.
    pool: Side of the max-pooling windows; their stride is 2.
    width: Number of features of a layer with `features=1`.
    dtype: dtype of the computation.
    param_dtype: dtype of the parameters and statistics.
    onednn: Whether oneDNN computes convolutions on a CPU; see `ops.conv`.
  """

  stages: Sequence[Sequence[Layer]]
  pool: int
  width: int = 64
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32
  onednn: bool = False

  @nn.compact
  def __call__(self, x: Array, train: bool) -> list[Array]:
    """Feature maps f[b, h / s, w / s, c] of every stage, for pictures f[b, h, w, 3]."""
    kinds, forms = options(self)
    x = x.astype(self.dtype)
    maps, number = [], 0
    for stage in self.stages:
      if maps:
        x = conv.max_pool(x, (self.pool, self.pool), (2, 2))
      for layer in stage:
        number += 1
        x = convolution(
          round(layer.features * self.width),
          layer.kernel,
          layer.stride,
          padding=((layer.padding, layer.padding),) * 2,
          name=f'conv{number}',
          **forms,
        )(x)
        x = nn.relu(batch_norm(train, name=f'bn{number}', **kinds)(x))
      maps.append(x)
    return maps

  @nn.nowrap
  def cells(self, side: int) -> list[Cells]:
    """Where the cells of every map look; the same for pictures of any size."""
    found, cells = [], PIXELS
    for stage in self.stages:
      if found:
        cells = cells.after(self.pool, 2, padding=0)
      for layer in stage:
        cells = cells.after(layer.kernel, layer.stride, padding=layer.padding)
      found.append(cells)
    return found


VGG13 = (
  (Layer(1), Layer(1)),
  (Layer(2), Layer(2)),
  (Layer(4), Layer(4), Layer(4)),
  (Layer(4), Layer(4), Layer(4)),
)
ALEXNET = (
  (Layer(1, kernel=11, stride=4, padding=2),),
  (Layer(3, kernel=5, padding=2),),
  (Layer(6), Layer(4), Layer(4)),
)

FMPNET = (
  (Layer(1, kernel=5, padding=2),),
  (Layer(1), Layer(1)),
  (Layer(2), Layer(2)),
)


def vgg13(
  *, width: int = 64, output_stride: int = 32, dtype=jnp.float32, param_dtype=jnp.float32
) -> PlainNetwork:
  """VGG-13 of FER+, ten convolutions. Reference: Barsoum et al., "Training Deep Networks for Facial
  Expression Recognition with Crowd-Sourced Label Distribution", ICMI 2016.

  Args:
    width: Features of the first stage (64 in the paper).
    output_stride: The most input pixels to a cell of the last map; the network always has 8.
    dtype: dtype of the computation.
    param_dtype: dtype of the parameters and statistics.

  Raises:
    InputError: `output_stride` is below 8.
  """
  _check('vgg13', 8, output_stride)
  return PlainNetwork(VGG13, 2, width, dtype, param_dtype)


def alexnet(
  *, width: int = 64, output_stride: int = 32, dtype=jnp.float32, param_dtype=jnp.float32
) -> PlainNetwork:
  """AlexNet, five convolutions, as in torchvision. Reference: Krizhevsky, "One weird trick for
  parallelizing convolutional neural networks", 2014.

  The arguments and errors are those of `vgg13`. The last map has 16 input pixels to a cell.
  """
  _check('alexnet', 16, output_stride)
  return PlainNetwork(ALEXNET, 3, width, dtype, param_dtype)


def fmpnet(
  *, width: int = 64, output_stride: int = 32, dtype=jnp.float32, param_dtype=jnp.float32
) -> PlainNetwork:
  """FMPNet, five convolutions, of the paper on structured Gaussian manifolds; its layers are those
  of the authors' public library. Fractional max-pooling of random windows, by a factor of 2, is
  ordinary max-pooling here. Reference: Yu and Zhang, "Image based Static Facial Expression
  Recognition with Multiple Deep Network Learning", ICMI 2015.

  The arguments and errors are those of `vgg13`. The last map has 4 input pixels to a cell.
  """
  _check('fmpnet', 4, output_stride)
  return PlainNetwork(FMPNET, 3, width, dtype, param_dtype)


def _check(name, own, output_stride):
  if output_stride < own:
    raise InputError(
      f'config.model.output_stride={output_stride}: a cell of the last map of {name} has {own} '
      f'pixels: give {own} or more, or choose another config.model.name'
    )
