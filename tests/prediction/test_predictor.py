import csv

import cv2
import jax.numpy as jnp
import numpy as np
import pytest
from drawn_faces import draw_face
from PIL import Image

import ferjax
from ferjax.errors import InputError
from ferjax.images import files


@pytest.fixture(scope='module')
def predictor(trained_run):
  return ferjax.load(trained_run)


@pytest.fixture(scope='module')
def landmark_predictor(landmark_run):
  return ferjax.load(landmark_run)


def predictions(run, manifest):
  """Files of the run's test rows, their probabilities in predictions/test.csv, their landmarks."""
  with (run / 'predictions' / 'test.csv').open() as file:
    rows = list(csv.DictReader(file))
  with manifest.open() as file:
    known = {row['path']: row for row in csv.DictReader(file)}
  shares = [[float(v) for k, v in row.items() if k.startswith('p_')] for row in rows]
  points = [
    [[float(known[row['name']][f'{axis}_{i}']) for axis in 'xy'] for i in range(68)] for row in rows
  ]
  return [manifest.parent / row['name'] for row in rows], np.array(shares), np.array(points)


def test_files_and_arrays_give_the_predictions_of_evaluation(predictor, trained_run, manifest):
  paths, shares, _ = predictions(trained_run, manifest)
  assert predictor.classes[:2] == ('neutral', 'happiness') and predictor.image_size == 32
  assert not predictor.needs and not predictor.uses
  found = predictor(paths)
  assert found.dtype == np.float32 and found.shape == (28, 7)
  np.testing.assert_allclose(found, shares, atol=2e-6)
  images = np.stack([cv2.imread(str(path), cv2.IMREAD_COLOR_RGB) for path in paths])
  np.testing.assert_array_equal(predictor(images), found)
  np.testing.assert_array_equal(predictor(list(images)), found)
  for one in (images[3], paths[3], str(paths[3]), [images[3]]):
    np.testing.assert_allclose(predictor(one), found[3:4], atol=1e-6)


def test_more_pictures_than_a_batch_of_any_sizes_and_grey(predictor):
  rng = np.random.default_rng(0)
  shapes = [(40, 40), (20, 31), (90, 33), (32, 32), (33, 64)] * 14
  pictures = [rng.integers(0, 256, (*shape, 3)).astype(np.uint8) for shape in shapes]
  pictures[7] = pictures[7][..., 0]
  found = predictor.outputs(pictures)
  assert {name: value.shape for name, value in found.items()} == {
    'probabilities': (70, 7),
    'logits': (70, 7),
    'embedding': (70, 64),
  }
  np.testing.assert_allclose(found['probabilities'].sum(1), 1, rtol=1e-6)
  resized = [files.resize(p if p.ndim == 3 else np.stack([p] * 3, -1), 32) for p in pictures]
  np.testing.assert_array_equal(predictor(resized), found['probabilities'])
  for place in (0, 7, 69):
    alone = predictor(pictures[place])
    np.testing.assert_allclose(alone, found['probabilities'][place : place + 1], atol=1e-6)


def test_no_pictures_give_no_rows(predictor, landmark_predictor):
  assert predictor([]).shape == (0, 7)
  assert landmark_predictor([], landmarks=np.zeros((0, 68, 2))).shape == (0, 7)


def test_pictures_come_in_any_container(predictor, manifest):
  image = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)
  expected = predictor(image)
  assert expected.shape == (1, 7)
  for pictures in (jnp.asarray(image), Image.fromarray(image), (x for x in [image]), (image,)):
    np.testing.assert_array_equal(predictor(pictures), expected)
  paths = [str(path) for path in sorted(manifest.parent.rglob('*.png'))[:2]]
  np.testing.assert_array_equal(predictor(np.array(paths)), predictor(paths))
  with pytest.raises(InputError, match='pictures are NoneType'):
    predictor(None)


