"""The ResNet of dlib's face recognition: 29 convolutions, half as wide as a ResNet-34.

The layers have the names of `models/resnet.py`: `conv1 bn1 layer1_0 ... layer5_0`, each block with
`conv1 bn1 conv2 bn2`. The differences: convolutions with a stride have no padding, shortcuts have
no parameters (means of 2x2 cells, zeros for additional features), and there are five stages.
Reference: King, `dnn_face_recognition_ex.cpp` and `dlib_face_recognition_resnet_model_v1`, 2017.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from ferjax.errors import InputError
from ferjax.models.resnet import batch_norm, convolution, options
from ferjax.ops import conv
from ferjax.ops.cells import PIXELS, Cells

STAGE_SIZES = (3, 4, 3, 3, 1)
WIDTHS = (1, 2, 4, 8, 8)  # features of each stage, as multiples of those of the first
OUTPUT_STRIDE = 64  # input pixels to a cell of the last map


def without_padding(size: Sequence[int], kernel: int) -> list[tuple[int, int]]:
  """No padding for maps of (height, width) cells that are at least as large as the kernel; smaller
  ones, which dlib refuses, are padded to its size."""
  lacking = [max(0, kernel - side) for side in size]
  return [(n // 2, n - n // 2) for n in lacking]


class Block(nn.Module):
  """Two 3x3 convolutions and a shortcut without parameters."""

  features: int
  stride: int = 1
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32
  onednn: bool = False

  @nn.compact
  def __call__(self, x: Array, train: bool) -> Array:
    kinds, forms = options(self)
    padding = None if self.stride == 1 else without_padding(x.shape[1:3], 3)
    y = convolution(self.features, 3, self.stride, padding=padding, name='conv1', **forms)(x)
    y = nn.relu(batch_norm(train, name='bn1', **kinds)(y))
    y = convolution(self.features, 3, name='conv2', **forms)(y)
    y = batch_norm(train, name='bn2', **kinds)(y)
    x = x if self.stride == 1 else halved(x)
    shape = [max(sizes) for sizes in zip(x.shape[1:], y.shape[1:], strict=True)]
    return nn.relu(extended(x, shape) + extended(y, shape))


def halved(x: Array) -> Array:
  """f[b, h, w, c] -> f[b, h / 2, w / 2, c], rounded down but at least 1: means of 2x2 cells."""
  b, h, w, c = x.shape
  high, wide = min(2, h), min(2, w)
  x = x[:, : h // high * high, : w // wide * wide]
  return x.reshape(b, h // high, high, w // wide, wide, c).mean((2, 4))


def extended(x: Array, shape: Sequence[int]) -> Array:
  """f[b, h, w, c] -> f[b, *shape], with zeros below, to the right, and as additional features."""
  lacking = [size - own for own, size in zip(x.shape[1:], shape, strict=True)]
  return jnp.pad(x, [(0, 0), *((0, n) for n in lacking)]) if any(lacking) else x


class FaceResNet(nn.Module):
  """The stages of the network.

  Pictures of 150 px, those of dlib, give maps of 35, 17, 8, 4 and 2 cells; 112 px give 26, 13, 6, 3
  and 1; 64 px give 14, 7, 3, 1 and 1.

  Attributes:
    width: Twice the features of the first stage; 64 for the published network.
    first, last: The stages first..last - 1 of 0..4 that this module holds. The stem belongs to
      stage 0.
    dtype: dtype of the computation.
    param_dtype: dtype of the parameters and statistics.
    onednn: Whether oneDNN computes convolutions on a CPU; see `ops.conv`.
  """

  width: int = 64
  first: int = 0
  last: int = len(STAGE_SIZES)
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32
  onednn: bool = False

  @nn.compact
  def __call__(self, x: Array, train: bool) -> list[Array]:
    """Feature maps f[b, h', w', c] of every stage of this module.

    Args:
      x: Pictures f[b, h, w, 3]; if `first` is above 0, the map of the stage before.
      train: Whether BatchNorm uses the statistics of the batch.
    """
    kinds, forms = options(self)
    features = max(1, self.width // 2)
    x = x.astype(self.dtype)
    if self.first == 0:
      padding = without_padding(x.shape[1:3], 7)
      x = convolution(features, 7, 2, padding=padding, name='conv1', **forms)(x)
      x = nn.relu(batch_norm(train, name='bn1', **kinds)(x))
      x = conv.max_pool(x, (3, 3), (2, 2), without_padding(x.shape[1:3], 3))
    maps = []
    for stage in range(self.first, self.last):
      for number in range(STAGE_SIZES[stage]):
        x = Block(
          features=features * WIDTHS[stage],
          stride=2 if stage > 0 and number == 0 else 1,
          name=f'layer{stage + 1}_{number}',
          **forms,
        )(x, train)
      maps.append(x)
    return maps

  @nn.nowrap
  def cells(self, side: int) -> list[Cells]:
    """Where the cells of every map look, in pictures of `side` pixels.

    They are the centres of the convolutions. The shortcuts of strided blocks, means of 2x2 cells,
    look half a cell of their input further left and up, so mirrored kernels alone do not make this
    network mirror its maps.
    """
    found, cells = [], PIXELS
    for kernel in (7, 3):
      cells, side = _halved_cells(cells, side, kernel)
    for stage in range(self.last):
      if stage > 0:
        cells = _halved_cells(cells, side, 3)[0]
        side = max(1, side // 2)  # of the shortcut, to which the convolutions are extended
      found.append(cells)
    return found[self.first :]


def _halved_cells(cells, side, kernel):
  """The cells and the side of the map that a layer of stride 2 makes of a map with `side` cells."""
  [(before, after)] = without_padding([side], kernel)
  return cells.after(kernel, 2, padding=before), (side + before + after - kernel) // 2 + 1


def face_resnet29(
  *, width: int = 64, output_stride: int = 32, dtype=jnp.float32, param_dtype=jnp.float32
) -> FaceResNet:
  """The ResNet of dlib's face recognition, 29 convolutions; `config.model.weights=dlib` are its
  published weights.

  Args:
    width: Twice the features of the first stage; 64 for the published network.
    output_stride: The default, 32, or more. The network always has 64 input pixels to a cell of the
      last map.
    dtype: dtype of the computation.
    param_dtype: dtype of the parameters and statistics.

  Raises:
    InputError: `output_stride` is below 32.
  """
  if output_stride < 32:
    raise InputError(
      f'config.model.output_stride={output_stride}: a cell of the last map of face_resnet29 always '
      f'has {OUTPUT_STRIDE} pixels: give 32 or more, or choose another config.model.name'
    )
  return FaceResNet(width, dtype=dtype, param_dtype=param_dtype)
