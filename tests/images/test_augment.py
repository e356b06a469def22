import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ferjax import labels
from ferjax.distributed.parallel import example_keys
from ferjax.errors import InputError
from ferjax.images import augment

EVERYTHING = {
  'flip': 0.5,
  'crop_scale': (0.6, 1.0),
  'rotation': 20.0,
  'scale': (0.9, 1.1),
  'translation': 0.05,
  'perspective': 0.2,
}


def make_keys(count, seed=0):
  return example_keys(jax.random.key(seed), jnp.arange(count))


def compiled(**options):
  return jax.jit(augment.make(**options))


def to_u8(image):
  """Undoes the normalisation."""
  return np.asarray(image) * augment.STDDEV * 255 + np.array(augment.MEAN) * 255


def test_no_augmentation_is_evaluation():
  batch = {'image': np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)}
  off = compiled(flip=0.0)
  np.testing.assert_allclose(
    off(make_keys(3), batch)['image'], augment.evaluation(batch)['image'], atol=1e-4
  )


def test_a_certain_flip_mirrors_picture_and_landmarks():
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (1, 10, 10, 3), np.uint8)
  landmarks = rng.uniform(0, 9, (1, 68, 2)).astype('f4')
  flip = compiled(flip=1.0, flip_order=labels.mirrored_landmarks())
  out = flip(make_keys(1), {'image': image, 'landmarks': landmarks})
  np.testing.assert_allclose(to_u8(out['image']), image[:, :, ::-1], atol=1e-2)
  np.testing.assert_allclose(out['landmarks'][0, 36, 0], 9 - landmarks[0, 45, 0], atol=1e-5)
  np.testing.assert_allclose(out['landmarks'][0, 36, 1], landmarks[0, 45, 1], atol=1e-5)


def test_landmarks_move_with_the_picture():
  size, count = 64, 24
  rng = np.random.default_rng(1)
  landmarks = rng.uniform(20, 44, (count, 1, 2)).astype('f4')
  distance = np.linalg.norm(
    np.stack(np.meshgrid(np.arange(size), np.arange(size)), -1) - landmarks[:, :, None], axis=-1
  )
  spot = (255 * np.exp(-((distance / 2) ** 2))).astype(np.uint8)
  batch = {'image': np.repeat(spot[..., None], 3, -1), 'landmarks': landmarks}
  moving = compiled(**EVERYTHING, flip_order=np.array([0]))
  out = moving(make_keys(count), batch)
  bright = np.maximum(to_u8(out['image'])[..., 0], 0)
  y, x = np.mgrid[:size, :size]
  found = np.stack([(bright * x).sum((1, 2)), (bright * y).sum((1, 2))], -1)
  found /= bright.sum((1, 2))[:, None]
  moved = np.asarray(out['landmarks'][:, 0])
  assert np.abs(moved - landmarks[:, 0]).max() > 5
  np.testing.assert_allclose(found, moved, atol=0.35)


def test_an_example_depends_on_its_own_key_only():
  batch = {'image': np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), np.uint8)}
  noisy = compiled(**EVERYTHING, brightness=0.4, contrast=0.4, saturation=0.4, erasing=0.5)
  whole = noisy(make_keys(8), batch)['image']
  half = noisy(make_keys(8)[4:], {'image': batch['image'][4:]})['image']
  np.testing.assert_allclose(whole[4:], half, atol=1e-5)
  assert np.abs(whole[0] - noisy(make_keys(8, 1), batch)['image'][0]).max() > 0.1


def test_views_differ_and_keep_the_batch():
  batch = {'image': np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)}
  batch['landmarks'] = np.zeros((2, 3, 2), np.float32)
  two = compiled(rotation=30.0, flip=0.0, views=2)(make_keys(2), batch)
  assert two['image'].shape == (2, 2, 16, 16, 3) and two['landmarks'].shape == (2, 2, 3, 2)
  assert np.abs(two['image'][:, 0] - two['image'][:, 1]).max() > 0.1


