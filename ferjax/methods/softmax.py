"""Softmax classification: one network, one linear layer, cross-entropy. The baseline."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ferjax.core import Method
from ferjax.losses.cross_entropy import cross_entropy


class Classifier(nn.Module):
  """A network, global average pooling and a linear layer.

  Attributes:
    model: pictures f[b, h, w, 3], train -> feature maps of every stage.
    num_classes: C.
    dtype: Type of everything after the model.
  """

  model: nn.Module
  num_classes: int
  dtype: Any

  @nn.compact
  def __call__(self, image, train, delta=None):
    """`logits` f[b, C], `embedding` f[b, d], and with `delta`, which is added to it, `last_map`."""
    last_map = self.model(image, train)[-1]
    if delta is not None:
      last_map = last_map + delta
    embedding = last_map.mean((1, 2), dtype=self.dtype)
    logits = nn.Dense(self.num_classes, dtype=self.dtype, param_dtype=self.dtype)
    outputs = {'logits': logits(embedding), 'embedding': embedding}
    return outputs if delta is None else outputs | {'last_map': last_map}


def make(model: nn.Module, *, num_classes: int, num_poses: int = 0) -> Method:
  """Factory. Term: `cross_entropy`, the mean over the examples.

  Args:
    model: pictures f[b, h, w, 3], train -> feature maps of every stage.
    num_classes: C.
    num_poses: Not used.
  """
  network = Classifier(model, num_classes, model.param_dtype)

  def init(rng, batch, table):
    variables = jax.jit(network.init, static_argnums=2)(rng, batch['image'], False)
    return variables['params'], {'batch_stats': variables['batch_stats']}

  def forward(params, extra, batch, keys):
    return network.apply({'params': params, **extra}, batch['image'], True, mutable=['batch_stats'])

  def loss(params, extra, outputs, batch, step):
    return {'cross_entropy': jnp.mean(cross_entropy(outputs['logits'], batch['label']))}, None

  def update(extra, params, carry, outputs, batch, aux):
    return {'batch_stats': carry['batch_stats']}

  def predict(params, extra, batch, delta=None):
    return network.apply({'params': params, **extra}, batch['image'], False, delta)

  return Method(
    frozenset(), frozenset(), init, forward, loss, update, predict, classifier='Dense_0'
  )
