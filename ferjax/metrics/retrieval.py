"""Neighbours and clusters of embeddings."""

from collections.abc import Sequence

import numpy as np

RETRIEVED = (1, 2, 4, 8, 16, 32)  # K of Recall@K and Acc@K


def nearest_neighbours(stored: np.ndarray, query: np.ndarray | None, count: int) -> np.ndarray:
  """The nearest rows by Euclidean distance, nearest first.

  Args:
    stored: f[m, d].
    query: f[n, d]. If None, each stored row searches the other stored rows.
    count: Number of neighbours; limited to the rows that exist.

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
  """int[n]: the most frequent of each row's labels int[n, k]; the lowest label wins a tie."""
  return (neighbour_label[..., None] == np.arange(num_classes)).sum(1).argmax(-1)


def nearest_mean(embedding: np.ndarray, label: np.ndarray, query: np.ndarray) -> np.ndarray:
  """The class with the nearest mean embedding.

  Args:
    embedding: f[m, d].
    label: int[m].
    query: f[n, d].

  Returns:
    int[n].
  """
  present = np.unique(label)
  means = np.stack([embedding[label == name].mean(0) for name in present])
  return present[nearest_neighbours(means, query, 1)[:, 0]]


def retrieval(
  embedding: np.ndarray, label: np.ndarray, counts: Sequence[int] = RETRIEVED
) -> dict[str, float]:
  """Recall and accuracy where each row in turn searches the others (SGM, 2022, figure 3).

  Args:
    embedding: f[n, d].
    label: int[n].
    counts: The values of K; those above n - 1 are left out.

  Returns:
    `recall@K`, the share of rows with a row of their class among the K nearest, and `acc@K`, the
    mean share of rows of their class among the K nearest.
  """
  found = nearest_neighbours(embedding, None, max(counts))
  same = label[found] == label[:, None]
  counts = [k for k in counts if k <= same.shape[1]]
  values = {f'recall@{k}': float(same[:, :k].any(1).mean()) for k in counts}
  return values | {f'acc@{k}': float(same[:, :k].mean()) for k in counts}


def clustering(embedding: np.ndarray, label: np.ndarray, seed: int = 0) -> dict[str, float]:
  """How well k-means finds the classes, with one cluster for each class.

  Args:
    embedding: f[n, d].
    label: int[n].
    seed: Seed of the ten starts.

  Returns:
    `nmi` (mutual information, divided by the arithmetic mean of the entropies) and `pairwise_f1`
    (over all pairs of rows, "same cluster" as a prediction of "same class").
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
  """Mean silhouette of the groups by Euclidean distance, from -1 to 1; None if it is undefined.

  Positive values mean that rows are nearer to their own group than to the nearest other group.
  Groups of a single row do not count. It is undefined if fewer than two groups remain. Reference:
  Rousseeuw, "Silhouettes: a graphical aid to the interpretation and validation of cluster
  analysis", 1987.
  """
  from sklearn import metrics as sklearn_metrics

  _, place, count = np.unique(group, return_inverse=True, return_counts=True)
  kept = count[place] > 1
  if (count > 1).sum() < 2:
    return None
  return float(sklearn_metrics.silhouette_score(embedding[kept], place[kept]))


def silhouette_within(embedding: np.ndarray, group: np.ndarray, label: np.ndarray) -> float | None:
  """Mean over the classes of the `silhouette` of groups among the rows of one class.

  For subjects, it measures how strongly identities form clusters within an expression. Classes in
  which it is undefined do not count; None if it is undefined in all classes.
  """
  found = [silhouette(embedding[label == name], group[label == name]) for name in np.unique(label)]
  found = [value for value in found if value is not None]
  return float(np.mean(found)) if found else None
