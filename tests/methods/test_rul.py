import jax
import jax.numpy as jnp
import numpy as np
import pytest
from device_counts import check_ten_steps_in_float64

from ferjax.distributed.parallel import AXIS, example_keys
from ferjax.errors import InputError
from ferjax.methods import rul
from ferjax.models import resnet

CLASSES, BATCH = 3, 6


def narrow(dtype=jnp.float32):
  return resnet.ResNet(resnet.BasicBlock, (1, 1), 4, dtype=dtype, param_dtype=dtype)


def started(**options):
  method = rul.make(narrow(), num_classes=CLASSES, features=5, **options)
  return method, *method.init(jax.random.key(0), {'image': jnp.zeros((1, 16, 16, 3))}, {})


def drawn():
  rng = np.random.default_rng(0)
  outputs = {
    'embedding': jnp.asarray(rng.normal(size=(BATCH, 5)), jnp.float32),
    'log_uncertainty': jnp.log(jnp.asarray(rng.uniform(0.1, 2, BATCH), jnp.float32)),
  }
  return outputs, {'label': jnp.asarray(rng.integers(0, CLASSES, BATCH))}


def pairs(extra, step):
  """The partners of a step: one draw for the whole batch."""
  key = jax.random.fold_in(jax.random.key(extra['pair_seed']), step)
  return np.asarray(jax.random.permutation(key, BATCH))


def test_the_loss_by_a_slow_loop():
  method, params, extra = started()
  outputs, batch = drawn()
  terms, _ = method.loss(params, extra, outputs, batch, 7)
  feature, s, label = (
    np.asarray(x)
    for x in (outputs['embedding'], jnp.exp(outputs['log_uncertainty']), batch['label'])
  )
  kernel, bias = (np.asarray(params['classifier'][name]) for name in ('kernel', 'bias'))
  losses = []
  for i, j in enumerate(pairs(extra, 7)):
    mixed = (s[i] * feature[i] + s[j] * feature[j]) / (s[i] + s[j])
    scores = mixed @ kernel + bias
    log_shares = scores - np.log(np.exp(scores).sum())
    losses.append(-(log_shares[label[i]] + log_shares[label[j]]) / 2)
  np.testing.assert_allclose(terms['cross_entropy'], np.mean(losses), rtol=1e-5)


def test_the_less_certain_row_counts_more():
  mixed = rul.mix(jnp.array([[1.0], [5.0]]), jnp.log(jnp.array([3.0, 1.0])), jnp.array([1, 0]))
  np.testing.assert_allclose(mixed, [[2.0], [2.0]], rtol=1e-6)


@pytest.mark.parametrize('size', [-1e4, 1e4])
def test_extreme_uncertainties_have_finite_gradients(size):
  grads = jax.grad(lambda s: rul.mix(jnp.ones((2, 3)), s, jnp.array([1, 0])).sum())
  assert np.isfinite(grads(jnp.full(2, size))).all()
  assert np.isfinite(grads(jnp.array([size, 0.0]))).all()


def test_partners_change_with_the_step_and_the_seed():
  _, _, extra = started()
  method = rul.make(narrow(), num_classes=CLASSES)
  _, other = method.init(jax.random.key(1), {'image': jnp.zeros((1, 16, 16, 3))}, {})
  found = [tuple(pairs(extra, step)) for step in range(5)] + [tuple(pairs(other, 0))]
  assert len(set(found)) > 4


def test_dropout_is_off_in_prediction_and_on_in_training():
  method, params, extra = started()
  image = jnp.asarray(np.random.default_rng(0).normal(size=(BATCH, 16, 16, 3)), jnp.float32)

  def train(seed):
    keys = example_keys(jax.random.key(seed), jnp.arange(BATCH))
    run = jax.vmap(lambda x, k: method.forward(params, extra, {'image': x}, k)[0], axis_name=AXIS)
    return run(image[None], keys[None])['embedding'][0]

  assert abs(train(0) - train(1)).max() > 0.1
  np.testing.assert_array_equal(train(0), train(0))
  first, again = (method.predict(params, extra, {'image': image}) for _ in range(2))
  np.testing.assert_array_equal(first['logits'], again['logits'])
  assert first['uncertainty'].shape == (BATCH,) and (first['uncertainty'] > 0).all()
  assert 'last_map' in method.predict(params, extra, {'image': image}, jnp.zeros(()))


def test_the_same_on_any_number_of_devices():
  def make(dtype):
    return rul.make(narrow(dtype), num_classes=7, features=5)

  metrics, _ = check_ten_steps_in_float64([(8, 'pmap'), (4, 'shard_map')], make)
  assert metrics[-1]['uncertainty'] > 0


@pytest.mark.parametrize(
  'options, message', [({'dropout': 1.0}, 'dropout=1.0 lies outside'), ({'dropout': -0.1}, '-0.1')]
)
def test_options_that_cannot_work_are_refused(options, message):
  with pytest.raises(InputError, match=message):
    started(**options)


def test_a_batch_of_one_row_is_refused():
  method, params, extra = started()
  outputs = {'embedding': jnp.ones((1, 5)), 'log_uncertainty': jnp.ones(1)}
  with pytest.raises(InputError, match='config.batch=2 or more'):
    method.loss(params, extra, outputs, {'label': jnp.zeros(1, jnp.int32)}, 0)
