import shutil

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from device_counts import check_ten_steps_in_float64
from drawn_faces import strip_landmarks, write_manifest

from ferjax import models
from ferjax.assembly import restore
from ferjax.distributed.parallel import AXIS
from ferjax.errors import InputError
from ferjax.losses.divergence import jensen_shannon
from ferjax.methods import lanet, softmax
from ferjax.methods.lanet import estimation, memory
from ferjax.models import resnet
from ferjax.runs import history
from ferjax.training import loop

BATCH, K, CLASSES, ROWS = 12, 3, 4, 20
SMALL = {'neighbours': K, 'queue_size': 32}
QUERY_KEY = ('query', 'key')


def narrow(dtype=jnp.float32):
  return resnet.ResNet(resnet.BasicBlock, (1, 1), 8, dtype=dtype, param_dtype=dtype)


def started(**options):
  """The method, its parameters and its other state."""
  method = lanet.make(narrow(), num_classes=CLASSES, **(SMALL | options))
  example = {'image': jnp.zeros((1, 16, 16, 3)), 'landmarks': jnp.zeros((1, 5, 2))}
  return method, *method.init(jax.random.key(0), example, {'label': np.zeros(ROWS)})


def drawn(seed=0, spread=1.0):
  """A batch and the outputs of its forward pass, drawn at random."""
  rng = np.random.default_rng(seed)

  def unit(*shape):
    x = rng.normal(size=shape)
    return jnp.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True), jnp.float32)

  batch = {
    'label': jnp.asarray(rng.integers(0, CLASSES, BATCH)),
    'index': jnp.asarray(rng.permutation(ROWS)[:BATCH]),
  }
  outputs = {
    'logits': jnp.asarray(spread * rng.normal(size=(BATCH, CLASSES)), jnp.float32),
    'embedding': unit(BATCH, 16),
    'landmark_embedding': unit(BATCH, 16),
    'landmark_error': jnp.asarray(rng.random(BATCH), jnp.float32),
    **{f'{s}_{k}': unit(BATCH, 2) for s in ('expression', 'landmark') for k in ('query', 'key')},
  }
  return batch, outputs


