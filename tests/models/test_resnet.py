import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from network_shapes import shapes

from ferjax import models
from ferjax.errors import InputError


# Parameters of torchvision's networks without their last linear layer.
@pytest.mark.parametrize(
  'make, count', [('resnet18', 11_176_512), ('resnet34', 21_284_672), ('resnet50', 23_508_032)]
)
def test_parameter_counts_are_torchvisions(make, count):
  _, variables = shapes(getattr(models, make)())
  assert sum(leaf.size for leaf in jax.tree.leaves(variables['params'])) == count


def test_names_are_torchvisions():
  _, variables = shapes(models.resnet50())
  flat = flax.traverse_util.flatten_dict(variables['params'], sep='.')
  assert flat['layer2_0.conv2.kernel'].shape == (3, 3, 128, 128)
  assert flat['layer2_0.downsample_0.kernel'].shape == (1, 1, 256, 512)
  assert flat['layer4_2.bn3.scale'].shape == (2048,)
  assert flat['conv1.kernel'].shape == (7, 7, 3, 64)
  assert 'layer1_1.downsample_0.kernel' not in flat


@pytest.mark.parametrize(
  'stride, sizes', [(32, [16, 8, 4, 2]), (16, [16, 8, 4, 4]), (8, [16, 8, 8, 8])]
)
def test_maps_of_every_stage(stride, sizes):
  maps, _ = shapes(models.resnet18(width=8, output_stride=stride))
  assert [m.shape for m in maps] == [(2, s, s, 8 * 2**i) for i, s in enumerate(sizes)]


def test_other_output_strides_are_refused():
  with pytest.raises(InputError, match='8, 16 or 32'):
    models.resnet18(output_stride=4)


def test_dilation_keeps_the_weights_and_the_even_cells():
  """A dilated network computes, on the coarse grid, what the strided one does."""
  image = np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype('f4')
  strided, dilated = models.resnet18(width=8), models.resnet18(width=8, output_stride=16)
  variables = strided.init(jax.random.key(0), image, False)
  coarse = strided.apply(variables, image, False)[-1]
  fine = dilated.apply(variables, image, False)[-1]
  np.testing.assert_allclose(fine[:, ::2, ::2], coarse, rtol=1e-3, atol=1e-4)


def test_parts_make_the_whole():
  model = models.resnet10(width=4)
  image = jnp.asarray(np.random.default_rng(0).normal(size=(2, 32, 32, 3)), jnp.float32)
  whole, variables = jax.jit(lambda x: model.init_with_output(jax.random.key(0), x, False))(image)
  stem, rest = model.clone(last=1), model.clone(first=1)
  maps = stem.apply(variables, image, False)
  maps += rest.apply(variables, maps[-1], False)
  assert len(maps) == len(whole) == 4
  for ours, theirs in zip(maps, whole, strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
