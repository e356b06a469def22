import jax
import numpy as np
import pytest

from ferjax.assembly.evaluations import evaluated
from ferjax.config import base
from ferjax.data import dataset
from ferjax.errors import InputError
from ferjax.images import augment, distort

SIZE, COUNT = 56, 24


def spots(seed=0):
  """Pictures of one bright spot at their landmark, and their rows."""
  rng = np.random.default_rng(seed)
  landmarks = rng.uniform(20, 36, (COUNT, 1, 2)).astype('f4')
  grid = np.stack(np.meshgrid(np.arange(SIZE), np.arange(SIZE)), -1)
  distance = np.linalg.norm(grid - landmarks[:, :, None], axis=-1)
  spot = (255 * np.exp(-((distance / 2) ** 2))).astype(np.uint8)
  image = np.repeat(spot[..., None], 3, -1)
  return {'image': image, 'landmarks': landmarks, 'index': np.arange(COUNT, dtype=np.int32)}


def to_unit(image):
  return np.asarray(image) * augment.STDDEV + np.array(augment.MEAN)


@pytest.mark.parametrize(
  'name', ['rotation', 'perspective', 'rotation_torchvision', 'perspective_torchvision']
)
def test_landmarks_move_with_distorted_pictures(name):
  batch = spots()
  out = jax.jit(distort.make(name, 0))(batch)
  grey = to_unit(out['image'])[..., 0]
  y, x = np.mgrid[:SIZE, :SIZE]
  mass = grey.sum((1, 2))
  centre = np.stack([(grey * x).sum((1, 2)), (grey * y).sum((1, 2))], -1) / mass[:, None]
  np.testing.assert_allclose(out['landmarks'][:, 0], centre, atol=0.3)
  middle = (SIZE - 1) / 2
  before, after = (p[:, 0] - middle for p in (batch['landmarks'], np.asarray(out['landmarks'])))
  if name.startswith('rotation'):
    angle = np.arctan2(*before.T) - np.arctan2(*after.T)
    angle = np.abs(np.rad2deg((angle + np.pi) % (2 * np.pi) - np.pi))
    assert 11 < angle.max() < 15.01
    np.testing.assert_allclose(np.hypot(*after.T), np.hypot(*before.T), rtol=1e-3)
  else:
    assert np.hypot(*(after - before).T).max() > 2


@pytest.mark.parametrize('name', distort.TORCHVISION)
def test_distortions_like_torchvision_leave_black_corners(name):
  """White pictures: what is moved in from outside is black, the middle stays white. About half of
  the perspectives leave a picture as it is, and landmarks move with the others."""
  batch = spots() | {'image': np.full((COUNT, SIZE, SIZE, 3), 255, np.uint8)}
  out = jax.jit(distort.make(name, 0))(batch)
  grey = to_unit(out['image'])[..., 0]
  np.testing.assert_allclose(np.minimum(np.abs(grey), np.abs(grey - 1)), 0, atol=1e-5)
  np.testing.assert_allclose(grey[:, SIZE // 2, SIZE // 2], 1, atol=1e-5)
  changed = (grey < 0.5).any((1, 2))
  moved = np.abs(np.asarray(out['landmarks']) - batch['landmarks']).max((1, 2)) > 0.2
  if name == 'perspective_torchvision':
    np.testing.assert_array_equal(changed, moved)
    assert 6 < changed.sum() < 18
  else:
    assert changed.mean() > 0.8


def test_occlusion_blurs_one_square_of_the_right_size():
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (COUNT, SIZE, SIZE, 3), np.uint8)
  batch = {'image': image, 'index': np.arange(COUNT)}
  out = to_unit(jax.jit(distort.make('occlusion', 0))(batch)['image'])
  changed = (np.abs(out - image / 255) > 1e-3).any(-1)
  side = SIZE * 50 / 224
  for mask, picture in zip(changed, out, strict=True):
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    assert abs(np.ptp(rows) + 1 - side) < 1 and abs(np.ptp(columns) + 1 - side) < 1
    inside = picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    assert inside.std((0, 1)).max() < 0.1  # noise of deviation 0.29 before
  assert len({tuple(np.argwhere(mask)[0]) for mask in changed}) > COUNT // 2


def test_the_blur_keeps_flat_pictures_as_they_are():
  batch = {'image': np.full((2, 20, 20, 3), 128, np.uint8), 'index': np.arange(2)}
  out = to_unit(jax.jit(distort.make('occlusion', 0))(batch)['image'])
  np.testing.assert_allclose(out, 128 / 255, atol=1e-5)


@pytest.mark.parametrize('name', distort.DISTORTIONS)
def test_a_picture_depends_on_its_row_and_the_seed_alone(name):
  batch = spots()
  whole = np.asarray(jax.jit(distort.make(name, 0))(batch)['image'])
  part = {key: value[[5, 2]] for key, value in batch.items()}
  np.testing.assert_allclose(
    jax.jit(distort.make(name, 0))(part)['image'], whole[[5, 2]], atol=1e-5
  )
  other = jax.jit(distort.make(name, 1))(batch)['image']
  assert np.abs(other - whole).max() > 0.1
  assert whole.dtype == np.float32


def test_a_mistyped_name_is_refused():
  with pytest.raises(InputError, match="Did you mean 'occlusion'"):
    distort.check(('rotation', 'oclusion'))


def test_distortions_without_a_test_split_are_said_to_change_nothing(caplog):
  config = base()
  config.eval.distortions = ('rotation',)
  data = dataset.Dataset('faces', ('sadness',), {'val': None}, None, '')
  assert list(evaluated(config, data, ('val', 'test'))) == ['val']
  assert 'faces has no test split' in caplog.text
