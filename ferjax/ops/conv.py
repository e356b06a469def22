"""Convolution and max-pooling that are also fast on a CPU.

Elsewhere both are the native operations, in the value as in the gradient. The platform is chosen
while a program is lowered, so that one exported from a CPU host runs natively on a GPU or TPU.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

LAYOUT = ('NHWC', 'HWIO', 'NHWC')


class Geometry(NamedTuple):
  """The static part of a convolution: pairs for height and width."""

  strides: tuple[int, int]
  padding: tuple[tuple[int, int], tuple[int, int]]
  dilation: tuple[int, int]
  groups: int
  precision: lax.PrecisionLike


def conv_general_dilated(
  lhs,
  rhs,
  window_strides,
  padding,
  lhs_dilation=None,
  rhs_dilation=None,
  dimension_numbers=None,
  feature_group_count=1,
  batch_group_count=1,
  precision=None,
  preferred_element_type=None,
):
  """`jax.lax.conv_general_dilated`, faster on a CPU; for `flax.linen.Conv(conv_general_dilated=...)`.

  Convolutions of two spatial dimensions in Flax's layout (NHWC images, HWIO kernels) have the fast
  form; any other, and any with dilated input or integers, is the native one. Reverse-mode
  differentiation only: `jax.jvp` through the fast form raises TypeError.

  Args:
    lhs: f[n, h, w, c], the images.
    rhs: f[kh, kw, c / feature_group_count, o], the kernel, of the same dtype.
    window_strides: two strides.
    padding: 'SAME', 'SAME_LOWER', 'VALID' or two (low, high) pairs.
    lhs_dilation: dilation of the images.
    rhs_dilation: dilation of the kernel.
    dimension_numbers: the layout, as in `jax.lax`.
    feature_group_count: number of groups of channels.
    batch_group_count: number of groups of images.
    precision: of the products, as in `jax.lax`.
    preferred_element_type: dtype of the sums, as in `jax.lax`.

  Returns:
    f[n, h', w', o], of the dtype of `lhs`.

  Raises:
    TypeError, ValueError: as `jax.lax.conv_general_dilated` does.
  """
  native = functools.partial(
    lax.conv_general_dilated,
    window_strides=window_strides,
    padding=padding,
    lhs_dilation=lhs_dilation,
    rhs_dilation=rhs_dilation,
    dimension_numbers=dimension_numbers,
    feature_group_count=feature_group_count,
    batch_group_count=batch_group_count,
    precision=precision,
    preferred_element_type=preferred_element_type,
  )
  out = jax.eval_shape(native, lhs, rhs)
  plain = (
    lhs.ndim == 4
    and lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    == lax.conv_dimension_numbers(lhs.shape, rhs.shape, LAYOUT)
    and lhs.dtype == rhs.dtype == out.dtype
    and jnp.issubdtype(lhs.dtype, jnp.floating)
    and math.prod(lhs_dilation or ()) == batch_group_count == 1
    and min(lhs.size, rhs.size, out.size) > 0
  )
  if not plain:
    return native(lhs, rhs)
  strides = tuple(window_strides)
  dilation = tuple(rhs_dilation or (1, 1))
  if isinstance(padding, str):
    window = [(k - 1) * d + 1 for k, d in zip(rhs.shape, dilation, strict=False)]
    padding = lax.padtype_to_pads(lhs.shape[1:3], window, strides, padding)
  padding = tuple((int(low), int(high)) for low, high in padding)
  return _conv(lhs, rhs, Geometry(strides, padding, dilation, feature_group_count, precision))


def _native(x, w, geometry, lhs_dilation=None):
  strides, padding, dilation, groups, precision = geometry
  return lax.conv_general_dilated(
    x, w, strides, padding, lhs_dilation, dilation, LAYOUT, groups, precision=precision
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv(x, w, geometry):
  return lax.platform_dependent(
    x,
    w,
    cpu=functools.partial(_forward, geometry=geometry),
    default=functools.partial(_native, geometry=geometry),
  )


def _conv_fwd(x, w, geometry):
  return _conv(x, w, geometry), (x, w)


def _conv_bwd(geometry, residuals, dy):
  def native(x, w, dy):
    return jax.vjp(functools.partial(_native, geometry=geometry), x, w)[1](dy)

  def cpu(x, w, dy):
    return _input_gradient(x.shape, w, dy, geometry), _weight_gradient(x, w.shape, dy, geometry)

  return lax.platform_dependent(*residuals, dy, cpu=cpu, default=native)


_conv.defvjp(_conv_fwd, _conv_bwd)


def _as_products(kernel_shape, out_shape):
  """Whether one matrix product over patches beats XLA's convolution.

  It does for a single tap, where the images are their own patches (28x28x256 to 64 channels: 3
  against 8 ms), and for maps of fewer pixels than taps, where XLA exchanges image and kernel and
  then runs a scalar loop (3x3 on 2x2x512, 32 images: 2 against 200 ms).
  """
  taps = math.prod(kernel_shape[:2])
  return taps == 1 or taps > math.prod(out_shape[1:3])


def _taps(x, kernel_shape, out_shape, geometry):
  """What each tap of the kernel sees: a list of f[n, h', w', c]."""
  strides, padding, dilation, _, _ = geometry
  x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *((*p, 0) for p in padding), (0, 0, 0)))
  n, _, _, c = x.shape
  extent = [s * (size - 1) + 1 for s, size in zip(strides, out_shape[1:3], strict=True)]
  starts = [
    (i * dilation[0], j * dilation[1])
    for i in range(kernel_shape[0])
    for j in range(kernel_shape[1])
  ]
  return [
    lax.slice(x, (0, i, j, 0), (n, i + extent[0], j + extent[1], c), (1, *strides, 1))
    for i, j in starts
  ]


def _patches(x, kernel_shape, out_shape, geometry):
  """f[n h' w', kh kw c]."""
  patches = jnp.concatenate(_taps(x, kernel_shape, out_shape, geometry), -1)
  return patches.reshape(-1, patches.shape[-1])


def _depthwise(x_shape, w_shape, geometry):
  return geometry.groups == x_shape[-1] == w_shape[-1]


def _forward(x, w, geometry):
  out_shape = jax.eval_shape(functools.partial(_native, geometry=geometry), x, w).shape
  if geometry.groups == 1 and _as_products(w.shape, out_shape):
    patches = _patches(x, w.shape, out_shape, geometry)
    y = jnp.matmul(patches, w.reshape(-1, w.shape[-1]), precision=geometry.precision)
    return y.reshape(out_shape)
  if geometry.groups == 1:
    return _native(x, w, geometry)
  if _depthwise(x.shape, w.shape, geometry):
    taps = _taps(x, w.shape, out_shape, geometry)
    return _sum_of_products(taps, w.reshape(-1, w.shape[-1]))
  one = geometry._replace(groups=1)
  pairs = zip(jnp.split(x, geometry.groups, -1), jnp.split(w, geometry.groups, -1), strict=True)
  return jnp.concatenate([_forward(x, w, one) for x, w in pairs], -1)


def _sum_of_products(xs, ws):
  wide = jnp.promote_types(xs[0].dtype, jnp.float32)
  products = (x.astype(wide) * w.astype(wide) for x, w in zip(xs, ws, strict=True))
  return sum(products).astype(xs[0].dtype)


def _weight_gradient(x, w_shape, dy, geometry):
  if geometry.groups == 1 and _as_products(w_shape, dy.shape):
    patches = _patches(x, w_shape, dy.shape, geometry)
    dy = dy.reshape(-1, dy.shape[-1])
    return jnp.matmul(patches.T, dy, precision=geometry.precision).reshape(w_shape)
  if geometry.groups == 1:
    w = jax.ShapeDtypeStruct(w_shape, x.dtype)
    conv = functools.partial(_native, x, geometry=geometry)
    return jax.linear_transpose(conv, w)(dy)[0]
  if _depthwise(x.shape, w_shape, geometry):
    taps = _taps(x, w_shape, dy.shape, geometry)
    return jnp.stack([jnp.sum(tap * dy, (0, 1, 2)) for tap in taps]).reshape(w_shape)
  one = geometry._replace(groups=1)
  shape = (*w_shape[:3], w_shape[3] // geometry.groups)
  pairs = zip(jnp.split(x, geometry.groups, -1), jnp.split(dy, geometry.groups, -1), strict=True)
  return jnp.concatenate([_weight_gradient(x, shape, dy, one) for x, dy in pairs], -1)


def _input_gradient(x_shape, w, dy, geometry):
  depthwise = _depthwise(x_shape, w.shape, geometry)
  if geometry.groups == 1 and not _as_products(w.shape, dy.shape):
    x = jax.ShapeDtypeStruct(x_shape, dy.dtype)
    return jax.linear_transpose(lambda x: _native(x, w, geometry), x)(dy)[0]
  if geometry.groups > 1 and not depthwise:
    one = geometry._replace(groups=1)
    shape = (*x_shape[:3], x_shape[3] // geometry.groups)
    pairs = zip(jnp.split(w, geometry.groups, -1), jnp.split(dy, geometry.groups, -1), strict=True)
    return jnp.concatenate([_input_gradient(shape, w, dy, one) for w, dy in pairs], -1)
  if w.shape[:2] == (1, 1):
    # The product first: the zeros between strides need none.
    dy = dy * w[0, 0, 0] if depthwise else jnp.matmul(dy, w[0, 0].T, precision=geometry.precision)
    w = None
  padding = []
  for axis, (low, _) in enumerate(geometry.padding):
    reach = geometry.dilation[axis] * ((w.shape[axis] if w is not None else 1) - 1)
    dilated = geometry.strides[axis] * (dy.shape[axis + 1] - 1) + 1
    low = reach - low
    padding.append((low, x_shape[axis + 1] + reach - low - dilated, geometry.strides[axis] - 1))
  dy = lax.pad(dy, jnp.zeros((), dy.dtype), ((0, 0, 0), *padding, (0, 0, 0)))
  if w is None:
    return dy
  w = jnp.flip(w, (0, 1))
  flat = geometry._replace(strides=(1, 1), padding=((0, 0), (0, 0)))
  taps = _taps(dy, w.shape, x_shape, flat)
  if depthwise:
    return _sum_of_products(taps, w.reshape(-1, w.shape[-1]))
  patches = jnp.concatenate(taps, -1)
  w = w.swapaxes(2, 3).reshape(-1, x_shape[-1])
  return jnp.matmul(patches, w, precision=geometry.precision)


def max_pool(inputs, window_shape, strides=None, padding='VALID'):
  """`flax.linen.max_pool` with a gradient that is fast on a CPU.

  Where several elements of a window share its maximum, the gradient goes to the first of them in
  row-major order, as it does natively.

  Args:
    inputs: f[..., h, w, c]; other than two window dimensions take the native form.
    window_shape: (kh, kw).
    strides: two strides, 1 unless given.
    padding: 'SAME', 'VALID' or two (low, high) pairs.

  Returns:
    f[..., h', w', c], the maximum of each window.
  """
  native = functools.partial(
    nn.max_pool, window_shape=window_shape, strides=strides, padding=padding
  )
  if len(window_shape) != 2 or not jnp.issubdtype(inputs.dtype, jnp.floating):
    return native(inputs)
  window = tuple(window_shape)
  strides = tuple(strides or (1, 1))
  if isinstance(padding, str):
    padding = lax.padtype_to_pads(inputs.shape[-3:-1], window, strides, padding)
  padding = tuple((int(low), int(high)) for low, high in padding)
  x = inputs.reshape(-1, *inputs.shape[-3:])
  y = _max_pool(x, window, strides, padding)
  return y.reshape(*inputs.shape[:-3], *y.shape[1:])


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _max_pool(x, window, strides, padding):
  return nn.max_pool(x, window, strides, padding)


def _max_pool_fwd(x, window, strides, padding):
  y = _max_pool(x, window, strides, padding)
  return y, (x, y)


def _max_pool_bwd(window, strides, padding, residuals, dy):
  def native(x, y, dy):
    del y
    return jax.vjp(lambda x: nn.max_pool(x, window, strides, padding), x)[1](dy)[0]

  def cpu(x, y, dy):
    n, h, w, c = x.shape
    low, lowest = [p[0] for p in padding], jnp.array(-jnp.inf, x.dtype)
    padded = lax.pad(x, lowest, ((0, 0, 0), *((*p, 0) for p in padding), (0, 0, 0)))
    zero = jnp.zeros((), dy.dtype)
    rest = [[s - 1 for s in strides]]
    free = jnp.ones(y.shape, bool)
    dx = jnp.zeros(padded.shape, dy.dtype)
    for i in range(window[0]):
      for j in range(window[1]):
        stop = [o + s * (size - 1) + 1 for o, s, size in zip((i, j), strides, y.shape[1:3])]
        tap = lax.slice(padded, (0, i, j, 0), (n, *stop, c), (1, *strides, 1))
        taken = free & (tap == y)
        free &= ~taken
        config = [
          (o, size - t, s - 1) for o, size, t, s in zip((i, j), padded.shape[1:3], stop, strides)
        ]
        dx += lax.pad(jnp.where(taken, dy, 0), zero, ((0, 0, 0), *config, (0, 0, 0)))
    del rest
    return dx[:, low[0] : low[0] + h, low[1] : low[1] + w]

  return (lax.platform_dependent(*residuals, dy, cpu=cpu, default=native),)


_max_pool.defvjp(_max_pool_fwd, _max_pool_bwd)
