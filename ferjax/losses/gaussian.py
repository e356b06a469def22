"""The structured Gaussian manifold (SGM) loss: every class is a Gaussian of the same width.

Reference: Marrero-Fernandez et al., "Deep Metric Structured Learning for Facial Expression
Recognition", 2022, equations 1 to 4.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax

from ferjax.errors import InputError
from ferjax.losses import rows as counting

ABSENT = -1e30  # a log-density whose exponential is 0


def class_means(
  embedding: Array, label: Array, num_classes: int, *, where: Array | None = None
) -> tuple[Array, Array]:
  """The mean embedding of every class of a batch.

  Args:
    embedding: f[B, d].
    label: i32[B].
    num_classes: C.
    where: bool[B], rows that count; None for all.

  Returns:
    means f[C, d] (zeros for a class without rows), and rows i32[C].
  """
  member = label[:, None] == jnp.arange(num_classes)
  if where is not None:
    member &= where[:, None]
  rows = member.sum(0)
  sums = jnp.matmul(member.astype(embedding.dtype).T, embedding, precision='highest')
  return sums / jnp.maximum(rows, 1)[:, None], rows


def leave_one_out_means(embedding: Array, label: Array, means: Array, rows: Array) -> Array:
  """The means for each row; that of its own class is over the other rows (ours, not the paper's).

  If a row is part of its class's mean, it is nearer to this mean than to the others even when the
  embedding does not depend on the class: by 2 d s^2 / k for k rows per class with variance s^2
  along d axes. A network could then lower the loss by spreading uninformative embeddings.

  Args:
    embedding: f[B, d].
    label: i32[B].
    means, rows: f[C, d] and i32[C], see `class_means`.

  Returns:
    f[B, C, d]; the mean of a class with a single row is unchanged.
  """
  own = means[label]
  others = own + (own - embedding) / jnp.maximum(rows[label] - 1, 1)[:, None]
  is_own = label[:, None] == jnp.arange(len(means))
  return jnp.where(is_own[:, :, None], others[:, None], means)


def log_posterior(embedding: Array, means: Array, present: Array, sigma: float) -> Array:
  """log pi_ic, the posterior over the present classes with equal priors (equations 1 to 3).

  The computation uses differences from the distance to the nearest mean. They stay exact if all
  means are far away, when float32 would round the distances to the same number.

  Args:
    embedding: f[B, d].
    means: f[C, d], or f[B, C, d] with own means for each row.
    present: bool[C], classes that count.
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

  It is at most 2. A row whose class has a posterior near 0 has almost no gradient.

  Args:
    log_posterior: f[B, C].
    label: i32[B].

  Returns:
    f[B].

  Example:
    >>> import jax.numpy as jnp, numpy as np
    >>> found = structured_gaussian(jnp.log(jnp.array([[0.75, 0.25]])), jnp.array([0]))
    >>> print(np.asarray(found).round(4))
    [0.125]
  """
  truth = jax.nn.one_hot(label, log_posterior.shape[1], dtype=log_posterior.dtype)
  return jnp.square(jnp.exp(log_posterior) - truth).sum(-1)


def gaussian_manifold(
  embedding: Array,
  label: Array,
  *,
  num_classes: int,
  sigma: float = 0.5,
  gradient_through_means: bool = True,
  leave_one_out: bool = False,
  where: Array | None = None,
) -> Array:
  """The SGM loss of a batch: `structured_gaussian` of the posterior from the batch's own means.

  Args:
    embedding: f[b, d].
    label: i32[b].
    num_classes: C.
    sigma: Standard deviation of every class along every axis, above 0.
    gradient_through_means: Whether gradients flow through the means.
    leave_one_out: See `leave_one_out_means`.
    where: bool[b], rows that count; the others give 0 and are in no mean.

  Returns:
    f[b], within 0..2; 0 if the batch has a single class.

  Raises:
    InputError: `sigma` is not above 0, or a shape or type is wrong.

  Example:
    >>> import jax.numpy as jnp, numpy as np
    >>> embedding, label = jnp.array([[0.0], [1.0], [3.0]]), jnp.array([0, 0, 1])
    >>> print(np.asarray(gaussian_manifold(embedding, label, num_classes=2, sigma=1.0)).round(4))
    [0.0003 0.0354 0.0035]
  """
  if sigma <= 0:
    raise InputError(
      f'the structured Gaussian manifold loss with sigma={sigma}: it must be above 0'
    )
  embedding, label = counting.take(embedding, label, where)
  means, rows = class_means(embedding, label, num_classes, where=where)
  if leave_one_out:
    means = leave_one_out_means(embedding, label, means, rows)
  if not gradient_through_means:
    means = lax.stop_gradient(means)
  found = log_posterior(embedding, means, rows > 0, sigma)
  return counting.counted(structured_gaussian(found, label), where)


def of_classes(log_posterior: Array, num_classes: int) -> Array:
  """Log-posteriors of classes f[b, C] from those of L sub-classes per class f[b, C L], which are in
  the order of the classes."""
  by_class = log_posterior.reshape(log_posterior.shape[0], num_classes, -1)
  return jax.nn.logsumexp(by_class, axis=-1)
