"""Softmax cross-entropy, and losses of one true class that are based on it."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
from jax import Array

from ferjax.errors import InputError
from ferjax.losses import rows


def log_likelihood(logits: Array, label: Array) -> Array:
  """log p_y: f[b, C], i32[b] -> f[b], the log-probability of each row's class, at most 0.

  It is exact for logits of any size. `optax.softmax_cross_entropy_with_integer_labels` subtracts
  the logit of the class from the normaliser, and its rounding error is relative to their size.
  """
  log_probabilities = jax.nn.log_softmax(logits)
  return jnp.take_along_axis(log_probabilities, label[:, None], axis=-1)[:, 0]


def cross_entropy(logits: Array, label: Array, *, where: Array | None = None) -> Array:
  """Cross-entropy of integer labels, -log p_y with p = softmax(logits), in nats.

  Args:
    logits: f[b, C], unnormalised.
    label: i32[b].
    where: bool[b], rows that count; the others give 0.

  Returns:
    f[b], float64 for float64 and float32 for any narrower float, as all losses here.

  Raises:
    InputError: other shapes or types.

  Example:
    >>> import jax.numpy as jnp, numpy as np
    >>> logits = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]))
    >>> print(np.asarray(cross_entropy(logits, jnp.array([0, 1]))).round(4))
    [0.6931 2.3026]
  """
  logits, label = rows.take(logits, label, where)
  return rows.counted(-log_likelihood(logits, label), where)


def label_smoothing(
  logits: Array, label: Array, *, smoothing: float = 0.1, where: Array | None = None
) -> Array:
  """Cross-entropy with a label that is partly spread over all classes (from optax).

  -(1 - epsilon) log p_y - epsilon / C sum_c log p_c. Reference: Szegedy et al., "Rethinking the
  Inception Architecture for Computer Vision", CVPR 2016.

  Args:
    logits: f[b, C].
    label: i32[b].
    smoothing: epsilon, 0..1.
    where: bool[b], rows that count; the others give 0.

  Returns:
    f[b], nats; its least value is the entropy of the smoothed label, not 0.

  Raises:
    InputError: `smoothing` is out of range, or a shape or type is wrong.

  Example:
    >>> import jax.numpy as jnp, numpy as np
    >>> logits = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]))
    >>> print(np.asarray(label_smoothing(logits, jnp.array([0, 2]), smoothing=0.3)).round(4))
    [0.8318 0.639 ]
  """
  if not 0 <= smoothing <= 1:
    raise InputError(f'label smoothing of {smoothing}: it must be within 0..1')
  logits, label = rows.take(logits, label, where)
  truth = jax.nn.one_hot(label, logits.shape[1], dtype=logits.dtype)
  losses = optax.softmax_cross_entropy(logits, optax.smooth_labels(truth, smoothing))
  return rows.counted(losses, where)


def focal(
  logits: Array,
  label: Array,
  *,
  gamma: float = 2.0,
  class_weights: Sequence[float] | None = None,
  where: Array | None = None,
) -> Array:
  """Cross-entropy with less weight on rows that are already classified well.

  -a_y (1 - p_y)^gamma log p_y. The paper's loss is for two classes with a sigmoid
  (`optax.sigmoid_focal_loss`); this one is for C classes with a softmax. Reference: Lin et al.,
  "Focal Loss for Dense Object Detection", ICCV 2017.

  Args:
    logits: f[b, C].
    label: i32[b].
    gamma: At least 0; with 0, the loss is cross-entropy.
    class_weights: a, C numbers; None for 1.
    where: bool[b], rows that count; the others give 0.

  Returns:
    f[b], nats.

  Raises:
    InputError: `gamma` is below 0, or the number of weights, a shape or a type is wrong.

  Example:
    >>> import jax.numpy as jnp, numpy as np
    >>> logits = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]))
    >>> print(np.asarray(focal(logits, jnp.array([0, 2]))).round(4))
    [0.1733 0.0089]
  """
  if gamma < 0:
    raise InputError(f'gamma={gamma} of the focal loss: it must be at least 0')
  logits, label = rows.take(logits, label, where)
  log_p = log_likelihood(logits, label)
  rest = -jnp.expm1(log_p)
  above = rest > 0
  weight = jnp.where(above, jnp.where(above, rest, 1) ** gamma, 0.0**gamma)
  if class_weights is not None:
    if len(class_weights) != logits.shape[1]:
      raise InputError(
        f'the focal loss got {len(class_weights)} class_weights for {logits.shape[1]} classes: '
        'give one for each class'
      )
    weight *= jnp.asarray(class_weights, logits.dtype)[label]
  return rows.counted(-weight * log_p, where)
