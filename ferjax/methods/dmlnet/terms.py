"""The triplet term of DML-Net's loss, of a global batch.

Reference: DML-Net (Liu et al., 2021), equation 6 and algorithm 1.
"""

from collections.abc import Mapping

import jax.numpy as jnp
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
  mining: str,
  warmup_steps: int,
  embedding: Array,
  batch: Batch,
  step: Array,
) -> tuple[Array, Array]:
  """Triplets against each nuisance: positives differ from the anchor in it, negatives share it.

  Args:
    margins: {nuisance: m}, of `pose` and `subject`.
    hinge, reduction: See `losses/triplet.py`.
    anchors: One of `ANCHORS`, see `dmlnet.make`.
    mining: Which triplets count, a key of `triplet.MINING`.
    warmup_steps: In the steps before this one, all active triplets count.
    embedding: f[B, d].
    batch: `label` i32[B], each nuisance i32[B], and for anchors of tuples `role` i32[B], which is 0
      for an anchor.
    step: i32[].

  Returns:
    f[], the sum over the nuisances; and the mean squared distance f[] of the embeddings.

  Raises:
    InputError: anchors of tuples, and a batch that was not formed of tuples.
  """
  anchor = None
  if anchors == 'tuple':
    if 'role' not in batch:
      raise InputError('config.method.anchors=tuple needs config.sampler.name=five_tuples')
    anchor = batch['role'] == 0
  distance = triplet.squared_distances(embedding)
  options = {'hinge': hinge, 'reduction': reduction, 'anchor': anchor}
  losses = []
  for nuisance, margin in margins.items():
    masks = triplet.nuisance_masks(batch['label'], batch[nuisance])
    mined = triplet.MINING[mining](distance, *masks, margin, **options)
    if warmup_steps:
      active = triplet.all_active(distance, *masks, margin, **options)
      mined = jnp.where(step < warmup_steps, active, mined)
    losses.append(mined)
  return sum(losses), triplet.mean_distance(distance)