def test_the_estimated_distributions_by_a_slow_loop():
  """Both spaces, scores of the networks, the stored rows, and the rows that a step stores."""
  method, params, extra = started()
  batch, outputs = drawn()
  stored = np.zeros((ROWS, CLASSES), np.float32)
  stored[: ROWS // 2] = np.random.default_rng(1).dirichlet(np.ones(CLASSES), ROWS // 2)
  extra = extra | {'bank': jnp.asarray(stored)}
  p = np.asarray(jax.nn.softmax(outputs['logits']))

  def score(space, i, j):
    part, x = params[f'{space}_score'], outputs[space_features[space]]
    own, other = (x[n] @ part[g]['kernel'] + part[g]['bias'] for n, g in ((i, 'g1'), (j, 'g2')))
    hidden = np.concatenate([own, other])
    for name in ('f1', 'f2'):
      hidden = np.maximum(hidden @ part[name]['kernel'] + part[name]['bias'], 0)
    return 1 / (1 + np.exp(-(hidden @ part['f3']['kernel'] + part['f3']['bias'])[0]))

  space_features = {'expression': 'embedding', 'landmark': 'landmark_embedding'}
  expected = []
  for i in range(BATCH):
    fresh = 0
    for space, features in space_features.items():
      x = np.asarray(outputs[features])
      nearest = sorted((j for j in range(BATCH) if j != i), key=lambda j: -(x[i] @ x[j]))[:K]
      weights = np.array([score(space, i, j) for j in nearest])
      fresh += 0.5 * (weights[:, None] * p[nearest]).sum(0) / weights.sum()
    row = stored[batch['index'][i]]
    before = row if row.any() else np.eye(CLASSES)[batch['label'][i]]
    expected.append(0.9 * before + 0.1 * fresh)
  expected = np.array(expected)
  terms, aux = method.loss(params, extra, outputs, batch, 0)
  np.testing.assert_allclose(aux['distribution'], expected, atol=1e-5)
  by_hand = (expected * (np.log(expected) - np.log(p))).sum(1).mean()
  np.testing.assert_allclose(terms['label_distribution'], by_hand, rtol=1e-4)
  np.testing.assert_allclose(terms['landmarks'], outputs['landmark_error'].mean(), rtol=1e-6)
  sure = expected.max(1) > 0.7
  labels = np.where(sure, expected.argmax(1), -(batch['index'] + 1))
  np.testing.assert_array_equal(aux['label'], labels)
  after = method.update(extra, params, {'batch_stats': {}}, outputs, batch, aux)
  np.testing.assert_allclose(after['bank'][batch['index']], expected, atol=1e-5)
  assert int(after['queue'].pushed) == BATCH
  np.testing.assert_array_equal(after['queue'].label[:BATCH], labels)
  np.testing.assert_array_equal(after['queue'].landmark[:BATCH], outputs['landmark_key'])


def test_keys_and_negatives_come_from_the_other_space():
  method, params, extra = started(label_distribution=False, landmarks=False, pseudo_labels=False)
  batch, outputs = drawn()
  keys = [drawn(seed)[1]['expression_key'] for seed in (1, 2)]
  extra['queue'] = memory.push(extra['queue'], *keys, batch['label'])
  terms, _ = method.loss(params, extra, outputs, batch, 0)
  expected = 0
  for query, key, queued in (('expression', 'landmark', 1), ('landmark', 'expression', 0)):
    q, k = np.asarray(outputs[f'{query}_query']), np.asarray(outputs[f'{key}_key'])
    label = np.asarray(batch['label'])
    for i in range(BATCH):
      others = np.exp(np.asarray(keys[queued])[label != label[i]] @ q[i] / 0.1).sum()
      same = np.exp(k[label == label[i]] @ q[i] / 0.1)
      expected -= np.log(same / (same + others)).mean() / BATCH
  np.testing.assert_allclose(terms['contrastive'], expected, rtol=1e-4)


def test_metrics_of_the_contrast_by_slow_loops():
  method, params, extra = started(decay=0.6)
  batch, outputs = drawn(spread=4.0)
  _, aux = method.loss(params, extra, outputs, batch, 0)
  q, k = ([np.asarray(outputs[f'{s}_{x}']) for s in ('expression', 'landmark')] for x in QUERY_KEY)
  pairs = [q[0][i] @ q[0][j] for i in range(BATCH) for j in range(BATCH) if i != j]
  np.testing.assert_allclose(aux['metrics']['query_cosine'], np.mean(pairs), rtol=1e-4)
  sure = [label >= 0 for label in np.asarray(aux['label'])]
  assert 0 < sum(sure) < BATCH
  np.testing.assert_allclose(aux['metrics']['sure_share'], np.mean(sure), rtol=1e-6)
  assert aux['metrics']['age_gap'] == 0  # of an empty queue

  old = [drawn(seed)[1]['expression_key'][:5] for seed in (1, 2)]
  extra['queue'] = memory.push(extra['queue'], *old, batch['label'][:5])
  gaps = [
    np.mean([a @ b for a in q[s] for b in k[1 - s]])
    - np.mean([a @ np.asarray(b) for a in q[s] for b in old[1 - s]])
    for s in (0, 1)
  ]
  _, aux = method.loss(params, extra, outputs, batch, 0)
  np.testing.assert_allclose(aux['metrics']['age_gap'], np.mean(gaps), rtol=1e-4)


def test_centred_queries_and_keys_do_not_all_point_the_same_way():
  """Those of a random network nearly do: its features are positive."""
  image = jnp.asarray(np.random.default_rng(0).normal(size=(BATCH, 16, 16, 3)), jnp.float32)
  batch = drawn()[0] | {'image': image, 'landmarks': jnp.ones((BATCH, 5, 2))}
  cosines = []
  for centre in (False, True):
    method, params, extra = started(centre=centre)

    def run(batch, method=method, params=params, extra=extra):
      return method.forward(params, extra, batch, None)

    share = jax.tree.map(lambda x: x[None], batch)
    outputs, carry = jax.tree.map(lambda x: x[0], jax.vmap(run, axis_name=AXIS)(share))
    _, aux = method.loss(params, extra, outputs, batch, 0)
    cosines.append(float(aux['metrics']['query_cosine']))
    for name in ('expression_query', 'landmark_query', 'expression_key', 'landmark_key'):
      np.testing.assert_allclose(np.linalg.norm(outputs[name], axis=1), 1, rtol=1e-4)
    assert ('expression_projection' in carry['batch_stats']) == centre
  assert cosines[0] > 0.5 and abs(cosines[1]) < 0.3


def test_keys_come_from_the_momentum_encoder_in_training_mode():
  method, params, extra = started()
  rng = np.random.default_rng(0)
  batch = {
    'image': jnp.asarray(rng.normal(size=(BATCH, 16, 16, 3)), jnp.float32),
    'landmarks': jnp.asarray(rng.uniform(0, 15, (BATCH, 5, 2)), jnp.float32),
  }
  extra['momentum'] = jax.tree.map(
    lambda x: x + 0.1 * jnp.sin(jnp.arange(x.size)).reshape(x.shape), extra['momentum']
  )

  @jax.jit
  def run(params, extra):
    mapped = jax.vmap(lambda batch: method.forward(params, extra, batch, None), axis_name='data')
    return jax.tree.map(lambda x: x[0], mapped(jax.tree.map(lambda x: x[None], batch)))

  outputs, carry = run(params, extra)
  as_queries, _ = run({**params, **extra['momentum']}, extra)
  other, _ = run(params, extra | {'momentum': {**params}})
  moved = jax.tree.map(lambda x: x + 1, extra['batch_stats'])
  shifted, _ = run(params, extra | {'batch_stats': moved})
  for space in ('expression', 'landmark'):
    key = outputs[f'{space}_key']
    np.testing.assert_allclose(key, as_queries[f'{space}_query'], atol=1e-5)
    np.testing.assert_allclose(key, shifted[f'{space}_key'], atol=1e-6)
    assert np.abs(key - other[f'{space}_key']).max() > 1e-3
    gradient = jax.grad(lambda p, space=space: run(p, extra)[0][f'{space}_key'].sum())(params)
    assert not any(np.any(g) for g in jax.tree.leaves(gradient))
  _, aux = method.loss(params, extra, outputs, batch | drawn()[0], 0)
  moved = method.update(extra, params, carry, outputs, batch | drawn()[0], aux)
  for name, slow in moved['momentum'].items():
    jax.tree.map(
      lambda new, old, now: np.testing.assert_allclose(new, 0.999 * old + 0.001 * now, atol=1e-6),
      slow,
      extra['momentum'][name],
      params[name],
    )
  assert 'classifier' not in moved['momentum'] and 'expression' in moved['momentum']


@pytest.mark.parametrize('case', ['one class', 'ambiguous', 'confident', 'one row', 'two rows'])
@pytest.mark.parametrize('stop_gradient', ['none', 'neighbours'])
def test_degenerate_batches_have_finite_losses_and_gradients(case, stop_gradient):
  method, params, extra = started(stop_gradient=stop_gradient)
  batch, outputs = drawn(spread=1e4 if case == 'confident' else 1.0)
  if case == 'one class':
    batch['label'] = jnp.zeros(BATCH, int)
  elif case == 'ambiguous':
    extra['bank'] = jnp.full_like(extra['bank'], 1 / CLASSES)
  elif case in ('one row', 'two rows'):
    batch['index'] = jnp.arange(BATCH) % (1 if case == 'one row' else 2)
  _, aux = method.loss(params, extra, outputs, batch, 0)
  assert (aux['label'] < 0).all() == (case == 'ambiguous')

  def total(params, outputs):
    terms, _ = method.loss(params, extra, outputs, batch, 0)
    return sum(terms.values())

  for _ in range(3):  # with an empty queue, with a part of it filled, with a full one
    loss, gradient = jax.value_and_grad(total, (0, 1))(params, outputs)
    assert np.isfinite(loss) and all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))
    _, aux = method.loss(params, extra, outputs, batch, 0)
    extra = method.update(extra, params, {'batch_stats': {}}, outputs, batch, aux)
  np.testing.assert_allclose(extra['bank'].sum(1), np.where(extra['bank'].any(1), 1, 0), atol=1e-5)


