"""Losses of pairs of embeddings."""

import jax.numpy as jnp
from jax import Array

from ferjax.errors import InputError
from ferjax.losses import rows
from ferjax.losses.triplet import squared_distances


def contrastive_pair(
  embedding: Array, label: Array, *, margin: float = 1.0, where: Array | None = None
) -> Array:
  """Pairs of a class come together, others are pushed until they are a margin apart.

  Of each row the mean over all other rows of D^2 / 2 where their label is the same, else of
  max(0, m - D)^2 / 2, with the Euclidean distance D. Reference: Hadsell et al., "Dimensionality
  Reduction by Learning an Invariant Mapping", CVPR 2006.

  Args:
    embedding: f[b, d].
    label: i32[b].
    margin: m, above 0.
    where: bool[b], rows that count; the others give 0 and make no pairs.

  Returns:
    f[b]; 0 where a row is alone. Two rows at the same place have no gradient between them.

  Raises:
    InputError: `margin` not above 0, or other shapes or types.

  Example:
    >>> import jax.numpy as jnp, numpy as np
    >>> embedding = jnp.array([[0.0, 0.0], [2.0, 0.0], [0.5, 0.0]])
    >>> print(np.asarray(contrastive_pair(embedding, jnp.array([0, 0, 1]))).round(4))
    [1.0625 1.     0.0625]
  """
  if margin <= 0:
    raise InputError(f'contrastive pairs with margin={margin}: it must be above 0')
  embedding, label = rows.take(embedding, label, where)
  same, other = rows.pairs(label, where)
  squares = jnp.maximum(squared_distances(embedding, where), 0)
  away = squares > 0
  distance = jnp.where(away, jnp.sqrt(jnp.where(away, squares, 1)), 0)
  losses = jnp.where(same, squares, 0) + jnp.where(other, jnp.maximum(margin - distance, 0) ** 2, 0)
  count = (same | other).sum(1)
  return losses.sum(1) / (2 * jnp.maximum(count, 1))
