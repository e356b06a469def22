import itertools
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from ferjax.ops import conv

LAYOUT = ('NHWC', 'HWIO', 'NHWC')
# name: images [h, w, c], kernel [kh, kw, o], strides, padding, dilation, groups
CONVOLUTIONS = {
  'stem': ((9, 9, 3), (7, 7, 4), (2, 2), ((3, 3), (3, 3)), (1, 1), 1),
  'large map': ((6, 5, 4), (3, 3, 6), (1, 1), 'SAME', (1, 1), 1),
  'large map, many channels': ((6, 5, 16), (3, 3, 6), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
  'large map, strided': ((8, 8, 16), (3, 3, 4), (2, 2), ((1, 1), (1, 1)), (1, 1), 1),
  'wide map': ((14, 15, 3), (3, 3, 4), (1, 1), 'SAME', (1, 1), 1),
  'wide map, cropped': ((17, 19, 4), (3, 2, 5), (1, 1), ((-1, 0), (2, -2)), (1, 2), 1),
  'wide map, strided': ((29, 57, 3), (5, 4, 4), (2, 3), ((3, 2), (-1, 1)), (1, 2), 1),
  'wide map, grouped': ((15, 16, 4), (2, 3, 6), (1, 1), 'VALID', (1, 1), 2),
  'large kernel': ((4, 4, 32), (3, 3, 32), (1, 1), 'SAME', (1, 1), 1),
  'large kernel, strided': ((8, 7, 16), (3, 3, 32), (2, 1), 'SAME', (1, 1), 1),
  'few pixels': ((2, 2, 4), (3, 3, 6), (1, 1), 'SAME', (1, 1), 1),
  'few pixels, strided': ((4, 4, 4), (3, 3, 6), (2, 2), 'SAME_LOWER', (1, 1), 1),
  'one pixel': ((1, 1, 4), (3, 3, 6), (1, 1), 'SAME', (1, 1), 1),
  'dilated': ((7, 7, 16), (3, 3, 4), (1, 1), 'SAME', (2, 2), 1),
  'few pixels, dilated': ((5, 6, 4), (3, 2, 4), (2, 3), 'VALID', (2, 1), 1),
  'uneven': ((5, 6, 4), (2, 3, 5), (2, 3), ((0, 2), (3, 1)), (1, 2), 1),
  'cropped': ((6, 6, 16), (3, 3, 4), (1, 1), ((-1, 0), (1, -2)), (1, 1), 1),
  'cropped, few pixels': ((4, 4, 16), (3, 3, 4), (1, 1), ((-1, 0), (1, -1)), (1, 1), 1),
  '1x1': ((5, 5, 4), (1, 1, 6), (1, 1), 'SAME', (1, 1), 1),
  '1x1, strided': ((6, 5, 4), (1, 1, 6), (2, 2), 'VALID', (1, 1), 1),
  '1x1, padded': ((4, 4, 4), (1, 1, 6), (1, 2), ((1, 0), (0, 1)), (1, 1), 1),
  'grouped': ((6, 6, 4), (3, 3, 6), (1, 1), 'SAME', (1, 1), 2),
  'grouped, few pixels': ((2, 3, 6), (3, 3, 3), (2, 1), 'SAME', (1, 1), 3),
  'many groups': ((3, 3, 68), (2, 2, 34), (1, 1), 'SAME', (1, 1), 34),
  'depthwise': ((5, 6, 4), (3, 3, 4), (1, 1), 'SAME', (1, 1), 4),
  'depthwise, strided': ((6, 6, 4), (3, 3, 4), (2, 2), ((1, 1), (1, 1)), (1, 1), 4),
  'depthwise, dilated': ((6, 7, 4), (3, 2, 4), (1, 2), 'SAME', (2, 2), 4),
  'depthwise, two outputs': ((4, 4, 3), (3, 3, 6), (1, 1), 'SAME', (1, 1), 3),
}
BFLOAT16 = ('wide map', 'large kernel', 'few pixels', '1x1', 'depthwise')
# images [h, w], window, strides, padding
POOLS = list(
  itertools.product([(7, 6)], [(3, 2)], [None, (2, 2), (3, 1)], ['SAME', 'VALID', ((1, 1), (1, 0))])
) + [((8, 8), (3, 3), (2, 2), ((1, 1), (1, 1)))]


def convolution(case, op, **kwargs):
  _, _, strides, padding, dilation, groups = case
  return lambda x, w: op(
    x,
    w,
    strides,
    padding,
    lhs_dilation=(1, 1),
    rhs_dilation=dilation,
    dimension_numbers=LAYOUT,
    feature_group_count=groups,
    **kwargs,
  )


def arrays(case, dtype=np.float64, batch=2):
  image, (kh, kw, o), *_, groups = case
  rng = np.random.default_rng(0)
  x = rng.normal(size=(batch, *image))
  w = rng.normal(size=(kh, kw, image[-1] // groups, o))
  y = jax.eval_shape(convolution(case, lax.conv_general_dilated), x, w)
  return [jnp.asarray(a, dtype) for a in (x, w, rng.normal(size=y.shape))]


def value_and_gradients(f, *primals, cotangent):
  value, vjp = jax.vjp(f, *primals)
  return value, *vjp(cotangent)


def pools(op, images, cotangents):
  return [
    value_and_gradients(lambda x, args=args: op(x, *args), x, cotangent=dy)
    for (_, *args), x, dy in zip(POOLS, images, cotangents, strict=True)
  ]


def assert_close(actual, expected, tolerance):
  for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
    assert a.dtype == b.dtype
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * max(1, np.abs(b).max()))


@pytest.mark.parametrize(
  'dtype, tolerance', [('float64', 1e-10), ('float32', 1e-5), ('bfloat16', 2e-2)]
)
def test_convolution_equals_native(dtype, tolerance):
  with jax.enable_x64(dtype == 'float64'):
    cases = CONVOLUTIONS
    if dtype == 'bfloat16':
      cases = {name: cases[name] for name in BFLOAT16}
    inputs = {name: arrays(case, dtype) for name, case in cases.items()}

    def every(op, inputs):
      return {
        name: value_and_gradients(
          convolution(case, op), *inputs[name][:2], cotangent=inputs[name][2]
        )
        for name, case in cases.items()
      }

    actual = jax.jit(lambda inputs: every(conv.conv_general_dilated, inputs))(inputs)
    expected = jax.jit(lambda inputs: every(lax.conv_general_dilated, inputs))(inputs)
    for name in cases:
      assert_close(actual[name], expected[name], tolerance)


def test_max_pool_equals_native_with_ties():
  with jax.enable_x64(True):
    rng = np.random.default_rng(0)
    images = [jnp.asarray(rng.integers(0, 4, (2, *case[0], 3)), jnp.float64) for case in POOLS]
    shapes = [nn.max_pool(x, *args).shape for (_, *args), x in zip(POOLS, images, strict=True)]
    cotangents = [jnp.asarray(rng.normal(size=shape), jnp.float64) for shape in shapes]
    actual = jax.jit(lambda *args: pools(conv.max_pool, *args))(images, cotangents)
    expected = jax.jit(lambda *args: pools(nn.max_pool, *args))(images, cotangents)
    assert_close(actual, expected, 1e-10)


def test_max_pool_by_hand():
  x = jnp.array([[1.0, 5, 5], [5, 0, 2], [3, 3, 4]])[..., None]
  y, vjp = jax.vjp(lambda x: conv.max_pool(x, (2, 2)), x)
  np.testing.assert_array_equal(y[..., 0], [[5, 5], [5, 4]])
  dx = vjp(jnp.array([[1.0, 10], [100, 1000]])[..., None])[0]
  np.testing.assert_array_equal(dx[..., 0], [[0, 11, 0], [100, 0, 0], [0, 0, 1000]])


@pytest.mark.parametrize('platform', ['cuda', 'tpu'])
def test_other_platforms_get_the_native_program(platform):
  def operations(op, pool):
    def loss(x, ws):
      for name, w in ws.items():
        case = CONVOLUTIONS[name]
        y = convolution(case, op)(x[..., : case[0][-1]], w)
      return (pool(y, (2, 2), (2, 2)) ** 2).sum()

    ws = {
      name: jnp.ones((*CONVOLUTIONS[name][1][:2], c, CONVOLUTIONS[name][1][2]))
      for name, c in [('depthwise', 1), ('grouped', 2), ('large map, strided', 16)]
    }
    traced = jax.jit(jax.value_and_grad(loss, (0, 1))).trace(jnp.ones((2, 8, 8, 16)), ws)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    # The choice of the platform leaves a case with one branch, selected by a constant.
    lines = [re.sub(r'[%@][\w:#]+', '%', line).strip() for line in text.splitlines()]
    choice = re.compile(r'.*stablehlo\.case|.*constant dense<\d>|}|stablehlo\.return|module|func')
    return [line for line in lines if not choice.match(line)]

  actual = operations(conv.conv_general_dilated, conv.max_pool)
  assert actual == operations(lax.conv_general_dilated, nn.max_pool)
  assert any('convolution' in line for line in actual)


@pytest.mark.parametrize('name', ['large map', 'wide map', 'few pixels', 'grouped', 'depthwise'])
def test_vmap_over_images_and_kernels(name):
  case = CONVOLUTIONS[name]
  x, w, dy = arrays(case, jnp.float32, batch=3)

  def both(op):
    f = convolution(case, op)
    run = lambda x, w, dy: value_and_gradients(f, x[None], w, cotangent=dy[None])  # noqa: E731
    shared = jax.vmap(run, (0, None, 0))(x, w, dy)
    return shared, jax.vmap(run)(x, jnp.stack([w, 2 * w, -w]), dy)

  actual = jax.jit(lambda: both(conv.conv_general_dilated))()
  assert_close(actual, jax.jit(lambda: both(lax.conv_general_dilated))(), 1e-5)


@pytest.mark.parametrize('name', ['wide map', 'wide map, strided'])
def test_a_kernel_gradient_can_be_transposed(name):
  x, w, dy = arrays(CONVOLUTIONS[name], jnp.float32)

  def transposed(op):
    gradient = jax.vjp(lambda w: convolution(CONVOLUTIONS[name], op)(x, w), w)[1]
    return jax.linear_transpose(gradient, dy)((w,))

  assert_close(transposed(conv.conv_general_dilated), transposed(lax.conv_general_dilated), 1e-5)


def test_flax_hook_gives_the_same_network():
  class Network(nn.Module):
    conv: object
    pool: object

    @nn.compact
    def __call__(self, x):
      x = nn.Conv(4, (3, 3), conv_general_dilated=self.conv)(x)
      x = self.pool(nn.relu(x), (3, 3), (2, 2), ((1, 1), (1, 1)))
      return nn.Conv(3, (3, 3), feature_group_count=1, conv_general_dilated=self.conv)(x).mean()

  x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 4, 3)), jnp.float32)
  native = Network(lax.conv_general_dilated, nn.max_pool)
  fast = Network(conv.conv_general_dilated, conv.max_pool)
  params = native.init(jax.random.key(0), x)
  run = lambda net: jax.jit(jax.value_and_grad(net.apply))(params, x)  # noqa: E731
  assert_close(run(fast), run(native), 1e-5)