def test_each_neighbour_is_changed_by_draws_of_its_own():
  image = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
  batch = {'image': image, 'neighbour_image': np.repeat(image[:, None], 3, 1)}
  out = compiled(**EVERYTHING)(make_keys(2), batch)
  alone = compiled(**EVERYTHING)(make_keys(2), {'image': image})
  np.testing.assert_allclose(out['image'], alone['image'], atol=1e-6)
  every = jnp.concatenate([out['image'][:, None], out['neighbour_image']], 1)
  for i in range(4):
    for j in range(i):
      assert np.abs(every[:, i] - every[:, j]).max() > 0.1
  plain = augment.evaluation(batch)
  np.testing.assert_array_equal(plain['neighbour_image'][:, 1], plain['image'])


def test_erasing_covers_the_asked_share_with_the_mean_colour():
  image = np.full((200, 20, 20, 3), 255, np.uint8)
  erased = compiled(flip=0.0, erasing=1.0, erasing_scale=(0.1, 0.1))
  covered = (erased(make_keys(200), {'image': image})['image'] == 0).all(-1).mean()
  assert 0.08 < covered < 0.12


@pytest.mark.parametrize(
  'options, message',
  [
    ({'crop_scale': (1.0, 0.5)}, 'low <= high'),
    ({'crop_scale': (0.5, 1.5)}, 'at most the picture'),
    ({'flip': 2.0}, '0..1'),
    ({'views': 0}, 'at least one'),
  ],
)
def test_impossible_settings_are_refused(options, message):
  with pytest.raises(InputError, match=message):
    augment.make(**options)


def test_flipping_unknown_landmarks_is_refused():
  batch = {'image': np.zeros((1, 4, 4, 3), np.uint8), 'landmarks': np.zeros((1, 5, 2), np.float32)}
  with pytest.raises(InputError, match='flip=0'):
    augment.make(flip=0.5)(make_keys(1), batch)


def test_a_graph_of_landmarks_is_flipped_with_them():
  order = labels.mirrored_landmarks()
  graph = np.random.default_rng(0).integers(0, 2 * 68, (6, 68, 8)).astype('i4')
  batch = {
    'image': np.zeros((6, 4, 4, 3), np.uint8),
    'landmarks': np.random.default_rng(1).uniform(0, 4, (6, 68, 2)).astype('f4'),
    'landmark_graph': graph,
  }
  out = compiled(flip=0.5, flip_order=order)(make_keys(6), batch)
  flipped = np.abs(out['landmarks'] - batch['landmarks']).max((1, 2)) > 0.1
  assert 0 < flipped.sum() < 6

  def ends(landmarks, graph):
    return landmarks[np.arange(6)[:, None, None], graph % 68]

  expected = np.where(flipped[:, None, None, None], [-1, 1], 1) * ends(batch['landmarks'], graph)
  expected[..., 0] += 3 * flipped[:, None, None]
  expected[flipped] = expected[flipped][:, order]
  np.testing.assert_allclose(ends(out['landmarks'], out['landmark_graph']), expected, atol=1e-5)


def test_a_flip_mirrors_the_pose():
  images = np.random.default_rng(0).integers(0, 256, (40, 4, 4, 3), np.uint8)
  images[20:] = images[:20]
  pose = np.arange(40, dtype=np.int32) % 4 - 1  # -1: unknown
  batch = {'image': images, 'pose': pose}
  out = compiled(flip=0.5, flip_poses=np.array([2, 1, 0]))(make_keys(40), batch)
  mirrored = np.abs(to_u8(out['image']) - images[:, :, ::-1]).max((1, 2, 3)) < 0.1
  assert 5 < mirrored.sum() < 35
  np.testing.assert_array_equal(out['pose'], np.where(mirrored & (pose >= 0), 2 - pose, pose))
  np.testing.assert_array_equal(compiled(flip=0.0)(make_keys(40), batch)['pose'], pose)
  with pytest.raises(InputError, match='poses cannot be flipped'):
    compiled(flip=0.5)(make_keys(40), batch)
