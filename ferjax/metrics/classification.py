"""Metrics of class predictions.

Scikit-learn is imported where it is used, so that training starts without it.
"""

from collections.abc import Sequence

import numpy as np

from ferjax.losses.cross_entropy import cross_entropy


def confusion_matrix(label: np.ndarray, prediction: np.ndarray, num_classes: int) -> np.ndarray:
  """int[C, C]: the number of rows of class i (row) that were predicted as class j (column)."""
  cell = label.astype(np.int64) * num_classes + prediction
  return np.bincount(cell, minlength=num_classes**2).reshape(num_classes, num_classes)


def per_class(label: np.ndarray, prediction: np.ndarray, num_classes: int) -> dict[str, np.ndarray]:
  """Counts and scores of each class.

  Returns:
    `rows` int[C], and `precision`, `recall` and `f1` f64[C]. All three are NaN for a class without
    rows. The precision of a class that has rows but is never predicted is 0.
  """
  confusion = confusion_matrix(label, prediction, num_classes)
  right, rows, predicted = np.diag(confusion), confusion.sum(1), confusion.sum(0)

  def ratio(a, b):
    return np.where(rows > 0, a / np.maximum(b, 1), np.nan)

  return {
    'rows': rows,
    'precision': ratio(right, predicted),
    'recall': ratio(right, rows),
    'f1': ratio(2 * right, rows + predicted),
  }


def classification(
  logits: np.ndarray, label: np.ndarray, classes: Sequence[str]
) -> dict[str, float | None]:
  """The metrics that are reported for a classifier.

  Args:
    logits: f32[n, C].
    label: int[n].
    classes: The C class names.

  Returns:
    `loss` (mean cross-entropy, nats), `acc` (share of correct rows), `mean_class_acc` (mean recall)
    and `f1_macro`, the latter two over the classes that have rows, and `recall/<class>`, None for a
    class without rows.
  """
  prediction = logits.argmax(-1)
  found = per_class(label, prediction, len(classes))
  return {
    'loss': float(np.mean(cross_entropy(np.asarray(logits, np.float32), label))),
    'acc': float(np.mean(prediction == label)),
    'mean_class_acc': float(np.nanmean(found['recall'])),
    'f1_macro': float(np.nanmean(found['f1'])),
    **{
      f'recall/{name}': float(value) if rows else None
      for name, value, rows in zip(classes, found['recall'], found['rows'], strict=True)
    },
  }


def macro(label: np.ndarray, prediction: np.ndarray, num_classes: int) -> dict[str, float]:
  """Means over the classes that have rows.

  Returns:
    `acc` (share of correct rows), macro `precision` P and `recall` R, and two scores that papers
    call F1: `f1_of_means` = 2PR / (P + R), and `f1_macro`, the mean of the F1 of the classes.
  """
  means = {k: float(np.nanmean(v)) for k, v in per_class(label, prediction, num_classes).items()}
  p, r = means['precision'], means['recall']
  return {
    'acc': float(np.mean(prediction == label)),
    'precision': p,
    'recall': r,
    'f1_of_means': 2 * p * r / (p + r) if p + r else 0.0,
    'f1_macro': means['f1'],
  }


def accuracy_by_group(
  right: np.ndarray, label: np.ndarray, group: np.ndarray, num_classes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Accuracy of every class in every group (DML-Net, tables 3 and 6).

  Args:
    right: bool[n], whether the prediction is correct.
    label: int[n].
    group: int[n], such as the yaw in degrees.
    num_classes: C.

  Returns:
    The groups int[G] in rising order, their accuracy f64[C, G] (NaN where there are no rows), and
    the number of rows int[C, G].
  """
  groups, place = np.unique(group, return_inverse=True)
  shape = (num_classes, len(groups))
  cell = np.ravel_multi_index((label, place), shape)
  rows = np.bincount(cell, minlength=num_classes * len(groups)).reshape(shape)
  hits = np.bincount(cell, right, minlength=num_classes * len(groups)).reshape(shape)
  return groups, np.where(rows > 0, hits / np.maximum(rows, 1), np.nan), rows
