"""Reads networks from files of dlib. Nothing in a file is run.

A file holds a chain of layers. First comes a version for each layer, from the output to the input;
then the input layer; then, from the input to the output, the parameters of each layer, followed by
the tensors that it computed last. An integer has a byte for its sign and length, and that many
bytes, little-endian. A floating-point number is two integers, mantissa and exponent. A tensor is
its shape and raw float32 numbers.

Reference: `serialize` in dlib's `dnn` and `serialize.h`.
"""

import math
import struct
from typing import NamedTuple

import numpy as np

from ferjax.errors import InputError

INPUT = 'input_rgb_image_sized'
TAG, INNERMOST = 1, 3  # versions of a tag or skip, which has no data, and of the first layer
MOST_LAYERS = 10_000  # versions before the input layer
LARGEST_EXPONENT = 2000  # of a floating-point number


class Layer(NamedTuple):
  """A layer and its parameters.

  Attributes:
    kind: Its name in the file, without the version: `con`, `affine`, `fc`, `max_pool`, `avg_pool`,
      `relu`, `add_prev`.
    params: f32[n]. For `con`, the kernel [out, in, h, w] and then the bias; for `affine`, the scale
      and then the shift. For `fc` f32[in, out]. Empty for other layers.
    window: For `con`: rows, columns, stride in y, stride in x, padding in y, padding in x. For a
      pooling layer: rows, columns, strides and paddings in the same order.
  """

  kind: str
  params: np.ndarray
  window: tuple[int, ...] = ()


class Network(NamedTuple):
  """The content of a file.

  Attributes:
    mean: RGB values 0..255 that the input layer subtracts; after that, it divides by 256.
    size: Height and width of its pictures in pixels.
    layers: From the input to the output.
  """

  mean: tuple[float, ...]
  size: tuple[int, int]
  layers: list[Layer]


def read(content: bytes, path: str) -> Network:
  """Reads the network in the bytes of a file.

  Args:
    content: The bytes.
    path: The file, for errors.

  Raises:
    InputError: the bytes are truncated, damaged, or not a network of the known layers.
  """
  try:
    return _read(_Reader(content))
  except (ValueError, OverflowError, struct.error) as error:
    raise InputError(
      f'{path} is damaged or not a network of dlib that can be read ({error}): download it again'
    ) from error


class _Reader:
  def __init__(self, content):
    self.content, self.place = memoryview(content), 0

  def take(self, size):
    start, self.place = self.place, self.place + size
    if size < 0 or self.place > len(self.content):
      raise ValueError('it ends too early')
    return self.content[start : self.place]

  def integer(self):
    (head,) = self.take(1)
    if head & 0x70 or not 1 <= head & 0x0F <= 8:
      raise ValueError(f'no integer at byte {self.place - 1}')
    value = int.from_bytes(self.take(head & 0x0F), 'little')
    return -value if head & 0x80 else value

  def integers(self, count):
    return tuple(self.integer() for _ in range(count))

  def number(self):
    mantissa, exponent = self.integers(2)
    if abs(exponent) > LARGEST_EXPONENT:
      raise ValueError(f'no number before byte {self.place}')
    return math.ldexp(mantissa, exponent)

  def text(self):
    return bytes(self.take(self.integer())).decode('ascii')

  def flags(self, count):
    if set(bytes(self.take(count))) - set(b'01'):
      raise ValueError(f'no flags before byte {self.place}')

  def tensor(self):
    version, *shape = self.integers(5)
    if version != 2 or min(shape) < 0:
      raise ValueError(f'no tensor before byte {self.place}')
    return np.frombuffer(self.take(4 * math.prod(shape)), '<f4').reshape(shape)


def _read(reader):
  if reader.integer() != 1 or reader.text() != 'loss_metric_2':
    raise ValueError('its last layer is not loss_metric_2')
  reader.number(), reader.number()  # margin and distance
  versions, name = [], bytes([1, len(INPUT)]) + INPUT.encode()
  while reader.content[reader.place : reader.place + len(name)] != name:
    versions.append(reader.integer())
    if len(versions) > MOST_LAYERS:
      raise ValueError('it has no input layer')
  reader.text()
  mean = tuple(reader.number() for _ in range(3))
  size, layers = reader.integers(2), []
  for version in reversed([version for version in versions if version != TAG]):
    layers.append(_layer(reader))
    reader.flags(3)
    for _ in range(3):
      reader.tensor()  # outputs and gradients
    if version == INNERMOST:
      reader.integer()
  if reader.place != len(reader.content):
    raise ValueError(f'more follows its last layer, at byte {reader.place}')
  return Network(mean, size, layers)


def _layer(reader):
  name, none = reader.text(), np.zeros(0, np.float32)
  if name == 'con_4':
    params = reader.tensor().ravel()
    _, *window = reader.integers(7)
    reader.integers(10)  # the shapes of kernel and bias within the tensor
    [reader.number() for _ in range(4)]  # factors of learning rate and weight decay
    return Layer('con', params, tuple(window))
  if name == 'affine_':
    params = reader.tensor().ravel()
    reader.integers(11)  # the shapes of scale and shift, and the mode
    return Layer('affine', params)
  if name == 'fc_2':
    reader.integers(2)
    params = reader.tensor()
    reader.integers(11)
    [reader.number() for _ in range(4)]
    return Layer('fc', params.reshape(params.shape[0], -1))
  if name in ('max_pool_2', 'avg_pool_2'):
    return Layer(name[:-2], none, reader.integers(6))
  if name in ('relu_', 'add_prev_'):
    return Layer(name[:-1], none)
  raise ValueError(f'the layer {ascii(name[:40])} is unknown')
