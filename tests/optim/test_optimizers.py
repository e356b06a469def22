import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ferjax.errors import InputError
from ferjax.optim import optimizers

PARAMS = {'model': {'kernel': jnp.array([1.0, -2.0]), 'bias': jnp.array([0.5])}}
GRADS = {'model': {'kernel': jnp.array([0.1, 0.2]), 'bias': jnp.array([0.3])}}


def updates(**options):
  tx, _ = optimizers.make(PARAMS, 10, 5, **options)
  return tx.update(GRADS, tx.init(PARAMS), PARAMS)[0]['model']


def test_sgd_with_weight_decay_is_pytorchs():
  out = updates(name='sgd', lr=0.1, momentum=0.9, weight_decay=0.01)
  np.testing.assert_allclose(out['kernel'], [-0.1 * 0.11, -0.1 * 0.18], rtol=1e-6)


def test_adam_decays_before_and_adamw_after_the_scaling():
  adam = updates(name='adam', lr=0.1, weight_decay=1.0)
  np.testing.assert_allclose(adam['kernel'], [-0.1, 0.1], rtol=1e-5)
  adamw = updates(name='adamw', lr=0.1, weight_decay=1.0)
  np.testing.assert_allclose(adamw['kernel'], [-0.2, 0.1], rtol=1e-5)


def test_rules_pick_parameters_by_name_and_the_first_wins():
  rules = (('.*/bias', 0.0), ('model/.*', 0.5))
  out = updates(name='sgd', lr=1.0, momentum=0.0, lr_rules=rules)
  np.testing.assert_allclose(out['kernel'], [-0.05, -0.1], rtol=1e-6)
  assert float(out['bias'][0]) == 0
  out = updates(name='sgd', lr=1.0, weight_decay=1.0, weight_decay_rules=(('.*/bias', 0.0),))
  np.testing.assert_allclose(out['bias'], [-0.3], rtol=1e-6)
  np.testing.assert_allclose(out['kernel'], [-1.1, 1.8], rtol=1e-6)


def test_gradients_are_clipped_by_their_norm():
  out = updates(name='sgd', lr=1.0, clip_norm=0.01)
  assert float(optax.tree.norm(out)) == pytest.approx(0.01)


@pytest.mark.parametrize(
  'options, message',
  [
    ({'name': 'adan'}, 'adam'),
    ({'schedule': 'cosin'}, 'cosine'),
    ({'lr_rules': (('nothing', 0.0),)}, 'matches no parameter(.|\n)*model/kernel'),
    ({'lr_rules': (('(', 0.0),)}, 'no regular expression'),
  ],
)
def test_mistakes_are_named(options, message):
  with pytest.raises(InputError, match=message):
    updates(**options)


def test_schedules():
  linear = optimizers.learning_rate_schedule(1.0, 'linear', 10, warmup=2)
  np.testing.assert_allclose([linear(s) for s in (0, 1, 2, 6, 10)], [0, 0.5, 1, 0.5, 0], atol=1e-6)
  steps = optimizers.learning_rate_schedule(1.0, 'step', 10, boundaries=(4, 8), decay=0.1)
  np.testing.assert_allclose([steps(s) for s in (3, 4, 8)], [1, 0.1, 0.01], rtol=1e-5)
  cosine = optimizers.learning_rate_schedule(1.0, 'cosine', 10)
  np.testing.assert_allclose([cosine(s) for s in (0, 5, 10)], [1, 0.5, 0], atol=1e-6)


def follow(steps, **options):
  """Parameters after each step, with two steps per epoch and constant gradients."""
  tx, _ = optimizers.make(PARAMS, steps, 2, **options)
  params, state, found = PARAMS, tx.init(PARAMS), []
  step = jax.jit(lambda params, state: tx.update(GRADS, state, params))
  for _ in range(steps):
    changes, state = step(params, state)
    params = optax.apply_updates(params, changes)
    found.append(params['model'])
  return found


@pytest.mark.parametrize('name', ['adam', 'adamw', 'sgd'])
def test_frozen_parameters_do_not_move_and_start_again(name):
  """The bias is frozen for an epoch, then moves as at a start; the kernel is never frozen."""
  options = {'name': name, 'lr': 0.1, 'weight_decay': 0.5}
  free = follow(6, **options)
  rules = (('.*/bias', 0, 1, 0),)
  frozen = follow(6, freeze_rules=rules, **options)
  for step in range(6):
    np.testing.assert_allclose(frozen[step]['kernel'], free[step]['kernel'], rtol=1e-5)
    if step < 2:
      np.testing.assert_array_equal(frozen[step]['bias'], PARAMS['model']['bias'])
    else:
      np.testing.assert_allclose(frozen[step]['bias'], free[step - 2]['bias'], rtol=1e-5)


def test_parts_alternate():
  rules = (('.*/bias', 0, 1, 2), ('.*/kernel', 1, 2, 2), ('.*/k.*', 0, 0.5, 0))
  found = [PARAMS['model'], *follow(8, lr=0.1, weight_decay=0.1, momentum=0.9, freeze_rules=rules)]
  moved = {
    name: [bool((a[name] != b[name]).any()) for a, b in zip(found, found[1:], strict=False)]
    for name in ('bias', 'kernel')
  }
  assert moved['bias'] == [False, False, True, True] * 2
  assert moved['kernel'] == [False, True, False, False, True, True, False, False]


@pytest.mark.parametrize(
  'rule, message',
  [
    (('nothing', 0, 1, 0), 'matches no parameter'),
    (('.*', 2, 1, 0), 'first < last'),
    (('.*', 0, 1), 'give .regex'),
  ],
)
def test_impossible_freezing_is_refused(rule, message):
  with pytest.raises(InputError, match=message):
    updates(freeze_rules=(rule,))
