import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_resnet import shapes

from ferjax import models
from ferjax.errors import InputError
from ferjax.parallel import AXIS

NETWORKS = ('vgg13', 'alexnet', 'preact_resnet18')

# CNTK's VGG-13 of FER+ with grey pictures and eight classes, and torchvision's AlexNet; of both the
# fully connected layers.
FULLY_CONNECTED = {
  'vgg13': (8_757_704, 4 * 4 * 256 * 1024 + 1024 + 1024 * 1024 + 1024 + 1024 * 8 + 8),
  'alexnet': (61_100_840, 9216 * 4096 + 4096 + 4096 * 4096 + 4096 + 4096 * 1000 + 1000),
}


def count(name):
  _, variables = shapes(getattr(models, name)())
  return sum(leaf.size for leaf in jax.tree.leaves(variables['params']))


def test_parameter_counts_are_the_known_ones():
  """BatchNorm has two parameters a feature where the known networks have a bias."""
  whole, dense = FULLY_CONNECTED['vgg13']
  features = 2 * 64 + 2 * 128 + 6 * 256
  assert count('vgg13') == whole - dense + 2 * 9 * 64 + features  # RGB pictures
  whole, dense = FULLY_CONNECTED['alexnet']
  assert count('alexnet') == whole - dense + 64 + 192 + 384 + 256 + 256
  # The usual PreActResNet-18 for CIFAR-10 has 11,171,146: a 3x3 stem, ten classes, and no BatchNorm
  # at its end.
  stem, classes, end = (7 * 7 - 3 * 3) * 3 * 64, 512 * 10 + 10, 2 * 512
  assert count('preact_resnet18') == 11_171_146 + stem - classes + end


@pytest.mark.parametrize(
  'name, stride, maps',
  [
    ('vgg13', 32, [(64, 8), (32, 16), (16, 32), (8, 32)]),
    ('alexnet', 32, [(15, 8), (7, 24), (3, 32)]),
    ('preact_resnet18', 32, [(16, 8), (8, 16), (4, 32), (2, 64)]),
    ('preact_resnet18', 8, [(16, 8), (8, 16), (8, 32), (8, 64)]),
  ],
)
def test_maps_of_every_stage(name, stride, maps):
  found, _ = shapes(getattr(models, name)(width=8, output_stride=stride))
  assert [m.shape for m in found] == [(2, size, size, width) for size, width in maps]


@pytest.mark.parametrize('name', NETWORKS)
def test_every_parameter_has_a_gradient(name):
  """In training, on pictures of 32 px, where AlexNet's last map has a single cell."""
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


@pytest.mark.parametrize('name, stride', [('vgg13', 4), ('alexnet', 8), ('preact_resnet18', 4)])
def test_other_output_strides_are_refused(name, stride):
  with pytest.raises(InputError, match=f'output_stride={stride}'):
    getattr(models, name)(output_stride=stride)
