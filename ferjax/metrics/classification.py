"""Numbers from predictions, and over scikit-learn from embeddings.

Scikit-learn is imported where it is used, so that training starts without it.
"""

from collections.abc import Sequence

import numpy as np

from ferjax.losses.cross_entropy import cross_entropy


def confusion_matrix(label: np.ndarray, prediction: np.ndarray, num_classes: int) -> np.ndarray:
  """int[C, C]: how many rows of class i (row) were called class j (column)."""
  cell = label.astype(np.int64) * num_classes + prediction
  return np.bincount(cell, minlength=num_classes**2).reshape(num_classes, num_classes)


def per_class(label: np.ndarray, prediction: np.ndarray, num_classes: int) -> dict[str, np.ndarray]:
  """`rows` int[C], and `precision recall f1` f64[C], all three NaN for a class without rows; the
  precision of a class that has rows and is never predicted is 0."""
  confusion = confusion_matrix(label, prediction, num_classes)
  right, rows, said = np.diag(confusion), confusion.sum(1), confusion.sum(0)

  def ratio(a, b):
    return np.where(rows > 0, a / np.maximum(b, 1), np.nan)

  return {
    'rows': rows,
    'precision': ratio(right, said),
    'recall': ratio(right, rows),
    'f1': ratio(2 * right, rows + said),
  }


def classification(
  logits: np.ndarray, label: np.ndarray, classes: Sequence[str]
) -> dict[str, float | None]:
  """What is reported of a classifier.

  Args:
    logits: f32[n, C].
    label: int[n].
    classes: C class names.

  Returns:
    `loss` (mean cross-entropy, nats), `acc` (share of right rows), `mean_class_acc` (mean recall)
    and `f1_macro`, both over the classes that have rows, and `recall/<class>`, None without rows.
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
    `acc` (share of right rows), macro `precision` P and `recall` R, and the two numbers that are
    called F1: `f1_of_means` = 2PR / (P + R), and `f1_macro`, the mean of the classes' F1.
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
    right: bool[n], whether the prediction is right.
    label: int[n].
    group: int[n], such as yaw in degrees.
    num_classes: C.

  Returns:
    The groups int[G] in rising order, f64[C, G] (NaN where there is no row), rows int[C, G].
  """
  groups, place = np.unique(group, return_inverse=True)
  shape = (num_classes, len(groups))
  cell = np.ravel_multi_index((label, place), shape)
  rows = np.bincount(cell, minlength=num_classes * len(groups)).reshape(shape)
  hits = np.bincount(cell, right, minlength=num_classes * len(groups)).reshape(shape)
  return groups, np.where(rows > 0, hits / np.maximum(rows, 1), np.nan), rows
