import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ferjax import core
from ferjax.distributed import parallel
from ferjax.errors import InputError
from ferjax.metrics import predictions
from ferjax.terms import weighting
from ferjax.training.step import example_terms, make_train_step

TERMS = ('expression', 'pose', 'triplet')


def terms(*values):
  return {name: jnp.float32(value) for name, value in zip(TERMS, values, strict=False)}


def follow(made, losses, per_step=None):
  """The weights f[steps + 1, n] before each step and after the last."""
  learned, state = made.init(terms(*losses[0]))
  update, weigh = jax.jit(made.update), jax.jit(made.weigh)
  found = []
  for step, values in enumerate([*losses, losses[-1]]):
    weights, penalties = weigh(learned, state, terms(*values), jnp.int32(step))
    found.append([float(weight) for weight in weights.values()])
    assert not any(penalties.values())
    state = update(state, terms(*values))
  return np.array(found), state


def test_dynamic_weights_by_hand():
  """A window of 2: the second term halves at every step, the third is always 0."""
  losses = [(1.0, 0.5**t, 0.0) for t in range(8)]
  found, state = follow(weighting.make(name='dynamic', total=2.0, window=2), losses)
  np.testing.assert_allclose(found.sum(1), 2, rtol=1e-6)
  np.testing.assert_allclose(found[:4], 2 / 3, rtol=1e-6)
  shares = np.exp(np.array([1.0, 0.25, 1.0]) / 2)
  np.testing.assert_allclose(found[4], 2 * shares / shares.sum(), rtol=1e-6)
  np.testing.assert_allclose(found[8], 2 * shares / shares.sum(), rtol=1e-6)
  np.testing.assert_allclose(state.terms['pose'], [0.5**5, 0.5**6, 0.5**7, 0.5**7])
  assert int(state.seen) == 9


def test_dynamic_weights_by_a_slow_loop():
  rng = np.random.default_rng(0)
  losses = rng.gamma(0.2, 3.0, (40, 3))
  found, _ = follow(weighting.make(name='dynamic', temperature=1.5), losses.tolist())
  clipped = 0
  for step in range(10, 40):
    last, before = losses[step - 5 : step].mean(0), losses[step - 10 : step - 5].mean(0)
    clipped += ((last / before > 10) | (last / before < 0.1)).sum()
    rate = np.clip(last / before, 0.1, 10)
    expected = 3 * np.exp(rate / 1.5) / np.exp(rate / 1.5).sum()
    np.testing.assert_allclose(found[step], expected, rtol=1e-4)
  assert clipped > 3
  np.testing.assert_allclose(found[:10], 1, rtol=1e-6)


def test_a_term_that_is_off_leaves_its_share_to_the_others():
  """Two steps per epoch. The pose is off in the first two epochs, then alternates with triplets."""
  off = (('pose', 0, 2, 0), ('p.*', 0, 1, 2), ('triplet', 1, 2, 2))
  losses = [(1.0, 1.0, 1.0)] * 12
  pose_on = np.array([False] * 4 + [False, False, True, True] * 2)
  triplet_on = np.array([True, True, False, False] * 3)
  for name in ('constant', 'dynamic'):
    for total in (2.0, 0.0):
      found, _ = follow(weighting.make(2, name=name, total=total, off=off), losses)
      found = found[:12]
      on = np.stack([np.ones(12, bool), pose_on, triplet_on], 1)
      number = on.sum(1, keepdims=True)
      np.testing.assert_allclose(found, on * (total or number) / number, rtol=1e-6)
  everything = weighting.make(1, name='dynamic', off=(('.*', 0, 1, 0),))
  assert not follow(everything, losses)[0][0].any()


def test_constant_weights_are_ones_to_the_bit_and_have_no_state():
  made = weighting.make()
  assert not made.varies and made.init(terms(1, 2)) == ({}, ())
  weights, penalties = made.weigh({}, (), terms(1, 2, 3), 0)
  assert [float(w) for w in weights.values()] == [1, 1, 1] and not any(penalties.values())
  assert made.update((), terms(1)) == ()


def settle(made, losses, steps=2000):
  """The learned weights after gradient descent on the loss, and the total at the start."""
  learned, state = made.init(losses)

  def total(learned):
    weights, penalties = made.weigh(learned, state, losses, 0)
    return sum(weights[name] * losses[name] + penalties[name] for name in losses)

  @jax.jit
  def descend(learned):
    return jax.lax.fori_loop(
      0, steps, lambda _, x: jax.tree.map(lambda a, g: a - 0.2 * g, x, jax.grad(total)(x)), learned
    )

  return descend(learned), total(learned)


