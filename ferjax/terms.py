"""The losses that `config.terms` knows by name: any method can have them beside its own terms.

A function whose first arguments are `outputs` and `batch` is a loss of each row, f[b]; any other
makes a `StatefulLoss`. The other arguments are what `config.terms.<name>` sets; `num_classes` and
`num_poses` are those of the data set. `outputs` are the gathered outputs of the method and `batch`
its labels, all of the whole global batch.
"""

import jax.numpy as jnp
from jax import Array, lax, nn

from ferjax.errors import InputError, nearest
from ferjax.losses import cross_entropy as hard
from ferjax.losses import divergence, gaussian
from ferjax.losses import triplet as triplets

MINING = {'batch_hard': triplets.batch_hard, 'semi_hard': triplets.semi_hard}
AGAINST = ('label', 'pose', 'subject')


def cross_entropy(outputs, batch) -> Array:
  """Cross-entropy of the given labels; see `losses/cross_entropy.py`."""
  return hard.cross_entropy(outputs['logits'], batch['label'])


def label_distribution(outputs, batch) -> Array:
  """KL divergence of the prediction from the known label distribution (nats)."""
  return divergence.kl_divergence(batch['distribution'], nn.log_softmax(outputs['logits']))


def sgm(
  outputs,
  batch,
  num_classes: int,
  sigma: float = 0.5,
  gradient_through_means: bool = True,
  leave_one_out: bool = False,
) -> Array:
  """The structured Gaussian manifold loss of the embedding, as the method `sgm` has it."""
  means, rows = gaussian.class_means(outputs['embedding'], batch['label'], num_classes)
  if leave_one_out:
    means = gaussian.leave_one_out_means(outputs['embedding'], batch['label'], means, rows)
  if not gradient_through_means:
    means = lax.stop_gradient(means)
  log_posterior = gaussian.log_posterior(outputs['embedding'], means, rows > 0, sigma)
  return gaussian.structured_gaussian(log_posterior, batch['label'])


def triplet(
  outputs,
  batch,
  margin: float = 0.2,
  mining: str = 'batch_hard',
  hinge: str = 'relu',
  against: str = 'label',
) -> Array:
  """Triplets of the embedding; every row has the mean over the anchors (or pairs) that count.

  `against` `label`: positives have the anchor's label, negatives another; `pose` or `subject`:
  DML-Net's triplets against that nuisance.
  """
  for name, value, choices in (('mining', mining, MINING), ('against', against, AGAINST)):
    if value not in choices:
      raise InputError(
        f"the term triplet has no {name} '{value}'.{nearest(value, choices)} "
        f'Use {" or ".join(choices)}'
      )
  distance = triplets.squared_distances(outputs['embedding'])
  if against == 'label':
    masks = triplets.class_masks(batch['label'])
  else:
    masks = triplets.nuisance_masks(batch['label'], batch[against])
  loss = MINING[mining](distance, *masks, margin, hinge=hinge)
  return jnp.broadcast_to(loss, batch['label'].shape)
