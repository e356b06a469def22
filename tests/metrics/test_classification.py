import numpy as np
import pytest

from ferjax.metrics import classification, retrieval

CLASSES = ('neutral', 'fear', 'anger', 'sadness')


def test_hand_computed_with_an_absent_class():
  label = np.array([0, 0, 0, 0, 1, 1, 2])
  prediction = np.array([0, 0, 0, 1, 1, 3, 2])
  logits = np.log(np.full((7, 4), 0.1, np.float32))
  logits[np.arange(7), prediction] = np.log(0.7)
  values = classification.classification(logits, label, CLASSES)
  assert values['acc'] == pytest.approx(5 / 7)
  assert values['mean_class_acc'] == pytest.approx((3 / 4 + 1 / 2 + 1) / 3)
  assert values['f1_macro'] == pytest.approx((6 / 7 + 1 / 2 + 1) / 3)
  assert values['recall/neutral'] == 0.75 and values['recall/sadness'] is None
  assert values['loss'] == pytest.approx(-(5 * np.log(0.7) + 2 * np.log(0.1)) / 7, rel=1e-5)
  np.testing.assert_array_equal(
    classification.confusion_matrix(label, prediction, 4),
    [[3, 1, 0, 0], [0, 1, 0, 1], [0, 0, 1, 0], [0, 0, 0, 0]],
  )


def test_precision_recall_and_both_f1_by_hand():
  label = np.array([0, 0, 0, 0, 1, 1, 2])
  prediction = np.array([0, 0, 0, 1, 1, 3, 0])
  found = classification.per_class(label, prediction, 4)
  np.testing.assert_array_equal(found['rows'], [4, 2, 1, 0])
  np.testing.assert_allclose(found['precision'], [3 / 4, 1 / 2, 0, np.nan])
  np.testing.assert_allclose(found['recall'], [3 / 4, 1 / 2, 0, np.nan])
  np.testing.assert_allclose(found['f1'], [3 / 4, 1 / 2, 0, np.nan])
  values = classification.macro(label, np.array([0, 0, 0, 0, 0, 1, 2]), 4)
  p, r = (4 / 5 + 1 + 1) / 3, (1 + 1 / 2 + 1) / 3
  assert values == pytest.approx(
    {
      'acc': 6 / 7,
      'precision': p,
      'recall': r,
      'f1_of_means': 2 * p * r / (p + r),
      'f1_macro': (8 / 9 + 2 / 3 + 1) / 3,
    }
  )
  assert classification.macro(label, np.full(7, 3), 4)['f1_of_means'] == 0


def test_accuracy_of_every_class_in_every_group():
  rng = np.random.default_rng(0)
  label, yaw = rng.integers(0, 3, 60), rng.choice([-45, 0, 30], 60)
  yaw[label == 2] = 30
  right = rng.random(60) < 0.5
  groups, accuracy, rows = classification.accuracy_by_group(right, label, yaw, 4)
  np.testing.assert_array_equal(groups, [-45, 0, 30])
  for i in range(4):
    for j, angle in enumerate(groups):
      here = [right[n] for n in range(60) if label[n] == i and yaw[n] == angle]
      assert rows[i, j] == len(here)
      expected = sum(here) / len(here) if here else np.nan
      np.testing.assert_allclose(accuracy[i, j], expected)
  assert np.isnan(accuracy[3]).all() and np.isnan(accuracy[2, 0])


def slow_neighbours(stored, query, count):
  """int[n, count] by a double loop; a row that is in both sets is not its own neighbour."""
  found = []
  for q in query:
    distances = [((q - s) ** 2).sum() if q is not s else np.inf for s in stored]
    found.append(np.argsort(distances)[:count])
  return np.array(found)


@pytest.fixture
def embedded():
  """Training and test embeddings of three classes that overlap, with their labels."""
  rng = np.random.default_rng(0)
  label, test_label = rng.integers(0, 3, 50), rng.integers(0, 3, 40)
  means = rng.standard_normal((3, 4))
  stored = (means[label] + 1.2 * rng.standard_normal((50, 4))).astype(np.float32)
  query = (means[test_label] + 1.2 * rng.standard_normal((40, 4))).astype(np.float32)
  return stored, label, query, test_label


