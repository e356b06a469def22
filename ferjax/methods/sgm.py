"""SGM and DGMS: every class, or sub-class, is a Gaussian in the space of embeddings.

The loss asks that the posterior of an embedding, from the means of the batch, be that of its class
(SGM). With several `levels` the classes are split between epochs into ever more sub-classes, each a
Gaussian of its own (DGMS). There is no classifier: the posterior from the means of all training
embeddings predicts.

Reference: Marrero-Fernandez et al., "Deep Metric Structured Learning for Facial Expression
Recognition", 2022.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ferjax.core import Method
from ferjax.errors import InputError
from ferjax.losses import gaussian
from ferjax.metrics import mixtures
from ferjax.ops.distances import unit_length

UNLIKELY = 1e-3  # a posterior of the true class below which a row has next to no gradient


class Embedder(nn.Module):
  """A network, global average pooling and a linear layer, to length 1 where `normalise` is set."""

  model: nn.Module
  width: int
  gain: float
  normalise: bool
  dtype: Any

  @nn.compact
  def __call__(self, image, train, delta=None):
    """`embedding` f[b, width], and with `delta` the last map."""
    last_map = self.model(image, train)[-1]
    if delta is not None:
      last_map = last_map + delta
    x = last_map.mean((1, 2), dtype=self.dtype)
    x = nn.Dense(
      self.width,
      kernel_init=nn.initializers.variance_scaling(self.gain**2, 'fan_in', 'truncated_normal'),
      dtype=self.dtype,
      param_dtype=self.dtype,
      name='embedding',
    )(x)
    outputs = {'embedding': unit_length(x) if self.normalise else x}
    return outputs if delta is None else outputs | {'last_map': last_map}


def make(
  model: nn.Module,
  *,
  num_classes: int,
  num_poses: int = 0,
  embedding_width: int = 64,
  embedding_gain: float = 1.0,
  normalise: bool = False,
  sigma: float = 0.5,
  gradient_through_means: bool = True,
  leave_one_out: bool = False,
  levels: int = 1,
  level_epochs: int = 100,
  component_rows: int = 10,
  least_rows: int = 100,
  seed: int = 0,
) -> Method:
  """Factory. Term: `sgm` (equation 4), over the classes or sub-classes of the batch.

  `extra` holds the sub-class of every training row and the level, refitted between epochs, and the
  means of the sub-classes, taken anew before every evaluation and save. A class's posterior is the
  sum of its sub-classes'.

  Args:
    model: pictures f[b, h, w, 3], train -> feature maps of every stage.
    num_classes: C.
    num_poses: Not used.
    embedding_width: d.
    embedding_gain: Factor on the first weights of the embedding's layer. Where the first embeddings
      are many sigma apart, the posterior is 0 or 1 and the loss has next to no gradient.
    normalise: Whether embeddings have length 1 (not in the paper).
    sigma: Standard deviation of every Gaussian.
    gradient_through_means: Whether the means of the batch carry gradient.
    leave_one_out: Whether a row is left out of the mean of its own class; see
      `gaussian.leave_one_out_means`.
    levels: L: at level l each class is split in l; 1 is SGM, more is DGMS.
    level_epochs: R, epochs of a level.
    component_rows, least_rows: See `mixtures.subclasses`.
    seed: Of the mixtures, with the epoch and the class.

  Raises:
    InputError: a number out of range; from `init`: a class without training rows.
  """
  for name, value in {
    'embedding_width': embedding_width,
    'levels': levels,
    'level_epochs': level_epochs,
    'component_rows': component_rows,
  }.items():
    if value < 1:
      raise InputError(f'config.method.{name}={value}: at least 1')
  for name, value in {'sigma': sigma, 'embedding_gain': embedding_gain}.items():
    if value <= 0:
      raise InputError(f'config.method.{name}={value}: it must be above 0')
  if seed < 0:
    raise InputError(f'config.method.seed={seed}: it must not be below 0')
  network = Embedder(model, embedding_width, embedding_gain, normalise, model.param_dtype)
  slots = num_classes * levels

  def init(rng, batch, table):
    rows = np.bincount(table['label'], minlength=num_classes)
    if not rows.all():
      raise InputError(
        f'class {rows.argmin()} (from 0, in the order of config.data.classes) has no training row, '
        'so it has no mean to predict it by: add some, or leave it out of config.data.classes'
      )
    variables = jax.jit(network.init, static_argnums=2)(rng, batch['image'], False)
    return variables['params'], {
      'batch_stats': variables['batch_stats'],
      'subclass': jnp.asarray(table['label'] * levels, jnp.int32),
      'level': jnp.ones((), jnp.int32),
      'means': jnp.zeros((slots, embedding_width), model.param_dtype),
      'rows': jnp.zeros(slots, jnp.int32),
    }

  def apply(params, extra, image, train, **options):
    variables = {'params': params, 'batch_stats': extra['batch_stats']}
    return network.apply(variables, image, train, **options)

  def forward(params, extra, batch, keys):
    return apply(params, extra, batch['image'], True, mutable=['batch_stats'])

  def loss(params, extra, outputs, batch, step):
    subclass = extra['subclass'][batch['index']]
    means, rows = gaussian.class_means(outputs['embedding'], subclass, slots)
    if leave_one_out:
      means = gaussian.leave_one_out_means(outputs['embedding'], subclass, means, rows)
    if not gradient_through_means:
      means = jax.lax.stop_gradient(means)
    log_posterior = gaussian.log_posterior(outputs['embedding'], means, rows > 0, sigma)
    losses = gaussian.structured_gaussian(log_posterior, subclass)
    true = jnp.take_along_axis(log_posterior, subclass[:, None], 1)
    predicted = gaussian.of_classes(log_posterior, num_classes).argmax(-1)
    metrics = {
      'acc': jnp.mean(predicted == batch['label']),
      f'posterior/true_below_{UNLIKELY}': jnp.mean(true < np.log(UNLIKELY)),
    }
    return {'sgm': losses.mean()}, {'metrics': metrics}

  def update(extra, params, carry, outputs, batch, aux):
    return extra | {'batch_stats': carry['batch_stats']}

  def predict(params, extra, batch, delta=None):
    outputs = apply(params, extra, batch['image'], False, delta=delta)
    log_posterior = gaussian.log_posterior(
      outputs['embedding'], extra['means'], extra['rows'] > 0, sigma
    )
    outputs['logits'] = gaussian.of_classes(log_posterior, num_classes)
    if levels > 1:
      outputs['subclass_log_posterior'] = log_posterior
    return outputs

  def enroll(params, extra, table, embed):
    means, rows = mixtures.means(embed(), extra['subclass'], slots)
    return extra | {'means': means, 'rows': rows}

  def refresh(epoch, params, extra, table, embed):
    level = min(1 + epoch // level_epochs, levels)
    if level == extra['level']:
      return extra
    subclass = mixtures.subclasses(
      embed(),
      table['label'],
      level,
      slots=levels,
      component_rows=component_rows,
      least_rows=least_rows,
      seed=(seed, epoch),
    )
    return extra | {'subclass': subclass, 'level': np.int32(level)}

  def columns(extra):
    return {'subclass': extra['subclass']}

  return Method(
    needs=frozenset(),
    predict_needs=frozenset(),
    init=init,
    forward=forward,
    loss=loss,
    update=update,
    predict=predict,
    enroll=enroll,
    refresh=refresh if levels > 1 else None,
    columns=columns if levels > 1 else None,
  )
