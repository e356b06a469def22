"""Supervised contrast: within a batch (SupCon), or between two views of the same faces.

The latter is from LA-Net (Wu and Cui, ICCV 2023), equations 8 to 13.
"""

import jax
import jax.numpy as jnp
from jax import Array

from ferjax.errors import InputError
from ferjax.losses import rows
from ferjax.ops.distances import unit_length

ABSENT = -1e30  # a similarity whose exponential is 0


def supervised_contrastive(
  embedding: Array, label: Array, *, temperature: float = 0.1, where: Array | None = None
) -> Array:
  """Draws each row to the other rows of its class, and away from the rows of other classes.

  The mean over the positives p of -log(exp(z_i . z_p / tau) / sum_{a != i} exp(z_i . z_a / tau)),
  where z are the embeddings of length 1. Reference: Khosla et al., "Supervised Contrastive
  Learning", NeurIPS 2020, equation 2 (the sum outside the logarithm).

  Args:
    embedding: f[b, d], of any length; this function scales it to length 1.
    label: i32[b].
    temperature: tau, above 0.
    where: bool[b], rows that count; the others give 0 and are neither positives nor negatives.

  Returns:
    f[b], nats; 0 for a row without another row of its class.

  Raises:
    InputError: `temperature` is not above 0, or a shape or type is wrong.

  Example:
    >>> import jax.numpy as jnp, numpy as np
    >>> embedding = jnp.array([[2.0, 0.0], [1.0, 0.0], [0.0, 3.0]])
    >>> loss = supervised_contrastive(embedding, jnp.array([0, 0, 1]), temperature=1.0)
    >>> print(np.asarray(loss).round(4))  # log(1 + exp(-1)) twice, and a row that has no positive
    [0.3133 0.3133 0.    ]
  """
  if temperature <= 0:
    raise InputError(f'supervised contrast at temperature={temperature}: it must be above 0')
  embedding, label = rows.take(embedding, label, where)
  unit = unit_length(embedding)
  positive, negative = rows.pairs(label, where)
  similarity = jnp.matmul(unit, unit.T, precision='highest') / temperature
  compared = jnp.where(positive | negative, similarity, ABSENT)
  losses = jax.nn.logsumexp(compared, axis=1, keepdims=True) - compared
  return jnp.where(positive, losses, 0).sum(1) / jnp.maximum(positive.sum(1), 1)