def test_uncertainty_settles_where_the_derivative_vanishes():
  """exp(-s) L + s / 2 is least at s = log(2 L)."""
  made = weighting.make(name='uncertainty', off=(('triplet', 0, 9, 0),))
  learned, start = settle(made, terms(0.2, 3.0, 5.0))
  assert float(start) == pytest.approx(3.2)
  np.testing.assert_allclose(learned['expression'], np.log(0.4), atol=1e-4)
  np.testing.assert_allclose(learned['pose'], np.log(6), atol=1e-4)
  assert learned['triplet'] == 0


def test_uncertainty_of_a_term_at_0_or_below_settles_too():
  """The gradient of the network is the weight times that of the term."""
  made = weighting.make(name='uncertainty')
  learned, _ = settle(made, terms(0.0, -3.0, 0.02))
  for name, value in zip(TERMS, (0.02, 0.02, 0.04), strict=True):
    np.testing.assert_allclose(learned[name], np.log(value), atol=1e-3)

  def total(value):
    weights, penalties = made.weigh(learned, (), terms(value, 1.0, 1.0), 0)
    return weights['expression'] * value + penalties['expression']

  np.testing.assert_allclose(jax.grad(total)(-0.5), 50, rtol=1e-3)


def two_terms():
  """Terms w^2 and 3 w^2 of a parameter w, which starts at 2."""
  return core.Method(
    needs=frozenset(),
    predict_needs=frozenset(),
    init=lambda rng, batch, table: ({'w': jnp.float32(2)}, {}),
    forward=lambda params, extra, batch, keys: ({'w': params['w'] + 0 * batch['x']}, None),
    loss=lambda params, extra, outputs, batch, step: (
      {'a': (outputs['w'] ** 2).mean(), 'b': 3 * (outputs['w'] ** 2).mean()},
      None,
    ),
    update=lambda extra, params, carry, outputs, batch, aux: {'seen': params['w']},
    predict=lambda params, extra, batch, delta=None: params,
  )


@pytest.mark.parametrize('name', weighting.NAMES)
def test_the_step_weighs_in_one_place(name):
  method, made = two_terms(), weighting.make(name=name, total=1.0, off=(('b', 1, 2, 0),))
  params, extra = method.init(None, None, None)
  batch = {'x': np.zeros(2, np.float32), 'position': np.arange(2, dtype=np.int32)}
  shapes = example_terms(method, lambda keys, batch: batch, params, extra, batch)
  assert {k: v.shape for k, v in shapes.items()} == {'a': (), 'b': ()}
  learned, history = made.init(shapes)
  params = params | ({core.LEARNED: learned} if learned else {})
  tx = optax.sgd(0.01)
  state = core.TrainState(
    jnp.int32(0), params, tx.init(params), {'seen': params['w']}, jax.random.key(0), history
  )
  devices = parallel.make(devices=2)
  step = make_train_step(method, tx, lambda keys, batch: batch, {'b': 0.5}, made)
  step = devices.compile(step)
  state, metrics = step(devices.replicate(state), devices.shard(batch))
  share = 1.0 if name == 'uncertainty' else 0.5
  assert metrics['a'] == 4 and metrics['b'] == 12
  assert metrics['weight/a'] == share and metrics['weight/b'] == share / 2
  assert metrics['loss'] == 4 * share + 6 * share
  np.testing.assert_allclose(state.params['w'], 2 - 0.01 * share * (4 + 6), rtol=1e-6)
  np.testing.assert_allclose(state.extra['seen'], state.params['w'])
  if name == 'uncertainty':  # d/ds: 1/2 - 4, (1/2 - 12) / 2
    moved = state.params[core.LEARNED]
    np.testing.assert_allclose([moved['a'], moved['b']], [0.035, 0.115 / 2], rtol=1e-5)
  state, metrics = step(state, devices.shard(batch))
  assert metrics['weight/b'] == 0 and metrics['weight/a'] > 0.96
  predict = devices.compile(predictions.make_predict_step(method, lambda batch: batch))
  assert set(predict(state.replace(params={'w': jnp.ones(2)}), devices.shard(batch))) == {'w'}


@pytest.mark.parametrize(
  'options, message',
  [
    ({'name': 'dynamc'}, "Did you mean 'dynamic'"),
    ({'temperature': 0.0}, 'temperature=0.0 above 0'),
    ({'clip': (2.0, 1.0)}, 'low <= high'),
    ({'off': (('pose', 3, 2, 0),)}, 'first < last'),
    ({'off': (('pose', 1),)}, 'give .regex, first epoch'),
  ],
)
def test_impossible_settings_are_refused(options, message):
  with pytest.raises(InputError, match=message):
    weighting.make(**options)


def test_a_rule_must_match_a_term():
  made = weighting.make(off=(('poses', 0, 1, 0),))
  with pytest.raises(InputError, match="'poses' matches no term(.|\n)*expression"):
    made.weigh({}, (), terms(1, 1, 1), 0)
