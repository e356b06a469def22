"""Divergences between label distributions, in nats."""

import jax
import jax.numpy as jnp
from jax import Array, lax

TINY = 1e-7


def kl_divergence(target: Array, log_prediction: Array) -> Array:
  """KL(target || prediction).

  Args:
    target: f[..., C], a distribution; below 1e-7 it is raised to that inside its logarithm.
    log_prediction: f[..., C], log-probabilities.

  Returns:
    f[...].
  """
  return (target * (jnp.log(jnp.maximum(target, TINY)) - log_prediction)).sum(-1)


def jensen_shannon(p: Array, q: Array) -> Array:
  """Jensen-Shannon divergence of distributions f[..., C] -> f[...], within 0..ln 2.

  Reference: LA-Net (Wu and Cui, ICCV 2023), equation 15.
  """
  log_mean = jnp.log(jnp.maximum((p + q) / 2, TINY))
  return (kl_divergence(p, log_mean) + kl_divergence(q, log_mean)) / 2


def neighbour_guidance(logits: Array, neighbour_logits: Array, affinity: Array) -> Array:
  """sum_j a_ij KL(p_j || p_i), in which the neighbours' p_j carry no gradient.

  Args:
    logits: f[b, C], of the examples.
    neighbour_logits: f[b, m, C], of their neighbours.
    affinity: f[b, m], a_ij within 0..1.

  Returns:
    f[b], nats.

  Reference: LDL-ALSG (Chen et al., CVPR 2020), equation 4.
  """
  target = jax.nn.softmax(lax.stop_gradient(neighbour_logits))
  log_prediction = jax.nn.log_softmax(logits)[:, None]
  return (affinity * kl_divergence(target, log_prediction)).sum(1)
