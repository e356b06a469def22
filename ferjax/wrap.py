"""Method -> Method: features that any method can wear."""

import jax
import jax.numpy as jnp

from ferjax.core import Method


def ema(method: Method, decay: float) -> Method:
  """Predicts with an exponential moving average of the parameters.

  The average moves after each update, with decay min(decay, (1 + t) / (10 + t)) at update t.
  BatchNorm statistics stay the running ones: they are averages already.

  Args:
    method: Any method.
    decay: Largest decay, 0..1, such as 0.9999.
  """

  def init(rng, batch, table):
    params, extra = method.init(rng, batch, table)
    average = jax.tree.map(jnp.copy, params)
    return params, {'method': extra, 'average': average, 'updates': jnp.zeros((), jnp.int32)}

  def forward(params, extra, batch, keys):
    return method.forward(params, extra['method'], batch, keys)

  def loss(params, extra, outputs, batch, step):
    return method.loss(params, extra['method'], outputs, batch, step)

  def update(extra, params, carry, outputs, batch, aux):
    t = extra['updates'].astype(jnp.float32)
    rate = jnp.minimum(decay, (1 + t) / (10 + t))
    average = jax.tree.map(
      lambda a, p: (a * rate + p * (1 - rate)).astype(p.dtype), extra['average'], params
    )
    inner = method.update(extra['method'], params, carry, outputs, batch, aux)
    return {'method': inner, 'average': average, 'updates': extra['updates'] + 1}

  def predict(params, extra, batch, delta=None):
    return method.predict(extra['average'], extra['method'], batch, delta)

  def refresh(epoch, params, extra, table, embed):
    return extra | {'method': method.refresh(epoch, params, extra['method'], table, embed)}

  def estimates(extra, label):
    return method.estimates(extra['method'], label)

  def enroll(params, extra, table, embed):
    return extra | {'method': method.enroll(params, extra['method'], table, embed)}

  def columns(extra):
    return method.columns(extra['method'])

  return method._replace(
    init=init,
    forward=forward,
    loss=loss,
    update=update,
    predict=predict,
    refresh=refresh if method.refresh else None,
    estimates=estimates if method.estimates else None,
    enroll=enroll if method.enroll else None,
    columns=columns if method.columns else None,
  )
