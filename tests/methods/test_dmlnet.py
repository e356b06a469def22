import json
import shutil

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from device_counts import check_ten_steps_in_float64
from drawn_faces import write_manifest

from ferjax.assembly import restore
from ferjax.errors import InputError
from ferjax.evaluation import evaluate
from ferjax.losses.cross_entropy import cross_entropy
from ferjax.methods import dmlnet
from ferjax.models import resnet
from ferjax.runs import history
from ferjax.terms import weighting
from ferjax.training import loop

CLASSES, POSES = 4, 3
SMALL = {'fusion_width': 8, 'head_width': 8, 'embedding_width': 4}


def narrow(dtype=jnp.float32):
  return resnet.ResNet(resnet.BasicBlock, (1, 1), 4, dtype=dtype, param_dtype=dtype)


def started(**options):
  method = dmlnet.make(narrow(), num_classes=CLASSES, num_poses=POSES, **(SMALL | options))
  example = {'image': jnp.zeros((1, 24, 24, 3)), 'landmarks': jnp.zeros((1, 5, 2))}
  return method, *method.init(jax.random.key(0), example, {})


def drawn():
  rng = np.random.default_rng(0)
  batch = {
    'image': jnp.asarray(rng.normal(size=(10, 24, 24, 3)), jnp.float32),
    'landmarks': jnp.asarray(rng.uniform(0, 23, (10, 5, 2)), jnp.float32),
    'label': jnp.asarray(rng.integers(0, CLASSES, 10)),
    'pose': jnp.asarray(rng.integers(0, POSES, 10)),
    'subject': jnp.asarray(rng.integers(0, 3, 10)),
  }
  outputs = {
    'logits': jnp.asarray(rng.normal(size=(10, CLASSES)), jnp.float32),
    'pose_logits': jnp.asarray(rng.normal(size=(10, POSES)), jnp.float32),
    'embedding': jnp.asarray(rng.normal(size=(10, 4)), jnp.float32),
  }
  return batch, outputs


OFF = {'regions': False, 'pose_head': False, 'pose_triplets': False, 'identity_triplets': False}
TABLE_8 = [
  (OFF, {'face', 'expression_head'}, {'expression'}, set()),
  (
    OFF | {'regions': True, 'region_boxes': 'landmarks'},
    {'face', 'eyes', 'mouth', 'local_fusion', 'fusion', 'expression_head'},
    {'expression'},
    'l',
  ),
  (
    OFF | {'pose_head': True},
    {'face', 'expression_head', 'pose_head'},
    {'expression', 'pose'},
    'p',
  ),
  (
    OFF | {'identity_triplets': True},
    {'face', 'expression_head', 'embedding'},
    {'expression', 'triplet'},
    's',
  ),
  (
    OFF | {'pose_head': True, 'pose_triplets': True, 'identity_triplets': True},
    {'face', 'expression_head', 'pose_head', 'embedding'},
    {'expression', 'pose', 'triplet'},
    'ps',
  ),
]


@pytest.mark.parametrize('options, parts, terms, needs', TABLE_8)
def test_parts_of_table_8(options, parts, terms, needs):
  method, params, extra = started(**options)
  assert set(params) - {'features'} | set(params['features']) == parts
  named = {'p': 'pose', 's': 'subject', 'l': 'landmarks'}
  assert method.needs == {named[name] for name in needs}
  assert method.predict_needs == frozenset() and method.predict_uses == method.needs & {'landmarks'}
  batch, outputs = drawn()
  assert set(method.loss(params, extra, outputs, batch, 0)[0]) == terms
  found = jax.jit(method.predict)(params, extra, batch)
  expected = {'logits', 'embedding'} | ({'pose_logits'} if 'pose_head' in parts else set())
  assert set(found) == expected
  if 'embedding' in parts:
    np.testing.assert_allclose((found['embedding'] ** 2).sum(1), 1, rtol=1e-4)
  mapped = method.predict(params, extra, batch, jnp.zeros(()))
  assert set(mapped) == expected | {'last_map'}
  np.testing.assert_allclose(mapped['logits'], found['logits'], atol=1e-5)


@pytest.mark.parametrize('reduction', ['mean', 'sum'])
def test_terms_by_hand(reduction):
  method, params, extra = started(
    reduction=reduction, pose_margin=0.1, identity_margin=0.7, hinge='softplus', anchors='tuple'
  )
  batch, outputs = drawn()
  with pytest.raises(InputError, match='needs config.sampler.name=five_tuples'):
    method.loss(params, extra, outputs, batch, 0)
  batch['role'] = jnp.arange(10) % 5
  terms, _ = method.loss(params, extra, outputs, batch, 0)
  np.testing.assert_allclose(
    terms['pose'], cross_entropy(outputs['pose_logits'], batch['pose']).mean(), rtol=1e-6
  )
  z, label = np.asarray(outputs['embedding']), np.asarray(batch['label'])
  total = 0
  for other, margin in ((batch['pose'], 0.1), (batch['subject'], 0.7)):
    other, losses = np.asarray(other), []
    for i in (0, 5):
      distance = ((z[i] - z) ** 2).sum(1)
      positive = distance[(label == label[i]) & (other != other[i])]
      negative = distance[(label != label[i]) & (other == other[i])]
      if len(positive) and len(negative):
        losses.append(np.log1p(np.exp(margin + positive.max() - negative.min())))
    assert losses
    total += np.sum(losses) if reduction == 'sum' else np.mean(losses)
  np.testing.assert_allclose(terms['triplet'], total, rtol=1e-5)


