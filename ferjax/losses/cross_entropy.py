"""Softmax cross-entropy."""

import jax
import jax.numpy as jnp
from jax import Array


def cross_entropy(logits: Array, label: Array) -> Array:
  """Cross-entropy of integer labels, example by example, in nats.

  Args:
    logits: f32[b, C], unnormalised.
    label: i32[b].

  Returns:
    f32[b], -log softmax(logits)[label].
  """
  log_probabilities = jax.nn.log_softmax(logits)
  return -jnp.take_along_axis(log_probabilities, label[:, None], axis=-1)[:, 0]
