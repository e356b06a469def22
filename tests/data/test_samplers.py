import time

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


def test_balance_uses_each_row_once_before_any_twice():
  index = samplers.progressively_balanced()(10, 10, 0, TABLE, 10)['index'].ravel()
  repeats = np.bincount(index, minlength=100)
  assert repeats[:50].max() == 1 and set(repeats[80:]) == {1, 2}


def test_short_plans_are_refilled():
  rng = np.random.default_rng(0)
  filled = samplers._fill(np.array([3, 1, 4]), 4, 2, rng)
  assert (
    filled.shape == (2, 4) and list(filled[0, :3]) == [3, 1, 4] and set(filled.ravel()) == {1, 3, 4}
  )


def random_table(seed, rows=150):
  rng = np.random.default_rng(seed)
  classes, poses, subjects = rng.integers(2, 8, 3)
  return {
    'label': rng.integers(0, classes, rows).astype(np.int32),
    'pose': rng.integers(0, poses, rows).astype(np.int32),
    'subject': np.minimum(rng.geometric(0.3, rows), subjects),
  }


@pytest.mark.parametrize('seed', range(8))
def test_five_tuples_of_random_tables(seed):
  """Tuples meet all constraints and use no row twice in a round; no further tuple can be formed."""
  table = random_table(seed)
  label, pose, subject = (table[name] for name in ('label', 'pose', 'subject'))
  found = samplers.five_tuples()(seed, 10, seed, table, 10)
  assert found['index'].shape == found['role'].shape == (15, 10)
  np.testing.assert_array_equal(found['role'], np.tile(np.arange(5), 30).reshape(15, 10))
  a, pose_same, pose_other, id_same, id_other = found['index'].reshape(-1, 5).T
  assert all(len(set(five)) == 5 for five in found['index'].reshape(-1, 5).tolist())
  assert (label[pose_same] == label[a]).all() and (pose[pose_same] != pose[a]).all()
  assert (label[pose_other] != label[a]).all() and (pose[pose_other] == pose[a]).all()
  assert (label[id_same] == label[a]).all() and (subject[id_same] != subject[a]).all()
  assert (label[id_other] != label[a]).all() and (subject[id_other] == subject[a]).all()
  again = samplers.five_tuples()(seed, 10, seed, table, 10)['index']
  np.testing.assert_array_equal(found['index'], again)
  assert (samplers.five_tuples()(seed + 1, 10, seed, table, 10)['index'] != again).any()

  order = np.random.default_rng(seed).permutation(150).tolist()
  columns = (label.tolist(), pose.tolist(), subject.tolist())
  assert samplers._form_tuples(order, *columns) == slow_tuples(order, *columns)


def slow_tuples(order, label, pose, subject):
  """Algorithm 1 literally: it starts from the top again until no tuple can be formed."""
  free, found = list(order), []
  while True:
    for i in free:
      five = [i]
      for same, other in ((label, pose), (pose, label), (label, subject), (subject, label)):
        for j in free:
          if j not in five and same[j] == same[i] and other[j] != other[i]:
            five.append(j)
            break
      if len(five) == 5:
        found += five
        free = [j for j in free if j not in five]
        break
    else:
      return found


def test_five_tuples_are_refilled_and_the_used_rows_are_logged(caplog):
  """Eleven rows of a rare pose: a round has too few tuples, so further rounds follow."""
  caplog.set_level('INFO')
  grid = np.stack(np.meshgrid(range(2), range(2), range(2), indexing='ij'), -1).reshape(-1, 3)
  label, pose, subject = np.concatenate([np.repeat(grid, 2, 0), np.tile([0, 0, 2], (14, 1))]).T
  table = {'label': label, 'pose': pose, 'subject': subject}
  index = samplers.five_tuples()(0, 1, 0, table, 15)['index']
  assert index.shape == (2, 15)
  repeats = np.bincount(index.ravel(), minlength=30)
  assert repeats.max() > 1
  used = int(caplog.messages[0].split(' of ')[1].split()[0])
  assert used % 5 == 0 and 5 <= used < 30 and f'{used} of 30 rows' in caplog.messages[0]
  assert len(set(index.ravel()[:used].tolist())) == used


def test_five_tuples_of_15000_rows_are_quick():
  rng = np.random.default_rng(0)
  table = {
    name: rng.integers(0, n, 15000) for name, n in (('label', 7), ('pose', 9), ('subject', 337))
  }
  start = time.process_time()
  assert samplers.five_tuples()(0, 1, 0, table, 80)['index'].shape == (187, 80)
  assert time.process_time() - start < 2


