"""The triplet term of DML-Net's loss, of a global batch.

Reference: DML-Net (Liu et al., 2021), equation 6 and algorithm 1.
"""

from collections.abc import Mapping

from jax import Array

from ferjax.core import Batch
from ferjax.errors import InputError
from ferjax.losses import triplet

ANCHORS = ('all', 'tuple')


def triplets(
  margins: Mapping[str, float],
  hinge: str,
  reduction: str,
  anchors: str,
  embedding: Array,
  batch: Batch,
) -> Array:
  """Triplets against each nuisance: positives differ from the anchor in it, negatives share it.

  Args:
    margins: {nuisance: m}, of `pose` and `subject`.
    hinge, reduction: See `losses/triplet.py`.
    anchors: One of `ANCHORS`, see `dmlnet.make`.
    embedding: f[B, d].
    batch: `label` i32[B], each nuisance i32[B], and for anchors of tuples `role` i32[B], which is 0
      for an anchor.

  Returns:
    f[], the sum over the nuisances.

  Raises:
    InputError: anchors of tuples, and a batch that was not formed of tuples.
  """
  anchor = None
  if anchors == 'tuple':
    if 'role' not in batch:
      raise InputError('config.method.anchors=tuple needs config.sampler.name=five_tuples')
    anchor = batch['role'] == 0
  distance = triplet.squared_distances(embedding)
  losses = []
  for nuisance, margin in margins.items():
    masks = triplet.nuisance_masks(batch['label'], batch[nuisance])
    losses.append(
      triplet.batch_hard(distance, *masks, margin, hinge=hinge, reduction=reduction, anchor=anchor)
    )
  return sum(losses)