def test_the_parts_that_have_a_gradient():
  """The scores learn from the new part of the distributions, unless all of it is detached."""
  batch, outputs = drawn()
  found = {}
  for what in estimation.STOPS:
    method, params, extra = started(stop_gradient=what, contrastive=False)

    def term(params, outputs, method=method, extra=extra):
      return method.loss(params, extra, outputs, batch, 0)[0]['label_distribution']

    found[what] = jax.grad(term, (0, 1))(params, outputs)
  for what in estimation.STOPS:
    for space in ('expression', 'landmark'):
      learns = np.abs(found[what][0][f'{space}_score']['f1']['kernel']).max() > 0
      assert learns == (what != 'targets')
  assert not np.allclose(found['none'][1]['logits'], found['neighbours'][1]['logits'])
  assert np.abs(found['neighbours'][1]['embedding']).max() > 0
  assert not np.abs(found['targets'][1]['embedding']).any()


def in_parallel(**options):
  def make(dtype):
    options_here = {'neighbours': 4, 'queue_size': 40, **options}
    return lanet.make(narrow(dtype), num_classes=7, **options_here)

  return make


WEIGHTS = {'contrastive': 0.1}


def test_the_same_on_any_number_of_devices():
  """Bank, queues and momentum encoder included; rows are repeated within a batch."""
  metrics, state = check_ten_steps_in_float64([(8, 'pmap')], in_parallel(), WEIGHTS)
  assert all(
    value > 0 for name, value in metrics[-1].items() if name in ('contrastive', 'landmarks')
  )
  assert state['extra']['bank'].any(1).all() and state['extra']['queue'].pushed == 40


