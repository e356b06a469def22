"""dlib's face network: its maps, its file format, and its weights as `pretrained` reads them."""

import dlib_networks
import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from network_shapes import shapes

from ferjax import models
from ferjax.errors import InputError
from ferjax.images import augment
from ferjax.models import dlib_faces, dlib_file, pretrained, weight_files

WIDTH = 4  # twice the features of the first stage


@pytest.mark.parametrize(
  'size, cells', [(150, [35, 17, 8, 4, 2]), (112, [26, 13, 6, 3, 1]), (64, [14, 7, 3, 1, 1])]
)
def test_maps_of_every_stage(size, cells):
  maps, _ = shapes(models.face_resnet29(), size)
  features = (32, 64, 128, 256, 256)
  assert [x.shape for x in maps] == [(2, n, n, c) for n, c in zip(cells, features, strict=True)]


def test_small_pictures_and_maps_are_padded():
  assert [x.shape[1:3] for x in shapes(models.face_resnet29(width=2), 8)[0]] == [(1, 1)] * 5


def test_parameters_are_those_of_29_convolutions():
  _, variables = shapes(models.face_resnet29())
  flat = flax.traverse_util.flatten_dict(variables['params'], sep='/')
  kernels = [name for name in flat if name.endswith('kernel')]
  assert len(kernels) == 29 and flat['conv1/kernel'].shape == (7, 7, 3, 32)
  assert flat['layer5_0/conv2/kernel'].shape == (3, 3, 256, 256)
  by_hand = 7 * 7 * 3 * 32 + 9 * (
    6 * 32 * 32 + 32 * 64 + 7 * 64 * 64 + 64 * 128 + 5 * 128 * 128 + 128 * 256 + 7 * 256 * 256
  )
  assert sum(flat[name].size for name in kernels) == by_hand


def test_other_output_strides_are_refused():
  models.face_resnet29(output_stride=64)
  with pytest.raises(InputError, match='output_stride=16: a cell .*64 pixels: give 32 or more'):
    models.face_resnet29(output_stride=16)


