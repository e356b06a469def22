import shutil

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from device_counts import check_ten_steps_in_float64
from drawn_faces import strip_landmarks, write_manifest

from ferjax.distributed.parallel import AXIS, example_keys
from ferjax.errors import InputError
from ferjax.evaluation import evaluate
from ferjax.losses.cross_entropy import cross_entropy
from ferjax.methods import hrl
from ferjax.models import resnet
from ferjax.optim.ema import ema
from ferjax.runs import history
from ferjax.training import loop

BATCH, POINTS, CLASSES = 4, 6, 3
SMALL = {'groups': 4, 'widths': (6, 8), 'dense_reduction': 4, 'dense_widths': (8, 8)}


def narrow(dtype=jnp.float32):
  """Three stages of one block: maps of 8x8, 4x4 and 4x4 cells at 32 px."""
  return resnet.ResNet(resnet.BasicBlock, (1, 1, 1), 4, 8, dtype=dtype, param_dtype=dtype)


def drawn(points=POINTS):
  rng = np.random.default_rng(0)
  return {
    'image': jnp.asarray(rng.normal(size=(BATCH, 32, 32, 3)), jnp.float32),
    'landmarks': jnp.asarray(rng.uniform(-2, 33, (BATCH, points, 2)), jnp.float32),
    'label': jnp.array([0, 1, 2, 1]),
  }


def started(**options):
  method = hrl.make(narrow(), num_classes=CLASSES, **(SMALL | options))
  return method, *jax.jit(lambda: method.init(jax.random.key(0), drawn(), {}))()


def forward(method, params, extra, batch):
  """The outputs in training on one device."""

  def run(batch, keys):
    return method.forward(params, extra, batch, keys)[0]

  share = jax.tree.map(
    lambda x: x[None], (batch, example_keys(jax.random.key(1), jnp.arange(BATCH)))
  )
  outputs = jax.jit(jax.vmap(run, axis_name=AXIS))(*share)
  return jax.tree.map(lambda x: x[0], outputs)


TABLE_4 = [
  (sifl, branch, naive)
  for naive in (False, True)
  for branch in ('dense', 'lgmp')
  for sifl in (False, True)
]


@pytest.mark.parametrize('sifl, branch, naive', [*TABLE_4, (False, 'none', True)])
def test_rows_of_table_4_and_naive_scores_alone(sifl, branch, naive):
  method, params, extra = started(sifl=sifl, branch=branch, naive=naive)
  parts = {'encoder', *(['branch'] if branch != 'none' else []), *(['naive'] if naive else [])}
  assert set(params) == parts
  batch = drawn()
  outputs = forward(method, params, extra, batch)
  terms, _ = method.loss(params, extra, outputs, batch, 0)
  both = naive and branch != 'none'
  expected = {'aggregate', *(['naive'] if both else []), *(['sifl'] if sifl else [])}
  assert {name for name, value in terms.items() if value > 0} == expected
  losses = cross_entropy(outputs['logits'], batch['label'])
  np.testing.assert_allclose(terms['aggregate'], losses.mean(), rtol=1e-5)
  if both:
    losses = cross_entropy(outputs['naive_logits'], batch['label'])
    np.testing.assert_allclose(terms['naive'], losses.mean(), rtol=1e-5)
  landmarks = {'landmarks'} if branch != 'none' else set()
  assert method.needs == method.predict_uses == landmarks
  assert method.predict_needs == (set() if naive else landmarks)


def test_scores_add_up_and_without_landmarks_the_naive_ones_are_left():
  method, params, extra = started()
  batch = drawn()
  predict = jax.jit(method.predict)
  whole = predict(params, extra, batch)
  naive = whole['embedding'] @ params['naive']['classifier']['kernel']
  np.testing.assert_allclose(whole['naive_logits'], naive, atol=1e-5)
  assert np.abs(whole['logits'] - naive).max() > 1e-3
  assert 10 < whole['edge_length'].mean() < 30
  blind = predict(params, extra, {'image': batch['image']})
  np.testing.assert_allclose(blind['logits'], naive, atol=1e-5)
  assert set(blind) == {'logits', 'embedding'}
  mapped = predict(params, extra, batch, jnp.zeros(()))
  np.testing.assert_allclose(mapped['last_map'].mean((1, 2)), whole['embedding'], atol=1e-5)


