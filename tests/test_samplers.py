import numpy as np
import pytest

from ferjax.data import samplers

TABLE = {'label': np.repeat([0, 1, 2], [50, 30, 20])}


@pytest.mark.parametrize('make', [samplers.natural, samplers.progressively_balanced])
def test_plans_have_a_fixed_length_and_are_pure(make):
  plan = make()
  first = plan(2, 10, 0, TABLE, 16)['index']
  assert first.shape == (6, 16) and first.max() < 100
  np.testing.assert_array_equal(first, plan(2, 10, 0, TABLE, 16)['index'])
  assert (first != plan(3, 10, 0, TABLE, 16)['index']).any()
  assert (first != plan(2, 10, 1, TABLE, 16)['index']).any()


def test_natural_visits_each_row_once():
  index = samplers.natural()(0, 10, 0, TABLE, 10)['index']
  np.testing.assert_array_equal(np.sort(index.ravel()), np.arange(100))


def test_balance_moves_from_natural_to_uniform():
  counts = []
  for epoch in (0, 5, 10):
    index = samplers.progressively_balanced()(epoch, 10, 0, TABLE, 10)['index']
    counts.append(np.bincount(TABLE['label'][index.ravel()]))
  np.testing.assert_array_equal(counts[0], [50, 30, 20])
  np.testing.assert_allclose(counts[1], [25 + 100 / 6, 15 + 100 / 6, 10 + 100 / 6], atol=1)
  np.testing.assert_allclose(counts[2], [100 / 3] * 3, atol=1)


def test_balance_repeats_no_row_before_each_came_once():
  index = samplers.progressively_balanced()(10, 10, 0, TABLE, 10)['index'].ravel()
  repeats = np.bincount(index, minlength=100)
  assert repeats[:50].max() == 1 and set(repeats[80:]) == {1, 2}


def test_short_plans_are_refilled():
  rng = np.random.default_rng(0)
  filled = samplers._fill(np.array([3, 1, 4]), 4, 2, rng)
  assert (
    filled.shape == (2, 4) and list(filled[0, :3]) == [3, 1, 4] and set(filled.ravel()) == {1, 3, 4}
  )
