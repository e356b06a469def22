import numpy as np
import pytest

from ferjax import metrics

CLASSES = ('neutral', 'fear', 'anger', 'sadness')


def test_hand_computed_with_an_absent_class():
  label = np.array([0, 0, 0, 0, 1, 1, 2])
  prediction = np.array([0, 0, 0, 1, 1, 3, 2])
  logits = np.log(np.full((7, 4), 0.1, np.float32))
  logits[np.arange(7), prediction] = np.log(0.7)
  values = metrics.classification(logits, label, CLASSES)
  assert values['acc'] == pytest.approx(5 / 7)
  assert values['mean_class_acc'] == pytest.approx((3 / 4 + 1 / 2 + 1) / 3)
  assert values['f1_macro'] == pytest.approx((6 / 7 + 1 / 2 + 1) / 3)
  assert values['recall/neutral'] == 0.75 and values['recall/sadness'] is None
  assert values['loss'] == pytest.approx(-(5 * np.log(0.7) + 2 * np.log(0.1)) / 7, rel=1e-5)
  np.testing.assert_array_equal(
    metrics.confusion_matrix(label, prediction, 4),
    [[3, 1, 0, 0], [0, 1, 0, 1], [0, 0, 1, 0], [0, 0, 0, 0]],
  )
