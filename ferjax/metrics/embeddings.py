"""Metrics of embeddings: neighbours, clusters and silhouettes."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ferjax.metrics import classification, retrieval
from ferjax.metrics.predictions import Predictions

NEIGHBOURS = (1, 3, 5, 7, 11, 15, 21, 31, 51, 101)


USUAL = 11  # number of neighbours that classify a row


SILHOUETTE_ROWS = 3000  # the most rows, because the cost is quadratic


def embedding_of(predictions):
  embedding = predictions.outputs['embedding']
  return embedding.astype(np.promote_types(embedding.dtype, np.float32), copy=False)


def measure(
  predictions: Predictions, training: Predictions | None, num_classes: int
) -> dict[str, Any]:
  """How well the embeddings of a split separate the classes.

  Args:
    predictions: Those of the split.
    training: Those of the training rows, with the labels that the method was trained on; or None.
    num_classes: C.

  Returns:
    `retrieval.retrieval` and `retrieval.clustering`. With training rows also
    `classification.macro` of two classifications of the split, as `knn/...` (by the 11 nearest
    training rows) and `nearest_mean/...` (by the nearest mean of a training class), and
    `f1_by_neighbours`, {number of neighbours: macro F1}.
  """
  embedding, label = embedding_of(predictions), predictions.label
  values = retrieval.retrieval(embedding, label) | retrieval.clustering(embedding, label)
  if training is None:
    return values
  stored, stored_label = embedding_of(training), training.label
  found = retrieval.nearest_neighbours(stored, embedding, max(NEIGHBOURS))
  predicted = {
    'knn': retrieval.vote(stored_label[found[:, :USUAL]], num_classes),
    'nearest_mean': retrieval.nearest_mean(stored, stored_label, embedding),
  }
  for name, prediction in predicted.items():
    measured = classification.macro(label, prediction, num_classes)
    values |= {f'{name}/{key}': value for key, value in measured.items()}
  f1 = {}
  for count in (k for k in NEIGHBOURS if k <= found.shape[1]):
    prediction = retrieval.vote(stored_label[found[:, :count]], num_classes)
    f1[str(count)] = classification.macro(label, prediction, num_classes)['f1_macro']
  return values | {'f1_by_neighbours': f1}


def silhouettes(embedding: np.ndarray, table: Mapping[str, np.ndarray]) -> dict[str, float]:
  """Silhouettes of groups, from -1 to 1; see `retrieval.silhouette`.

  Args:
    embedding: f[n, d]; at most 3000 rows, drawn at random, are used.
    table: `label` int[n], and optionally `yaw_bin` and `subject` int[n].

  Returns:
    `silhouette/expression`, and if the columns exist `silhouette/pose` and
    `silhouette/subject_in_expression`. Undefined values are left out.
  """
  rows = drawn(len(embedding), SILHOUETTE_ROWS)
  embedding, table = embedding[rows], {name: column[rows] for name, column in table.items()}
  values = {'expression': retrieval.silhouette(embedding, table['label'])}
  if 'yaw_bin' in table:
    values['pose'] = retrieval.silhouette(embedding, table['yaw_bin'])
  if 'subject' in table:
    within = retrieval.silhouette_within(embedding, table['subject'], table['label'])
    values['subject_in_expression'] = within
  return {f'silhouette/{name}': value for name, value in values.items() if value is not None}


def drawn(rows: int, count: int) -> np.ndarray:
  """int[min(rows, count)]: rows drawn at random, in rising order. The draw is always the same."""
  return np.sort(np.random.default_rng(0).permutation(rows)[:count])
