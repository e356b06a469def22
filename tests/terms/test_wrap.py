import jax.numpy as jnp
import numpy as np

from ferjax import core
from ferjax.optim.ema import ema


def counting_method():
  return core.Method(
    needs=frozenset({'landmarks'}),
    predict_needs=frozenset(),
    init=lambda rng, batch, table: ({'w': jnp.zeros(2)}, {'seen': jnp.int32(0)}),
    forward=lambda params, extra, batch, keys: ({'logits': params['w'] + extra['seen']}, None),
    loss=lambda params, extra, outputs, batch, step: ({'loss': outputs['logits'].sum()}, None),
    update=lambda extra, params, carry, outputs, batch, aux: {'seen': extra['seen'] + 1},
    predict=lambda params, extra, batch, delta=None: {'logits': params['w'], 'seen': extra['seen']},
  )


def test_average_follows_the_closed_loop_and_is_what_predicts():
  method = ema(counting_method(), 0.5)
  params, extra = method.init(None, None, None)
  average = 0.0
  for t in range(12):
    params = {'w': params['w'] + 1.0}
    extra = method.update(extra, params, None, None, None, None)
    decay = min(0.5, (1 + t) / (10 + t))
    average = decay * average + (1 - decay) * (t + 1)
  out = method.predict(params, extra, None)
  np.testing.assert_allclose(out['logits'], average, rtol=1e-6)
  assert out['seen'] == 12 and method.needs == {'landmarks'}
  np.testing.assert_allclose(method.forward(params, extra, None, None)[0]['logits'], 24.0)


def test_statistics_are_averaged_along():
  base = counting_method()
  base = base._replace(
    init=lambda rng, batch, table: ({'w': jnp.zeros(2)}, {'batch_stats': {'mean': jnp.zeros(2)}}),
    update=lambda extra, params, carry, outputs, batch, aux: {'batch_stats': carry},
    predict=lambda params, extra, batch, delta=None: params | extra['batch_stats'],
  )
  for statistics in (False, True):
    method = ema(base, 0.5, statistics)
    params, extra = method.init(None, None, None)
    average = 0.0
    for t in range(4):
      carry = {'mean': jnp.full(2, t + 3.0)}
      extra = method.update(extra, params, carry, None, None, None)
      decay = min(0.5, (1 + t) / (10 + t))
      average = decay * average + (1 - decay) * (t + 3)
    found = method.predict(params, extra, None)
    np.testing.assert_allclose(found['mean'], average if statistics else 6.0, rtol=1e-6)
    np.testing.assert_array_equal(found['w'], 0)
