"""Label distributions estimated from a batch's nearest neighbours.

Reference: LA-Net (Wu and Cui, "LA-Net: Landmark-Aware Learning for Reliable Facial Expression
Recognition under Label Noise", ICCV 2023), equations 1 to 6.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array, lax

from ferjax.core import Batch, PyTree
from ferjax.errors import InputError
from ferjax.methods.lanet import memory
from ferjax.methods.lanet.networks import EMBEDDINGS, Networks
from ferjax.ops.distances import unit_length

STOPS = ('none', 'neighbours', 'targets')


def estimate(
  network: Networks,
  spaces: Sequence[str],
  neighbours: int,
  decay: float,
  stop_gradient: str,
  params: PyTree,
  bank: Array,
  outputs: dict[str, Array],
  batch: Batch,
) -> Array:
  """The stored label distributions, moved towards those of the neighbours (LDE, equations 1 to 6).

  Args:
    network: LA-Net's networks, for the contribution scores.
    spaces: Where neighbours are searched: `expression`, `landmark`.
    neighbours: K in each space.
    decay: omega, the share of the stored distribution that is kept.
    stop_gradient: One of `STOPS`, see `lanet.make`.
    params: Of the networks.
    bank: f[N, C], the stored distributions.
    outputs: `logits` f[B, C], and the embeddings f[B, d] of the spaces.
    batch: `index` i32[B], rows of the data set, and `label` i32[B].

  Returns:
    f[B, C]; the stored distribution of a row that has no neighbour.

  Raises:
    InputError: the batch is not larger than K.
  """
  probabilities, fresh = jax.nn.softmax(outputs['logits']), 0
  held = lax.stop_gradient if stop_gradient == 'neighbours' else lambda x: x
  for space in spaces:
    features = outputs[EMBEDDINGS[space]]
    found, exists = nearest_neighbours(features, batch['index'], neighbours)
    score = network.apply(
      {'params': params}, space, features, held(features)[found], method='score'
    )
    shares = held(probabilities)[found]
    fresh += neighbour_distribution(score, shares, exists) / len(spaces)
  stored = memory.recall(bank, batch['index'], batch['label'])
  estimated = decay * stored + (1 - decay) * fresh
  estimated = jnp.where(exists.any(-1, keepdims=True), estimated, stored)
  return lax.stop_gradient(estimated) if stop_gradient == 'targets' else estimated


def nearest_neighbours(features: Array, index: Array, count: int) -> tuple[Array, Array]:
  """The nearest other examples of a batch by cosine similarity; no gradient.

  Args:
    features: f[B, d].
    index: i32[B], rows of the data set; copies of the same row are no neighbours.
    count: K, how many.

  Returns:
    i32[B, K], the neighbours, nearest first, and bool[B, K], which of them exist.

  Raises:
    InputError: the batch is not larger than K.
  """
  if len(index) <= count:
    raise InputError(
      f'config.batch={len(index)} leaves each example fewer than {count} others: use a batch above '
      f'{count}, or a smaller config.method.neighbours'
    )
  unit = unit_length(lax.stop_gradient(features))
  similarity = jnp.where(index[:, None] == index[None], -jnp.inf, unit @ unit.T)
  found, neighbours = lax.top_k(similarity, count)
  return neighbours, jnp.isfinite(found)


def neighbour_distribution(score: Array, probabilities: Array, exists: Array) -> Array:
  """Mean of the neighbours' distributions, weighted by their contribution scores (equation 5).

  Args:
    score: f[B, K], scores before the sigmoid.
    probabilities: f[B, K, C], the neighbours' distributions.
    exists: bool[B, K].

  Returns:
    f[B, C]; zeros where an example has no neighbour.

  Example:
    >>> import jax.numpy as jnp
    >>> probabilities = jnp.array([[[0.5, 0.5], [1.0, 0.0]]])
    >>> print(neighbour_distribution(jnp.zeros((1, 2)), probabilities, jnp.array([[True, True]])))
    [[0.75 0.25]]
  """
  log_weight = jnp.where(exists, jax.nn.log_sigmoid(score), -1e30)
  weight = jnp.where(exists, jax.nn.softmax(log_weight), 0)
  return jnp.einsum('bk,bkc->bc', weight, probabilities)
