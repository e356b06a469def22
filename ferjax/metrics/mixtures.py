"""Groups of embeddings: Gaussian mixtures fitted by EM, their medoids, and sub-classes of classes.

All functions run on the host, in float64 and on one thread, so the same embeddings always give the
same groups. Embeddings computed on another number of devices may differ in the last bits; rows on
the border of two groups may then change the group.
"""

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits


def gaussian_mixture(embedding: np.ndarray, components: int, seed: int) -> np.ndarray:
  """Fits a mixture of diagonal Gaussians by EM, from k-means, and assigns the rows to components.

  Args:
    embedding: f[n, d].
    components: Number of components, at least 1; limited to the number of different rows.
    seed: Seed of the three starts. The mixture with the highest likelihood is kept.

  Returns:
    int[n], the component of each row. Components are numbered 0, 1, ... in the order of their first
    rows, because equal mixtures from different starts number them differently. There are fewer than
    `components` if some have no rows.
  """
  z = embedding.astype(np.float64)
  components = min(components, len(np.unique(z, axis=0)))
  if components == 1:
    return np.zeros(len(z), int)
  z = (z - z.mean(0)) / z.std()  # the lower limit of the variances does not scale with the data
  mixture = GaussianMixture(
    components, covariance_type='diag', max_iter=300, n_init=3, random_state=seed
  )
  with threadpool_limits(1), warnings.catch_warnings():  # several threads add in varying order
    warnings.simplefilter('ignore', ConvergenceWarning)
    found = mixture.fit_predict(z)
  _, first, place = np.unique(found, return_index=True, return_inverse=True)
  return np.argsort(np.argsort(first))[place]


def means(embedding: np.ndarray, group: np.ndarray, groups: int) -> tuple[np.ndarray, np.ndarray]:
  """Means of groups of embeddings.

  Args:
    embedding: f[n, d].
    group: int[n].
    groups: Number of groups G.

  Returns:
    The mean embeddings f[G, d], zeros for a group without rows, and the numbers of rows i32[G].
  """
  rows = np.bincount(group, minlength=groups)
  sums = np.zeros((groups, embedding.shape[1]))
  np.add.at(sums, group, embedding)
  return (sums / np.maximum(rows, 1)[:, None]).astype(embedding.dtype), rows.astype(np.int32)


def medoids(embedding: np.ndarray, group: np.ndarray) -> dict[int, int]:
  """{group: its medoid}, the row nearest to the mean of the group; the largest group comes
  first."""
  found = {}
  names, counts = np.unique(group, return_counts=True)
  for name in names[np.argsort(-counts, kind='stable')]:
    rows = np.flatnonzero(group == name)
    z = embedding[rows].astype(np.float64)
    found[int(name)] = int(rows[np.square(z - z.mean(0)).sum(1).argmin()])
  return found


def likeliest_subclass(
  log_posterior: np.ndarray, label: np.ndarray, num_classes: int
) -> np.ndarray:
  """int[n]: the likeliest sub-class, 0..L-1, among those of each row's class.

  Args:
    log_posterior: f[n, C * L], of all sub-classes of all classes.
    label: int[n].
    num_classes: C.
  """
  of_class = log_posterior.reshape(len(label), num_classes, -1)
  return of_class[np.arange(len(label)), label].argmax(-1)


def subclasses(
  embedding: np.ndarray,
  label: np.ndarray,
  level: int,
  *,
  slots: int,
  component_rows: int,
  least_rows: int,
  seed: tuple[int, ...],
) -> np.ndarray:
  """Splits every class by its own mixture (deep Gaussian mixture sub-spaces, algorithm 2).

  Args:
    embedding: f[n, d].
    label: int[n].
    level: Components of a class, 1..slots.
    slots: Number of sub-class ids that are reserved for each class.
    component_rows: A class has at most one component for every `component_rows` of its rows.
    least_rows: A class with fewer rows is not split.
    seed: Seed of the mixtures.

  Returns:
    i32[n]: label * slots + component.
  """
  found = label.astype(np.int32) * slots
  for name in np.unique(label):
    rows = np.flatnonzero(label == name)
    components = min(level, len(rows) // component_rows)
    if components > 1 and len(rows) >= least_rows:
      state = np.random.SeedSequence((*seed, int(name))).generate_state(1)[0]
      found[rows] += gaussian_mixture(embedding[rows], components, int(state)).astype(np.int32)
  return found