def test_pictures_that_cannot_be_used_are_named(predictor, tmp_path):
  image, _ = draw_face(np.random.default_rng(0), 1)
  cv2.imwrite(str(tmp_path / 'whole.png'), image)
  whole = (tmp_path / 'whole.png').read_bytes()
  (tmp_path / 'cut.png').write_bytes(whole[: len(whole) // 2])
  for given, message in (
    (tmp_path / 'none.png', 'none.png'),
    (tmp_path / 'cut.png', 'cut.png'),
    ([image, image.astype(np.float32)], 'picture 1 has numbers of type float32'),
    (image[..., :2], r'picture 0 has the shape \(40, 40, 2\)'),
    (np.zeros((0, 4, 3), np.uint8), r'picture 0 has the shape \(0, 4, 3\)'),
    ([image] * 64 + [np.zeros(3, np.uint8)], r'picture 64 has the shape \(3,\)'),
  ):
    with pytest.raises(InputError, match=message):
      predictor(given)
  with pytest.raises(InputError, match='does not use landmarks: leave it out'):
    predictor(image, landmarks=np.zeros((1, 68, 2)))
  assert predictor([tmp_path / 'whole.png']).shape == (1, 7)


def test_landmarks_of_the_given_pictures_are_those_of_evaluation(
  landmark_predictor, landmark_run, manifest
):
  """All points of the scheme, or those of the model, in pixels of pictures before resizing."""
  paths, shares, points = predictions(landmark_run, manifest)
  predictor = landmark_predictor
  assert predictor.uses == {'landmarks'} and not predictor.needs
  found = predictor(paths, landmarks=points)
  np.testing.assert_allclose(found, shares, atol=2e-6)
  np.testing.assert_array_equal(
    predictor(paths, landmarks=points[:, predictor.landmarks, :]), found
  )
  large = [
    cv2.resize(cv2.imread(str(path), cv2.IMREAD_COLOR_RGB), (80, 120), interpolation=0)
    for path in paths
  ]
  drawn = np.random.default_rng(0).uniform(0, 39, points.shape)
  again = predictor.outputs(paths, landmarks=drawn)
  scaled = predictor.outputs(large, landmarks=(drawn + 0.5) * (2, 3) - 0.5)
  assert again['edge_length'].min() > 1
  np.testing.assert_allclose(scaled['edge_length'], again['edge_length'], rtol=1e-4)
  without = predictor.outputs(paths)
  assert 'edge_length' not in without
  np.testing.assert_allclose(without['logits'], again['naive_logits'], atol=1e-5)


def test_landmarks_of_another_scheme_become_those_of_the_model(landmark_predictor):
  """A model of points of ibug51 looks at 68 points as at the 51 inner ones."""
  image, points = draw_face(np.random.default_rng(0), 1)
  model = landmark_predictor._replace(
    landmark_scheme='ibug51', landmarks=tuple(i - 17 for i in landmark_predictor.landmarks)
  )
  found = model.outputs(image, landmarks=points[None])
  same = landmark_predictor.outputs(
    image, landmarks=points[None, list(landmark_predictor.landmarks)]
  )
  np.testing.assert_array_equal(found['logits'], same['logits'])
  with pytest.raises(
    InputError, match=r'19 landmarks for each picture \(aflw19\): .* 50 of ibug51'
  ):
    model(image, landmarks=points[None, :19])


def test_landmarks_that_cannot_be_used_are_refused(landmark_predictor):
  image, points = draw_face(np.random.default_rng(0), 1)
  far = np.full((1, 68, 2), np.nan)
  for given, message in (
    (points, '1 pictures, but landmarks of 68'),
    (points[None, :, :1], r'shape \(1, 68, 1\)'),
    (points[None, :60], '60 landmarks for each picture: .* 50, up to number 67'),
    (far, 'not finite'),
  ):
    with pytest.raises(InputError, match=message):
      landmark_predictor(image, landmarks=given)
  needy = landmark_predictor._replace(needs=frozenset({'landmarks'}))
  with pytest.raises(InputError, match='needs landmarks besides pictures'):
    needy(image)
