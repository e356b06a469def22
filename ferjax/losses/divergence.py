"""Divergences between label distributions, in nats."""

import jax
import jax.numpy as jnp
from jax import Array, lax

from ferjax.errors import InputError
from ferjax.losses import rows

TINY = 1e-7


def kl_divergence(target: Array, log_prediction: Array) -> Array:
  """KL(target || prediction).

  Args:
    target: f[..., C], a distribution; values below 1e-7 are raised to 1e-7 inside its logarithm.
    log_prediction: f[..., C], log-probabilities.

  Returns:
    f[...].

  Example:
    >>> import jax.numpy as jnp, numpy as np
    >>> target, prediction = jnp.array([1.0, 0.0, 0.0]), jnp.array([0.5, 0.25, 0.25])
    >>> print(np.asarray(kl_divergence(target, jnp.log(prediction))).round(4))
    0.6931
  """
  return (target * (jnp.log(jnp.maximum(target, TINY)) - log_prediction)).sum(-1)


def jensen_shannon(p: Array, q: Array) -> Array:
  """Jensen-Shannon divergence of distributions f[..., C] -> f[...], within 0..ln 2.

  Reference: LA-Net (Wu and Cui, ICCV 2023), equation 15.

  Example:
    >>> import jax.numpy as jnp, numpy as np
    >>> print(np.asarray(jensen_shannon(jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0]))).round(4))
    0.6931
  """
  log_mean = jnp.log(jnp.maximum((p + q) / 2, TINY))
  return (kl_divergence(p, log_mean) + kl_divergence(q, log_mean)) / 2


def distribution_divergence(
  logits: Array, distribution: Array, *, where: Array | None = None
) -> Array:
  """KL(distribution || softmax(logits)), for labels that are distributions over classes.

  Its gradient is that of the cross-entropy with the distribution; its least value is 0. Reference:
  Gao et al., "Deep Label Distribution Learning with Label Ambiguity", IEEE TIP 2017.

  Args:
    logits: f[b, C].
    distribution: f[b, C], rows that sum to 1; zeros count as 1e-7 inside their logarithm.
    where: bool[b], rows that count; the others give 0.

  Returns:
    f[b], nats.

  Raises:
    InputError: other shapes.

  Example:
    >>> import jax.numpy as jnp, numpy as np
    >>> logits = jnp.log(jnp.array([[0.25, 0.75]]))
    >>> print(np.asarray(distribution_divergence(logits, jnp.array([[0.5, 0.5]]))).round(4))
    [0.1438]
  """
  logits, distribution = rows.wide(logits), rows.wide(distribution)
  if logits.ndim != 2 or distribution.shape != logits.shape:
    raise InputError(
      f'a loss got distributions {list(distribution.shape)} for logits {list(logits.shape)}: give '
      'both as f32[b, C], a row for each face'
    )
  if where is not None:
    rows.check_where(where, len(logits))
    logits, distribution = (jnp.where(where[:, None], x, 0) for x in (logits, distribution))
  return rows.counted(kl_divergence(distribution, jax.nn.log_softmax(logits)), where)


def neighbour_guidance(
  logits: Array, neighbour_logits: Array, affinity: Array, *, where: Array | None = None
) -> Array:
  """sum_j a_ij KL(p_j || p_i). The neighbours' p_j have no gradient.

  Args:
    logits: f[b, C], of the examples.
    neighbour_logits: f[b, m, C], of their neighbours.
    affinity: f[b, m], a_ij within 0..1.
    where: bool[b], rows that count; the others give 0.

  Returns:
    f[b], nats.

  Reference: LDL-ALSG (Chen et al., CVPR 2020), equation 4.

  Example:
    >>> import jax.numpy as jnp, numpy as np
    >>> neighbours = jnp.log(jnp.array([[[0.5, 0.5], [0.25, 0.75]]]))
    >>> affinity = jnp.array([[0.5, 1.0]])
    >>> print(np.asarray(neighbour_guidance(neighbours[:, 1], neighbours, affinity)).round(4))
    [0.0719]
  """
  target = jax.nn.softmax(lax.stop_gradient(neighbour_logits))
  log_prediction = jax.nn.log_softmax(logits)[:, None]
  return rows.counted((affinity * kl_divergence(target, log_prediction)).sum(1), where)
