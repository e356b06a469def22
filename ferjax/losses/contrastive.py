"""Supervised contrast between two views of the same faces.

Reference: LA-Net (Wu and Cui, ICCV 2023), equations 8 to 13.
"""

import jax
import jax.numpy as jnp
from jax import Array

ABSENT = -1e30  # a similarity whose exponential is 0


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

  Returns:
    f[B].
  """
  similarity = query @ key.T / temperature
  positive = label[:, None] == label[None]
  is_negative = queue_filled & (label[:, None] != queue_label[None])
  negatives = jnp.where(is_negative, query @ queue_key.T / temperature, ABSENT)
  if in_batch_negatives:
    negatives = jnp.concatenate([negatives, jnp.where(positive, ABSENT, similarity)], 1)
  negative = jax.nn.logsumexp(negatives, axis=1, keepdims=True)
  losses = jnp.where(positive, jax.nn.softplus(negative - similarity), 0)
  return losses.sum(1) / positive.sum(1)
