"""LA-Net's expression-landmark contrastive loss."""

import jax
import jax.numpy as jnp
from jax import Array

from ferjax.losses import rows
from ferjax.losses.contrastive import ABSENT


def pseudo_labels(distribution: Array, index: Array, threshold: float) -> Array:
  """The likeliest class of each example, or where it is too unlikely a label of its own.

  Args:
    distribution: f[B, C].
    index: i32[B], rows of the data set.
    threshold: The least probability of a class.

  Returns:
    i32[B]: a class, or -(index + 1).
  """
  sure = distribution.max(-1) > threshold
  return jnp.where(sure, distribution.argmax(-1).astype(jnp.int32), -(index + 1))


def cross_view_contrast(
  query: Array,
  key: Array,
  label: Array,
  queue_key: Array,
  queue_label: Array,
  queue_filled: Array,
  temperature: float,
  in_batch_negatives: bool = False,
  *,
  where: Array | None = None,
) -> Array:
  """Pulls each query to the keys of its label and pushes it from those of others (equation 11).

  Mean over the positives j of -log(e_ij / (e_ij + sum of e_im over negatives m)), with
  e_ij = exp(query_i . key_j / temperature). Positives are the keys of the batch with the same
  label, its own among them; negatives the keys of the queue with another label.

  Args:
    query: f[B, e], of length 1.
    key: f[B, e], of length 1, from the other space.
    label: i32[B].
    queue_key: f[n, e].
    queue_label: i32[n].
    queue_filled: bool[n], which slots of the queue hold a key.
    temperature: Above 0.
    in_batch_negatives: Whether keys of the batch with another label are negatives too.
    where: bool[B], rows that count; the others give 0, and their keys are not looked at.

  Returns:
    f[B], nats.

  Example:
    >>> import jax.numpy as jnp, numpy as np
    >>> query, label = jnp.array([[1.0, 0.0]]), jnp.array([0])
    >>> queue, filled = jnp.array([[0.0, 1.0]]), jnp.array([True])
    >>> found = cross_view_contrast(query, query, label, queue, label + 1, filled, 1.0)
    >>> print(np.asarray(found).round(4))
    [0.3133]
  """
  similarity = query @ key.T / temperature
  positive = label[:, None] == label[None]
  if where is not None:
    similarity = jnp.where(where, similarity, ABSENT)
    positive &= where
  is_negative = queue_filled & (label[:, None] != queue_label[None])
  negatives = jnp.where(is_negative, query @ queue_key.T / temperature, ABSENT)
  if in_batch_negatives:
    negatives = jnp.concatenate([negatives, jnp.where(positive, ABSENT, similarity)], 1)
  negative = jax.nn.logsumexp(negatives, axis=1, keepdims=True)
  losses = jnp.where(positive, jax.nn.softplus(negative - similarity), 0)
  if where is None:
    return losses.sum(1) / positive.sum(1)
  return rows.counted(losses.sum(1) / jnp.maximum(positive.sum(1), 1), where)
