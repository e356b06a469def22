import numpy as np
import pytest

from ferjax.data import samplers
from ferjax.errors import InputError

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


def test_p_by_k_has_every_class_with_k_rows_in_every_batch():
  plan = samplers.p_by_k(k=5)
  index = plan(3, 10, 0, TABLE, 15)['index']
  assert index.shape == (6, 15)
  np.testing.assert_array_equal(index, plan(3, 10, 0, TABLE, 15)['index'])
  assert (index != plan(4, 10, 0, TABLE, 15)['index']).any()
  label = TABLE['label'][index].reshape(6, 3, 5)
  assert (label == label[:, :, :1]).all()
  np.testing.assert_array_equal(np.sort(label[:, :, 0], 1), [[0, 1, 2]] * 6)
  assert all(len(set(batch)) == 15 for batch in index)
  repeats = np.bincount(index.ravel(), minlength=100)
  assert repeats[:80].max() == 1 and set(repeats[80:]) == {1, 2}


def test_p_by_k_takes_turns_among_more_sub_classes_and_repeats_fewer():
  table = TABLE | {'subclass': np.repeat([0, 1, 4, 6, 8], 20)}
  index = samplers.p_by_k(k=4)(0, 10, 0, table, 8)['index']
  groups = table['subclass'][index][:, ::4]
  assert groups.shape == (12, 2)
  counts = np.unique(groups, return_counts=True)
  assert set(counts[0]) == {0, 1, 4, 6, 8} and set(counts[1]) <= {4, 5}
  index = samplers.p_by_k(k=4)(0, 10, 0, TABLE, 20)['index']  # five places for three classes
  for batch in index:
    assert sorted(np.bincount(TABLE['label'][batch])) == [4, 8, 8] and len(set(batch)) == 20


def test_p_by_k_draws_a_small_class_with_replacement_and_says_so(caplog):
  caplog.set_level('INFO')
  table = {'label': np.repeat([0, 3], [40, 3])}
  index = samplers.p_by_k(k=8)(0, 1, 0, table, 16)['index']
  for batch in index:
    assert np.bincount(table['label'][batch]).tolist() == [8, 0, 0, 8]
  assert 'drawn with replacement, having fewer than 8 rows: label 3 (3 rows)' in caplog.text
  assert 'label 0' not in caplog.text


@pytest.mark.parametrize(
  'batch, k, message',
  [(20, 8, '16 and 24'), (8, 8, 'do: 16'), (4, 8, 'do: 16'), (8, 0, 'k=0: at least 1')],
)
def test_p_by_k_refuses_other_batches(batch, k, message):
  with pytest.raises(InputError, match=message):
    samplers.p_by_k(k=k)(0, 1, 0, TABLE, batch)


@pytest.mark.parametrize('seed', range(5))
def test_p_by_k_on_random_tables(seed):
  rng = np.random.default_rng(seed)
  k, places = rng.integers(1, 9), rng.integers(2, 6)
  table = {'label': rng.integers(0, rng.integers(1, 8), 100 + rng.integers(50))}
  index = samplers.p_by_k(k=k)(seed, 9, seed, table, k * places)['index']
  assert index.shape == (len(table['label']) // (k * places), k * places)
  label = table['label'][index].reshape(-1, k)
  assert (label == label[:, :1]).all()
  sizes = np.bincount(table['label'])
  for chunk, name in zip(index.reshape(-1, k), label[:, 0], strict=True):
    assert len(set(chunk)) == k or sizes[name] < k
