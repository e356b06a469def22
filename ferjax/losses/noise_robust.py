"""Losses for integer labels that are partly wrong."""

import jax.numpy as jnp
from jax import Array

from ferjax.errors import InputError
from ferjax.losses import rows
from ferjax.losses.cross_entropy import log_likelihood


def generalised_cross_entropy(
  logits: Array, label: Array, *, q: float = 0.7, where: Array | None = None
) -> Array:
  """(1 - p_y^q) / q: cross-entropy as q goes to 0, half the L1 distance to the one-hot label at 1.

  It is at most 1 / q. A row that the network assigns to another class has almost no gradient, so
  start from a trained network or with a small q. This is not the paper's truncated form. Reference:
  Zhang and Sabuncu, "Generalized Cross Entropy Loss for Training Deep Neural Networks with Noisy
  Labels", NeurIPS 2018.

  Args:
    logits: f[b, C].
    label: i32[b].
    q: Above 0, at most 1.
    where: bool[b], rows that count; the others give 0.

  Returns:
    f[b], within 0..1/q.

  Raises:
    InputError: `q` is out of range, or a shape or type is wrong.

  Example:
    >>> import jax.numpy as jnp, numpy as np
    >>> logits = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]))
    >>> print(np.asarray(generalised_cross_entropy(logits, jnp.array([0, 1]), q=0.5)).round(4))
    [0.5858 1.3675]
  """
  if not 0 < q <= 1:
    raise InputError(f'q={q} of generalised cross-entropy: it must be above 0 and at most 1')
  logits, label = rows.take(logits, label, where)
  return rows.counted(-jnp.expm1(q * log_likelihood(logits, label)) / q, where)


def symmetric_cross_entropy(
  logits: Array,
  label: Array,
  *,
  alpha: float = 0.1,
  beta: float = 1.0,
  log_zero: float = -4.0,
  where: Array | None = None,
) -> Array:
  """Cross-entropy plus reverse cross-entropy, in which label and prediction are swapped.

  alpha (-log p_y) + beta (-A (1 - p_y)): in the reverse cross-entropy -sum_c p_c log y_c, log 0 is
  replaced by A. Reference: Wang et al., "Symmetric Cross Entropy for Robust Learning with Noisy
  Labels", ICCV 2019. The defaults of alpha and beta are those of the authors' code for CIFAR-10;
  there A is log 1e-4 = -9.2, and -4 is ours.

  Args:
    logits: f[b, C].
    label: i32[b].
    alpha, beta: Weights of the two parts, at least 0.
    log_zero: A, below 0.
    where: bool[b], rows that count; the others give 0.

  Returns:
    f[b], nats.

  Raises:
    InputError: a number out of range, or other shapes or types.

  Example:
    >>> import jax.numpy as jnp, numpy as np
    >>> logits = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]))
    >>> print(np.asarray(symmetric_cross_entropy(logits, jnp.array([0, 1]))).round(4))
    [2.0693 3.8303]
  """
  if alpha < 0 or beta < 0 or log_zero >= 0:
    raise InputError(
      f'symmetric cross-entropy: alpha={alpha} and beta={beta} must be at least 0, '
      f'log_zero={log_zero} below 0'
    )
  logits, label = rows.take(logits, label, where)
  log_p = log_likelihood(logits, label)
  reverse = log_zero * jnp.expm1(log_p)
  return rows.counted(-alpha * log_p + beta * reverse, where)
