"""SCN: a self-cure network, which weighs the rows of a batch and relabels doubtful ones.

A second linear layer gives each face an importance. It scales the scores in the cross-entropy, a
rank regularisation keeps the importance of most rows above that of the rest, and rows of low
importance whose prediction clearly disagrees get the predicted label from then on. At inference
only the classifier remains.

Reference: Wang et al., "Suppressing Uncertainties for Large-Scale Facial Expression Recognition",
CVPR 2020.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ferjax.core import Method
from ferjax.errors import InputError, choose
from ferjax.losses.cross_entropy import cross_entropy
from ferjax.methods.softmax import Classifier
from ferjax.ops.scatter import store

GROUPS = ('low', 'any')


class Network(nn.Module):
  """The classifier of the baseline, and the importance of a face.

  Attributes:
    model: pictures f[b, h, w, 3], train -> feature maps of every stage.
    num_classes: C.
    dtype: Type of everything after the model.
  """

  model: nn.Module
  num_classes: int
  dtype: Any

  def setup(self):
    self.classifier = Classifier(self.model, self.num_classes, self.dtype)
    self.importance = nn.Dense(1, dtype=self.dtype, param_dtype=self.dtype)

  def __call__(self, image, train, delta=None):
    """As `softmax.Classifier`, with `importance` f[b] in 0..1 (equation 1)."""
    outputs = self.classifier(image, train, delta)
    importance = nn.sigmoid(self.importance(outputs['embedding'])[:, 0])
    return outputs | {'importance': importance}


def make(
  model: nn.Module,
  *,
  num_classes: int,
  num_poses: int = 0,
  high_share: float = 0.7,
  rank_margin: float = 0.15,
  relabel_from: int = 10,
  relabel_margin: float = 0.2,
  relabel_group: str = 'low',
) -> Method:
  """Factory.

  Terms: `cross_entropy` of the scores times the importance (equation 2), and `rank` (equation 4).

  Args:
    model: pictures f[b, h, w, 3], train -> feature maps of every stage.
    num_classes: C.
    num_poses: Not used.
    high_share: beta, the share of the batch that is the group of high importance.
    rank_margin: delta1, by which the mean importance of that group shall exceed that of the rest.
    relabel_from: The epoch, counted from 1, from which on rows get new labels.
    relabel_margin: delta2, by which the highest probability must exceed that of the present label.
    relabel_group: Which rows can get a new label: `low` importance (the paper's), or `any` (the
      authors' code).

  Raises:
    InputError: an unknown name or a number out of range; from `loss`: a group would be empty.
  """
  choose('config.method.relabel_group', relabel_group, GROUPS)
  _check(high_share, rank_margin, relabel_from, relabel_margin)
  network = Network(model, num_classes, model.param_dtype)

  def init(rng, batch, table):
    variables = jax.jit(network.init, static_argnums=2)(rng, batch['image'], False)
    extra = {
      'batch_stats': variables['batch_stats'],
      'label': jnp.asarray(table['label'], jnp.int32),
      'relabels': jnp.zeros((), bool),
    }
    return variables['params'], extra

  def apply(params, extra, *inputs, **options):
    variables = {'params': params, 'batch_stats': extra['batch_stats']}
    return network.apply(variables, *inputs, **options)

  def forward(params, extra, batch, keys):
    return apply(params, extra, batch['image'], True, mutable=['batch_stats'])

  def loss(params, extra, outputs, batch, step):
    importance, label = outputs['importance'], extra['label'][batch['index']]
    scores = importance[:, None] * outputs['logits']
    gap, low = rank_gap(importance, high_share)
    terms = {
      'cross_entropy': cross_entropy(scores, label).mean(),
      'rank': jnp.maximum(0, rank_margin - gap),
    }
    can_change = low if relabel_group == 'low' else jnp.ones_like(low)
    changed = relabelled(scores, label, relabel_margin) & can_change & extra['relabels']
    new = jnp.where(changed, scores.argmax(-1), label)
    metrics = {'importance_gap': gap, 'relabelled': changed.mean()}
    return terms, {'label': new, 'changed': changed, 'metrics': metrics}

  def update(extra, params, carry, outputs, batch, aux):
    nowhere = len(extra['label'])
    index = jnp.where(aux['changed'], batch['index'], nowhere)
    label = store(extra['label'], index, aux['label'])
    return extra | {'batch_stats': carry['batch_stats'], 'label': label}

  def predict(params, extra, batch, delta=None):
    return apply(params, extra, batch['image'], False, delta)

  def refresh(epoch, params, extra, table, embed):
    return extra | {'relabels': np.asarray(epoch + 1 >= relabel_from)}

  def estimates(extra, label):
    return jax.nn.one_hot(extra['label'], num_classes)

  return Method(
    needs=frozenset(),
    predict_needs=frozenset(),
    init=init,
    forward=forward,
    loss=loss,
    update=update,
    predict=predict,
    refresh=refresh,
    estimates=estimates,
    classifier='classifier/Dense_0',
  )


def rank_gap(importance: Array, high_share: float) -> tuple[Array, Array]:
  """How far apart the groups of high and of low importance are (equation 3).

  Args:
    importance: f[B].
    high_share: The share of the batch in the high group, rounded to whole rows.

  Returns:
    f[], the mean of the high group less that of the low one; bool[B], which rows are low. Of equal
    rows the first in the batch is the higher.

  Raises:
    InputError: a group would be empty.
  """
  count = len(importance)
  high = round(high_share * count)
  if not 0 < high < count:
    raise InputError(
      f'config.method.high_share={high_share} of a batch of {count} makes groups of {high} and '
      f'{count - high} rows: give a share, or a larger config.batch, that leaves rows in both'
    )
  order = jnp.argsort(-importance, stable=True)
  ranked = importance[order]
  low = jnp.zeros(count, bool).at[order[high:]].set(True)
  return ranked[:high].mean() - ranked[high:].mean(), low


def relabelled(scores: Array, label: Array, margin: float) -> Array:
  """bool[B]: where the highest probability of scores f[B, C] exceeds that of the label i32[B] by
  more than the margin (equation 5)."""
  shares = jax.nn.softmax(scores)
  own = jnp.take_along_axis(shares, label[:, None], 1)[:, 0]
  return shares.max(-1) - own > margin


def _check(high_share, rank_margin, relabel_from, relabel_margin):
  shares = {'rank_margin': rank_margin, 'relabel_margin': relabel_margin}
  for name, value in {'high_share': high_share, **shares}.items():
    if not 0 <= value <= 1:
      raise InputError(f'config.method.{name}={value} lies outside 0..1')
  if relabel_from < 1:
    raise InputError(f'config.method.relabel_from={relabel_from}: an epoch, counted from 1')
