import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from network_shapes import shapes

from ferjax import models
from ferjax.distributed.parallel import AXIS
from ferjax.errors import InputError

NETWORKS = ('vgg13', 'alexnet', 'fmpnet', 'preact_resnet18')

# The known numbers of parameters of CNTK's VGG-13 of FER+ (grey pictures, eight classes) and of
# torchvision's AlexNet, and those of their fully connected layers.
FULLY_CONNECTED = {
  'vgg13': (8_757_704, 4 * 4 * 256 * 1024 + 1024 + 1024 * 1024 + 1024 + 1024 * 8 + 8),
  'alexnet': (61_100_840, 9216 * 4096 + 4096 + 4096 * 4096 + 4096 + 4096 * 1000 + 1000),
}


def count(name):
  _, variables = shapes(getattr(models, name)())
  return sum(leaf.size for leaf in jax.tree.leaves(variables['params']))


def test_parameter_counts_are_the_known_ones():
  """BatchNorm has two parameters for each feature; the known networks have one bias."""
  whole, dense = FULLY_CONNECTED['vgg13']
  features = 2 * 64 + 2 * 128 + 6 * 256
  assert count('vgg13') == whole - dense + 2 * 9 * 64 + features  # RGB pictures
  whole, dense = FULLY_CONNECTED['alexnet']
  assert count('alexnet') == whole - dense + 64 + 192 + 384 + 256 + 256
  # FMPNet: kernels of 5x5 on RGB pictures, then 3x3; BatchNorm in place of biases.
  kernels = 25 * 3 * 64 + 9 * (64 * 64 * 2 + 64 * 128 + 128 * 128)
  assert count('fmpnet') == kernels + 2 * (3 * 64 + 2 * 128)
  # The usual PreActResNet-18 for CIFAR-10 has 11,171,146: a 3x3 stem, ten classes, and no BatchNorm
  # at its end.
  stem, classes, end = (7 * 7 - 3 * 3) * 3 * 64, 512 * 10 + 10, 2 * 512
  assert count('preact_resnet18') == 11_171_146 + stem - classes + end


@pytest.mark.parametrize(
  'name, stride, maps',
  [
    ('vgg13', 32, [(64, 8), (32, 16), (16, 32), (8, 32)]),
    ('alexnet', 32, [(15, 8), (7, 24), (3, 32)]),
    ('fmpnet', 32, [(64, 8), (31, 8), (15, 16)]),
    ('preact_resnet18', 32, [(16, 8), (8, 16), (4, 32), (2, 64)]),
    ('preact_resnet18', 8, [(16, 8), (8, 16), (8, 32), (8, 64)]),
  ],
)
def test_maps_of_every_stage(name, stride, maps):
  found, _ = shapes(getattr(models, name)(width=8, output_stride=stride))
  assert [m.shape for m in found] == [(2, size, size, width) for size, width in maps]


@pytest.mark.parametrize('name', NETWORKS)
def test_every_parameter_has_a_gradient(name):
  """In training, on pictures of 32 px: AlexNet's last map has a single cell there."""
  model = getattr(models, name)(width=4)
  image = jnp.asarray(np.random.default_rng(0).normal(size=(4, 32, 32, 3)), jnp.float32)
  variables = jax.jit(model.init, static_argnums=2)(jax.random.key(0), image, False)

  def loss(params):
    def run(image):
      maps, _ = model.apply({**variables, 'params': params}, image, True, mutable=['batch_stats'])
      return sum((m * jnp.cos(jnp.arange(m.size)).reshape(m.shape)).sum() for m in maps)

    return jax.vmap(run, axis_name=AXIS)(image[None])[0]

  gradient = jax.jit(jax.grad(loss))(variables['params'])
  assert all(np.isfinite(g).all() and np.abs(g).max() > 1e-4 for g in jax.tree.leaves(gradient))


def normalised(x, params, statistics):
  scale = params['scale'] / jnp.sqrt(statistics['var'] + 1e-5)
  return (x - statistics['mean']) * scale + params['bias']


def convolved(x, params, stride=1, padding=1):
  window = ((padding, padding),) * 2
  kinds = ('NHWC', 'HWIO', 'NHWC')
  return lax.conv_general_dilated(
    x, params['kernel'], (stride,) * 2, window, dimension_numbers=kinds
  )


def plain_forward(layers, pool):
  """A plain forward pass; `layers` holds (stride, padding, whether pooling comes before)."""

  def forward(x, p, s):
    for number, (stride, padding, pooled) in enumerate(layers, 1):
      if pooled:
        x = lax.reduce_window(x, -np.inf, lax.max, (1, pool, pool, 1), (1, 2, 2, 1), 'VALID')
      x = convolved(x, p[f'conv{number}'], stride, padding)
      x = jnp.maximum(normalised(x, p[f'bn{number}'], s[f'bn{number}']), 0)
    return x

  return forward


def preact_forward(x, p, s):
  x = convolved(x, p['conv1'], 2, 3)
  x = lax.reduce_window(
    x, -np.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), [(0, 0), (1, 1), (1, 1), (0, 0)]
  )
  for stage in range(4):
    for number in range(2):
      name = f'layer{stage + 1}_{number}'
      q, t, stride = p[name], s[name], 2 if stage and number == 0 else 1
      y = jnp.maximum(normalised(x, q['bn1'], t['bn1']), 0)
      if 'downsample_0' in q:
        x = convolved(y, q['downsample_0'], stride, 0)
      y = jnp.maximum(normalised(convolved(y, q['conv1'], stride), q['bn2'], t['bn2']), 0)
      x = x + convolved(y, q['conv2'])
  return jnp.maximum(normalised(x, p['bn'], s['bn']), 0)


same = (1, 1, False)
FORWARD = {
  'vgg13': plain_forward(
    [same, same, (1, 1, True), same, (1, 1, True), same, same, (1, 1, True), same, same], 2
  ),
  'alexnet': plain_forward([(4, 2, False), (1, 2, True), (1, 1, True), same, same], 3),
  'fmpnet': plain_forward([(1, 2, False), (1, 1, True), same, (1, 1, True), same], 3),
  'preact_resnet18': preact_forward,
}


@pytest.mark.parametrize('name', NETWORKS)
def test_the_last_map_is_that_of_a_plain_loop(name):
  """With statistics and parameters of BatchNorm that change the result."""
  rng = np.random.default_rng(0)
  model = getattr(models, name)(width=4)
  image = rng.normal(size=(2, 64, 64, 3)).astype(np.float32)
  variables = jax.jit(model.init, static_argnums=2)(jax.random.key(0), image, False)

  def moved(path, leaf):
    if path[-1].key in ('var', 'scale'):
      return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
    return leaf + rng.normal(0, 0.2, leaf.shape).astype(np.float32) * (leaf.ndim == 1)

  variables = jax.tree_util.tree_map_with_path(moved, variables)
  found = jax.jit(model.apply, static_argnums=2)(variables, image, False)[-1]
  expected = jax.jit(FORWARD[name])(image, variables['params'], variables['batch_stats'])
  assert expected.min() == 0 < expected.max()
  np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * expected.max())


@pytest.mark.parametrize(
  'name, stride', [('vgg13', 4), ('alexnet', 8), ('fmpnet', 2), ('preact_resnet18', 4)]
)
def test_other_output_strides_are_refused(name, stride):
  with pytest.raises(InputError, match=f'output_stride={stride}'):
    getattr(models, name)(output_stride=stride)