@pytest.fixture(scope='module')
def network():
  return dlib_networks.draw(WIDTH // 2)


def converted(content):
  model = models.face_resnet29(width=WIDTH)
  arrays = dlib_faces.arrays(content, 'x.dat')
  _, variables = shapes(model)
  return model, arrays, pretrained.convert(arrays, variables, 'x.dat')


def test_features_are_those_of_a_loop_over_dlibs_layers(network):
  """Also of two parts of the network, `first` and `last`. Maps of 111 px are 26, 13, 6, 3 and 1
  cells: `add_prev` extends the smaller summand."""
  model, arrays, found = converted(dlib_networks.content(*network))
  images = np.random.default_rng(0).integers(0, 256, (2, 111, 111, 3)).astype(np.uint8)
  images[1] //= 4

  @jax.jit
  def run(variables, images):
    x = augment.normalise(images)
    begin, rest = model.clone(last=2), model.clone(first=2)
    parts = rest.apply(variables, begin.apply(variables, x, False)[-1], False)
    return model.apply(variables, x, False)[-1].mean((1, 2)), parts[-1].mean((1, 2))

  whole, in_parts = run(found.variables, images)
  expected = np.array([dlib_networks.forward(*network, image) for image in images])
  assert np.abs(expected[0] - expected[1]).max() > 0.01 * np.abs(expected).max() > 0
  np.testing.assert_allclose(whole @ arrays['fc.weight'].T, expected, rtol=1e-4, atol=1e-4)
  np.testing.assert_array_equal(whole, in_parts)


def test_kernels_have_the_size_of_random_ones(network):
  """In dlib's file they are tiny: Adam would erase them in a step."""
  layers, last = network
  tiny = [layer._replace(kernel=layer.kernel * 1e-3) for layer in layers]
  _, arrays, found = converted(dlib_networks.content(tiny, last))
  for array in arrays.values():
    if array.ndim == 4:
      np.testing.assert_allclose(array.std(), np.sqrt(2 / array[:, 0].size), rtol=1e-5)
  assert set(found.left_out) == {'fc.weight'} and len(found.names) == 29 * 5


def test_every_cut_and_many_changes_of_a_file_are_refused_or_read(network):
  """A cut file is refused wherever it ends; a changed byte raises no error but InputError."""
  whole = dlib_networks.content(*dlib_networks.draw(1))
  assert len(dlib_file.read(whole, 'a').layers) == 29 * 3 + 3
  ends = np.linspace(0, len(whole) - 1, 200).astype(int)
  for end in (*ends, len(whole) - 1):
    with pytest.raises(InputError, match='a.dat is damaged or not a network of dlib'):
      dlib_file.read(whole[:end], 'a.dat')
  rng = np.random.default_rng(0)
  for place in rng.integers(0, 2000, 300):
    changed = bytearray(whole)
    changed[place] = rng.integers(256)
    try:
      dlib_faces.arrays(bytes(changed), 'a.dat')
    except InputError:
      pass


@pytest.mark.parametrize(
  'content, message',
  [
    (b'', 'it ends too early'),
    (b'\x01\x01\x01\x05other', 'its last layer is not loss_metric_2'),
    (b'PK\x03\x04' + bytes(40), 'no integer at byte 0'),
    (b'\x08' + b'\xff' * 8, 'its last layer is not'),
    (b'\x01\x01\x01\x0dloss_metric_2\x01\x01\x08' + b'\xff' * 8, 'no number before'),
    (
      b'\x01\x01\x01\x0dloss_metric_2' + b'\x01\x01' * 4 + b'\x01\x00' * 20_000,
      'it has no input layer',
    ),
  ],
)
def test_hostile_files_are_refused(content, message):
  with pytest.raises(InputError, match=message):
    dlib_file.read(content, 'a.dat')


def test_a_tensor_larger_than_its_file_is_refused(network):
  whole = dlib_networks.content(*network)
  place = whole.index(b'con_4') + 5
  huge = b'\x01\x02' + (b'\x08' + b'\xff' * 8) * 4
  with pytest.raises(InputError, match='it ends too early'):
    dlib_file.read(whole[:place] + huge + whole[place + 10 :], 'a.dat')


def test_other_networks_and_values_of_dlib_are_refused(network):
  layers, last = network
  with pytest.raises(InputError, match='another network than dlib_face_recognition'):
    dlib_faces.arrays(dlib_networks.content(layers[:-2], last), 'a.dat')
  cut = layers[5]._replace(kernel=layers[5].kernel[:, :1])
  with pytest.raises(InputError, match='another network than dlib_face_recognition'):
    dlib_faces.arrays(dlib_networks.content([*layers[:5], cut, *layers[6:]], last), 'a.dat')
  whole = dlib_networks.content(layers, last)
  window = b'\x01\x07' * 2 + b'\x01\x01' * 2  # 7 rows, 7 columns, strides
  assert whole.count(window) == 1
  with pytest.raises(InputError, match='another network than dlib_face_recognition'):
    dlib_faces.arrays(whole.replace(window, b'\x81\x07' * 2 + window[4:]), 'a.dat')
  flat = layers[0]._replace(kernel=np.full_like(layers[0].kernel, np.nan))
  with pytest.raises(InputError, match='a.dat: the kernel of conv1 has no finite deviation'):
    dlib_faces.arrays(dlib_networks.content([flat, *layers[1:]], last), 'a.dat')
  nan = layers[0]._replace(shift=np.full_like(layers[0].shift, np.nan))
  with pytest.raises(InputError, match="'bn1.bias' has values that are not finite"):
    converted(dlib_networks.content([nan, *layers[1:]], last))


def test_a_file_is_read_by_its_ending(network, tmp_path):
  (tmp_path / 'a.dat').write_bytes(dlib_networks.content(*network))
  arrays, sha256 = weight_files.read(tmp_path / 'a.dat')
  assert arrays['conv1.weight'].shape == (WIDTH // 2, 3, 7, 7) and len(sha256) == 64
  assert jnp.asarray(arrays['fc.weight']).shape == (5, 8 * WIDTH // 2)