def test_other_layouts_and_dimensions_are_native():
  x, w = jnp.ones((1, 2, 5, 5)), jnp.ones((3, 2, 3, 3))
  np.testing.assert_array_equal(
    conv.conv_general_dilated(x, w, (1, 1), 'SAME'), lax.conv_general_dilated(x, w, (1, 1), 'SAME')
  )
  line = nn.Conv(3, (3,), conv_general_dilated=conv.conv_general_dilated)
  assert line.init_with_output(jax.random.key(0), jnp.ones((2, 5, 2)))[0].shape == (2, 5, 3)
  assert conv.max_pool(jnp.ones((2, 5, 2)), (2,)).shape == (2, 4, 2)
  with pytest.raises(ValueError, match='feature_group_count'):
    conv.conv_general_dilated(
      jnp.ones((1, 5, 5, 2)), jnp.ones((3, 3, 3, 4)), (1, 1), 'SAME', dimension_numbers=LAYOUT
    )


DEVICES = """
import jax, jax.numpy as jnp, numpy as np
from flax import linen as nn
from jax import lax
from jax.sharding import AxisType, PartitionSpec
from ferjax.ops import conv

def run(op, pool):
  def loss(x, w):
    y = op(x, w, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
    return (pool(y, (2, 2), (1, 1)) ** 2).sum()
  return lambda x, w: lax.psum(jax.grad(loss, 1)(x, w), 'data')

rng = np.random.default_rng(0)
x = rng.normal(size=(8, 2, 2, 2, 3)).astype(np.float32)
w = rng.normal(size=(3, 3, 3, 4)).astype(np.float32)
fast = run(conv.conv_general_dilated, conv.max_pool)
native = run(lax.conv_general_dilated, nn.max_pool)
expected = jax.pmap(native, 'data', in_axes=(0, None), out_axes=None)(x, w)
actual = jax.pmap(fast, 'data', in_axes=(0, None), out_axes=None)(x, w)
np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)
mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
parts, whole = PartitionSpec('data'), PartitionSpec()
mapped = jax.shard_map(fast, mesh=mesh, in_specs=(parts, whole), out_specs=whole, check_vma=False)
actual = jax.jit(mapped)(x.reshape(16, 2, 2, 3), w)
np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)
assert jax.device_count() == 8
"""


def test_eight_devices():
  flags = '--xla_force_host_platform_device_count=8'
  env = {**os.environ, 'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'}
  subprocess.run([sys.executable, '-W', 'error', '-c', DEVICES], env=env, check=True)
