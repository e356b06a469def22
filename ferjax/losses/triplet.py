"""Triplet losses over a whole batch: the hardest, or the semi-hard, under masks of labels.

Distances are squared Euclidean. An anchor (or pair) that lacks a positive or a negative does not
count, and a batch without any has the loss 0.
"""

import jax
import jax.numpy as jnp
from jax import Array

from ferjax.errors import InputError

HINGES = {
  'relu': jax.nn.relu,
  'softplus': jax.nn.softplus,
  'none': lambda x: x,
}
REDUCTIONS = ('sum', 'mean')


def squared_distances(embedding: Array) -> Array:
  """f[B, d] -> f[B, B], squared Euclidean distances of all pairs (DML-Net, equation 1)."""
  products = jnp.matmul(embedding, embedding.T, precision='highest')
  squares = jnp.diagonal(products)
  return squares[:, None] + squares[None] - 2 * products


def class_masks(label: Array) -> tuple[Array, Array]:
  """Conventional triplets: positives have the anchor's label, negatives another.

  Args:
    label: i32[B].

  Returns:
    positive, negative: bool[B, B], row by anchor; none is a positive of itself.
  """
  same = label[:, None] == label[None]
  return same & ~jnp.eye(len(label), dtype=bool), ~same


def nuisance_masks(label: Array, nuisance: Array) -> tuple[Array, Array]:
  """Triplets against a nuisance such as the pose or the subject (DML-Net, algorithm 1).

  Args:
    label: i32[B], expressions.
    nuisance: i32[B], what the embedding shall not depend on; -1 where it is unknown.

  Returns:
    positive, negative: bool[B, B], row by anchor: the same label and another nuisance; another
    label and the same nuisance. A row whose nuisance is unknown is neither.
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
  """Of each anchor, the farthest positive and the nearest negative.

  The sum or mean over anchors of hinge(margin + D+ - D-): DML-Net, equations 2 to 5, which print no
  hinge. Reference: Hermans et al., "In Defense of the Triplet Loss for Person Re-Identification",
  2017.

  Args:
    distance: f[B, B].
    positive, negative: bool[B, B], row by anchor.
    margin: m.
    hinge: `relu`, `softplus` (a soft one) or `none`.
    reduction: `sum` or `mean`, over the anchors that have a positive and a negative.
    anchor: bool[B], which rows are anchors; None for all.

  Returns:
    f[].

  Raises:
    InputError: an unknown hinge or reduction.
  """
  farthest = jnp.where(positive, distance, -jnp.inf).max(1)
  nearest = jnp.where(negative, distance, jnp.inf).min(1)
  valid = positive.any(1) & negative.any(1)
  if anchor is not None:
    valid &= anchor
  return _reduce(jnp.where(valid, farthest - nearest, 0), valid, margin, hinge, reduction)


def semi_hard(
  distance: Array,
  positive: Array,
  negative: Array,
  margin: float,
  *,
  hinge: str = 'relu',
  reduction: str = 'mean',
) -> Array:
  """Of each anchor and positive, the nearest negative that is farther than the positive.

  Where there is none, the farthest negative. The sum or mean is over all pairs of an anchor and a
  positive. Reference: Schroff et al., "FaceNet: A Unified Embedding for Face Recognition and
  Clustering", CVPR 2015, equation 4.

  Args and errors as for `batch_hard`; it takes memory for B^3 distances.

  Returns:
    f[].
  """
  to_negative = distance[:, None, :]  # of anchor, positive, negative
  farther = negative[:, None, :] & (to_negative > distance[:, :, None])
  nearest = jnp.where(farther, to_negative, jnp.inf).min(2)
  farthest = jnp.where(negative, distance, -jnp.inf).max(1, keepdims=True)
  chosen = jnp.where(farther.any(2), nearest, farthest)
  valid = positive & negative.any(1, keepdims=True)
  return _reduce(jnp.where(valid, distance - chosen, 0), valid, margin, hinge, reduction)


def _reduce(difference, valid, margin, hinge, reduction):
  check(hinge, reduction)
  total = jnp.where(valid, HINGES[hinge](margin + difference), 0).sum()
  return total if reduction == 'sum' else total / jnp.maximum(valid.sum(), 1)


def check(hinge: str, reduction: str) -> None:
  """Refuses names that are none.

  Raises:
    InputError: says which there are.
  """
  for name, value, choices in (('hinge', hinge, HINGES), ('reduction', reduction, REDUCTIONS)):
    if value not in choices:
      raise InputError(f"the triplet loss has no {name} '{value}': use {' or '.join(choices)}")
