"""Gives BatchNorm the statistics of given pictures without a change of what a network computes.

In files whose BatchNorm was replaced by a scale and a shift, the statistics are missing. In
evaluation mode, any mean and variance are right if scale and bias fit them. In training mode,
however, BatchNorm uses the statistics of the batch, so the network would compute something else.
"""

from collections.abc import Iterable
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ferjax.models.resnet import EPSILON

PyTree = Any
Moments = dict[str, tuple[np.ndarray, np.ndarray]]


def measure(model: nn.Module, variables: PyTree, batches: Iterable[Array]) -> Moments:
  """The mean and variance of each BatchNorm's input in evaluation mode.

  Args:
    model: pictures f[b, h, w, 3], train -> feature maps.
    variables: `params` and `batch_stats` of the network.
    batches: Normalised pictures f[b, h, w, 3], equally many in each batch.

  Returns:
    {path of the layer, such as `layer1_0/bn1`: (mean, variance) f64[c]}, over all pictures.
  """
  step = jax.jit(lambda variables, x: _moments(model, variables, x))
  found = [jax.tree.map(np.asarray, step(variables, x)) for x in batches]
  moments = {}
  for path in found[0]:
    means, variances = (np.stack([x[path][i] for x in found]).astype(np.float64) for i in (0, 1))
    moments[path] = means.mean(0), variances.mean(0) + means.var(0)
  return moments


def _moments(model, variables, x):
  seen = {}

  def record(run, args, kwargs, context):
    if isinstance(context.module, nn.BatchNorm):
      wide = args[0].astype(jnp.promote_types(args[0].dtype, jnp.float32))
      axes = tuple(range(wide.ndim - 1))
      seen['/'.join(context.module.path)] = wide.mean(axes), wide.var(axes)
    return run(*args, **kwargs)

  with nn.intercept_methods(record):
    model.apply(variables, x, False)
  return seen


def install(variables: PyTree, moments: Moments) -> PyTree:
  """The variables with given statistics. Scale and bias change with them, so that the network
  computes the same in evaluation mode.

  Args:
    variables: `params` and `batch_stats` of the network.
    moments: See `measure`.
  """
  params, stats = (
    flax.traverse_util.flatten_dict(variables[kind], sep='/') for kind in ('params', 'batch_stats')
  )
  for path, (mean, variance) in moments.items():
    scale, bias = (params[f'{path}/{name}'] for name in ('scale', 'bias'))
    old_mean, old_variance = (stats[f'{path}/{name}'] for name in ('mean', 'var'))
    slope = np.float64(scale) / np.sqrt(np.float64(old_variance) + EPSILON)
    params[f'{path}/scale'] = (slope * np.sqrt(variance + EPSILON)).astype(scale.dtype)
    params[f'{path}/bias'] = (bias + slope * (mean - old_mean)).astype(bias.dtype)
    stats[f'{path}/mean'] = mean.astype(old_mean.dtype)
    stats[f'{path}/var'] = variance.astype(old_variance.dtype)
  unflatten = flax.traverse_util.unflatten_dict
  return {'params': unflatten(params, sep='/'), 'batch_stats': unflatten(stats, sep='/')}
