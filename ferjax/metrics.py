"""Numbers from predictions, over scikit-learn."""

from collections.abc import Sequence

import numpy as np
from sklearn import metrics as sklearn_metrics

from ferjax.losses.cross_entropy import cross_entropy


def confusion_matrix(label: np.ndarray, prediction: np.ndarray, num_classes: int) -> np.ndarray:
  """int[C, C]: how many rows of class i (row) were called class j (column)."""
  return sklearn_metrics.confusion_matrix(label, prediction, labels=np.arange(num_classes))


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
  confusion = confusion_matrix(label, prediction, len(classes))
  rows = confusion.sum(1)
  present = np.flatnonzero(rows)
  recall = np.diag(confusion)[present] / rows[present]
  f1 = sklearn_metrics.f1_score(
    label, prediction, labels=present, average='macro', zero_division=0.0
  )
  by_class = dict.fromkeys(classes)
  by_class |= {classes[i]: float(value) for i, value in zip(present, recall, strict=True)}
  return {
    'loss': float(np.mean(cross_entropy(np.asarray(logits, np.float32), label))),
    'acc': float(np.mean(prediction == label)),
    'mean_class_acc': float(recall.mean()),
    'f1_macro': float(f1),
    **{f'recall/{name}': value for name, value in by_class.items()},
  }