def test_sifl_of_a_certain_flip_by_hand():
  """The encoder gets the picture and its mirror image as one batch; both maps have a gradient.

  Cell i of 4 looks at pixel 8 i, which is pixel 31 - 8 i of the mirror image, hence cell
  (31 - 8 i) / 8 = 3.875 - i. For cell 0, there is none nearby.
  """

  def by_cells(found):
    restored = 0.875 * found[BATCH:, :, :0:-1] + 0.125 * found[BATCH:, :, 2::-1]
    return ((found[:BATCH, :, 1:] - restored) ** 2).mean((1, 2, 3))

  method, params, extra = started(flip=1.0, rotation=0.0, perspective=0.0)
  batch = drawn()
  outputs = forward(method, params, extra, batch)

  def encode(images):
    variables = {'params': params['encoder'], 'batch_stats': extra['batch_stats']['encoder']}
    return narrow().apply(variables, images, True, mutable=['batch_stats'])[0][-1]

  both = jnp.concatenate([batch['image'], batch['image'][:, :, ::-1]])
  (found,) = np.asarray(jax.jit(jax.vmap(encode, axis_name=AXIS))(both[None]))
  expected = by_cells(found)
  np.testing.assert_allclose(outputs['sifl'], expected, rtol=1e-3)
  assert expected.min() > 1e-4

  def distance(encoder):
    return forward(method, params | {'encoder': encoder}, extra, batch)['sifl'].sum()

  def distance_by_hand(encoder):
    variables = {'params': encoder, 'batch_stats': extra['batch_stats']['encoder']}

    def encode(images):
      return narrow().apply(variables, images, True, mutable=['batch_stats'])[0][-1]

    found = jax.vmap(encode, axis_name=AXIS)(both[None])[0]
    return by_cells(found).sum()

  ours, by_hand = (jax.jit(jax.grad(f))(params['encoder']) for f in (distance, distance_by_hand))
  largest = max(np.abs(g).max() for g in jax.tree.leaves(by_hand))
  assert largest > 1e-2
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-3 * largest), ours, by_hand
  )


@pytest.mark.parametrize('graph', ['uniform_rank', 'random'])
def test_the_graph_in_training_and_at_inference(graph):
  method, params, extra = started(graph=graph)
  batch = drawn(points=8)
  predict = jax.jit(method.predict)
  first, again = (predict(params, extra, batch)['logits'] for _ in range(2))
  np.testing.assert_array_equal(first, again)
  twins = jax.tree.map(lambda x: jnp.repeat(x[:1], BATCH, 0), batch)
  logits = forward(method, params, extra, twins)['logits']
  assert np.isfinite(logits).all()
  drawn_anew = np.abs(logits - logits[:1]).max() > 1e-4
  assert drawn_anew == (graph == 'random')
  with pytest.raises(InputError, match='at least 5 landmarks, not 4'):
    predict(params, extra, batch | {'landmarks': batch['landmarks'][:, :4]})


def test_sifl_of_maps_divided_by_their_deviation():
  method, params, extra = started(sifl_scaled=True, flip=1.0, rotation=0.0, perspective=0.0)
  batch = drawn()
  scaled = forward(method, params, extra, batch)['sifl']
  assert scaled.min() > 1e-4

  def encode(images):
    variables = {'params': params['encoder'], 'batch_stats': extra['batch_stats']['encoder']}
    return narrow().apply(variables, images, True, mutable=['batch_stats'])[0][-1]

  both = jnp.concatenate([batch['image'], batch['image'][:, :, ::-1]])
  (found,) = np.asarray(jax.jit(jax.vmap(encode, axis_name=AXIS))(both[None]))
  found = found / np.sqrt(found.var((0, 1, 2)) + 1e-6)
  restored = 0.875 * found[BATCH:, :, :0:-1] + 0.125 * found[BATCH:, :, 2::-1]
  expected = ((found[:BATCH, :, 1:] - restored) ** 2).mean((1, 2, 3))
  np.testing.assert_allclose(scaled, expected, rtol=1e-3)


def test_activations_follow_each_module_and_their_statistics_move():
  method, params, extra = started(activations=True)
  assert {'lgmp1_bn', 'lgmp2_bn'} <= set(params['branch'])
  batch = drawn()

  def run(batch, keys):
    return method.forward(params, extra, batch, keys)[1]

  share = jax.tree.map(
    lambda x: x[None], (batch, example_keys(jax.random.key(1), jnp.arange(BATCH)))
  )
  carry = jax.jit(jax.vmap(run, axis_name=AXIS))(*share)
  moved = carry['batch_stats']['branch']['lgmp2_bn']['mean'][0]
  assert np.abs(moved - extra['batch_stats']['branch']['lgmp2_bn']['mean']).max() > 0


def in_parallel(dtype):
  options = {'graph': 'random', 'sifl_scaled': True, 'activations': True}
  return hrl.make(narrow(dtype), num_classes=7, **(SMALL | options))


def test_the_same_on_any_number_of_devices():
  metrics, _ = check_ten_steps_in_float64([(8, 'shard_map')], in_parallel, {'sifl': 0.8})
  assert all(metrics[-1][name] > 0 for name in ('aggregate', 'naive', 'sifl'))


