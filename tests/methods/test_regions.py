import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ferjax.methods.dmlnet import regions
from ferjax.models import resnet
from ferjax.ops import bilinear


def test_thirds_of_a_picture():
  image = jnp.arange(2 * 64 * 8 * 3, dtype=jnp.float32).reshape(2, 64, 8, 3)
  eyes, mouth = regions.upper_and_lower_third(image, False)
  np.testing.assert_array_equal(eyes, image[:, :21])
  np.testing.assert_array_equal(mouth, image[:, 43:])
  assert regions.upper_and_lower_third(jnp.zeros((1, 224, 224, 3)), False)[0].shape[1:3] == (
    75,
    224,
  )
  eyes, mouth = regions.upper_and_lower_third(image, True)
  assert eyes.shape == mouth.shape == image.shape
  np.testing.assert_allclose(eyes[:, 0], image[:, 0], rtol=1e-5)
  np.testing.assert_allclose(mouth[:, -1], image[:, -1], rtol=1e-5)


def test_parts_of_the_box_of_the_landmarks():
  """A picture that holds x in one channel and y in the other shows where its parts come from."""
  points = jnp.stack([bilinear.grid(64, 48)[..., 0], bilinear.grid(64, 48)[..., 1]], -1)[None]
  landmarks = jnp.array([[[10.0, 14.0], [34.0, 54.0], [20.0, 30.0]]])
  for resize, rows in ((False, 21), (True, 64)):
    eyes, mouth = regions.upper_and_lower_part(points, landmarks, resize)
    assert eyes.shape == mouth.shape == (1, rows, 48, 2)
    for part, top in ((eyes, 14), (mouth, 14 + 0.6 * 40)):  # 24 wide, 16 high
      for row, column in ((0, 0), (rows - 1, 47), (rows // 2, 5)):
        x, y = 10 + (column + 0.5) * 24 / 48, top + (row + 0.5) * 16 / rows
        np.testing.assert_allclose(part[0, row, column], [x, y], rtol=1e-5)


def test_parts_of_a_mirrored_face_are_mirrored():
  image = jax.random.normal(jax.random.key(0), (2, 64, 48, 3))
  landmarks = jax.random.uniform(jax.random.key(1), (2, 9, 2), maxval=40)
  mirrored = landmarks.at[..., 0].set(47 - landmarks[..., 0])
  parts = regions.upper_and_lower_part(image, landmarks, False)
  others = regions.upper_and_lower_part(image[:, :, ::-1], mirrored, False)
  for part, other in zip(parts, others, strict=True):
    np.testing.assert_allclose(other, part[:, :, ::-1], atol=1e-4)


def test_features_by_landmarks_are_those_of_the_parts():
  model = resnet.ResNet(resnet.BasicBlock, (1, 1), 4)
  network = regions.RegionFeatures(
    model, True, 'landmarks', False, 6, nn.initializers.normal(0.3), jnp.float32
  )
  image = jax.random.normal(jax.random.key(0), (3, 24, 24, 3))
  landmarks = jax.random.uniform(jax.random.key(1), (3, 5, 2), maxval=23)
  variables = jax.jit(network.init, static_argnums=2)(jax.random.key(1), image, False, landmarks)
  found, thirds = (network.apply(variables, image, False, x)['features'] for x in (landmarks, None))
  assert np.abs(found - thirds).max() > 1e-3


@pytest.mark.parametrize('resize', [False, True])
def test_fusion_by_hand(resize):
  """Algorithm 2, with the pooled maps of three networks with separate parameters."""
  model = resnet.ResNet(resnet.BasicBlock, (1, 1), 4)
  init = nn.initializers.normal(0.3)
  network = regions.RegionFeatures(model, True, 'picture', resize, 6, init, jnp.float32)
  image = jax.random.normal(jax.random.key(0), (3, 24, 24, 3))
  variables = jax.jit(network.init, static_argnums=2)(jax.random.key(1), image, False)
  params = variables['params']
  assert set(params) == {'face', 'eyes', 'mouth', 'local_fusion', 'fusion'}
  found = network.apply(variables, image, False)
  v = []
  parts = (image, *regions.upper_and_lower_third(image, resize))
  for name, part in zip(('face', 'eyes', 'mouth'), parts, strict=True):
    own = {kind: values[name] for kind, values in variables.items()}
    v.append(np.asarray(model.apply(own, part, False)[-1].mean((1, 2))))
  w1, w2 = (params[name]['kernel'] for name in ('local_fusion', 'fusion'))
  f1 = np.maximum(np.concatenate(v[1:], -1) @ w1, 0)
  f2 = np.maximum(np.concatenate([v[0], f1], -1) @ w2, 0)
  np.testing.assert_allclose(found['features'], f2, rtol=1e-4, atol=1e-5)
  assert f2.std() > 0.1 and f1.std() > 0.1
  np.testing.assert_allclose(found['last_map'].mean((1, 2)), v[0], rtol=1e-4, atol=1e-5)


def test_the_whole_face_alone():
  model = resnet.ResNet(resnet.BasicBlock, (1,), 4)
  network = regions.RegionFeatures(model, False, 'picture', False, 6, None, jnp.float32)
  image = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
  variables = network.init(jax.random.key(1), image, False)
  assert set(variables['params']) == {'face'}
  found = network.apply(variables, image, False, None, 1.0)
  np.testing.assert_allclose(found['features'], found['last_map'].mean((1, 2)), rtol=1e-5)
  plain = network.apply(variables, image, False)['features']
  np.testing.assert_allclose(found['features'], plain + 1, rtol=1e-5)
