import csv

import cv2
import numpy as np
import pytest

from ferjax.metrics.predictions import Predictions, measure
from ferjax.report.figures import tables

CLASSES = ('neutral', 'fear', 'anger')


def predicted(prediction, table, **outputs):
  logits = np.eye(len(CLASSES), dtype=np.float32)[np.array(prediction)]
  table = {name: np.array(column, np.int32) for name, column in table.items()}
  return Predictions({'logits': logits, **outputs}, table)


def read(path):
  with path.open(newline='') as file:
    return list(csv.reader(file))


def test_a_table_of_the_classes(tmp_path):
  predictions = predicted([0, 0, 1, 1], {'label': [0, 0, 0, 1]})
  tables.per_class(tmp_path / 'sub' / 'a.csv', predictions, CLASSES)
  assert read(tmp_path / 'sub' / 'a.csv') == [
    ['class', 'rows', 'precision', 'recall', 'f1'],
    ['neutral', '3', '1', '0.666667', '0.8'],
    ['fear', '1', '0.5', '1', '0.666667'],
    ['anger', '0', '', '', ''],
    ['mean', '4', '0.75', '0.833333', '0.733333'],
  ]


def test_expression_by_pose(tmp_path):
  """An empty cell and a class without rows do not change the means."""
  label, yaw = [0, 0, 0, 0, 1], [-45, -45, 30, 30, 30]
  predictions = predicted([0, 1, 0, 0, 2], {'label': label, 'yaw_bin': yaw})
  tables.expression_by_pose(tmp_path, 'a', predictions, CLASSES, 'test')
  assert read(tmp_path / 'a.csv') == [
    ['expression', '-45', '30', 'mean'],
    ['neutral', '0.5', '1', '0.75'],
    ['fear', '', '0', '0'],
    ['anger', '', '', ''],
    ['mean', '0.5', '0.5', '0.5'],
  ]
  assert cv2.imread(str(tmp_path / 'a.png')).std() > 5
  values = measure(predictions, CLASSES)
  assert values['acc/pose_-45'] == 0.5 and values['acc/pose_30'] == pytest.approx(2 / 3)
  tables.expression_by_pose(tmp_path, 'b', predicted([0], {'label': [0]}), CLASSES, 'test')
  assert not (tmp_path / 'b.csv').exists()


def test_one_pose_is_a_table_but_no_metric(tmp_path):
  predictions = predicted([0, 1], {'label': [0, 0], 'yaw_bin': [30, 30]})
  tables.expression_by_pose(tmp_path, 'a', predictions, CLASSES, 'test')
  assert read(tmp_path / 'a.csv')[1] == ['neutral', '0.5', '0.5']
  assert not [name for name in measure(predictions, CLASSES) if 'pose' in name]


def test_scores_are_measured_against_the_column_of_their_name(tmp_path):
  """Unknown poses do not count; other scores are measured against the label."""
  pose_logits = np.eye(2, dtype=np.float32)[np.array([0, 1, 1, 0])]
  naive_logits = np.eye(3, dtype=np.float32)[np.array([0, 1, 2, 0])]
  outputs = {'pose_logits': pose_logits, 'naive_logits': naive_logits}
  table = {'label': [0, 1, 2, 2], 'pose': [0, 1, 0, -1], 'yaw_bin': [-45, 30, -45, 77]}
  predictions = predicted([0, 1, 2, 2], table, **outputs)
  values = measure(predictions, CLASSES)
  assert values['pose/acc'] == pytest.approx(2 / 3) and values['pose/mean_class_acc'] == 0.75
  assert values['naive/acc'] == 0.75 and values['acc'] == 1
  tables.pose_confusion(tmp_path / 'pose.png', predictions, 'test')
  tables.pose_confusion(tmp_path / 'named.png', predictions, 'test', (-45, 30))
  unnamed, named = ((tmp_path / f'{name}.png').read_bytes() for name in ('pose', 'named'))
  assert unnamed == named
  for pose in (None, [-1] * 4):
    columns = {'label': table['label']} | ({'pose': pose} if pose else {})
    unknown = predicted([0, 1, 2, 2], columns, **outputs)
    tables.pose_confusion(tmp_path / 'none.png', unknown, 'test')
    assert 'pose/acc' not in measure(unknown, CLASSES)
  assert not (tmp_path / 'none.png').exists()


def test_known_distributions_are_compared_with_the_predicted_ones():
  """All mass on another class is ln 2 apart; the same distribution is 0 apart."""
  known = np.array([[0, 1, 0], [1, 0, 0]], np.float32)
  predictions = predicted([0, 0], {'label': [1, 0], 'distribution': known})
  sure = predictions._replace(outputs={'logits': 100 * predictions.outputs['logits']})
  measured = measure(sure, CLASSES)['jensen_shannon']
  assert measured == pytest.approx(np.log(2) / 2)
  assert 'jensen_shannon' not in measure(predicted([0], {'label': [0]}), CLASSES)
