"""Convolution and max-pooling that are also fast on a CPU.

On other platforms, values and gradients come from the native operations. The platform is chosen
when a program is lowered: a program exported on a CPU host runs the native operations on a GPU or
TPU.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from ferjax.ops import onednn as dnn

LAYOUT = ('NHWC', 'HWIO', 'NHWC')
MOST_SPLITS = 32  # up to this number, each group is computed as a separate convolution


class Window(NamedTuple):
  """A window sliding over height and width; each field has one entry for each of the two axes."""

  size: tuple[int, int]
  strides: tuple[int, int]
  padding: tuple[tuple[int, int], tuple[int, int]]
  dilation: tuple[int, int] = (1, 1)


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
  *,
  onednn=False,
):
  """`jax.lax.conv_general_dilated`, faster on a CPU. `flax.linen.Conv` has an argument of this
  name.

  On a CPU, the kernel gradient may be computed image by image. Use `shard_map` or `pmap` for arrays
  that are split over devices: `jit` alone would gather them.

  The fast form covers convolutions over two spatial dimensions in Flax's layout (NHWC images, HWIO
  kernels). All others, and those with dilated input or integers, use the native form. The fast form
  has reverse-mode gradients only: `jax.jvp` raises TypeError.

  Args:
    lhs: f[n, h, w, c], the images.
    rhs: f[kh, kw, c / feature_group_count, o], the kernel, of the same dtype.
    window_strides: Two strides.
    padding: 'SAME', 'SAME_LOWER', 'VALID' or two (low, high) pairs.
    lhs_dilation: Dilation of the images.
    rhs_dilation: Dilation of the kernel.
    dimension_numbers: The layout, as in `jax.lax`.
    feature_group_count: Number of groups of channels.
    batch_group_count: Number of groups of images.
    precision: Precision of the products, as in `jax.lax`.
    preferred_element_type: dtype of the sums, as in `jax.lax`.
    onednn: Whether oneDNN computes what it computes faster, on a CPU and in float32; see
      `ops.onednn`, whose `load` must have been called.

  Returns:
    f[n, h', w', o], of the dtype of `lhs`.

  Raises:
    TypeError, ValueError: in the same cases as `jax.lax.conv_general_dilated`.
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
    and 0 not in (lhs.size, rhs.size, out.size)
  )
  if not plain:
    return native(lhs, rhs)
  strides = tuple(window_strides)
  dilation = tuple(rhs_dilation or (1, 1))
  if isinstance(padding, str):
    window = [(k - 1) * d + 1 for k, d in zip(rhs.shape, dilation, strict=False)]
    padding = lax.padtype_to_pads(lhs.shape[1:3], window, strides, padding)
  padding = tuple((int(low), int(high)) for low, high in padding)
  window = Window(rhs.shape[:2], strides, padding, dilation)
  return _conv(lhs, rhs, window, feature_group_count, precision, onednn)


def form(onednn: bool) -> Callable[..., jax.Array]:
  """`conv_general_dilated` with or without oneDNN, as an argument of `flax.linen.Conv`."""
  return functools.partial(conv_general_dilated, onednn=True) if onednn else conv_general_dilated


def _positions(window, shape, arange=np.arange):
  """Rows i[h', kh] and columns i[w', kw] that the taps read from images of shape [n, h, w, c]."""
  positions = []
  for size, k, stride, (low, high), dilation in zip(shape[1:3], *window, strict=True):
    steps = (size + low + high - (k - 1) * dilation - 1) // stride + 1
    positions.append(arange(steps)[:, None] * stride + arange(k) * dilation - low)
  return positions


