import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ferjax import models
from ferjax.errors import InputError
from ferjax.models import mobilenet


def shapes(model, size=64):
  image = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
  return jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x, False), image)


def parameters(model):
  _, variables = shapes(model)
  return flax.traverse_util.flatten_dict(variables['params'], sep='.')


def test_parameters_and_names_are_torchvisions():
  """3,504,872 with torchvision's classifier of 1000 classes."""
  found = parameters(models.mobilenet_v2())
  assert sum(leaf.size for leaf in found.values()) + 1280 * 1000 + 1000 == 3_504_872
  assert found['features_0_0.kernel'].shape == (3, 3, 3, 32)
  assert found['features_1.conv_0_0.kernel'].shape == (3, 3, 1, 32)
  assert found['features_1.conv_2.scale'].shape == (16,)
  assert found['features_2.conv_1_0.kernel'].shape == (3, 3, 1, 96)
  assert found['features_17.conv_2.kernel'].shape == (1, 1, 960, 320)
  assert found['features_18_0.kernel'].shape == (1, 1, 320, 1280)
  assert not any(name.endswith('conv_0_0.bias') for name in found)


def test_a_narrow_network():
  """timm lists 1.97 M parameters for a multiplier of 0.5, with a classifier of 1000 classes."""
  found = parameters(models.mobilenet_v2(width=32))
  total = sum(leaf.size for leaf in found.values()) + 1280 * 1000 + 1000
  assert round(total / 1e6, 2) == 1.97
  assert [mobilenet.scaled(f, 48) for f in (16, 24, 32, 1280)] == [16, 24, 24, 960]


@pytest.mark.parametrize(
  'stride, sizes', [(32, [16, 8, 4, 2]), (16, [16, 8, 4, 4]), (8, [16, 8, 8, 8])]
)
def test_maps_of_every_stage(stride, sizes):
  maps, _ = shapes(models.mobilenet_v2(output_stride=stride))
  features = (24, 32, 96, 1280)
  assert [m.shape for m in maps] == [(2, s, s, f) for s, f in zip(sizes, features, strict=True)]


def test_dilation_keeps_the_weights_and_the_even_cells_and_parts_make_the_whole():
  image = np.random.default_rng(0).normal(size=(1, 32, 32, 3)).astype('f4')
  strided, dilated = models.mobilenet_v2(width=8), models.mobilenet_v2(width=8, output_stride=16)

  @jax.jit
  def run(image):
    maps, variables = strided.clone(last=1).init_with_output(jax.random.key(0), image, False)
    rest = strided.clone(first=1)
    last, others = rest.init_with_output(jax.random.key(1), maps[-1], False)
    whole = {kind: variables[kind] | others[kind] for kind in variables}
    return [*maps, *last], dilated.apply(whole, image, False), whole['params']

  maps, fine, params = run(image)
  coarse = np.asarray(maps[-1])
  assert len(maps) == len(fine) == 4 and coarse.std() > 0
  tolerance = {'rtol': 1e-3, 'atol': 1e-4 * np.abs(coarse).max()}
  np.testing.assert_allclose(fine[-1][:, ::2, ::2], coarse, **tolerance)
  _, variables = shapes(strided, 32)
  assert set(params) == set(variables['params'])


def test_other_output_strides_are_refused():
  with pytest.raises(InputError, match='8, 16 or 32'):
    models.mobilenet_v2(output_stride=4)


def test_an_inverted_residual_by_a_slow_loop():
  """The output is clipped at 6 twice, but not at the end, and added to the input."""
  rng = np.random.default_rng(0)
  block = mobilenet.InvertedResidual(2, 3, 1, 1, jnp.float32, jnp.float32)
  x = rng.normal(size=(1, 4, 4, 2)).astype(np.float32)
  variables = block.init(jax.random.key(0), x, False)
  params = jax.tree.map(lambda p: rng.normal(size=p.shape).astype(np.float32), variables['params'])
  y = block.apply({**variables, 'params': params}, x, False)

  def clipped(values, name):
    values = values / np.sqrt(1 + 1e-5) * params[name]['scale'] + params[name]['bias']
    return np.clip(values, 0, 6), values

  hidden, _ = clipped(x @ params['conv_0_0']['kernel'][0, 0], 'conv_0_1')
  padded = np.pad(hidden, ((0, 0), (1, 1), (1, 1), (0, 0)))
  kernel, spread = params['conv_1_0']['kernel'], np.zeros((1, 4, 4, 6))
  for i in range(4):
    for j in range(4):
      window = padded[0, i : i + 3, j : j + 3]
      spread[0, i, j] = [(window[..., c] * kernel[..., 0, c]).sum() for c in range(6)]
  spread, before = clipped(spread, 'conv_1_1')
  assert before.max() > 6
  last = spread @ params['conv_2']['kernel'][0, 0]
  last = last / np.sqrt(1 + 1e-5) * params['conv_3']['scale'] + params['conv_3']['bias']
  assert last.min() < 0
  np.testing.assert_allclose(y, x + last, rtol=1e-4, atol=1e-4)
