"""The structured Gaussian manifold (SGM) loss: every class is a Gaussian of the same width.

Reference: Marrero-Fernandez et al., "Deep Metric Structured Learning for Facial Expression
Recognition", 2022, equations 1 to 4.
"""

import jax
import jax.numpy as jnp
from jax import Array

ABSENT = -1e30  # a log-density whose exponential is 0


def class_means(embedding: Array, label: Array, num_classes: int) -> tuple[Array, Array]:
  """The mean embedding of every class of a batch.

  Args:
    embedding: f[B, d].
    label: i32[B].
    num_classes: C.

  Returns:
    means f[C, d] (zeros for a class without rows), and rows i32[C].
  """
  member = label[:, None] == jnp.arange(num_classes)
  rows = member.sum(0)
  sums = jnp.matmul(member.astype(embedding.dtype).T, embedding, precision='highest')
  return sums / jnp.maximum(rows, 1)[:, None], rows


def leave_one_out_means(embedding: Array, label: Array, means: Array, rows: Array) -> Array:
  """Means as each row sees them: its own class's is of the other rows (ours, not the paper's).

  With its own part in it, a row lies nearer to its class's mean than to others' whatever it shows,
  by 2 d s^2 / k for k rows a class of variance s^2 along d axes: a network can lower the loss by
  spreading embeddings that say nothing of the class.

  Args:
    embedding: f[B, d].
    label: i32[B].
    means, rows: f[C, d] and i32[C], see `class_means`.

  Returns:
    f[B, C, d]; the mean of a class with a single row stays.
  """
  own = means[label]
  others = own + (own - embedding) / jnp.maximum(rows[label] - 1, 1)[:, None]
  is_own = label[:, None] == jnp.arange(len(means))
  return jnp.where(is_own[:, :, None], others[:, None], means)


def log_posterior(embedding: Array, means: Array, present: Array, sigma: float) -> Array:
  """log pi_ic: of the classes that are there, with equal priors (equations 1 to 3).

  Distances enter as their differences from the nearest mean's, which stay exact where all means are
  far and float32 would round the distances themselves to the same number.

  Args:
    embedding: f[B, d].
    means: f[C, d], or f[B, C, d] where each row has its own.
    present: bool[C], which classes count.
    sigma: Standard deviation of every class along every axis.

  Returns:
    f[B, C]: at most 0, about -1e30 for absent classes.
  """
  means = jnp.broadcast_to(means, (embedding.shape[0], *means.shape[-2:]))
  distance = jnp.square(embedding[:, None] - means).sum(-1)
  place = jnp.where(present, distance, jnp.inf).argmin(-1)
  nearest = jnp.take_along_axis(means, place[:, None, None], 1)
  apart = means - nearest
  farther = (apart * (apart - 2 * (embedding[:, None] - nearest))).sum(-1)
  return jax.nn.log_softmax(jnp.where(present, -farther / (2 * sigma**2), ABSENT))


def structured_gaussian(log_posterior: Array, label: Array) -> Array:
  """sum over c of (pi_ic - y_ic)^2 (equation 4).

  It is at most 2, and a row whose class has a posterior near 0 has next to no gradient.

  Args:
    log_posterior: f[B, C].
    label: i32[B].

  Returns:
    f[B].
  """
  truth = jax.nn.one_hot(label, log_posterior.shape[1], dtype=log_posterior.dtype)
  return jnp.square(jnp.exp(log_posterior) - truth).sum(-1)


def of_classes(log_posterior: Array, num_classes: int) -> Array:
  """f[b, C L] of sub-classes, those of a class side by side -> f[b, C]: the log of their sums."""
  by_class = log_posterior.reshape(log_posterior.shape[0], num_classes, -1)
  return jax.nn.logsumexp(by_class, axis=-1)