def _taps(x, window, fill=0.0):
  """The pixels that each tap of the window reads, row by row: a list of f[n, h', w', c]."""
  rows, columns = _positions(window, x.shape)
  (top, _), (left, _) = window.padding
  pads = ((0, 0, 0), *((*pair, 0) for pair in window.padding), (0, 0, 0))
  x = lax.pad(x, jnp.array(fill, x.dtype), pads)
  n, _, _, c = x.shape
  return [
    lax.slice(
      x,
      (0, row[0] + top, column[0] + left, 0),
      (n, row[-1] + top + 1, column[-1] + left + 1, c),
      (1, *window.strides, 1),
    )
    for row in rows.T
    for column in columns.T
  ]


def _taps_transposed(taps, window, shape):
  """The transpose of `_taps`: adds each tap at the pixels that it read; f[n, h, w, c] of
  `shape`."""
  x = jax.ShapeDtypeStruct(shape, taps[0].dtype)
  return jax.linear_transpose(functools.partial(_taps, window=window), x)(taps)[0]


def _patches(x, window):
  """The pixels that the window reads at each position: f[n h' w', kh kw c]."""
  n, h, w, c = x.shape
  if window.size == (1, 1):
    return _taps(x, window)[0].reshape(-1, c)
  # Traced, because constants would be lifted into the programs of other platforms.
  rows, columns = _positions(window, x.shape, jnp.arange)
  rows, columns = rows[:, None, :, None], columns[:, None]
  inside = (rows >= 0) & (rows < h) & (columns >= 0) & (columns < w)
  index = jnp.where(inside, rows * w + columns, h * w).ravel()
  patches = x.reshape(n, h * w, c).at[:, index].get(mode='fill', fill_value=0)
  return patches.reshape(-1, math.prod(window.size) * c)


