"""What SGM keeps apart from its parameters, as `extra`.

`batch_stats`; the `subclass` i32[N] of every training row and the `level` i32[], which change
between epochs; the `means` f[C L, d] of the sub-classes and the numbers of their `rows` i32[C L],
which change before every evaluation and save; and where the loss has running means, `running`.

Reference: Marrero-Fernandez et al., "Deep Metric Structured Learning for Facial Expression
Recognition", 2022.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ferjax.core import Batch, PyTree
from ferjax.errors import InputError
from ferjax.methods.sgm.networks import Embedder
from ferjax.metrics import mixtures


def init(
  network: Embedder,
  num_classes: int,
  levels: int,
  has_running: bool,
  rng: Array,
  batch: Batch,
  table: Mapping[str, np.ndarray],
) -> tuple[PyTree, PyTree]:
  """Parameters, and the state at level 1: every class is one sub-class, and no mean is known.

  Args:
    network: See `networks.Embedder`.
    num_classes: C.
    levels: L.
    has_running: Whether the loss has running means.
    rng: key[].
    batch: `image` f[b, h, w, 3].
    table: `label` int[N] of the training rows.

  Raises:
    InputError: a class without training rows.
  """
  rows = np.bincount(table['label'], minlength=num_classes)
  if not rows.all():
    raise InputError(
      f'class {rows.argmin()} (from 0, in the order of config.data.classes) has no training row, '
      'so it has no mean to predict it by: add some, or leave it out of config.data.classes'
    )
  variables = jax.jit(network.init, static_argnums=2)(rng, batch['image'], False)
  slots = num_classes * levels
  means = jnp.zeros((slots, network.width), network.dtype)
  extra = {
    'batch_stats': variables['batch_stats'],
    'subclass': jnp.asarray(table['label'] * levels, jnp.int32),
    'level': jnp.ones((), jnp.int32),
    'means': means,
    'rows': jnp.zeros(slots, jnp.int32),
  }
  if has_running:
    extra['running'] = {'means': jnp.zeros_like(means), 'known': jnp.zeros(slots, bool)}
  return variables['params'], extra


def running(
  before: dict[str, Array], means: Array, present: Array, momentum: float
) -> tuple[Array, Array]:
  """Running means of the classes after a batch.

  Args:
    before: `means` f[C, d] and `known` bool[C], the state before it.
    means: f[C, d], those of the batch; they carry gradient.
    present: bool[C], the classes of the batch.
    momentum: The share of the mean before that is kept.

  Returns:
    f[C, d], and bool[C], the classes that have been in a batch. The first mean of a class is that
    of its first batch.
  """
  moved = momentum * before['means'] + (1 - momentum) * means
  moved = jnp.where(before['known'][:, None], moved, means)
  after = jnp.where(present[:, None], moved, before['means'])
  return after, present | before['known']


def update(
  extra: PyTree, params: PyTree, carry: PyTree, outputs: PyTree, batch: Batch, aux: PyTree
) -> PyTree:
  """The state after a step: `batch_stats` are those of `carry`, running means those of `aux`."""
  kept = {'running': aux['running']} if 'running' in extra else {}
  return extra | {'batch_stats': carry['batch_stats']} | kept


def enroll(
  slots: int, params: PyTree, extra: PyTree, table: Mapping[str, np.ndarray], embed: Callable
) -> PyTree:
  """The state with the means of all training embeddings, embed() -> f[N, d]; `slots` is C L."""
  means, rows = mixtures.means(embed(), extra['subclass'], slots)
  return extra | {'means': means, 'rows': rows}


def refresh(
  levels: int,
  level_epochs: int,
  component_rows: int,
  least_rows: int,
  seed: int,
  epoch: int,
  params: PyTree,
  extra: PyTree,
  table: Mapping[str, np.ndarray],
  embed: Callable,
) -> PyTree:
  """The state with the classes split further, where a new level begins with this epoch (algorithm
  2); else the same state.

  Args:
    levels, level_epochs, component_rows, least_rows, seed: See `sgm.make`.
    epoch: From 0.
    params: Not used.
    extra: The state of the epoch before.
    table: `label` int[N] of the training rows.
    embed: () -> f[N, d], their embeddings; called only where they are split.
  """
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


def columns(extra: PyTree) -> dict[str, Array]:
  """What the sampler's table gets: `subclass` i32[N]."""
  return {'subclass': extra['subclass']}
