"""The result of a run does not depend on the number of devices: a hard method, both back ends."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ferjax import core
from ferjax.distributed import parallel
from ferjax.errors import InputError
from ferjax.images import augment
from ferjax.losses.cross_entropy import cross_entropy
from ferjax.models import resnet
from ferjax.training.step import EQUAL, example_terms, make_train_step, weighted_sum

BATCH, STEPS, ROWS = 16, 10, 24


def batch_hard_method(dtype):
  """Cross-entropy and batch-hard triplets over the whole batch, dropout, synchronised BatchNorm."""

  class Network(nn.Module):
    @nn.compact
    def __call__(self, image, train, keys=None):
      kinds = {'dtype': dtype, 'param_dtype': dtype}
      x = resnet.ResNet(resnet.BasicBlock, (1, 1), 4, **kinds)(image, train)[-1].mean((1, 2))
      if train:
        kept = jax.vmap(lambda key, row: jax.random.bernoulli(key, 0.8, row.shape))(keys, x)
        x = jnp.where(kept, x / 0.8, 0)
      z = x * jax.lax.rsqrt((x**2).sum(-1, keepdims=True) + 1e-12)
      return {'logits': nn.Dense(7, **kinds)(x), 'embedding': z}

  network = Network()

  def init(rng, batch, table):
    variables = network.init(rng, batch['image'], False)
    return variables['params'], {'batch_stats': variables['batch_stats']}

  def forward(params, extra, batch, keys):
    variables = {'params': params, **extra}
    return network.apply(variables, batch['image'], True, keys, mutable=['batch_stats'])

  def loss(params, extra, outputs, batch, step):
    z, label = outputs['embedding'], batch['label']
    distance = ((z[:, None] - z[None]) ** 2).sum(-1)
    same, itself = label[:, None] == label[None], jnp.eye(len(label), dtype=bool)
    positive = jnp.where(same & ~itself, distance, -jnp.inf).max(1)
    negative = jnp.where(~same, distance, jnp.inf).min(1)
    valid = jnp.isfinite(positive) & jnp.isfinite(negative)
    hinge = jax.nn.relu(0.2 + jnp.where(valid, positive - negative, 0))
    triplet = jnp.where(valid, hinge, 0).sum() / jnp.maximum(valid.sum(), 1)
    return {'ce': cross_entropy(outputs['logits'], label).mean(), 'triplet': triplet}, None

  def update(extra, params, carry, outputs, batch, aux):
    return {'batch_stats': carry['batch_stats']}

  def predict(params, extra, batch, delta=None):
    return network.apply({'params': params, **extra}, batch['image'], False)

  return core.Method(frozenset(), frozenset(), init, forward, loss, update, predict)


def run(
  devices,
  backend,
  dtype,
  steps,
  make_method=batch_hard_method,
  weights=None,
  weighting=EQUAL,
  more=None,
):
  """Metrics of every step and the last parameters and other state, as NumPy arrays.

  `more(rng)` are further columns of each batch.
  """
  place = parallel.make(devices=devices, backend=backend)
  method = make_method(dtype)
  rng = np.random.default_rng(0)
  batches = [
    {
      'image': rng.integers(0, 256, (BATCH, 16, 16, 3), np.uint8),
      'label': rng.integers(0, 7, BATCH, np.int32),
      'index': rng.integers(0, ROWS, BATCH, np.int32),
      'landmarks': rng.uniform(0, 15, (BATCH, 5, 2)).astype(np.float32),
      'position': np.arange(BATCH, dtype=np.int32),
      'pose': rng.integers(0, 3, BATCH, np.int32),
      'subject': rng.integers(0, 4, BATCH, np.int32),
    }
    for _ in range(steps)
  ]
  if more:
    batches = [batch | more(rng) for batch in batches]
  tx = optax.adam(1e-3)
  example = augment.evaluation({k: v[:1] for k, v in batches[0].items()}, dtype)
  params, extra = method.init(jax.random.key(0), example, {'label': np.zeros(ROWS, np.int32)})
  change = augment.make(
    crop_scale=(0.5, 1),
    rotation=20.0,
    perspective=0.2,
    brightness=0.3,
    erasing=0.5,
    flip_order=np.arange(5)[::-1],
    flip_poses=np.arange(3)[::-1],
    views=method.views,
    dtype=dtype,
  )
  history = ()
  if weighting.varies:
    terms = example_terms(method, change, params, extra, batches[0])
    learned, history = weighting.init(terms)
    params = params | ({core.LEARNED: learned} if learned else {})
  state = core.TrainState(jnp.int32(0), params, tx.init(params), extra, jax.random.key(1), history)
  step = make_train_step(method, tx, change, weights or {}, weighting)
  step = place.compile(step, donate=0)
  state, metrics = place.replicate(state), []
  for batch in batches:
    state, values = step(state, place.shard(batch))
    metrics.append(parallel.host(values))
  kept = {'params': state.params, 'extra': state.extra, 'weighting': state.weighting}
  return metrics, parallel.host(kept)


RUNS = [(2, 'pmap'), (8, 'pmap'), (4, 'shard_map')]


def check_ten_steps_in_float64(runs, *method, **options):
  """Ten steps on each (devices, backend) agree with those on one device to 1e-8."""
  with jax.enable_x64(True):
    metrics, state = run(1, 'pmap', jnp.float64, STEPS, *method, **options)
    assert metrics[0]['loss'].dtype == np.float64
    for devices, backend in runs:
      others, other = run(devices, backend, jnp.float64, STEPS, *method, **options)
      for ours, theirs in zip(metrics, others, strict=True):
        for name in ours:
          np.testing.assert_allclose(theirs[name], ours[name], rtol=1e-8, err_msg=name)
      jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=0, atol=1e-8), state, other)
  return metrics, state


def test_ten_steps_in_float64_agree_to_1e_8():
  metrics, _ = check_ten_steps_in_float64(RUNS, batch_hard_method, {'triplet': 0.7})
  assert metrics[0]['triplet'] > 0


def test_first_step_in_float32_agrees_to_1e_5():
  method = (batch_hard_method, {'triplet': 0.7})
  (ours,), _ = run(1, 'pmap', jnp.float32, 1, *method)
  (theirs,), _ = run(8, 'shard_map', jnp.float32, 1, *method)
  for name in ('loss', 'ce', 'triplet', 'l2_grads'):
    np.testing.assert_allclose(theirs[name], ours[name], rtol=1e-5, err_msg=name)


def test_batches_must_divide():
  parallel.check_batch(16, 8)
  with pytest.raises(InputError, match='16 and 24'):
    parallel.check_batch(20, 8)
  with pytest.raises(InputError, match='sizes: 8'):
    parallel.check_batch(3, 8)


@pytest.mark.parametrize('options', [{'devices': 9}, {'backend': 'pjit'}])
def test_impossible_settings_are_refused(options):
  with pytest.raises(InputError):
    parallel.make(**options)


def test_weights_apply_in_one_place_and_must_name_a_term():
  terms = {'a': jnp.float32(2), 'b': jnp.float32(3)}
  assert weighted_sum(terms, {'b': 0.5}) == 3.5
  with pytest.raises(InputError, match="Did you mean 'b'|names 'bb'"):
    weighted_sum(terms, {'bb': 1.0})