@pytest.mark.parametrize(
  'changes, batch, message',
  [
    ({}, 16, 'config.batch=16: five-tuples need a multiple of 5'),
    ({'pose': None}, 10, "needs 'pose', which .*column yaw_bin"),
    ({'subject': None}, 10, "needs 'subject', which .*column subject"),
    ({'pose': 'label'}, 10, r'3 of 3 values of `pose` have one label \(0, 1, 2\)'),
    ({'subject': 'label'}, 10, '3 of 3 values of `subject` have one label'),
    ({'pose': 'label', 'yaw_bin': 'label'}, 10, '3 of 3 values of `yaw_bin` have one label'),
    ({'pose': 0}, 10, r'3 of 3 values of `label` have one pose'),
    ({'label': 0}, 10, '5 of 5 values of `pose` have one label.*5 of 5 values of `subject`'),
  ],
)
def test_tables_without_five_tuples_are_errors(changes, batch, message):
  table = random_table(0) | {'label': np.arange(150) % 3}
  for name, value in changes.items():
    if value is None:
      del table[name]
    else:
      table[name] = table[value] if isinstance(value, str) else np.full(150, value)
  with pytest.raises(InputError, match=message):
    samplers.five_tuples()(0, 1, 0, table, batch)


def grouped(tmp_path, **options):
  rng = np.random.default_rng(0)
  faces = {
    'au': rng.uniform(0, 5, (100, 6)),
    'landmarks': rng.uniform(0, 63, (100, 5, 2)).astype(np.float32),
  }
  options = {'landmark_alignment': 'none'} | options
  options |= {'table': TABLE | faces, 'image_size': 64, 'folder': tmp_path}
  return samplers.neighbour_groups(**options), faces


def test_groups_are_centres_with_their_neighbours(tmp_path):
  sampler, faces = grouped(tmp_path, neighbours=2)
  plan = sampler(3, 10, 7, TABLE, 10)
  np.testing.assert_array_equal(plan['index'], samplers.natural()(3, 10, 7, TABLE, 10)['index'])
  assert plan['neighbours'].shape == plan['affinity'].shape == (10, 10, 4)
  row, others = plan['index'][4, 2], plan['neighbours'][4, 2]
  spaces = (
    (faces['au'], 1.0),
    (faces['landmarks'].reshape(100, -1) * 224 / 64, 68.0),
  )
  for place, (x, sigma) in enumerate(spaces):
    squares = ((x - x[row]) ** 2).sum(1)
    nearest = np.argsort(squares)[1:3]
    mine = slice(2 * place, 2 * place + 2)
    np.testing.assert_array_equal(others[mine], nearest)
    expected = np.exp(-squares[nearest] / (2 * sigma**2))
    np.testing.assert_allclose(plan['affinity'][4, 2, mine], expected, rtol=1e-3)
  one, _ = grouped(tmp_path, neighbours=2, graphs=('landmarks',))
  one = one(3, 10, 7, TABLE, 10)
  np.testing.assert_array_equal(one['neighbours'], plan['neighbours'][..., 2:])
  assert one['affinity'].dtype == np.float32


@pytest.mark.parametrize(
  'options, message',
  [
    ({'graphs': ()}, 'give one or two'),
    ({'graphs': ('au', 'au')}, 'give one or two different'),
    ({'graphs': ('aus',)}, "Did you mean 'au'"),
    ({'neighbours': 0}, 'neighbours=0: it must be at least 1'),
    ({'neighbours': 100}, '100 rows are too few'),
    ({'landmark_sigma': 0.0}, 'landmark_sigma=0.0: it must be a number above 0'),
  ],
)
def test_impossible_groups_are_refused(tmp_path, options, message):
  with pytest.raises(InputError, match=message):
    grouped(tmp_path, **options)


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


def test_p_by_k_draws_a_small_class_with_replacement_and_logs_it(caplog):
  caplog.set_level('INFO')
  table = {'label': np.repeat([0, 3], [40, 3])}
  index = samplers.p_by_k(k=8)(0, 1, 0, table, 16)['index']
  for batch in index:
    assert np.bincount(table['label'][batch]).tolist() == [8, 0, 0, 8]
  assert 'drawn with replacement, having fewer than 8 rows: label 3 (3 rows)' in caplog.text
  assert 'label 0' not in caplog.text


@pytest.mark.parametrize(
  'batch, k, message',
  [(20, 8, '16 and 24'), (8, 8, 'do: 16'), (4, 8, 'do: 16'), (8, 0, 'k=0: it must be at least 1')],
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


def test_p_by_k_repeats_no_row_of_a_group_with_several_places(caplog):
  caplog.set_level('INFO')
  table = {'label': np.repeat([0, 1, 2], [40, 400, 20])}
  index = samplers.p_by_k(k=16)(0, 1, 0, table, 96)['index']
  for batch in index:
    label = table['label'][batch]
    assert (label.reshape(-1, 16) == label[::16, None]).all()
    assert np.bincount(label).tolist() == [32, 32, 32]
    assert len(set(batch[label < 2])) == 64
  assert 'fewer than 32 rows: label 2 (20 rows)' in caplog.text
