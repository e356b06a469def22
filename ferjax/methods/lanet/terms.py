"""The terms of LA-Net's loss, of a global batch.

Reference: LA-Net (Wu and Cui, ICCV 2023); the equations are named at each function.
"""

import jax
import jax.numpy as jnp
from jax import Array

from ferjax.losses.cross_entropy import cross_entropy
from ferjax.losses.divergence import kl_divergence
from ferjax.methods.lanet import contrast
from ferjax.methods.lanet.memory import Queue


def supervised(outputs: dict[str, Array], label: Array, two_branches: bool) -> dict[str, Array]:
  """The terms that need the given labels and landmarks only, and 0 for the two others.

  Args:
    outputs: `logits` f[B, C], and with a landmark branch `landmark_error` f[B].
    label: i32[B].
    two_branches: Whether there is a landmark branch.

  Returns:
    f[] each: `cross_entropy` (nats), `landmarks` (0 without a landmark branch),
    `label_distribution` and `contrastive` (0).
  """
  zero = jnp.zeros((), outputs['logits'].dtype)
  return {
    'cross_entropy': cross_entropy(outputs['logits'], label).mean(),
    'landmarks': outputs['landmark_error'].mean() if two_branches else zero,
    'label_distribution': zero,
    'contrastive': zero,
  }


def label_distribution(estimated: Array, logits: Array) -> Array:
  """f[]: mean Kullback-Leibler divergence, nats, of the predicted distributions f[B, C] (logits)
  from the estimated ones f[B, C] (probabilities)."""
  return kl_divergence(estimated, jax.nn.log_softmax(logits)).mean()


def contrastive(
  outputs: dict[str, Array],
  label: Array,
  queue: Queue,
  temperature: float,
  in_batch_negatives: bool,
) -> Array:
  """The expression-landmark contrastive loss, both ways (equation 11).

  Args:
    outputs: `expression_query`, `landmark_query`, `expression_key`, `landmark_key`, f[B, e] of
      length 1.
    label: i32[B], (pseudo-)labels.
    queue: Keys of earlier batches.
    temperature: tau, above 0.
    in_batch_negatives: Whether keys of the batch with another label are negatives too.

  Returns:
    f[], nats: the mean over the batch of expression queries against landmark keys, plus that of
    landmark queries against expression keys.
  """
  losses = 0
  for query, key in (('expression', 'landmark'), ('landmark', 'expression')):
    losses += contrast.cross_view_contrast(
      outputs[f'{query}_query'],
      outputs[f'{key}_key'],
      label,
      getattr(queue, key),
      queue.label,
      queue.filled,
      temperature,
      in_batch_negatives,
    ).mean()
  return losses


def contrast_metrics(outputs: dict[str, Array], label: Array, queue: Queue) -> dict[str, Array]:
  """What tells whether the contrastive loss has something to learn from.

  Args:
    outputs, label, queue: See `contrastive`.

  Returns:
    f[] each: `query_cosine`, the mean cosine of the expression queries of two different rows, 1
    where all have become one; `sure_share`, the share of rows whose pseudo-label is a class;
    `age_gap`, the mean cosine of queries with the keys of the batch less that with the keys of the
    queue, which is large where old keys are told from new ones by their age (0 with an empty
    queue).
  """
  query = outputs['expression_query']
  count = len(query)
  itself = (query**2).sum()
  filled = queue.filled
  held = jnp.maximum(filled.sum(), 1)
  gap = 0
  for name, key in (('expression', 'landmark'), ('landmark', 'expression')):
    old = jnp.where(filled[:, None], getattr(queue, key), 0).sum(0) / held
    gap += (outputs[f'{name}_query'].mean(0) * (outputs[f'{key}_key'].mean(0) - old)).sum() / 2
  return {
    'query_cosine': ((query.sum(0) ** 2).sum() - itself) / max(count * (count - 1), 1),
    'sure_share': (label >= 0).mean(dtype=query.dtype),
    'age_gap': jnp.where(filled.any(), gap, 0),
  }
