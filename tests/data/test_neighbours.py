import numpy as np
import pytest

from ferjax.data import neighbours
from ferjax.errors import InputError


def slow(points, k):
  """The k nearest other rows by a double loop; at equal distance, lower rows first."""
  index, distance = [], []
  for i, x in enumerate(points):
    found = sorted(
      (float(np.sqrt(((x - y) ** 2).sum())), j) for j, y in enumerate(points) if j != i
    )
    index.append([j for _, j in found[:k]])
    distance.append([d for d, _ in found[:k]])
  return np.array(index), np.array(distance)


@pytest.mark.parametrize('search', ['exact', 'approximate'])
def test_neighbours_by_a_slow_loop(search):
  rng = np.random.default_rng(0)
  points = (1000 + rng.normal(size=(90, 5))).astype(np.float32)
  found = neighbours.nearest_others(points, 4, search=search, recall=1.0)
  index, distance = slow(points.astype(np.float64), 4)
  np.testing.assert_array_equal(found.index, index)
  np.testing.assert_allclose(found.distance, distance, rtol=1e-3)
  assert found.recall == 1 and found.index.dtype == np.int32
  assert found.distance.dtype == np.float32


def test_blocks_give_the_same_result(monkeypatch):
  points = np.random.default_rng(0).normal(size=(70, 3)).astype(np.float32)
  whole = neighbours.nearest_others(points, 3, search='exact')
  monkeypatch.setattr(neighbours, 'BLOCK', 70 * 16)
  monkeypatch.setattr(neighbours, 'CHUNK', 32)
  seen = []

  def progress(starts):
    for start in starts:
      seen.append(start)
      yield start

  parts = neighbours.nearest_others(points, 3, search='exact', progress=progress)
  np.testing.assert_array_equal(parts.index, whole.index)
  assert seen == [0, 16, 32, 48, 64]
  several = neighbours.nearest_others(points, 3, search='approximate', recall=1.0)
  np.testing.assert_array_equal(several.index, whole.index)


@pytest.mark.parametrize('search', ['exact', 'approximate'])
def test_of_equal_rows_only_the_row_itself_is_left_out(search):
  """40 equal rows and 40 distant ones: there are more equal rows than candidates."""
  rng = np.random.default_rng(0)
  points = np.concatenate([np.zeros((40, 3)), 50 + rng.normal(size=(40, 3))])
  points = points[rng.permutation(80)].astype(np.float32)
  found = neighbours.nearest_others(points, 4, search=search)
  equal = np.flatnonzero(~points.any(1))
  assert (found.distance[equal] == 0).all() and np.isin(found.index[equal], equal).all()
  assert not (found.index == np.arange(80)[:, None]).any()
  assert all(len(set(row)) == 4 for row in found.index)


@pytest.mark.parametrize('seed', range(3))
def test_recall_reaches_the_requested_share(seed):
  """Sparse rows with many ties; the estimate agrees with the recall over all rows."""
  rng = np.random.default_rng(seed)
  points = np.where(rng.random((3000, 8)) < 0.4, rng.integers(0, 6, (3000, 8)), 0)
  exact = neighbours.nearest_others(points, 4, search='exact')
  found = neighbours.nearest_others(points, 4, search='approximate', recall=0.97, sample=500)
  recall = neighbours.found_share(found.distance, exact.distance)
  assert recall > 0.95 and abs(recall - found.recall) < 0.02
  assert np.isfinite(found.distance).all() and (np.diff(found.distance) >= 0).all()


def test_recall_by_hand():
  truth = np.array([[1.0, 2.0], [1.0, 1.0]])
  assert neighbours.found_share(np.array([[1.0, 3.0], [1.0, 1.0]]), truth) == 0.75
  assert neighbours.found_share(np.array([[2.0, 2.0], [1.0, np.inf]]), truth) == 0.75


def test_the_fewest_rows_and_bad_ones():
  points = np.arange(5.0)[:, None]
  found = neighbours.nearest_others(points, 4)
  np.testing.assert_array_equal(found.index[0], [1, 2, 3, 4])
  with pytest.raises(InputError, match='4 rows are too few: each needs 4 other'):
    neighbours.nearest_others(points[:4], 4)
  points[3] = np.nan
  with pytest.raises(InputError, match='row 3 has a coordinate that is not finite'):
    neighbours.nearest_others(points, 2)


def test_too_few_candidates_are_searched_again():
  """More neighbours than the lists hold: no row is missing, and the recall is that of the lists."""
  points = np.random.default_rng(0).normal(size=(90, 5))
  found = neighbours.nearest_others(points, 30, search='approximate', recall=0.1)
  np.testing.assert_array_equal(found.index, slow(points, 30)[0])
  assert np.isfinite(found.distance).all() and 0.1 < found.recall < 0.9
  few = neighbours.nearest_others(points[:5], 2, search='approximate', recall=1.0)
  np.testing.assert_array_equal(few.index, slow(points[:5], 2)[0])


@pytest.mark.parametrize('rows, approximate', [(40, False), (41, True)])
def test_many_rows_on_a_cpu_are_searched_approximately(rows, approximate, monkeypatch):
  called = []
  whole = neighbours._approximate
  monkeypatch.setattr(neighbours, 'EXACT_ROWS', 40)
  monkeypatch.setattr(neighbours, '_approximate', lambda *a: called.append(1) or whole(*a))
  neighbours.nearest_others(np.random.default_rng(0).normal(size=(rows, 3)), 2)
  assert bool(called) == approximate
