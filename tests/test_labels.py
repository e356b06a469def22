import numpy as np
import pytest

from ferjax import labels
from ferjax.errors import InputError


def test_mirror_is_its_own_inverse_and_moves_the_outer_eye_corner():
  mirrored = labels.mirrored_landmarks()
  np.testing.assert_array_equal(mirrored[mirrored], np.arange(68))
  assert mirrored[36] == 45 and mirrored[48] == 54 and mirrored[27] == 27 and mirrored[0] == 16


def test_mirror_of_a_subset_has_positions_within_the_subset():
  inner = labels.mirrored_landmarks(range(17, 68))
  assert len(inner) == 51 and inner[36 - 17] == 45 - 17
  np.testing.assert_array_equal(labels.mirrored_landmarks((54, 30, 48)), [2, 1, 0])


@pytest.mark.parametrize(
  'indices, message', [((36,), 'add 45'), ((1, 1), 'distinct'), ((70,), '0..67')]
)
def test_subsets_without_a_mirror_image_are_refused(indices, message):
  with pytest.raises(InputError, match=message):
    labels.mirrored_landmarks(indices)


@pytest.mark.parametrize('scheme', labels.SCHEMES)
def test_mirrors_of_every_scheme_are_their_own_inverse(scheme):
  mirrored = labels.mirrored_landmarks(scheme=scheme)
  assert labels.landmark_scheme(len(mirrored)) == scheme
  np.testing.assert_array_equal(mirrored[mirrored], np.arange(len(mirrored)))


def test_mirrors_of_few_points_by_hand():
  eyes_nose_mouth = labels.mirrored_landmarks(scheme='eyes_nose_mouth5')
  assert eyes_nose_mouth.tolist() == [1, 0, 2, 4, 3]
  aflw = labels.mirrored_landmarks(scheme='aflw19').tolist()
  assert aflw == [5, 4, 3, 2, 1, 0, 11, 10, 9, 8, 7, 6, 14, 13, 12, 17, 16, 15, 18]
  assert labels.mirrored_landmarks((17, 13, 15), 'aflw19').tolist() == [2, 1, 0]
  with pytest.raises(InputError, match='0..4'):
    labels.mirrored_landmarks((5,), 'eyes_nose_mouth5')
  assert labels.landmark_scheme(37) == ''


def test_points_of_a_smaller_scheme_by_hand():
  points = labels.points_of
  assert points('ibug51', 'ibug68') == tuple((i,) for i in range(17, 68))
  without_corners = [i for i in range(17, 68) if i not in (60, 64)]
  assert points('ibug49', 'ibug68') == tuple((i,) for i in without_corners)
  assert points('ibug49', 'ibug51') == tuple((i - 17,) for i in without_corners)
  five = (tuple(range(36, 42)), tuple(range(42, 48)), (30,), (48,), (54,))
  assert points('eyes_nose_mouth5', 'ibug68') == five
  shifted = tuple(tuple(i - 17 for i in group) for group in five)
  assert points('eyes_nose_mouth5', 'ibug51') == shifted == points('eyes_nose_mouth5', 'ibug49')
  assert points('eyes_nose_mouth5', 'aflw19') == ((7,), (10,), (13,), (15,), (17,))
  for scheme, other in (
    ('ibug68', 'ibug51'),
    ('ibug51', 'ibug49'),
    ('aflw19', 'ibug68'),
    ('ibug68', 'aflw19'),
    ('ibug68', ''),
    ('', 'ibug68'),
    ('', ''),
  ):
    assert points(scheme, other) is None


def test_a_flip_before_or_after_the_choice_of_points_is_the_same():
  pairs = [(a, b) for a in labels.SCHEMES for b in labels.SCHEMES if labels.points_of(a, b)]
  assert len(pairs) == 5 + 6 + 1  # each itself; among four of iBUG; five of AFLW
  for scheme, other in pairs:
    groups, flipped = labels.points_of(scheme, other), labels.mirrored_landmarks(scheme=other)
    before = [{int(flipped[i]) for i in group} for group in groups]
    after = [set(groups[i]) for i in labels.mirrored_landmarks(scheme=scheme)]
    assert before == after


def turning_faces(rng, faces=60):
  """Faces f[n, 68, 2] of random places on a symmetric half, turned to both sides, and the pairs."""
  mirror = labels.mirrored_landmarks()
  half = rng.uniform(-1, 1, (68, 3))
  half[:, 0] = np.abs(half[:, 0]) + 0.1
  front = np.where((mirror < np.arange(68))[:, None], half[mirror] * (-1, 1, 1), half)
  front[mirror == np.arange(68), 0] = 0
  yaw = rng.normal(0, 0.4, faces)
  yaw = np.concatenate([yaw, -yaw])[:, None]
  x = front[:, 0] * np.cos(yaw) + front[:, 2] * np.sin(yaw)
  points = np.stack([x, np.broadcast_to(front[:, 1], x.shape)], -1)
  scale, place = rng.uniform(20, 60, (2 * faces, 1, 1)), rng.uniform(0, 50, (2 * faces, 1, 2))
  return scale * points + place, mirror


def test_left_and_right_are_found_in_the_mean_of_turning_faces():
  points, mirror = turning_faces(np.random.default_rng(0))
  for rows in (np.arange(68), np.arange(17, 68)):
    expected = labels.mirrored_landmarks(rows)
    np.testing.assert_array_equal(labels.estimated_mirror(points[:, rows]), expected)
  order = np.random.default_rng(1).permutation(68)
  shuffled = labels.estimated_mirror(points[:, order])
  np.testing.assert_array_equal(order[shuffled], mirror[order])


def test_left_and_right_that_are_doubtful():
  points, _ = turning_faces(np.random.default_rng(0))
  assert labels.estimated_mirror(points[:, [36, 39, 42]]) is None
  assert labels.estimated_mirror(points[:, [36, 45, 45]]) is None
  assert labels.estimated_mirror(np.random.default_rng(2).uniform(0, 9, (9, 37, 2))) is None


def test_common_names_become_the_canonical_ones():
  assert [labels.canonical(n) for n in ('Happy', ' anger', 'FEARFUL', 'pain')] == [
    'happiness',
    'anger',
    'fear',
    'pain',
  ]
