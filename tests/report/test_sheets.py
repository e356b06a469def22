import cv2
import numpy as np
import pytest

from ferjax.data import dataset
from ferjax.metrics.predictions import Predictions
from ferjax.report.figures import sheets

CLASSES = ('neutral', 'fear', 'anger')


def made(embedding, label, **outputs):
  """A split of plain pictures, whose grey value is the row, and its predictions."""
  records = []
  for row in range(len(label)):
    image = np.full((12, 10, 3), 10 * row, np.uint8)
    records.append(cv2.imencode('.png', image)[1].tobytes())
  label = np.asarray(label)
  logits = np.eye(3)[label]
  table = {'label': label, 'name': np.arange(len(label)).astype(str)}
  split = dataset.Split(records, np.arange(len(label)), table)
  outputs = {'embedding': np.asarray(embedding, np.float32), 'logits': logits} | outputs
  return split, Predictions(outputs, table)


@pytest.fixture
def drawn(monkeypatch):
  """The sheets that would be drawn: {file name: (lines, names)}."""
  found = {}

  def draw(path, split, lines, title, names=()):
    found[path.name] = (lines, list(names))

  monkeypatch.setattr(sheets, 'draw', draw)
  return found


def test_the_nearest_others_are_found(drawn, tmp_path):
  z = [[0], [1], [3], [6.5], [10], [20], [35]]
  split, predictions = made(z, [0, 0, 1, 1, 0, 1, 2])
  sheets.search(tmp_path / 'search.png', split, predictions, CLASSES, 'test')
  lines = {line[0][0]: line[1:] for line in drawn['search.png'][0]}
  assert len(lines) == 7
  assert lines[2] == [
    (1, 'neutral', False),
    (0, 'neutral', False),
    (3, 'fear', True),
    (4, 'neutral', False),
    (5, 'fear', True),
  ]


def test_the_farthest_from_their_class_are_suspected(drawn, tmp_path):
  z = [[0], [0], [1], [9], [100], [101], [130]]
  split, predictions = made(z, [0, 0, 0, 0, 1, 1, 1])
  predictions.outputs['logits'][6] = [0, 0, 1]
  sheets.mislabels(tmp_path / 'm.png', split, predictions, CLASSES, 'test')
  lines, names = drawn['m.png']
  assert names == ['neutral', 'fear']
  # Means are 2.5 and 110.33.
  assert [row for row, _, _ in lines[0]] == [3, 0, 1, 2]
  assert [row for row, _, _ in lines[1]] == [6, 4, 5]
  assert lines[1][0] == (6, 'predicted: anger', False) and lines[0][0] == (
    3,
    'predicted: neutral',
    True,
  )


def test_sub_classes_and_the_nearest_to_their_medoids(drawn, tmp_path):
  z = [[0], [2], [3], [10], [11], [50], [51]]
  posterior = np.full((7, 6), -9.0)
  posterior[[0, 1, 2, 5], 0] = -1
  posterior[[3, 4], 1] = -1
  posterior[6, 3] = -1
  posterior[:, 5] = 0  # of a class that is not a label of any row
  split, predictions = made(z, [0, 0, 0, 0, 0, 1, 1], subclass_log_posterior=posterior)
  sheets.write(tmp_path, split, predictions, CLASSES, 'val')
  assert set(drawn) == {
    'search_val.png',
    'mislabels_val.png',
    'subclasses_val_neutral.png',
    'subclasses_val_fear.png',
  }
  lines, names = drawn['subclasses_val_neutral.png']
  assert [[row for row, _, _ in line] for line in lines] == [[1, 2, 0], [3, 4]]
  assert names == ['sub-class 0\n3 pictures', 'sub-class 1\n2 pictures']


def test_a_method_without_embeddings_has_no_sheets(drawn, tmp_path):
  split, predictions = made([[0], [1]], [0, 1])
  del predictions.outputs['embedding']
  sheets.write(tmp_path, split, predictions, CLASSES, 'test')
  assert not drawn


def test_pictures_are_in_their_places(tmp_path):
  split, _ = made([[0]] * 5, [0] * 5)
  lines = [[(4, 'four', True), (2, 'two', False)], [(3, '', True)]]
  sheets.draw(tmp_path / 'a' / 'sheet.png', split, lines, 'Title', ['first', 'second'])
  image = cv2.imread(str(tmp_path / 'a' / 'sheet.png'), cv2.IMREAD_GRAYSCALE)
  found = {}
  for grey in (20, 30, 40):
    rows, columns = np.nonzero(image == grey)
    assert len(rows) > 96**2
    found[grey] = np.median(rows), np.median(columns)  # words have grey edges
  assert abs(found[40][0] - found[20][0]) < 2 and found[20][0] + 96 < found[30][0]
  assert abs(found[40][1] - found[30][1]) < 2 and found[30][1] + 96 < found[20][1]