def test_heatmaps_and_a_second_view_on_any_number_of_devices():
  options = {'landmark_head': 'heatmap', 'key_view': 'other', 'shared_stem': False, 'centre': True}
  check_ten_steps_in_float64([(2, 'shard_map')], in_parallel(**options), WEIGHTS)


@pytest.mark.parametrize(
  'options, branches, terms',
  [
    ({'label_distribution': False, 'landmarks': False, 'contrastive': False}, 1, set()),
    ({'landmarks': False, 'contrastive': False}, 1, {'label_distribution'}),
    ({'contrastive': False}, 2, {'label_distribution', 'landmarks'}),
    ({'pseudo_labels': False}, 2, {'label_distribution', 'landmarks', 'contrastive'}),
    ({}, 2, {'label_distribution', 'landmarks', 'contrastive'}),
  ],
)
def test_the_rows_of_table_2(options, branches, terms):
  options = {'pseudo_labels': options.get('label_distribution', True), **options}
  method, params, extra = started(**options)
  assert ('landmark' in params) == (branches == 2) == ('landmarks' in method.needs)
  batch, outputs = drawn()
  extra['queue'] = memory.push(memory.empty_queue(32, 2), *[jnp.eye(BATCH, 2)] * 2, batch['label'])
  extra['bank'] = jnp.full((ROWS, CLASSES), 1 / CLASSES)
  found, aux = method.loss(params, extra, outputs, batch, 0)
  assert {name for name, value in found.items() if value} == terms | {'cross_entropy'}
  given = not options['pseudo_labels']
  assert np.array_equal(aux['label'], batch['label']) == given