def _native(x, w, window, groups, precision):
  _, strides, padding, dilation = window
  return lax.conv_general_dilated(
    x, w, strides, padding, None, dilation, LAYOUT, groups, precision=precision
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def _conv(x, w, window, groups, precision, onednn):
  def cpu(x, w):
    y_shape = _y_shape(x.shape, w.shape, window)
    if onednn and _fits_onednn(x.dtype, w.shape, y_shape, groups):
      return dnn.value(x, w, window, y_shape)
    return _value(x, w, window, groups, precision)

  native = functools.partial(_native, window=window, groups=groups, precision=precision)
  return lax.platform_dependent(x, w, cpu=cpu, default=native)


def _conv_fwd(x, w, *static):
  return _conv(x, w, *static), (x, w)


def _conv_bwd(*args):
  *static, onednn, (x, w), dy = args
  window, groups, _ = static

  def cpu(x, w, dy):
    if onednn and _fits_onednn(x.dtype, w.shape, dy.shape, groups):
      dx = dnn.input_gradient(w, dy, window, x.shape)
      if _kernel_gradient_fits_onednn(w.shape, dy.shape, window.strides):
        return dx, dnn.kernel_gradient(x, dy, window, w.shape)
    else:
      dx = _input_gradient(w, dy, x.shape, *static)
    return dx, _kernel_gradient(x, dy, w.shape, *static)

  def default(x, w, dy):
    return jax.vjp(lambda x, w: _native(x, w, *static), x, w)[1](dy)

  return lax.platform_dependent(x, w, dy, cpu=cpu, default=default)


_conv.defvjp(_conv_fwd, _conv_bwd)


def _fits_onednn(dtype, w_shape, y_shape, groups):
  """Whether oneDNN computes a convolution of this dtype faster: not one with more taps than pixels,
  where matrix products are faster."""
  taps = math.prod(w_shape[:2])
  return dtype == jnp.float32 and groups == 1 and taps <= math.prod(y_shape[1:3])


def _kernel_gradient_fits_onednn(w_shape, y_shape, strides):
  """Whether this is also true of the kernel gradient.

  It is not if the kernel is much larger than the map, or has a single tap, strides and few
  channels, where oneDNN 3.2 writes beyond its memory (its issue 6035).
  """
  writes_beyond = math.prod(w_shape[:2]) == 1 < math.prod(strides) and w_shape[2] < 16
  return math.prod(w_shape) <= 2 * math.prod(y_shape) and not writes_beyond


def _y_shape(x_shape, w_shape, window):
  return (x_shape[0], *map(len, _positions(window, x_shape)), w_shape[-1])


def _by_group(f, groups, *arrays):
  parts = zip(*(jnp.split(array, groups, -1) for array in arrays), strict=True)
  return jnp.concatenate([f(*part) for part in parts], -1)


def _is_depthwise(groups, x_shape, w_shape):
  return 1 < groups == x_shape[-1] == w_shape[-1]


def _needs_products(w_shape, y_shape):
  """Whether XLA's own convolution is much slower than a matrix product at this shape.

  This is so for one tap, where the images are already the patches (gradient of a 1x1 kernel,
  28x28x256 to 64 channels, 32 images: 27 ms, product 8 ms), and for more taps than pixels, where
  XLA uses the image as the kernel and runs a scalar loop (3x3 on 2x2x512: 200 ms, product 2 ms).
  """
  taps = math.prod(w_shape[:2])
  return taps == 1 or taps > math.prod(y_shape[1:3])


def _gradients_need_products(w_shape, y_shape):
  """As `_needs_products`, and also where the kernel is larger than the map.

  There XLA copies the kernel into another order. Gradients of 3x3 on 4x4x512, 32 images: products
  take 13 and 14 ms, the native form 18 and 16 ms.
  """
  return _needs_products(w_shape, y_shape) or math.prod(w_shape) > math.prod(y_shape)


def _value(x, w, window, groups, precision):
  y_shape = _y_shape(x.shape, w.shape, window)
  if _is_depthwise(groups, x.shape, w.shape):
    taps, factors = _taps(_wide(x), window), _wide(w).reshape(-1, x.shape[-1])
    return sum(map(jnp.multiply, taps, factors)).astype(x.dtype)
  if 1 < groups <= MOST_SPLITS:
    return _by_group(lambda x, w: _value(x, w, window, 1, precision), groups, x, w)
  if groups > 1 or not _needs_products(w.shape, y_shape):
    return _native(x, w, window, groups, precision)
  y = jnp.matmul(_patches(x, window), w.reshape(-1, w.shape[-1]), precision=precision)
  return y.reshape(y_shape)


def _kernel_gradient(x, dy, w_shape, window, groups, precision):
  if _is_depthwise(groups, x.shape, w_shape):
    return _depthwise_kernel_gradient(x, dy, window).reshape(w_shape).astype(x.dtype)
  if 1 < groups <= MOST_SPLITS:
    shape = (*w_shape[:3], w_shape[3] // groups)
    one = functools.partial(
      _kernel_gradient, w_shape=shape, window=window, groups=1, precision=precision
    )
    return _by_group(one, groups, x, dy)
  if groups == 1 and _needs_sum_over_images(w_shape, dy.shape, window.strides):
    return _sum_over_images(x, dy, window, precision).astype(x.dtype)
  if groups > 1 or not _gradients_need_products(w_shape, dy.shape):
    w = jax.ShapeDtypeStruct(w_shape, x.dtype)
    native = functools.partial(_native, x, window=window, groups=groups, precision=precision)
    return jax.linear_transpose(native, w)(dy)[0]
  patches, dy = _patches(x, window), dy.reshape(-1, w_shape[3])
  # The product transposes one factor or the result: choose the smaller. Barriers keep the choice.
  if len(dy) <= 2 * w_shape[3]:
    patches = lax.optimization_barrier(patches.T)
    return jnp.matmul(patches, dy, precision=precision).reshape(w_shape)
  dw = lax.optimization_barrier(jnp.matmul(dy.T, patches, precision=precision))
  return dw.T.reshape(w_shape)


def _needs_sum_over_images(w_shape, y_shape, strides):
  """Whether XLA's kernel gradient is much slower than matrix products, image by image.

  XLA uses the cotangent as the kernel, which is slow where the cotangent is large. CPU time for 32
  images, native and image by image: 7x7/2 on 64x64x3 to 64, 15 and 7 ms; 3x3 on 28x28x64 to 64, 48
  and 21 ms; on 16x16x64, 10 and 7 ms; but on 8x8x128, 6 and 14 ms. For kernels much larger than
  their strides, the copies would take too much memory.
  """
  taps = math.prod(w_shape[:2])
  return 1 < taps <= 25 * math.prod(strides) and math.prod(y_shape[1:3]) >= 196


def _sum_over_images(x, dy, window, precision):
  """The kernel gradient f[kh, kw, c, o], summed image by image: the copies of one image stay in the
  processor's cache."""
  factors = _shifts_and_taps if window.strides == (1, 1) else _planes_of_taps

  def product(image):
    a, b = map(lax.optimization_barrier, factors(*map(_wide, image), window))
    return jnp.matmul(a, b, precision=precision)

  def add(total, image):
    return total + product(image), None

  zero = jax.eval_shape(product, (x[0], dy[0]))
  total, _ = lax.scan(add, jnp.zeros(zero.shape, zero.dtype), (x, dy))
  shape = *window.size, x.shape[-1], dy.shape[-1]
  if window.strides != (1, 1):
    return total.reshape(shape)
  kh, kw, c, o = shape
  return total.reshape(kw, o, kh, c).transpose(2, 0, 3, 1)


def _planes_of_taps(x, dy, window):
  """For one image, the pixels of each tap f[kh kw c, h' w'] and the cotangent f[h' w', o]."""
  taps = jnp.concatenate(_taps(jnp.moveaxis(x, -1, 0)[..., None], window))
  return taps.reshape(-1, math.prod(dy.shape[:2])), dy.reshape(-1, dy.shape[-1])


def _shifts_and_taps(x, dy, window):
  """For one image, shifted cotangents f[kw o, h' w], one for each column of the kernel, and row
  taps f[h' w, kh c], one for each row: fewer copies than one of the image for each tap. Strides are
  1."""
  (kh, kw), _, (rows, (left, _)), dilation = window
  taps = _taps(x[None], Window((kh, 1), (1, 1), (rows, (0, 0)), (dilation[0], 1)))
  spare = x.shape[1] - dy.shape[1]
  lows = [column * dilation[1] - left for column in range(kw)]
  dy, zero = jnp.moveaxis(dy, -1, 0), jnp.zeros((), dy.dtype)
  shifts = [lax.pad(dy, zero, ((0, 0, 0), (0, 0, 0), (low, spare - low, 0))) for low in lows]
  pixels = math.prod(shifts[0].shape[1:])
  return (
    jnp.concatenate(shifts).reshape(-1, pixels),
    jnp.concatenate(taps, -1).reshape(pixels, -1),
  )


def _depthwise_kernel_gradient(x, dy, window):
  """f[kh kw, c], summed image by image: the products of all images at once are memory-bound."""

  def add(dw, image):
    x, dy = image
    taps = jnp.concatenate(_taps(_wide(x)[None], window))
    return dw + (taps * _wide(dy)).sum((1, 2)), None

  zero = jnp.zeros((math.prod(window.size), x.shape[-1]), jnp.promote_types(x.dtype, jnp.float32))
  return lax.scan(add, zero, (x, dy))[0]


def _input_gradient(w, dy, x_shape, window, groups, precision):
  if _is_depthwise(groups, x_shape, w.shape):
    taps = [_wide(dy) * factor for factor in _wide(w).reshape(-1, w.shape[-1])]
    return _taps_transposed(taps, window, x_shape).astype(dy.dtype)
  if 1 < groups <= MOST_SPLITS:
    shape = (*x_shape[:3], x_shape[3] // groups)
    one = functools.partial(
      _input_gradient, x_shape=shape, window=window, groups=1, precision=precision
    )
    return _by_group(one, groups, w, dy)
  if groups > 1 or not _gradients_need_products(w.shape, dy.shape):
    x = jax.ShapeDtypeStruct(x_shape, dy.dtype)
    return jax.linear_transpose(lambda x: _native(x, w, window, groups, precision), x)(dy)[0]
  w = w.reshape(-1, *w.shape[2:])
  if math.prod(dy.shape[:3]) < dy.shape[3]:  # fewer pixels than kernels: transpose the pixels
    taps = jnp.einsum('tco,nhwo->tcnhw', w, dy, precision=precision)
    taps = [jnp.moveaxis(tap, 0, -1) for tap in taps]
  else:
    taps = jnp.einsum('nhwo,tco->nhwtc', dy, w, precision=precision)
    taps = [taps[..., t, :] for t in range(w.shape[0])]
  return _taps_transposed(taps, window, x_shape)


def _wide(array):
  """The array as float32, or wider if it is wider: the dtype of sums."""
  return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def max_pool(inputs, window_shape, strides=None, padding='VALID'):
  """`flax.linen.max_pool` with a gradient that is fast on a CPU; reverse-mode only.

  If several elements of a window share its maximum, the gradient goes to the first of them in row
  order, as in the native form.

  Args:
    inputs: f[..., h, w, c]. Integers, and windows over other than two dimensions, use the native
      form.
    window_shape: (kh, kw).
    strides: Two strides; (1, 1) by default.
    padding: 'SAME', 'SAME_LOWER', 'VALID' or two (low, high) pairs.

  Returns:
    f[..., h', w', c], the maximum of each window.

  Raises:
    AssertionError, ValueError: in the same cases as `flax.linen.max_pool`.
  """
  out = jax.eval_shape(lambda x: nn.max_pool(x, window_shape, strides, padding), inputs)
  floating = jnp.issubdtype(inputs.dtype, jnp.floating)
  if len(window_shape) != 2 or not floating or 0 in (inputs.size, out.size):
    return nn.max_pool(inputs, window_shape, strides, padding)
  strides = tuple(strides or (1, 1))
  if isinstance(padding, str):
    padding = lax.padtype_to_pads(inputs.shape[-3:-1], window_shape, strides, padding)
  padding = tuple((int(low), int(high)) for low, high in padding)
  x = inputs.reshape(-1, *inputs.shape[-3:])
  return _max_pool(x, Window(tuple(window_shape), strides, padding)).reshape(out.shape)


def _native_max_pool(x, window):
  return nn.max_pool(x, window.size, window.strides, window.padding)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _max_pool(x, window):
  def cpu(x):
    return functools.reduce(jnp.maximum, _taps(x, window, -jnp.inf))

  native = functools.partial(_native_max_pool, window=window)
  return lax.platform_dependent(x, cpu=cpu, default=native)


def _max_pool_fwd(x, window):
  return _max_pool(x, window), x


def _max_pool_bwd(window, x, dy):
  def cpu(x, dy):
    def search(x):
      return _first_maximum(_taps(x, window, -jnp.inf))

    def skip(x):
      return jnp.zeros(dy.shape, jnp.int32)

    # A separate branch, because XLA would repeat the search for each tap.
    first = lax.cond(dy.any(), search, skip, x)
    taps = [jnp.where(first == tap, dy, 0) for tap in range(math.prod(window.size))]
    return _taps_transposed(taps, window, x.shape)

  def default(x, dy):
    return jax.vjp(lambda x: _native_max_pool(x, window), x)[1](dy)[0]

  return (lax.platform_dependent(x, dy, cpu=cpu, default=default),)


_max_pool.defvjp(_max_pool_fwd, _max_pool_bwd)


def _first_maximum(taps):
  """The index of the first tap that has the maximum: i32, of the shape of one tap."""
  maximum, first = taps[0], jnp.zeros(taps[0].shape, jnp.int32)
  for number, tap in enumerate(taps):
    first = jnp.where(tap > maximum, number, first)
    maximum = jnp.maximum(maximum, tap)
  return first
