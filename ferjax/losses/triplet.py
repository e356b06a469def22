"""Triplet losses over a whole batch, with the hardest or semi-hard triplets of label masks.

Distances are squared Euclidean unless `distances` is applied. An anchor (or pair) without a
positive or a negative does not count, and a batch without triplets has the loss 0.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax

from ferjax.errors import InputError
from ferjax.losses import rows

HINGES = {
  'relu': jax.nn.relu,
  'softplus': jax.nn.softplus,
  'none': lambda x: x,
}
REDUCTIONS = ('sum', 'mean')


def squared_distances(embedding: Array, where: Array | None = None) -> Array:
  """Squared Euclidean distances of all pairs (DML-Net, equation 1).

  They are computed from products of the embeddings minus their mean. Without this subtraction, the
  rounding error of the products grows with the distance of the embeddings from 0.

  Args:
    embedding: f[B, d].
    where: bool[B], rows that the mean is over; None for all.

  Returns:
    f[B, B].
  """
  count = len(embedding) if where is None else jnp.maximum(where.sum(), 1)
  mean = embedding.sum(0, where=None if where is None else where[:, None]) / count
  embedding = embedding - lax.stop_gradient(mean)
  products = jnp.matmul(embedding, embedding.T, precision='highest')
  squares = jnp.diagonal(products)
  return squares[:, None] + squares[None] - 2 * products


def distances(squares: Array) -> Array:
  """Euclidean distances f[B, B] of squared ones. Where embeddings are one, there is no gradient."""
  return jnp.sqrt(jnp.maximum(squares, 1e-12))


def class_masks(label: Array) -> tuple[Array, Array]:
  """Conventional triplets: positives have the anchor's label, negatives another.

  Args:
    label: i32[B].

  Returns:
    positive, negative: bool[B, B], a row for each anchor; no row is a positive of itself.
  """
  same = label[:, None] == label[None]
  return same & ~jnp.eye(len(label), dtype=bool), ~same


def nuisance_masks(label: Array, nuisance: Array) -> tuple[Array, Array]:
  """Triplets against a nuisance such as the pose or the subject (DML-Net, algorithm 1).

  Args:
    label: i32[B], expressions.
    nuisance: i32[B], a variable that the embedding shall not depend on; -1 if unknown.

  Returns:
    positive, negative: bool[B, B], a row for each anchor. Positives have the same label and another
    nuisance, negatives another label and the same nuisance. A row whose nuisance is unknown is
    neither.
  """
  same_label, same = (x[:, None] == x[None] for x in (label, nuisance))
  known = (nuisance >= 0)[:, None] & (nuisance >= 0)[None]
  return same_label & ~same & known, ~same_label & same & known


def batch_hard(
  distance: Array,
  positive: Array,
  negative: Array,
  margin: float,
  *,
  hinge: str = 'relu',
  reduction: str = 'mean',
  anchor: Array | None = None,
) -> Array:
  """Triplet loss with the farthest positive and the nearest negative of each anchor.

  The sum or mean over anchors of hinge(margin + D+ - D-): DML-Net, equations 2 to 5, which have no
  hinge. Reference: Hermans et al., "In Defense of the Triplet Loss for Person Re-Identification",
  2017.

  Args:
    distance: f[B, B].
    positive, negative: bool[B, B], a row for each anchor.
    margin: m.
    hinge: `relu`, `softplus` (a soft hinge) or `none`.
    reduction: `sum` or `mean`, over the anchors that have a positive and a negative.
    anchor: bool[B], rows that are anchors; None for all.

  Returns:
    f[].

  Raises:
    InputError: an unknown hinge or reduction.

  Example:
    >>> import jax.numpy as jnp
    >>> distance = squared_distances(jnp.array([[0.0], [1.0], [3.0]]))
    >>> masks = class_masks(jnp.array([0, 0, 1]))
    >>> print(batch_hard(distance, *masks, 4.0))  # relu(4 + 1 - 9) and relu(4 + 1 - 4)
    0.5
  """
  difference, valid = _hardest(distance, positive, negative)
  if anchor is not None:
    valid &= anchor
  return _reduce(difference, valid, margin, hinge, reduction)


def semi_hard(
  distance: Array,
  positive: Array,
  negative: Array,
  margin: float,
  *,
  hinge: str = 'relu',
  reduction: str = 'mean',
  anchor: Array | None = None,
) -> Array:
  """Triplet loss with the nearest negative that is farther than the positive, for each pair.

  If there is no such negative, the farthest negative is used. The sum or mean is over all pairs of
  an anchor and a positive. Reference: Schroff et al., "FaceNet: A Unified Embedding for Face
  Recognition and Clustering", CVPR 2015.

  Arguments and errors are those of `batch_hard`. It needs memory for B^3 distances.

  Returns:
    f[].
  """
  difference, valid = _semi_hard(distance, positive, negative)
  if anchor is not None:
    valid &= anchor[:, None]
  return _reduce(difference, valid, margin, hinge, reduction)


def all_active(
  distance: Array,
  positive: Array,
  negative: Array,
  margin: float,
  *,
  hinge: str = 'relu',
  reduction: str = 'mean',
  anchor: Array | None = None,
) -> Array:
  """Triplet loss of all triplets whose margin + D+ - D- is above 0.

  The sum or mean is over these triplets, of every anchor with every positive and negative.
  Reference: Hermans et al., 2017, section 2: batch all, with the mean over losses that are not 0.

  Arguments and errors are those of `batch_hard`. It needs memory for B^3 distances.

  Returns:
    f[].

  Example:
    >>> import jax.numpy as jnp
    >>> distance = squared_distances(jnp.array([[0.0], [1.0], [3.0]]))
    >>> masks = class_masks(jnp.array([0, 0, 1]))
    >>> print(all_active(distance, *masks, 4.0))  # relu(4 + 1 - 4); 4 + 1 - 9 is not active
    1.0
  """
  difference = distance[:, :, None] - distance[:, None, :]  # axes: anchor, positive, negative
  active = positive[:, :, None] & negative[:, None, :] & (margin + difference > 0)
  if anchor is not None:
    active &= anchor[:, None, None]
  return _reduce(jnp.where(active, difference, 0), active, margin, hinge, reduction)


def mean_distance(distance: Array) -> Array:
  """The mean f[] of the squared distances f[B, B] of different rows: near 0 where all embeddings
  have become one."""
  return distance.sum() / max(distance.size - len(distance), 1)


MINING = {'batch_hard': batch_hard, 'semi_hard': semi_hard, 'all_active': all_active}


def batch_hard_triplet(
  embedding: Array,
  label: Array,
  *,
  margin: float = 0.2,
  hinge: str = 'relu',
  where: Array | None = None,
) -> Array:
  """`batch_hard` for classes with a value for each row: hinge(margin + D+ - D-) of the anchor.

  Args:
    embedding: f[b, d].
    label: i32[b].
    margin: m, between squared distances.
    hinge: `relu`, `softplus` or `none`.
    where: bool[b], rows that count; the others give 0 and are in no triplet.

  Returns:
    f[b]; 0 for a row without a positive or a negative. (`batch_hard` leaves those out of its mean.)

  Raises:
    InputError: the hinge is unknown, or a shape or type is wrong.

  Example:
    >>> import jax.numpy as jnp
    >>> embedding = jnp.array([[0.0], [1.0], [3.0]])
    >>> print(batch_hard_triplet(embedding, jnp.array([0, 0, 1]), margin=4.0))
    [0. 1. 0.]
  """
  check(hinge, 'mean')
  embedding, label = rows.take(embedding, label, where)
  difference, valid = _hardest(squared_distances(embedding, where), *rows.pairs(label, where))
  return jnp.where(valid, HINGES[hinge](margin + difference), 0)


def semi_hard_triplet(
  embedding: Array,
  label: Array,
  *,
  margin: float = 0.2,
  hinge: str = 'relu',
  where: Array | None = None,
) -> Array:
  """`semi_hard` for classes with a value for each row: the mean over the positives of the anchor.

  Arguments, errors and rows without triplets are those of `batch_hard_triplet`. It needs memory for
  b^3 distances. FaceNet's embeddings have length 1.

  Returns:
    f[b].

  Example:
    >>> import jax.numpy as jnp
    >>> embedding = jnp.array([[0.0], [1.0], [3.0]])
    >>> print(semi_hard_triplet(embedding, jnp.array([0, 0, 1]), margin=4.0))
    [0. 1. 0.]
  """
  check(hinge, 'mean')
  embedding, label = rows.take(embedding, label, where)
  difference, valid = _semi_hard(squared_distances(embedding, where), *rows.pairs(label, where))
  losses = jnp.where(valid, HINGES[hinge](margin + difference), 0)
  return losses.sum(1) / jnp.maximum(valid.sum(1), 1)


def _hardest(distance, positive, negative):
  """D+ - D- of each anchor f[B], and bool[B]: whether it has a positive and a negative."""
  farthest = jnp.where(positive, distance, -jnp.inf).max(1)
  nearest = jnp.where(negative, distance, jnp.inf).min(1)
  valid = positive.any(1) & negative.any(1)
  return jnp.where(valid, farthest - nearest, 0), valid


def _semi_hard(distance, positive, negative):
  """D+ - D- of each anchor and positive f[B, B], and bool[B, B]: whether the pair exists."""
  to_negative = distance[:, None, :]  # axes: anchor, positive, negative
  farther = negative[:, None, :] & (to_negative > distance[:, :, None])
  nearest = jnp.where(farther, to_negative, jnp.inf).min(2)
  farthest = jnp.where(negative, distance, -jnp.inf).max(1, keepdims=True)
  chosen = jnp.where(farther.any(2), nearest, farthest)
  valid = positive & negative.any(1, keepdims=True)
  return jnp.where(valid, distance - chosen, 0), valid


def _reduce(difference, valid, margin, hinge, reduction):
  check(hinge, reduction)
  total = jnp.where(valid, HINGES[hinge](margin + difference), 0).sum()
  return total if reduction == 'sum' else total / jnp.maximum(valid.sum(), 1)


def check(hinge: str, reduction: str) -> None:
  """Checks the names of a hinge and a reduction.

  Raises:
    InputError: a name is unknown. The message lists the known ones.
  """
  for name, value, choices in (('hinge', hinge, HINGES), ('reduction', reduction, REDUCTIONS)):
    if value not in choices:
      raise InputError(f"the triplet loss has no {name} '{value}': use {' or '.join(choices)}")
