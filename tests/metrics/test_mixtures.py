import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from ferjax.metrics import mixtures


def planted(seed, classes=3, parts=3, rows=60, width=8, apart=6.0):
  """Embeddings of classes that consist of several parts, with the labels and the parts."""
  rng = np.random.default_rng(seed)
  centres = apart * rng.normal(size=(classes, parts, width))
  label, part = rng.integers(0, classes, classes * rows), rng.integers(0, parts, classes * rows)
  z = centres[label, part] + rng.normal(size=(len(label), width))
  return z.astype(np.float32), label, part


@pytest.mark.parametrize('seed', range(5))
def test_planted_sub_classes_are_found(seed):
  z, label, part = planted(seed)
  options = dict(slots=4, component_rows=10, least_rows=20, seed=(seed, 7))
  found = mixtures.subclasses(z, label, 3, **options)
  assert found.dtype == np.int32
  np.testing.assert_array_equal(found // 4, label)
  for name in range(3):
    rows = label == name
    assert set(found[rows] - 4 * name) <= {0, 1, 2}
    assert adjusted_rand_score(part[rows], found[rows]) >= 0.9
  np.testing.assert_array_equal(found, mixtures.subclasses(z, label, 3, **options))


def test_components_are_numbered_by_their_first_rows():
  z, _, part = planted(1, classes=1)
  order = list(dict.fromkeys(part))
  for seed in range(4):
    np.testing.assert_array_equal(
      mixtures.gaussian_mixture(z, 3, seed), [order.index(p) for p in part]
    )


def test_small_classes_have_few_components_or_stay_whole():
  rng = np.random.default_rng(0)
  label = np.repeat([0, 1, 2, 4], [99, 100, 29, 5])
  z = rng.normal(size=(len(label), 4))
  found = mixtures.subclasses(z, label, 5, slots=5, component_rows=10, least_rows=20, seed=(0, 0))
  counts = {name: len(np.unique(found[label == name])) for name in np.unique(label)}
  assert counts == {0: 5, 1: 5, 2: 2, 4: 1}
  found = mixtures.subclasses(z, label, 5, slots=5, component_rows=10, least_rows=100, seed=(0, 0))
  assert set(found[label != 1]) == {0, 10, 20} and len(np.unique(found[label == 1])) == 5


@pytest.mark.parametrize('scale', [1e-4, 1.0, 1e4])
def test_the_scale_of_embeddings_does_not_matter(scale):
  z, _, part = planted(3, classes=1)
  assert adjusted_rand_score(part, mixtures.gaussian_mixture(scale * z, 3, 0)) == 1


def test_fewer_different_rows_than_components():
  z = np.repeat([[0.0, 1.0], [5.0, 5.0]], [6, 4], 0)
  found = mixtures.gaussian_mixture(z, 5, 0)
  np.testing.assert_array_equal(found == found[0], [True] * 6 + [False] * 4)
  np.testing.assert_array_equal(mixtures.gaussian_mixture(np.ones((7, 3)), 5, 0), np.zeros(7))


def test_means_and_medoids_by_hand():
  z = np.array([[0.0], [1.0], [5.0], [10.0], [12.0]], np.float32)
  group = np.array([3, 3, 3, 1, 1])
  means, rows = mixtures.means(z, group, 5)
  np.testing.assert_allclose(means, [[0], [11], [0], [2], [0]])
  np.testing.assert_array_equal(rows, [0, 2, 0, 3, 0])
  assert means.dtype == np.float32 and rows.dtype == np.int32
  assert list(mixtures.medoids(z, group).items()) == [(3, 1), (1, 3)]
