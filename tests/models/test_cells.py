"""The places that networks give for their cells, against what the cells depend on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import path_aware_map

from ferjax import models
from ferjax.methods.hrl import lgmp
from ferjax.methods.hrl.sifl import spatial_invariance
from ferjax.models.resnet import BasicBlock, ResNet
from ferjax.ops import bilinear, conv, homography
from ferjax.ops.cells import Cells


def mean_pool(x, window, strides, padding=((0, 0), (0, 0))):
  return nn.avg_pool(x, window, strides, padding)


def with_kernels(variables, change):
  """Variables whose convolution kernels f[h, w, c, d] are changed."""

  def layer(path, value):
    return change(value) if path[-1] == 'kernel' and value.ndim == 4 else value

  return variables | {'params': path_aware_map(layer, variables['params'])}


@pytest.mark.parametrize(
  'name, options, width',
  [
    ('resnet10', {'output_stride': 8}, 512),
    ('preact_resnet18', {}, 960),
    ('mobilenet_v2', {}, 1100),
    ('vgg13', {}, 200),
    ('alexnet', {}, 300),
    ('fmpnet', {}, 100),
    ('face_resnet29', {}, 1600),
    ('face_resnet29', {}, 1601),
  ],
)
def test_cells_look_at_the_middle_of_the_pixels_that_they_depend_on(
  name, options, width, monkeypatch
):
  """Of a middle cell of every stage; all kernels are positive, so nothing cancels."""
  monkeypatch.setattr(conv, 'max_pool', mean_pool)
  model = getattr(models, name)(width=4, **options)
  strip = jnp.full((1, 64, width, 3), 1e-3)
  variables = jax.jit(model.init, static_argnums=2)(jax.random.key(0), strip[:, :, :64], False)
  variables = with_kernels(variables, lambda k: jnp.full_like(k, 1 / k[..., 0].size))

  @jax.jit
  def seen(image):
    def middles(image):
      maps = model.apply(variables, image, False)
      return jnp.stack([m[:, :, m.shape[2] // 2].sum() for m in maps]), maps

    gradients, maps = jax.jacrev(middles, has_aux=True)(image)
    return jnp.abs(gradients).sum((1, 2, 4)), maps

  gradients, maps = seen(strip)
  cells = model.cells(width)
  assert len(cells) == len(maps) == len(gradients)
  for own, gradient, found in zip(cells, gradients, maps, strict=True):
    pixels = np.flatnonzero(gradient)
    assert 0 < pixels[0] and pixels[-1] < width - 1, 'the picture is too small for this test'
    assert (pixels[0] + pixels[-1]) / 2 == own.pixels(found.shape[2] // 2)


def test_known_cells():
  assert models.resnet18().cells(112) == [Cells(4, 0), Cells(8, 0), Cells(16, 0), Cells(32, 0)]
  assert models.resnet18(output_stride=16).clone(first=2).cells(113) == [Cells(16, 0)] * 2
  assert models.vgg13().cells(64) == [Cells(1, 0), Cells(2, 0.5), Cells(4, 1.5), Cells(8, 3.5)]
  assert models.alexnet().cells(64) == [Cells(4, 3), Cells(8, 7), Cells(16, 15)]
  assert models.fmpnet().cells(48) == [Cells(1, 0), Cells(2, 1), Cells(4, 3)]
  large = [Cells(4, 5), Cells(8, 9), Cells(16, 17), Cells(32, 33), Cells(64, 65)]
  assert models.face_resnet29().cells(150) == large
  # At 64 px the maps have 14, 7, 3, 1 and 1 cells; a map of one cell is padded on both sides.
  assert models.face_resnet29().cells(64) == [*large[:4], Cells(64, 33)]
  assert models.face_resnet29().clone(first=1, last=3).cells(112) == large[1:3]


def small():
  """A network of three stages whose cells, 8 pixels apart, depend on 99 pixels."""
  return ResNet(BasicBlock, (1, 1, 1), 8, 8)


def of_picture(size, axes, matrix):
  """The maps of a picture and of the transformed one, by a network whose kernels are symmetric
  along `axes`. Both pictures are black but for a patch in the middle, so no border is seen."""
  rng = np.random.default_rng(0)
  image = np.zeros((1, size, size, 3), 'f4')
  start = size // 2 - 3
  image[:, start : start + 5, start : start + 5] = rng.normal(size=(5, 5, 3))
  variables = jax.jit(small().init, static_argnums=2)(jax.random.key(0), image, False)

  def symmetric(kernel):
    for axis in axes:
      kernel = (kernel + jnp.flip(kernel, axis)) / 2
    return kernel

  variables = with_kernels(variables, symmetric)
  moved = bilinear.warp(image[0], homography.in_pixels(matrix, size, size))
  run = jax.jit(lambda x: small().apply(variables, x, False)[-1])
  return run(image)[0], run(moved[None])[0]


FLIP = jnp.diag(jnp.array([-1.0, 1, 1]))
HALF_TURN = jnp.diag(jnp.array([-1.0, -1, 1]))


@pytest.mark.parametrize('matrix, axes', [(FLIP, (1,)), (HALF_TURN, (0, 1))])
@pytest.mark.parametrize('size', [112, 113, 224])
def test_flips_and_half_turns_bring_no_sifl_where_kernels_are_symmetric(size, matrix, axes):
  """Exactly where cells come to lie on cells: at 112 and 224 px about pixel 56 and 112, half a
  pixel beside the middle. About the middle itself only the interpolation between cells is left."""
  [cells] = small().cells(size)[-1:]
  middle = (size - 1) / 2
  about = 8 * round(middle / 8)
  half = jnp.float32((about - middle) / (size / 2))
  there = homography.translation(half, half if 0 in axes else 0 * half)
  back = homography.translation(-half, -half if 0 in axes else 0 * half)
  exact = homography.compose(there, matrix, back)
  original, moved = of_picture(size, axes, exact)
  variance = original.var()
  loss = spatial_invariance(original, moved, exact, cells, (size, size))
  assert loss < 1e-6 * variance
  evenly = Cells(size / len(original), size / len(original) / 2 - 0.5)  # as if spread so
  if size % 8 == 0:
    assert spatial_invariance(original, moved, exact, evenly, (size, size)) > 0.1 * variance
    original, moved = of_picture(size, axes, matrix)
    ours, other = (
      spatial_invariance(original, moved, matrix, where, (size, size)) for where in (cells, evenly)
    )
    assert ours < 0.5 * other


@pytest.mark.parametrize('name, size', [('resnet10', 112), ('vgg13', 64), ('face_resnet29', 113)])
def test_pooling_at_a_drawn_dot_finds_the_largest_response(name, size):
  """Of all places in a grid of pixels, the one at the dot pools most."""
  model = getattr(models, name)(width=4)
  image = np.zeros((1, size, size, 3), 'f4')
  stage = 1
  cells = model.cells(size)[stage]
  row, column = (round(cells.pixels(place)) for place in (3, 4))
  image[0, row - 1 : row + 2, column - 1 : column + 2] = 1
  variables = jax.jit(model.init, static_argnums=2)(jax.random.key(0), image, False)
  variables = with_kernels(variables, lambda k: jnp.full_like(k, 1 / k[..., 0].size))
  found = model.apply(variables, image, False)[stage][0].sum(-1, keepdims=True)
  places = bilinear.grid(*found.shape[:2])
  pooled = lgmp.pool_points(found, places.reshape(-1, 2)).reshape(found.shape[:2])
  assert np.unravel_index(pooled.argmax(), pooled.shape) == (3, 4)
  at_dot = cells.at(jnp.array([[column, row]], jnp.float32))
  around = jnp.array([[0.0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]])
  assert lgmp.pool_points(found, at_dot + around).argmax() == 0
