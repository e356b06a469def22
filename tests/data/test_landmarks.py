import numpy as np
import pytest

from ferjax.data import checks, dataset, landmarks, sets
from ferjax.errors import InputError

POINTS = np.random.default_rng(0).uniform(0, 40, (4, 68, 2)).astype(np.float32)
ALL = tuple(range(68))
INNER = tuple(range(17, 68))


def data_with(points, scheme='', indices=None, name='a'):
  table = {
    'label': np.array([0, 1, 0, 1], np.int32),
    'name': np.array([f'{name}{i}' for i in range(4)]),
    'digest': np.array([f'{name}{i}' for i in range(4)]),
    'landmarks': points,
  }
  splits = {'train': dataset.Split([b''] * 4, np.arange(4), table)}
  return dataset.Dataset(name, ('x', 'y'), splits, indices, name, landmark_scheme=scheme)


def points_in(data):
  return data.splits['train'].table['landmarks']


A = data_with(POINTS, 'ibug68', ALL)


def test_the_most_points_in_common():
  every = range(1000)
  of = {name: (name, tuple(every[:n])) for name, n in (('ibug68', 68), ('ibug51', 51))}
  of |= {name: (name, tuple(every[:n])) for name, n in (('ibug49', 49), ('aflw19', 19))}
  five = ('eyes_nose_mouth5', (0, 1, 2, 3, 4))
  common = landmarks.common
  assert common([of['ibug68'], of['ibug51']]) == of['ibug51']
  assert common([of['ibug49'], of['ibug68'], of['ibug51']]) == of['ibug49']
  assert common([of['ibug68'], of['aflw19']]) == five == common([five, of['ibug51']])
  assert common([('ibug68', INNER), of['ibug68']]) == ('ibug68', INNER)
  assert common([('ibug68', (30, 48, 54)), five]) == ('eyes_nose_mouth5', (2, 3, 4))
  assert common([of['ibug68'], ('', None)]) is None
  assert common([('ibug68', (0, 1)), five]) is None


def test_landmarks_become_those_of_another_scheme():
  found = landmarks.convert(POINTS, ('ibug68', ALL), ('ibug51', (0, 50)))
  np.testing.assert_array_equal(found, POINTS[:, [17, 67]])
  inner = POINTS[:, 17:]
  five = landmarks.convert(inner, ('ibug51', tuple(range(51))), ('eyes_nose_mouth5', (0, 2)))
  np.testing.assert_allclose(five[:, 0], POINTS[:, 36:42].mean(1), rtol=1e-6)
  np.testing.assert_array_equal(five[:, 1], POINTS[:, 30])
  few = landmarks.convert(POINTS[:, 36:], ('ibug68', ALL[36:]), ('eyes_nose_mouth5', (0, 4)))
  np.testing.assert_allclose(few[:, 0], POINTS[:, 36:42].mean(1), rtol=1e-6)
  for have, wanted in (
    (('ibug68', (0, 1)), ('ibug51', (0,))),
    (('ibug51', tuple(range(51))), ('ibug68', (20,))),
    (('', None), ('ibug68', (0,))),
    (('ibug68', ALL), ('', None)),
  ):
    assert landmarks.convert(POINTS, have, wanted) is None


def test_unlike_landmarks_are_joined_on_the_points_in_common(caplog):
  b = data_with(POINTS[:, 17:] + 100, 'ibug51', tuple(range(51)), 'b')
  with caplog.at_level('INFO'):
    joined = sets.join({'a': A, 'b': b})
  schemes = 'a: ibug68 (68 points), b: ibug51 (51 points)'
  assert f'joined on the 51 landmarks in common, ibug51: {schemes}' in caplog.text
  assert landmarks.of(joined) == ('ibug51', tuple(range(51))) and not joined.left_out
  table = joined.splits['train'].table
  for number, expected in ((0, POINTS[:, 17:]), (1, POINTS[:, 17:] + 100)):
    np.testing.assert_array_equal(table['landmarks'][table['set'] == number], expected)
  checks.check_features(joined, frozenset({'landmarks'}))
  assert len(dataset.flip_order(joined)) == 51


def test_landmarks_without_points_in_common_are_refused_where_they_are_needed(caplog):
  b = data_with(POINTS[:, :37], name='b')
  joined = sets.join({'a': A, 'b': b})
  schemes = 'a: ibug68 (68 points), b: unknown scheme (37 points)'
  assert f'landmarks (no points in common; {schemes})' in caplog.text
  assert 'landmarks' not in joined.splits['train'].table
  with pytest.raises(InputError, match='which cannot be joined: no points in common; a: ibug68'):
    checks.check_features(joined, frozenset({'landmarks'}))
  checks.check_features(joined, frozenset({'label'}))
  other = data_with(POINTS[:, :37] + 1, name='c')
  both = sets.join({'b': b, 'c': other})  # of one unknown scheme, by their number
  assert points_in(both).shape == (8, 37, 2) and landmarks.of(both) == ('', None)


def test_a_choice_of_points_is_by_their_numbers_in_the_scheme():
  b = data_with(POINTS[:, 17:], 'ibug51', tuple(range(51)))
  chosen = landmarks.select(b, (50, 3))
  np.testing.assert_array_equal(points_in(chosen), POINTS[:, [67, 20]])
  assert landmarks.of(chosen) == ('ibug51', (50, 3))
  np.testing.assert_array_equal(points_in(landmarks.select(chosen, (3,))), POINTS[:, [20]])
  unknown = landmarks.select(data_with(POINTS[:, :37]), (36,))
  assert landmarks.of(unknown) == ('', None) and points_in(unknown).shape == (4, 1, 2)
  with pytest.raises(
    InputError, match=r'asks for point 60; a has ibug51 \(51 points\), .* 0 to 50'
  ):
    landmarks.select(b, (60,))


def test_a_set_gets_the_points_of_another_or_none(caplog):
  wanted = ('ibug51', (3, 50))
  found = landmarks.like(A, wanted, 2, 'the model')
  np.testing.assert_array_equal(points_in(found), POINTS[:, [20, 67]])
  assert landmarks.like(A, ('', None), 0, 'the model') is A
  five = data_with(POINTS[:, :5], 'eyes_nose_mouth5', (0, 1, 2, 3, 4))
  left = landmarks.like(five, wanted, 2, 'the model')
  assert 'landmarks' not in left.splits['train'].table
  assert 'eyes_nose_mouth5 (5 points), and the model ibug51 (2 points)' in caplog.text
  with pytest.raises(InputError, match='a has eyes_nose_mouth5'):
    checks.check_features(left, frozenset({'landmarks'}))
  unknown, fewer = data_with(POINTS[:, :37]), data_with(POINTS[:, :36])
  assert landmarks.like(unknown, ('', None), 37, 'b') is unknown
  assert 'landmarks' not in landmarks.like(fewer, ('', None), 37, 'b').splits['train'].table
