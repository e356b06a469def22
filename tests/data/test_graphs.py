import logging

import numpy as np
import pytest
import scipy.spatial

from ferjax.data import graphs, neighbours
from ferjax.errors import InputError


def table(rows=30, size=64):
  rng = np.random.default_rng(0)
  points = rng.uniform(0, size, (rows, 5, 2)).astype(np.float32)
  au = rng.uniform(0, 5, (rows, 6)).astype(np.float32)
  return {'au': au, 'landmarks': points, 'label': np.arange(rows) % 3}


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
  options = {'sigma': 68.0, 'landmark_alignment': 'none'}
  small = make(tmp_path, columns, 'landmarks', **options)
  larger = columns | {'landmarks': columns['landmarks'] * 2 + 0.5}  # pixel centres at integers
  large = make(tmp_path, larger, 'landmarks', **options, image_size=128)
  np.testing.assert_array_equal(large.index, small.index)
  np.testing.assert_allclose(large.affinity, small.affinity, rtol=1e-4)
  x = columns['landmarks'].reshape(30, -1).astype(np.float64) * 3.5
  expected = np.exp(-((x[0] - x[small.index[0]]) ** 2).sum(1) / (2 * 68**2))
  np.testing.assert_allclose(small.affinity[0], expected, rtol=1e-4)


def test_shapes_are_aligned_as_scipy_aligns_them():
  rng = np.random.default_rng(0)
  shape = rng.normal(size=(6, 2))
  angles, sizes = rng.uniform(-0.5, 0.5, 40), rng.uniform(20, 90, (40, 1, 1))
  turns = np.array([[[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]] for a in angles])
  places = rng.uniform(0, 224, (40, 1, 2))
  moved = sizes * np.einsum('nij,kj->nki', turns, shape) + places
  same = graphs.aligned(moved)
  np.testing.assert_allclose(same, np.broadcast_to(same[0], same.shape), atol=1e-3)
  of_size = np.linalg.norm(moved - moved.mean(1, keepdims=True), axis=(1, 2)).mean()
  np.testing.assert_allclose(np.linalg.norm(same[0]), of_size, rtol=1e-5)
  np.testing.assert_allclose(same.mean(1), 0, atol=1e-4)

  differing = moved + rng.normal(0, 5, moved.shape)
  found = graphs.aligned(differing, iterations=30)
  for points, own in zip(differing, found, strict=True):
    reference, expected, _ = scipy.spatial.procrustes(found.mean(0), points)
    cosine = (own / np.linalg.norm(own) * expected / np.linalg.norm(expected)).sum()
    np.testing.assert_allclose(cosine, 1, atol=1e-5)


def test_alignment_finds_neighbours_of_one_shape(tmp_path, caplog):
  rng = np.random.default_rng(0)
  shapes, label = rng.uniform(20, 40, (3, 5, 2)), np.arange(30) % 3
  angles = rng.uniform(-0.6, 0.6, 30)
  turns = np.array([[[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]] for a in angles])
  points = np.einsum('nij,nkj->nki', turns, shapes[label]) + rng.uniform(-9, 9, (30, 1, 2))
  columns = {'landmarks': points.astype(np.float32), 'label': label}
  caplog.set_level(logging.INFO)
  shares = []
  for alignment in ('none', 'procrustes'):
    graph = make(tmp_path, columns, 'landmarks', sigma=68.0, landmark_alignment=alignment)
    shares.append(graphs.same_label(label, graph.index))
  by_hand = np.mean([label[j] == label[i] for i in range(30) for j in graph.index[i]])
  assert shares[0] < 0.8 and shares[1] == by_hand == 1.0
  assert '100.0 % of the neighbours have the label of their row (33.3 % by chance)' in caplog.text
  assert len(list(tmp_path.iterdir())) == 2
  with pytest.raises(
    InputError, match="landmark_alignment='affine'|landmark_alignment is 'affine'"
  ):
    make(tmp_path, columns, 'landmarks', landmark_alignment='affine')
  columns['landmarks'][4] = 7.0
  with pytest.raises(InputError, match='landmarks of row 4 are one point: correct them'):
    make(tmp_path, columns, 'landmarks')


def test_graphs_of_other_rows_are_refused_and_damaged_ones_built_again(tmp_path, caplog):
  columns = table()
  make(tmp_path, columns)
  (path,) = tmp_path.iterdir()
  assert path.name.startswith('au-')
  backwards = columns | {'au': columns['au'][::-1]}
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
  make(tmp_path, columns | {'au': columns['au'] * factor})
  assert f'nearly all a_ij are {nearly}: with a median distance of' in caplog.text


def test_intensities_of_another_scale_cause_a_warning(tmp_path, caplog):
  columns = table()
  half = columns | {
    'au': np.where(np.arange(30)[:, None] < 18, columns['au'], 2.5).astype(np.float32)
  }
  make(tmp_path, half)
  assert not caplog.text
  make(tmp_path, columns | {'au': columns['au'] / 5})
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
    make(tmp_path, columns | {'au': unknown, 'name': np.array(['a.png', 'b.png', 'c.png'])})
  with pytest.raises(InputError, match="Did you mean 'landmarks'"):
    make(tmp_path, columns, 'landmark')
  (tmp_path / 'file').write_text('')
  with caplog.at_level(logging.WARNING):
    assert make(tmp_path / 'file', table()).index.shape == (30, 3)
  assert 'cannot store the graph' in caplog.text