def test_all_active_triplets_count_before_the_hardest():
  batch, outputs = drawn()
  found = {}
  for options in ({}, {'mining': 'all_active'}, {'warmup_steps': 3}):
    method, params, extra = started(**options)
    found[tuple(options)] = [
      float(method.loss(params, extra, outputs, batch, jnp.int32(step))[0]['triplet'])
      for step in (2, 3)
    ]
  hardest, active = found[()], found['mining',]
  assert hardest[0] == hardest[1] != active[0] == active[1]
  assert found['warmup_steps',] == [active[0], hardest[1]]
  method, params, extra = started()
  _, aux = method.loss(params, extra, outputs, batch, 0)
  z = np.asarray(outputs['embedding'], np.float64)
  pairs = [((a - b) ** 2).sum() for i, a in enumerate(z) for j, b in enumerate(z) if i != j]
  np.testing.assert_allclose(aux['metrics']['mean_distance'], np.mean(pairs), rtol=1e-5)


def test_thirds_of_the_picture_take_no_notice_of_landmarks():
  batch, _ = drawn()
  for boxes in ('picture', 'landmarks'):
    method, params, extra = started(region_boxes=boxes)
    assert method.predict_uses == ({'landmarks'} if boxes == 'landmarks' else set())
    without = {name: column for name, column in batch.items() if name != 'landmarks'}
    found, blind = (method.predict(params, extra, b)['logits'] for b in (batch, without))
    assert (np.abs(found - blind).max() > 1e-6) == (boxes == 'landmarks')


def test_heads_see_fused_features_or_the_embedding():
  for heads_on, width in (('fused', 8), ('embedding', 4)):
    _, params, _ = started(heads_on=heads_on)
    for head in ('expression_head', 'pose_head'):
      assert params[head]['hidden']['kernel'].shape == (width, 8)
  _, params, _ = started(head_width=4000, dense_stddev=0.3, softmax_stddev=0.05)
  hidden, scores = (params['pose_head'][name]['kernel'] for name in ('hidden', 'scores'))
  np.testing.assert_allclose([hidden.std(), scores.std()], [0.3, 0.05], rtol=0.05)


def test_an_embedding_of_any_length():
  method, params, extra = started(normalise=False)
  found = method.predict(params, extra, drawn()[0])
  assert np.abs((found['embedding'] ** 2).sum(1) - 1).min() > 1e-3


def in_parallel(dtype):
  return dmlnet.make(narrow(dtype), num_classes=7, num_poses=3, **SMALL)


def test_the_same_on_any_number_of_devices():
  """Mining sees the global batch; the weights and their history are the same everywhere."""
  made = weighting.make(1, name='dynamic', total=2.0, window=2)
  metrics, state = check_ten_steps_in_float64([(8, 'shard_map')], in_parallel, {}, made)
  assert all(values['triplet'] > 0 for values in metrics)
  names = [f'weight/{name}' for name in state['weighting'].terms]
  weights = np.array([[values[name] for name in names] for values in metrics])
  np.testing.assert_allclose(weights.sum(1), 2, rtol=1e-12)
  assert (weights[:4] == weights[0]).all() and np.ptp(weights[4:], 0).min() > 1e-4


@pytest.mark.parametrize(
  'options, message',
  [
    ({'heads_on': 'fuse'}, "Did you mean 'fused'"),
    ({'anchors': 'tuples'}, "Did you mean 'tuple'"),
    ({'hinge': 'max'}, 'relu or softplus or none'),
    ({'reduction': 'average'}, 'sum or mean'),
    ({'mining': 'hardes'}, 'config.method.mining'),
    ({'warmup_steps': -1}, 'warmup_steps=-1: at least 0'),
    ({'embedding_width': 0}, 'embedding_width=0: at least 1'),
    ({'dense_stddev': 0.0}, 'dense_stddev=0.0'),
  ],
)
def test_impossible_settings_are_refused(options, message):
  with pytest.raises(InputError, match=message):
    dmlnet.make(narrow(), num_classes=7, num_poses=3, **options)


