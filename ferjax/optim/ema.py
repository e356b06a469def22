"""Prediction with an exponential moving average of the parameters."""

import jax
import jax.numpy as jnp

from ferjax import core


def ema(method: core.Method, decay: float, statistics: bool = False) -> core.Method:
  """Predicts with an exponential moving average of the parameters.

  The average moves after each update, with decay min(decay, (1 + t) / (10 + t)) at update t.

  Args:
    method: Any method.
    decay: Largest decay, 0..1, such as 0.9999.
    statistics: Whether BatchNorm statistics (`batch_stats` of the method's `extra`) are averaged
      along; they stay the running ones otherwise, which are averages already.
  """

  def averaged(params, extra):
    return {'params': params, 'batch_stats': extra['batch_stats']} if statistics else params

  def init(rng, batch, table):
    params, extra = method.init(rng, batch, table)
    average = jax.tree.map(jnp.copy, averaged(params, extra))
    return params, {'method': extra, 'average': average, 'updates': jnp.zeros((), jnp.int32)}

  def update(extra, params, carry, outputs, batch, aux):
    t = extra['updates'].astype(jnp.float32)
    rate = jnp.minimum(decay, (1 + t) / (10 + t))
    inner = method.update(extra['method'], params, carry, outputs, batch, aux)
    average = jax.tree.map(
      lambda a, p: (a * rate + p * (1 - rate)).astype(p.dtype),
      extra['average'],
      averaged(params, inner),
    )
    return {'method': inner, 'average': average, 'updates': extra['updates'] + 1}

  def predict(params, extra, batch, delta=None):
    return method.predict(*predicting(extra, statistics), batch, delta)

  inner = core.inside(
    method,
    params_of=lambda params: params,
    extra_of=lambda extra: extra['method'],
    with_extra=lambda extra, own: extra | {'method': own},
  )
  return inner._replace(init=init, update=update, predict=predict)


def predicting(extra: core.PyTree, statistics: bool) -> tuple[core.PyTree, core.PyTree]:
  """The parameters, and the `extra` of the method, with which it predicts.

  Args:
    extra: Of the method with averages.
    statistics: See `ema`.
  """
  average, inner = extra['average'], extra['method']
  if not statistics:
    return average, inner
  return average['params'], inner | {'batch_stats': average['batch_stats']}
