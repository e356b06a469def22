"""The losses that `config.terms` knows by name: they can be added to the terms of any method.

They are those of `ferjax.losses` that need outputs and labels only, and `nuisance_triplet`, which
is defined here; `added.make` says how their arguments are filled.
"""

import jax.numpy as jnp
from jax import Array

from ferjax.errors import choose
from ferjax.losses import (
  arcface_head,
  batch_hard_triplet,
  centers,
  contrastive_pair,
  cosface_head,
  focal,
  generalised_cross_entropy,
  islands,
  label_smoothing,
  semi_hard_triplet,
  supervised_contrastive,
  symmetric_cross_entropy,
)
from ferjax.losses import distribution_divergence as label_distribution
from ferjax.losses import gaussian_manifold as sgm
from ferjax.losses import softmax_cross_entropy as cross_entropy
from ferjax.losses import triplet as triplets

__all__ = [
  'arcface_head',
  'batch_hard_triplet',
  'centers',
  'contrastive_pair',
  'cosface_head',
  'cross_entropy',
  'focal',
  'generalised_cross_entropy',
  'islands',
  'label_distribution',
  'label_smoothing',
  'nuisance_triplet',
  'semi_hard_triplet',
  'sgm',
  'supervised_contrastive',
  'symmetric_cross_entropy',
]


def nuisance_triplet(
  outputs, batch, *, against: str = 'pose', margin: float = 0.2, hinge: str = 'relu'
) -> Array:
  """DML-Net's triplets against the pose or the person (equations 2 to 5): each anchor with its
  farthest positive and its nearest negative; see `losses/triplet.py`.

  Args:
    outputs: `embedding` f[b, d].
    batch: `label` i32[b], and `pose` or `subject` i32[b].
    against: `pose` or `subject`.
    margin: Between squared distances.
    hinge: `relu`, `softplus` or `none`.

  Returns:
    f[b], in every row the mean over the anchors that have a positive and a negative.

  Raises:
    InputError: an unknown name.
  """
  choose('against of nuisance_triplet', against, ('pose', 'subject'))
  distance = triplets.squared_distances(outputs['embedding'])
  masks = triplets.nuisance_masks(batch['label'], batch[against])
  loss = triplets.batch_hard(distance, *masks, margin, hinge=hinge)
  return jnp.broadcast_to(loss, batch['label'].shape)