def test_inference_is_the_expression_branch_alone():
  """It needs no landmarks, and computes no more than the softmax baseline."""
  model = models.resnet18(width=8)
  image = jnp.zeros((4, 32, 32, 3))
  flops = {}
  for name, make in (('lanet', lanet.make), ('softmax', softmax.make)):
    method = make(model, num_classes=7)
    example = {'image': image, 'landmarks': jnp.zeros((4, 68, 2))}
    params, extra = method.init(jax.random.key(0), example, {'label': np.zeros(4)})
    assert method.predict_needs == frozenset()
    step = jax.jit(lambda p, e, x, m=method: m.predict(p, e, {'image': x}))
    flops[name] = step.lower(params, extra, image).compile().cost_analysis()['flops']
    assert step(params, extra, image)['logits'].shape == (4, 7)
  assert flops['lanet'] == flops['softmax']


@pytest.mark.parametrize(
  'options, message',
  [
    ({'landmark_head': 'coordinate'}, "Did you mean 'coordinates'"),
    ({'stop_gradient': 'all'}, 'none or neighbours or targets'),
    ({'key_view': 'second'}, 'same or other'),
    ({'threshold': 1.5}, 'threshold=1.5 lies outside 0..1'),
    ({'temperature': 0.0}, 'above 0'),
    ({'neighbours': 0}, 'neighbours=0: at least 1'),
    ({'label_distribution': False}, 'method.landmarks=False'),
    ({'label_distribution': False, 'landmarks': False}, 'pseudo_labels=False'),
  ],
)
def test_impossible_settings_are_refused(options, message):
  with pytest.raises(InputError, match=message):
    lanet.make(narrow(), num_classes=7, **options)


@pytest.fixture
def lanet_config(small_config):
  small_config.method = ml_collections.ConfigDict({'name': 'lanet', 'queue_size': 48})
  small_config.noise.update(kind='symmetric', rate=0.3)
  small_config.parallel.devices = 2
  return small_config


def test_resumes_to_the_bit_with_bank_and_queue(lanet_config, tmp_path):
  lanet_config.checkpoint.update(every=3, keep=100)
  lanet_config.eval.sheets = True
  whole = loop.train(lanet_config, tmp_path / 'whole')
  shutil.copytree(tmp_path / 'whole', tmp_path / 'cut')
  for step in (9, 10):
    shutil.rmtree(tmp_path / 'cut' / 'checkpoints' / str(step))
  assert loop.train(lanet_config, tmp_path / 'cut')['state_sha256'] == whole['state_sha256']
  bank = restore.load(tmp_path / 'whole').state.extra['bank']
  assert bank.shape == (84, 7) and bank.any(1).all()
  found = whole['training_labels']
  assert set(found) == {'given', 'predicted', 'estimated'}
  assert 0.5 < found['given']['acc'] < 1
  truth = np.full(7, 0.05) + 0.65 * np.eye(7)
  right = float(jensen_shannon(np.eye(7)[0], truth[0]))
  wrong = float(jensen_shannon(np.eye(7)[1], truth[0]))
  expected = found['given']['acc'] * right + (1 - found['given']['acc']) * wrong
  np.testing.assert_allclose(found['given']['jensen_shannon'], expected, rtol=1e-4)
  for name in ('cross_entropy', 'label_distributions'):
    assert (tmp_path / 'whole' / 'report' / f'{name}.png').stat().st_size > 5000


def test_bad_input_is_an_error(lanet_config, tmp_path):
  lanet_config.method.neighbours = 16
  with pytest.raises(InputError, match='config.batch=16 leaves each example fewer than 16 others'):
    loop.train(lanet_config, tmp_path / 'a')
  lanet_config.method.update(neighbours=8, queue_size=8)
  with pytest.raises(InputError, match='queue_size=8 is smaller than the batch'):
    loop.train(lanet_config, tmp_path / 'b')
  assert history.read_lines(tmp_path / 'b' / 'metrics.jsonl') == []


def test_faces_without_landmarks_are_refused(lanet_config, tmp_path):
  path = write_manifest(tmp_path, {'train': 14, 'test': 7})
  lanet_config.data.path = str(strip_landmarks(path, tmp_path / 'plain.csv'))
  with pytest.raises(InputError, match="needs 'landmarks', which manifest .* x_0 ... x_67"):
    loop.train(lanet_config, tmp_path / 'run')
