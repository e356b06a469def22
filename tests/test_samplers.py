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


def grouped(tmp_path, **options):
  rng = np.random.default_rng(0)
  faces = {
    'au': rng.uniform(0, 5, (100, 6)),
    'landmarks': rng.uniform(0, 63, (100, 5, 2)).astype(np.float32),
  }
  options = {'table': TABLE | faces, 'image_size': 64, 'folder': tmp_path} | options
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
    ({'neighbours': 0}, 'neighbours=0: at least 1'),
    ({'neighbours': 100}, '100 rows are too few'),
    ({'landmark_sigma': 0.0}, 'landmark_sigma=0.0: it must be above 0'),
  ],
)
def test_impossible_groups_are_refused(tmp_path, options, message):
  with pytest.raises(InputError, match=message):
    grouped(tmp_path, **options)