def test_search_and_classification_against_a_double_loop(embedded):
  stored, label, query, test_label = embedded
  found = slow_neighbours(stored, list(query), 11)
  np.testing.assert_array_equal(retrieval.nearest_neighbours(stored, query, 11), found)
  voted = retrieval.vote(label[found], 4)
  for n in range(40):
    counts = [list(label[found[n]]).count(c) for c in range(4)]
    assert voted[n] == counts.index(max(counts))
  by_mean = retrieval.nearest_mean(stored, label + 1, query)
  means = [stored[label == c].mean(0) for c in range(3)]
  expected = [1 + np.argmin([((q - m) ** 2).sum() for m in means]) for q in query]
  np.testing.assert_array_equal(by_mean, expected)
  rows = list(query)
  found = slow_neighbours(rows, rows, 32)
  values = retrieval.retrieval(query, test_label)
  assert set(values) == {f'{name}@{2**i}' for name in ('recall', 'acc') for i in range(6)}
  for k in (1, 2, 4, 8, 16, 32):
    same = [[test_label[j] == test_label[i] for j in found[i][:k]] for i in range(40)]
    assert values[f'recall@{k}'] == pytest.approx(np.mean([any(row) for row in same]))
    assert values[f'acc@{k}'] == pytest.approx(np.mean([np.mean(row) for row in same]))
  assert values['recall@1'] == values['acc@1'] < values['recall@4'] > values['acc@32']
  assert set(retrieval.retrieval(query[:6], test_label[:6])) == {
    f'{name}@{k}' for name in ('recall', 'acc') for k in (1, 2, 4)
  }


def test_a_row_does_not_find_itself_among_copies():
  embedding = np.array([[0.0], [0.0], [5.0], [5.0]], np.float32)
  values = retrieval.retrieval(embedding, np.array([0, 1, 2, 2]))
  assert values['recall@1'] == 0.5


def test_clusters_by_hand():
  """Two tight groups. One of the four rows of the second group is of the first class."""
  places = np.array([0, 0.1, 0.2, 9, 9.1, 9.2, 9.3], np.float32)[:, None]
  label = np.array([0, 0, 0, 0, 1, 1, 1])
  values = retrieval.clustering(places, label)
  together, right, of_class = 3 + 6, 3 + 3, 6 + 3
  assert values['pairwise_f1'] == pytest.approx(2 * right / (together + of_class))
  joint = np.array([3, 1, 3]) / 7  # (class 0, left), (class 0, right), (class 1, right)
  h = -np.sum(np.array([3, 4]) / 7 * np.log(np.array([3, 4]) / 7))  # of classes and of clusters
  assert values['nmi'] == pytest.approx((2 * h + np.sum(joint * np.log(joint))) / h)


def test_silhouettes_by_hand():
  places = np.array([0.0, 1.0, 4.0, 5.0, 99.0])[:, None]
  expected = np.mean([1 - 1 / 4.5, 1 - 1 / 3.5, 1 - 1 / 3.5, 1 - 1 / 4.5])
  assert retrieval.silhouette(places, np.array([7, 7, 8, 8, 9])) == pytest.approx(expected)
  assert retrieval.silhouette(places, np.array([7, 7, 7, 8, 9])) is None
  mixed = retrieval.silhouette(places[:4], np.array([7, 8, 7, 8]))
  both = np.concatenate([places[:4], places[:4]])
  subject, label = np.array([7, 7, 8, 8, 7, 8, 7, 8]), np.repeat([0, 1], 4)
  found = retrieval.silhouette_within(both, subject, label)
  assert mixed < 0 and found == pytest.approx((expected + mixed) / 2)
  assert retrieval.silhouette_within(places, np.arange(5), np.zeros(5)) is None


@pytest.mark.parametrize('rows', [1, 2, 5])
def test_equal_embeddings_are_measured_without_a_warning(rows):
  embedding, label = np.zeros((rows, 3), np.float32), np.arange(rows) % 2
  assert set(retrieval.clustering(embedding, label)) == {'nmi', 'pairwise_f1'}
  assert len(retrieval.retrieval(embedding, label)) == 2 * (rows.bit_length() - (rows in (1, 2)))