@pytest.fixture
def dmlnet_config(small_config):
  small_config.method = ml_collections.ConfigDict({'name': 'dmlnet', 'regions': False, **SMALL})
  small_config.weighting.update(name='dynamic', total=2.0, window=2)
  small_config.sampler.name = 'five_tuples'
  small_config.batch = 20
  small_config.parallel.devices = 2
  return small_config


def test_a_run_resumes_to_the_bit_with_the_history_of_its_weights(dmlnet_config, tmp_path):
  """With flips, which mirror the pose, frozen parts, and averages of parameters and statistics."""
  dmlnet_config.ema, dmlnet_config.ema_statistics = 0.9, True
  dmlnet_config.optimizer.freeze_rules = (('pose_head/.*', 0, 1, 0), ('embedding/.*', 1, 2, 2))
  dmlnet_config.weighting.off = (('pose', 0, 1, 0),)
  dmlnet_config.checkpoint.update(every=3, keep=100)
  whole = loop.train(dmlnet_config, tmp_path / 'whole')
  shutil.copytree(tmp_path / 'whole', tmp_path / 'cut')
  for step in (9, 10):
    shutil.rmtree(tmp_path / 'cut' / 'checkpoints' / str(step))
  assert loop.train(dmlnet_config, tmp_path / 'cut')['state_sha256'] == whole['state_sha256']

  lines = [
    x for x in history.read_lines(tmp_path / 'whole' / 'metrics.jsonl') if x['split'] == 'train'
  ]
  terms = ('expression', 'pose', 'triplet')
  weights = np.array([[line[f'weight/{name}'] for name in terms] for line in lines])
  np.testing.assert_allclose(weights.sum(1), 2, rtol=1e-6)
  np.testing.assert_allclose(weights[:4], [[1, 0, 1]] * 4)  # four steps an epoch
  assert (weights[4:] > 0).all() and np.ptp(weights[4:]) > 1e-3
  losses = np.array([[line[name] for name in terms] for line in lines])
  loss = [line['loss'] for line in lines]
  np.testing.assert_allclose(loss, (weights * losses).sum(1), rtol=1e-5)
  model = restore.load(tmp_path / 'whole', '3')
  before = restore.load(tmp_path / 'whole', '10').state.params['pose_head']['scores']['kernel']
  assert (np.asarray(model.state.params['pose_head']['scores']['kernel']) != before).any()

  record = json.loads((tmp_path / 'whole' / 'config.json').read_text())
  assert record['poses'] == [-30, 0, 30] and model.poses == (-30, 0, 30)
  assert model.state.params['pose_head']['scores']['bias'].shape == (3,)
  other = dmlnet_config.copy_and_resolve_references()
  other.data.path = str(write_manifest(tmp_path / 'other', {'test': 14}, seed=3))
  assert 'acc' in evaluate.evaluate_run(tmp_path / 'whole', 'last', other)['test']


def test_learned_weights_are_parameters_of_any_method(small_config, tmp_path):
  small_config.weighting.name = 'uncertainty'
  small_config.ema = 0.9
  small_config.optimizer.update(
    schedule='constant', lr=1e-2, lr_rules=(('weighting/cross_entropy', 0.5),)
  )
  small_config.steps = 4
  loop.train(small_config, tmp_path)
  lines = [x for x in history.read_lines(tmp_path / 'metrics.jsonl') if x['split'] == 'train']
  assert lines[0]['weight/cross_entropy'] == 1
  np.testing.assert_allclose(lines[1]['weight/cross_entropy'], np.exp(-5e-3), rtol=1e-5)
  assert evaluate.evaluate_run(tmp_path)['test']['acc'] >= 0


def test_faces_without_poses_or_five_tuples_are_refused(dmlnet_config, tmp_path):
  path = write_manifest(tmp_path, {'train': 28, 'test': 7})
  header, *rows = [line.split(',') for line in path.read_text().splitlines()]
  column = header.index('yaw_bin')
  frontal = [header, *([*row[:column], '0', *row[column + 1 :]] for row in rows)]
  unknown = [row[:column] + row[column + 1 :] for row in (header, *rows)]
  for name, table in (('frontal', frontal), ('unknown', unknown)):
    path.with_name(f'{name}.csv').write_text('\n'.join(map(','.join, table)))
  dmlnet_config.data.path = str(path.with_name('frontal.csv'))
  with pytest.raises(InputError, match='7 of 7 values of `label` have one yaw_bin'):
    loop.train(dmlnet_config, tmp_path / 'a')
  dmlnet_config.data.path = str(path.with_name('unknown.csv'))
  with pytest.raises(InputError, match=r"needs 'pose', which manifest .*\(columns yaw_bin\)"):
    loop.train(dmlnet_config, tmp_path / 'b')
  dmlnet_config.data.path = str(path)
  dmlnet_config.batch = 16
  with pytest.raises(InputError, match='multiple of 5'):
    loop.train(dmlnet_config, tmp_path / 'c')