@pytest.mark.parametrize(
  'options, message',
  [
    ({'branch': 'lgpm'}, "Did you mean 'lgmp'"),
    ({'graph': 'delauny'}, "Did you mean 'delaunay'"),
    ({'offsets': 'pixels'}, "Did you mean 'pixel'"),
    ({'flip': 1.5}, 'flip=1.5 lies outside'),
    ({'perspective': 0.7}, 'perspective=0.7: it must lie'),
    ({'pool_size': 4}, 'pool_size=4: give an odd number'),
    ({'widths': (8,)}, 'give two'),
    ({'groups': 0}, 'groups=0: at least 1'),
    ({'branch': 'none', 'naive': False}, 'nothing is left'),
  ],
)
def test_impossible_settings_are_refused(options, message):
  with pytest.raises(InputError, match=message):
    hrl.make(narrow(), num_classes=7, **options)


@pytest.fixture
def hrl_config(small_config):
  small_config.method = ml_collections.ConfigDict(
    {'name': 'hrl', 'widths': (8, 8), 'graph': 'delaunay'}
  )
  small_config.weights = {'sifl': 0.0}
  small_config.model.output_stride = 8
  small_config.parallel.devices = 2
  return small_config


def test_a_run_resumes_to_the_bit_and_predicts_without_landmarks(
  hrl_config, manifest, tmp_path, caplog
):
  """With a graph from the host, flips, a parameter average and distorted test sets."""
  hrl_config.ema = 0.9
  hrl_config.eval.distortions = ('rotation', 'occlusion')
  hrl_config.checkpoint.update(every=3, keep=100)
  whole = loop.train(hrl_config, tmp_path / 'whole')
  shutil.copytree(tmp_path / 'whole', tmp_path / 'cut')
  for step in (9, 10):
    shutil.rmtree(tmp_path / 'cut' / 'checkpoints' / str(step))
  assert loop.train(hrl_config, tmp_path / 'cut')['state_sha256'] == whole['state_sha256']

  last = whole['last']
  assert set(last) == {'step', 'val', 'test', 'test/rotation', 'test/occlusion'}
  assert {'acc', 'naive/acc', 'naive/f1_macro', 'edge_length'} <= set(last['test'])
  assert 0 < last['test']['edge_length'] < last['test/rotation']['edge_length'] * 1.01 < 32
  lines = [
    x for x in history.read_lines(tmp_path / 'whole' / 'metrics.jsonl') if x['split'] == 'train'
  ]
  assert all(line['sifl'] > 0 for line in lines)
  np.testing.assert_allclose(lines[0]['loss'], lines[0]['aggregate'] + lines[0]['naive'], rtol=1e-5)
  for name in ('terms.png', 'confusion_test_rotation.png'):
    assert (tmp_path / 'whole' / 'report' / name).stat().st_size > 5000
  assert (tmp_path / 'whole' / 'predictions' / 'test_rotation.csv').is_file()

  own = evaluate.evaluate_run(tmp_path / 'whole')
  for name in ('test', 'test/rotation'):
    assert own[name]['acc'] == last[name]['acc']
    np.testing.assert_allclose(own[name]['edge_length'], last[name]['edge_length'], rtol=1e-5)
  assert 'without' not in own
  other = hrl_config.copy_and_resolve_references()
  other.data.path = str(strip_landmarks(manifest, manifest.with_name('plain.csv')))
  blind = evaluate.evaluate_run(tmp_path / 'whole', 'last', other)
  assert blind['without'] == ['landmarks']
  assert caplog.text.count('has no landmarks') == 1
  assert blind['test']['acc'] == last['test']['naive/acc'] and 'naive/acc' not in blind['test']


def test_bad_input_is_an_error(hrl_config, tmp_path):
  hrl_config.data.landmarks = tuple(range(17, 25))
  hrl_config.augment.flip = 0.0
  with pytest.raises(InputError, match='at least 9 landmarks, not 8'):
    loop.train(hrl_config, tmp_path / 'a')
  hrl_config.eval.distortions = ('oclusion',)
  hrl_config.data.landmarks = ()
  with pytest.raises(InputError, match="Did you mean 'occlusion'"):
    loop.train(hrl_config, tmp_path / 'b')
  path = write_manifest(tmp_path, {'train': 14, 'test': 7})
  hrl_config.data.path = str(strip_landmarks(path, tmp_path / 'plain.csv'))
  with pytest.raises(InputError, match="needs 'landmarks', which manifest .* x_0 ... x_67"):
    loop.train(hrl_config, tmp_path / 'c')


def test_an_average_of_parameters_keeps_what_a_method_uses():
  method = ema(hrl.make(narrow(), num_classes=3, graph='delaunay'), 0.9)
  assert method.predict_uses == {'landmarks'} and set(method.derived) == {'landmark_graph'}
