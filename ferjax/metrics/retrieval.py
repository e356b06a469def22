"""Neighbours and clusters of embeddings."""

from collections.abc import Sequence

import numpy as np

RETRIEVED = (1, 2, 4, 8, 16, 32)  # K of Recall@K and Acc@K


def nearest_neighbours(stored: np.ndarray, query: np.ndarray | None, count: int) -> np.ndarray:
  """The nearest rows by Euclidean distance, nearest first.

  Args:
    stored: f[m, d].
    query: f[n, d]; None looks for the stored rows' neighbours among the others.
    count: How many; as many as there are where they are fewer.

  Returns:
    int[n, min(count, m)], or int[m, min(count, m - 1)] without a query.
  """
  from sklearn import neighbors

  count = min(count, len(stored) - (query is None))
  if count < 1:
    return np.zeros((len(stored if query is None else query), 0), int)
  found = neighbors.NearestNeighbors(n_neighbors=count, algorithm='brute').fit(stored)
  return found.kneighbors(query, return_distance=False)


def vote(neighbour_label: np.ndarray, num_classes: int) -> np.ndarray:
  """int[n]: the most frequent of each row's labels int[n, k], the lowest where two are."""
  return (neighbour_label[..., None] == np.arange(num_classes)).sum(1).argmax(-1)


def nearest_mean(embedding: np.ndarray, label: np.ndarray, query: np.ndarray) -> np.ndarray:
  """int[n]: of each query f[n, d], the class whose mean of embeddings f[m, d] is nearest."""
  present = np.unique(label)
  means = np.stack([embedding[label == name].mean(0) for name in present])
  return present[nearest_neighbours(means, query, 1)[:, 0]]


def retrieval(
  embedding: np.ndarray, label: np.ndarray, counts: Sequence[int] = RETRIEVED
) -> dict[str, float]:
  """Every row in turn searches the others (SGM, 2022, figure 3).

  Args:
    embedding: f[n, d].
    label: int[n].
    counts: K; those above n - 1 are left out.

  Returns:
    `recall@K`, the share of rows that find their class among the K nearest, and `acc@K`, the mean
    share of their class among them.
  """
  found = nearest_neighbours(embedding, None, max(counts))
  same = label[found] == label[:, None]
  counts = [k for k in counts if k <= same.shape[1]]
  values = {f'recall@{k}': float(same[:, :k].any(1).mean()) for k in counts}
  return values | {f'acc@{k}': float(same[:, :k].mean()) for k in counts}


def clustering(embedding: np.ndarray, label: np.ndarray, seed: int = 0) -> dict[str, float]:
  """How k-means, with as many clusters as there are classes, finds the classes.

  Args:
    embedding: f[n, d].
    label: int[n].
    seed: Of the ten starts.

  Returns:
    `nmi` (normalised mutual information, over the arithmetic mean of the entropies) and
    `pairwise_f1` (of "same cluster" as a prediction of "same class", over all pairs of rows).
  """
  from sklearn import cluster
  from sklearn import metrics as sklearn_metrics

  clusters = min(len(np.unique(label)), len(np.unique(embedding, axis=0)))
  found = cluster.KMeans(clusters, n_init=10, random_state=seed).fit_predict(embedding)
  pairs = sklearn_metrics.pair_confusion_matrix(label, found)
  both = 2 * pairs[1, 1]
  return {
    'nmi': float(sklearn_metrics.normalized_mutual_info_score(label, found)),
    'pairwise_f1': float(both / max(both + pairs[0, 1] + pairs[1, 0], 1)),
  }


def silhouette(embedding: np.ndarray, group: np.ndarray) -> float | None:
  """Mean silhouette -1..1 of the groups, by Euclidean distance; None where it is not defined.

  It is above 0 where rows lie nearer to their own group than to the nearest other one. Rows that
  are alone in their group do not count. Reference: Rousseeuw, "Silhouettes: a graphical aid to the
  interpretation and validation of cluster analysis", 1987.
  """
  from sklearn import metrics as sklearn_metrics

  _, place, count = np.unique(group, return_inverse=True, return_counts=True)
  kept = count[place] > 1
  if (count > 1).sum() < 2:
    return None
  return float(sklearn_metrics.silhouette_score(embedding[kept], place[kept]))


def silhouette_within(embedding: np.ndarray, group: np.ndarray, label: np.ndarray) -> float | None:
  """Mean over the classes of `silhouette` of the groups among the rows of one class: for subjects,
  how strongly identity clusters within an expression. None where it is defined in no class."""
  found = [silhouette(embedding[label == name], group[label == name]) for name in np.unique(label)]
  found = [value for value in found if value is not None]
  return float(np.mean(found)) if found else None
