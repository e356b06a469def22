"""What LA-Net keeps from step to step apart from its parameters, as `extra`.

`batch_stats` always; with label distributions the `bank`; with the contrastive loss the `momentum`
encoder, which makes the keys, and the `queue` of its latest keys.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array

from ferjax.core import Batch, PyTree
from ferjax.methods.lanet import memory
from ferjax.methods.lanet.networks import MAKES_KEYS, Networks
from ferjax.ops.scatter import store


def init(
  network: Networks, spaces: Sequence[str], queue_size: int, rng: Array, batch: Batch, table
) -> tuple[PyTree, PyTree]:
  """Parameters, and the state before the first step.

  Args:
    network: LA-Net's networks.
    spaces: Where neighbours are searched; without any there is no bank.
    queue_size: Keys that the queue holds; 0 for no contrastive loss.
    rng: key[].
    batch: `image` f[b, h, w, 3], and with a landmark branch `landmarks` f[b, k, 2] (pixels).
    table: Host columns of the N training rows, of which `label` is counted.
  """
  initialise = functools.partial(
    network.init, method='initialise', scored=spaces, projects=queue_size > 0
  )
  variables = jax.jit(initialise)(rng, batch['image'], batch.get('landmarks'))
  params, extra = variables['params'], {'batch_stats': variables['batch_stats']}
  if spaces:
    extra['bank'] = memory.empty_bank(len(table['label']), network.num_classes, network.dtype)
  if queue_size:
    followed = {name: part for name, part in params.items() if name in MAKES_KEYS}
    extra['momentum'] = jax.tree.map(jnp.copy, followed)
    dim = params['expression_projection']['Dense_1']['bias'].shape[0]
    extra['queue'] = memory.empty_queue(queue_size, dim, network.dtype)
  return params, extra


def update(
  momentum: float,
  extra: PyTree,
  params: PyTree,
  carry: PyTree,
  outputs: dict[str, Array],
  batch: Batch,
  aux: dict[str, Array],
) -> PyTree:
  """The state after a step.

  Args:
    momentum: m, the share of its own parameters that the momentum encoder keeps.
    extra: The state before the step.
    params: The parameters after the step.
    carry: `batch_stats` of the step.
    outputs: Where there is a queue, `expression_key` and `landmark_key` f[B, e].
    batch: `index` i32[B], rows of the data set.
    aux: Where there is a bank, `distribution` f[B, C]; `label` i32[B], the keys' (pseudo-)labels.
  """
  extra = extra | {'batch_stats': carry['batch_stats']}
  if 'bank' in extra:
    extra['bank'] = store(extra['bank'], batch['index'], aux['distribution'])
  if 'queue' in extra:
    extra['momentum'] = jax.tree.map(
      lambda slow, fast: (momentum * slow + (1 - momentum) * fast).astype(slow.dtype),
      extra['momentum'],
      {name: params[name] for name in extra['momentum']},
    )
    extra['queue'] = memory.push(
      extra['queue'], outputs['expression_key'], outputs['landmark_key'], aux['label']
    )
  return extra


def estimates(extra: PyTree, label: Array) -> Array:
  """f[N, C]: the label distributions of the training rows, whose given labels are i32[N]."""
  return memory.recall(extra['bank'], jnp.arange(len(label)), jnp.asarray(label))
