"""Groups of embeddings: Gaussian mixtures by EM, their medoids, and sub-classes of classes.

All of it is on the host, in float64 and on one thread, so that the same embeddings always give the
same groups. Embeddings that differ in the last bits, as those of other numbers of devices do, may
put rows on the border of two groups into the other one.
"""

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits


def gaussian_mixture(embedding: np.ndarray, components: int, seed: int) -> np.ndarray:
  """The component of each row in a mixture of diagonal Gaussians, fitted by EM from k-means.

  Args:
    embedding: f[n, d].
    components: At least 1; there are no more of them than different rows.
    seed: Of the three starts, of which the likeliest mixture is kept.

  Returns:
    int[n], 0, 1, ... in the order of the components' first rows, since starts that find the same
    mixture number it differently; there are fewer than `components` where some are without rows.
  """
  z = embedding.astype(np.float64)
  components = min(components, len(np.unique(z, axis=0)))
  if components == 1:
    return np.zeros(len(z), int)
  z = (z - z.mean(0)) / z.std()  # the floor of the variances is absolute
  mixture = GaussianMixture(
    components, covariance_type='diag', max_iter=300, n_init=3, random_state=seed
  )
  with threadpool_limits(1), warnings.catch_warnings():  # threads would add up in any order
    warnings.simplefilter('ignore', ConvergenceWarning)
    found = mixture.fit_predict(z)
  _, first, place = np.unique(found, return_index=True, return_inverse=True)
  return np.argsort(np.argsort(first))[place]


def means(embedding: np.ndarray, group: np.ndarray, groups: int) -> tuple[np.ndarray, np.ndarray]:
  """Mean embeddings f[groups, d] of the groups int[n], zeros for one without rows, and the numbers
  of their rows i32[groups]."""
  rows = np.bincount(group, minlength=groups)
  sums = np.zeros((groups, embedding.shape[1]))
  np.add.at(sums, group, embedding)
  return (sums / np.maximum(rows, 1)[:, None]).astype(embedding.dtype), rows.astype(np.int32)


def medoids(embedding: np.ndarray, group: np.ndarray) -> dict[int, int]:
  """{group: its medoid}, the row nearest the group's mean; largest group first."""
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
  """int[n]: of the sub-classes of each row's class the likeliest, 0..L-1, by the log-posterior
  f[n, C * L] of all."""
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
  """Splits every class by a mixture of its own (deep Gaussian mixture sub-spaces, algorithm 2).

  Args:
    embedding: f[n, d].
    label: int[n].
    level: Components of a class, 1..slots.
    slots: Numbers that each class has for its sub-classes.
    component_rows: A class has no more components than it has this many rows.
    least_rows: A class with fewer rows stays whole.
    seed: Of the mixtures.

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
