import logging

import numpy as np
import pytest

from ferjax.data import graphs, neighbours
from ferjax.errors import InputError


def table(rows=30, size=64):
  rng = np.random.default_rng(0)
  points = rng.uniform(0, size, (rows, 5, 2)).astype(np.float32)
  return {'au': rng.uniform(0, 5, (rows, 6)).astype(np.float32), 'landmarks': points}


def make(folder, columns, space='au', **options):
  options = {'image_size': 64, 'neighbours': 3, 'sigma': 1.0, 'folder': folder} | options
  return graphs.make(columns, space, **options)


def test_affinity_by_hand_and_the_file_is_read_again(tmp_path, monkeypatch):
  columns = table()
  graph = make(tmp_path, columns)
  x = columns['au'].astype(np.float64)
  for i, row in enumerate(graph.index):
    expected = [np.exp(-((x[i] - x[j]) ** 2).sum() / 2) for j in row]
    np.testing.assert_allclose(graph.affinity[i], expected, rtol=1e-4)
  assert graph.affinity.dtype == np.float32
  monkeypatch.setattr(neighbours, 'nearest_others', None)
  again = make(tmp_path, columns, sigma=2.0)
  np.testing.assert_array_equal(again.index, graph.index)
  np.testing.assert_allclose(again.affinity, graph.affinity**0.25, rtol=1e-4)


def test_landmarks_are_in_pixels_at_224(tmp_path):
  columns = table()
  small = make(tmp_path, columns, 'landmarks', sigma=68.0)
  larger = {'landmarks': columns['landmarks'] * 2 + 0.5}  # pixel centres at integers
  large = make(tmp_path, larger, 'landmarks', sigma=68.0, image_size=128)
  np.testing.assert_array_equal(large.index, small.index)
  np.testing.assert_allclose(large.affinity, small.affinity, rtol=1e-4)
  x = columns['landmarks'].reshape(30, -1).astype(np.float64) * 3.5
  expected = np.exp(-((x[0] - x[small.index[0]]) ** 2).sum(1) / (2 * 68**2))
  np.testing.assert_allclose(small.affinity[0], expected, rtol=1e-4)


def test_graphs_of_other_rows_are_refused_and_damaged_ones_built_again(tmp_path, caplog):
  columns = table()
  make(tmp_path, columns)
  (path,) = tmp_path.iterdir()
  assert path.name.startswith('au-')
  backwards = {'au': columns['au'][::-1]}
  make(tmp_path, backwards)
  (other,) = set(tmp_path.iterdir()) - {path}
  other.write_bytes(path.read_bytes())
  with pytest.raises(InputError, match='other rows, or of these rows in another order: delete'):
    make(tmp_path, backwards)
  path.write_bytes(path.read_bytes()[:100])
  graph = make(tmp_path, columns)
  assert 'is damaged' in caplog.text
  with np.load(path, allow_pickle=False) as stored:
    assert set(stored.files) == {'index', 'distance', 'recall', 'fingerprint'}
    np.testing.assert_array_equal(stored['index'], graph.index)
  assert len({graphs.fingerprint(columns['au'], k) for k in (2, 3)}) == 2


@pytest.mark.parametrize('factor, nearly', [(1e4, '0'), (1e-4, '1')])
def test_wrong_units_cause_a_warning(tmp_path, caplog, factor, nearly):
  columns = table()
  make(tmp_path, columns)
  assert 'nearly all' not in caplog.text
  make(tmp_path, {'au': columns['au'] * factor})
  assert f'nearly all a_ij are {nearly}: with a median distance of' in caplog.text


def test_intensities_of_another_scale_cause_a_warning(tmp_path, caplog):
  columns = table()
  half = {'au': np.where(np.arange(30)[:, None] < 18, columns['au'], 2.5).astype(np.float32)}
  make(tmp_path, half)
  assert not caplog.text
  make(tmp_path, {'au': columns['au'] / 5})
  assert 'no action unit is above' in caplog.text and '0..5' in caplog.text


def test_graphs_that_cannot_be_built_are_errors(tmp_path, caplog):
  columns = table(3)
  with pytest.raises(InputError, match='3 rows are too few'):
    make(tmp_path, columns)
  with pytest.raises(InputError, match="no 'au'.*AU01_r"):
    make(tmp_path, {'landmarks': columns['landmarks']})
  unknown = columns['au'].copy()
  unknown[1, 2] = np.nan
  with pytest.raises(InputError, match="'au' of b.png is not a finite number"):
    make(tmp_path, {'au': unknown, 'name': np.array(['a.png', 'b.png', 'c.png'])})
  with pytest.raises(InputError, match="Did you mean 'landmarks'"):
    make(tmp_path, columns, 'landmark')
  (tmp_path / 'file').write_text('')
  with caplog.at_level(logging.WARNING):
    assert make(tmp_path / 'file', table()).index.shape == (30, 3)
  assert 'cannot store the graph' in caplog.text
