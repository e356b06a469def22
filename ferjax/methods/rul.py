"""RUL: relative uncertainty learning. Features are mixed by how uncertain their faces are.

Two branches on the last map give each face a feature and an uncertainty. The feature of a row is
mixed with that of another, the less certain one counting more, and the mixture shall show both
labels. A row that is easy to name beside the other thus learns a low uncertainty. At inference the
features are not mixed.

Reference: Zhang, Wang and Deng, "Relative Uncertainty Learning for Facial Expression Recognition",
NeurIPS 2021.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ferjax.core import Method
from ferjax.errors import InputError
from ferjax.losses.cross_entropy import cross_entropy
from ferjax.models.resnet import batch_norm


class Branch(nn.Module):
  """BatchNorm, dropout, a linear layer on all cells, BatchNorm.

  Attributes:
    features: Of the result.
    dropout: Share of the map's values that are left out in training.
    dtype: Type of the computation and of the parameters.
  """

  features: int
  dropout: float
  dtype: Any

  @nn.compact
  def __call__(self, last_map: Array, train: bool, keys: Array | None) -> Array:
    """f[b, h, w, d], keys [b] in training -> f[b, features]."""
    kinds = {'dtype': self.dtype, 'param_dtype': self.dtype}
    x = last_map.astype(self.dtype)
    x = batch_norm(train, affine=False, name='map_norm', **kinds)(x)
    if train and self.dropout:
      kept = jax.vmap(lambda key, row: jax.random.bernoulli(key, 1 - self.dropout, row.shape))
      x = jnp.where(kept(keys, x), x / (1 - self.dropout), 0)
    x = x.reshape(x.shape[0], -1)
    x = nn.Dense(self.features, **kinds)(x)
    return batch_norm(train, name='feature_norm', **kinds)(x)


class Network(nn.Module):
  """The network, both branches, and the classifier.

  Attributes:
    model: pictures f[b, h, w, 3], train -> feature maps of every stage.
    num_classes: C.
    features: Of either branch.
    dropout: See `Branch`.
    dtype: Type of everything after the model.
  """

  model: nn.Module
  num_classes: int
  features: int
  dropout: float
  dtype: Any

  def setup(self):
    self.feature = Branch(self.features, self.dropout, self.dtype)
    self.log_variance = Branch(self.features, self.dropout, self.dtype)
    self.classifier = nn.Dense(self.num_classes, dtype=self.dtype, param_dtype=self.dtype)

  def __call__(self, image, train, keys=None, delta=None):
    """Scores, features and uncertainties.

    Args:
      image: f[b, h, w, 3].
      train: Whether BatchNorm uses the statistics of the batch, and dropout is on.
      keys: key[b], for training.
      delta: Added to the last map, or None.

    Returns:
      `logits` f[b, C], `embedding` f[b, features], `log_uncertainty` f[b], the logarithm of the
      mean variance of the features; and with `delta` the `last_map`.
    """
    last_map = self.model(image, train)[-1]
    if delta is not None:
      last_map = last_map + delta
    own = [None, None]
    if keys is not None:
      own = [jax.vmap(jax.random.fold_in, (0, None))(keys, number) for number in (1, 2)]
    feature = self.feature(last_map, train, own[0])
    log_variance = self.log_variance(last_map, train, own[1])
    log_uncertainty = jax.nn.logsumexp(log_variance, -1) - np.log(self.features)
    outputs = {
      'logits': self.classifier(feature),
      'embedding': feature,
      'log_uncertainty': log_uncertainty.astype(self.dtype),
    }
    return outputs if delta is None else outputs | {'last_map': last_map}

  def classify(self, feature):
    """f[b, features] -> f[b, C]."""
    return self.classifier(feature)


def make(
  model: nn.Module,
  *,
  num_classes: int,
  num_poses: int = 0,
  features: int = 64,
  dropout: float = 0.4,
) -> Method:
  """Factory. Term: `cross_entropy` of the mixed features with both labels, their mean.

  Args:
    model: pictures f[b, h, w, 3], train -> feature maps of every stage.
    num_classes: C.
    num_poses: Not used.
    features: Of either branch.
    dropout: Share of the map's values that are left out in training.

  Raises:
    InputError: a number out of range; from `loss`: a batch of one row.
  """
  if features < 1:
    raise InputError(f'config.method.features={features}: at least 1')
  if not 0 <= dropout < 1:
    raise InputError(f'config.method.dropout={dropout} lies outside 0..1, without 1')
  network = Network(model, num_classes, features, dropout, model.param_dtype)

  def init(rng, batch, table):
    of_network, of_pairs = jax.random.split(rng)
    variables = jax.jit(network.init, static_argnums=2)(of_network, batch['image'], False)
    seed = jax.random.bits(of_pairs, dtype=jnp.uint32)
    return variables['params'], {'batch_stats': variables['batch_stats'], 'pair_seed': seed}

  def apply(params, extra, *inputs, **options):
    variables = {'params': params, 'batch_stats': extra['batch_stats']}
    return network.apply(variables, *inputs, **options)

  def forward(params, extra, batch, keys):
    return apply(params, extra, batch['image'], True, keys, mutable=['batch_stats'])

  def loss(params, extra, outputs, batch, step):
    label = batch['label']
    if len(label) < 2:
      raise InputError('rul mixes pairs of rows: set config.batch=2 or more')
    key = jax.random.fold_in(jax.random.key(extra['pair_seed']), step)
    other = jax.random.permutation(key, len(label))
    mixed = mix(outputs['embedding'], outputs['log_uncertainty'], other)
    scores = apply(params, extra, mixed, method='classify')
    both = cross_entropy(scores, label) + cross_entropy(scores, label[other])
    metrics = {'uncertainty': jnp.exp(outputs['log_uncertainty']).mean()}
    return {'cross_entropy': both.mean() / 2}, {'metrics': metrics}

  def update(extra, params, carry, outputs, batch, aux):
    return extra | {'batch_stats': carry['batch_stats']}

  def predict(params, extra, batch, delta=None):
    outputs = apply(params, extra, batch['image'], False, delta=delta)
    return outputs | {'uncertainty': jnp.exp(outputs.pop('log_uncertainty'))}

  return Method(frozenset(), frozenset(), init, forward, loss, update, predict)


def mix(feature: Array, log_uncertainty: Array, other: Array) -> Array:
  """Each feature f[B, d] with that of row `other` i32[B], each by its share of both uncertainties,
  whose logarithms are f[B]: the less certain one counts more."""
  share = jax.nn.sigmoid(log_uncertainty - log_uncertainty[other])
  return share[:, None] * feature + (1 - share)[:, None] * feature[other]
