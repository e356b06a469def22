"""Losses of pairs of embeddings."""

import jax.numpy as jnp
from jax import Array

from ferjax.errors import InputError
from ferjax.losses import rows
from ferjax.losses.triplet import squared_distances


def contrastive_pair(
  embedding: Array, label: Array, *, margin: float = 1.0, where: Array | None = None
) -> Array:
  """Draws pairs of a class together, and pushes other pairs apart up to a margin.

  For each row, it is the mean over all other rows: of D^2 / 2 if their label is the same, else of
  max(0, m - D)^2 / 2, with the Euclidean distance D. Reference: Hadsell et al., "Dimensionality
  Reduction by Learning an Invariant Mapping", CVPR 2006.

  Args:
    embedding: f[b, d].
    label: i32[b].
    margin: m, above 0.
    where: bool[b], rows that count; the others give 0 and form no pairs.

  Returns:
    f[b]; 0 for a single row. A pair of equal embeddings has no gradient.

  Raises:
    InputError: `margin` is not above 0, or a shape or type is wrong.

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
