"""Convolutions and max-pooling by shape, forward and backward, against native XLA and PyTorch.

The floor is the time of the same number of operations at the rate of a large matrix product.
"""

import math
from typing import Any, NamedTuple
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ferjax import models
from ferjax.benchmark import measure
from ferjax.ops import conv

BATCH = 32
POOL = ((3, 3), (2, 2), ((1, 1), (1, 1)))


class Case(NamedTuple):
  """A convolution; without a kernel, a max-pooling.

  Attributes:
    image: [n, h, w, c].
    kernel: [kh, kw, c / groups, o], or None.
    size: (kh, kw).
    strides: Two strides.
    padding: Two (low, high) pairs.
    groups: Groups of channels.
  """

  image: tuple[int, ...]
  kernel: tuple[int, ...] | None
  size: tuple[int, int]
  strides: tuple[int, int]
  padding: tuple[tuple[int, int], tuple[int, int]]
  groups: int = 1

  @property
  def name(self) -> str:
    _, h, w, c = self.image
    window = f'{"x".join(map(str, self.size))}' + (f'/{self.strides[0]}' * (self.strides[0] > 1))
    if self.kernel is None:
      return f'max-pool {window}, {h}x{w}x{c}'
    groups = f', {self.groups} groups' if self.groups > 1 else ''
    return f'{window}, {h}x{w}x{c} to {self.kernel[3]}{groups}'

  @property
  def input_gradient(self) -> bool:
    """Whether the images have a gradient. Pictures (three channels) have none."""
    return self.image[3] != 3


def network_cases(name: str, size: int, batch: int = BATCH) -> list[Case]:
  """The distinct convolutions of a network for pictures of size x size pixels."""
  found = {}

  def record(x, w, strides, padding, *args, feature_group_count=1, **kwargs):
    groups = feature_group_count
    case = Case(x.shape, w.shape, w.shape[:2], tuple(strides), tuple(padding), groups)
    found[case] = None
    return lax.conv_general_dilated(
      x, w, strides, padding, *args, feature_group_count=groups, **kwargs
    )

  pictures = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.float32)
  with mock.patch.object(conv, 'conv_general_dilated', record):
    model = getattr(models, name)()
    jax.eval_shape(lambda x: model.init(jax.random.key(0), x, False), pictures)
  return list(found)


def pool_case(size: int, channels: int, batch: int = BATCH) -> Case:
  return Case((batch, size, size, channels), None, *POOL)


def all_cases() -> list[Case]:
  """ResNet-18 at 64 and 112 px, the 1x1s of ResNet-50 at 112 px, depthwise, grouped, pooling."""
  one_tap = [case for case in network_cases('resnet50', 112) if case.size == (1, 1)]
  window = ((3, 3), (1, 1), ((1, 1), (1, 1)))
  cases = [
    *network_cases('resnet18', 64),
    *network_cases('resnet18', 112),
    *one_tap,
    Case((BATCH, 28, 28, 128), (3, 3, 1, 128), *window, 128),
    Case((BATCH, 28, 28, 128), (3, 3, 4, 128), *window, 32),
    *(pool_case(size, 64) for size in (32, 56, 112)),
  ]
  return list(dict.fromkeys(cases))


def run(bench: measure.Bench, cases: list[Case] | None = None) -> list[dict[str, Any]]:
  """A row for each case: `floor_ms`, the sides `ferjax`, `native` and `torch`, and ratios."""
  bench = measure.on_cpu(bench)
  cases = [case for case in cases or all_cases() if bench.only in case.name]
  rate = measure.matmul_rate(bench) if cases else None
  rows = []
  for case in cases:
    measure.progress(f'conv: {case.name}')
    rows.append(_row(case, rate, bench))
  return rows


def _row(case, rate, bench):
  operations = {
    'ferjax': (conv.conv_general_dilated, conv.max_pool),
    'native': (lax.conv_general_dilated, nn.max_pool),
  }
  output = jax.eval_shape(lambda x, w: _apply(case, *operations['native'], x, w), *_specs(case))
  arrays = _arrays(case, output.shape)
  sides, sizes = {}, {}
  for name, (convolve, pool) in operations.items():
    call = _value_and_gradients(case, convolve, pool)
    sides[name] = measure.jax_turn(lambda call=call: call(*arrays))
    sizes[name] = measure.sizes(call(*arrays))
  if bench.torch:
    fields = case._asdict() | {
      'padding': [low for low, _ in case.padding],
      'input_gradient': case.input_gradient,
      'output': output.shape,
    }
    sizes['torch'] = bench.torch.ask(do='conv', case=fields)['sizes']
    sides['torch'] = bench.torch.turn
  measure.check_equal(sizes, case.name)
  timed = measure.interleave(sides, bench)
  flops = _flops(case, output.shape)
  return {
    'case': case.name,
    'flops': flops,
    'floor_ms': flops and 1000 * flops / rate,
    **timed,
    'faster_than_native': measure.ratio(timed, 'native'),
    'faster_than_torch': measure.ratio(timed, 'torch'),
  }


def _specs(case):
  shapes = (case.image, case.kernel)
  return [shape and jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]


def _arrays(case, output):
  """Images, kernel (None for pooling) and cotangent. `torch_side.py` draws the same numbers."""
  rng = np.random.default_rng(0)
  shapes = (case.image, case.kernel, output)
  return [shape and jnp.asarray(rng.standard_normal(shape, np.float32)) for shape in shapes]


def _apply(case, convolve, pool, x, w):
  if w is None:
    return pool(x, case.size, case.strides, case.padding)
  return convolve(
    x,
    w,
    case.strides,
    case.padding,
    dimension_numbers=conv.LAYOUT,
    feature_group_count=case.groups,
  )


def _value_and_gradients(case, convolve, pool):
  """images, kernel, cotangent -> y, gradients of the images (unless pictures) and of the kernel."""

  @jax.jit
  def call(x, w, dy):
    if w is None:
      y, vjp = jax.vjp(lambda x: _apply(case, convolve, pool, x, None), x)
    elif case.input_gradient:
      y, vjp = jax.vjp(lambda x, w: _apply(case, convolve, pool, x, w), x, w)
    else:
      y, vjp = jax.vjp(lambda w: _apply(case, convolve, pool, x, w), w)
    return y, *vjp(dy)

  return call


def _flops(case, output):
  """FLOPs of value and gradients, two for each multiply-add; None for pooling."""
  if case.kernel is None:
    return None
  products = 3 if case.input_gradient else 2
  return products * 2 * math.prod(output) * math.prod(case.kernel[:3])


def table(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
  """Columns for printing; times of forward and backward in ms."""
  return {
    'batch 32, forward and backward, ms': [row['case'] for row in rows],
    'floor': [row['floor_ms'] for row in rows],
    'native XLA': measure.column(rows, 'native'),
    'ferjax': measure.column(rows, 'ferjax'),
    'PyTorch': measure.column(rows, 'torch'),
    'native / ferjax': [row['faster_than_native'] for row in rows],
    'PyTorch / ferjax': [row['faster_than_torch'] for row in rows],
  }
