import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from device_counts import check_ten_steps_in_float64

from ferjax.assembly import restore
from ferjax.errors import InputError
from ferjax.methods import scn
from ferjax.models import resnet
from ferjax.training import loop, setup

CLASSES, ROWS = 3, 6


def narrow(dtype=jnp.float32):
  return resnet.ResNet(resnet.BasicBlock, (1, 1), 4, dtype=dtype, param_dtype=dtype)


def started(**options):
  method = scn.make(narrow(), num_classes=CLASSES, **options)
  batch = {'image': jnp.zeros((1, 16, 16, 3))}
  return method, *method.init(jax.random.key(0), batch, {'label': np.array([0, 1, 2, 0, 1, 2])})


OUTPUTS = {
  'logits': jnp.array([[4.0, 0, 0], [0, 0, 3], [1, 1, 1], [0, 6, 0]]),
  'importance': jnp.array([0.9, 0.5, 0.8, 0.2]),
}
BATCH = {'index': jnp.array([0, 1, 3, 5]), 'label': jnp.array([0, 1, 0, 2])}  # given ones


def test_both_terms_by_hand():
  method, params, extra = started(high_share=0.5)
  terms, aux = method.loss(params, extra, OUTPUTS, BATCH, 0)
  rows = [(0.9 * np.array([4, 0, 0]), 0), (0.5 * np.array([0, 0, 3]), 1)]
  rows += [(0.8 * np.array([1, 1, 1]), 0), (0.2 * np.array([0, 6, 0]), 2)]
  losses = [np.log(np.exp(scores).sum()) - scores[label] for scores, label in rows]
  np.testing.assert_allclose(terms['cross_entropy'], np.mean(losses), rtol=1e-6)
  gap = (0.9 + 0.8) / 2 - (0.5 + 0.2) / 2
  np.testing.assert_allclose(aux['metrics']['importance_gap'], gap, rtol=1e-6)
  assert terms['rank'] == 0  # 0.5 exceeds the margin
  alike = OUTPUTS | {'importance': jnp.array([0.6, 0.5, 0.6, 0.5])}
  terms, _ = method.loss(params, extra, alike, BATCH, 0)
  np.testing.assert_allclose(terms['rank'], 0.15 - 0.1, rtol=1e-5)


@pytest.mark.parametrize('group, expected', [('low', [0, 2, 0, 1]), ('any', [0, 2, 0, 1])])
def test_doubtful_rows_get_new_labels_from_an_epoch_on(group, expected):
  method, params, extra = started(high_share=0.5, relabel_from=3, relabel_group=group)
  for epoch in (0, 1):
    extra = method.refresh(epoch, params, extra, {}, None)
    terms, aux = method.loss(params, extra, OUTPUTS, BATCH, 0)
    assert aux['metrics']['relabelled'] == 0 and aux['label'].tolist() == [0, 1, 0, 2]
  extra = method.refresh(2, params, extra, {}, None)
  _, aux = method.loss(params, extra, OUTPUTS, BATCH, 0)
  assert aux['label'].tolist() == expected and aux['metrics']['relabelled'] == 0.5
  carry = {'batch_stats': extra['batch_stats']}
  extra = method.update(extra, params, carry, OUTPUTS, BATCH, aux)
  assert extra['label'].tolist() == [0, 2, 2, 0, 1, 1]
  np.testing.assert_array_equal(method.estimates(extra, None).argmax(1), extra['label'])
  _, aux = method.loss(params, extra, OUTPUTS, BATCH, 0)  # the new labels are what it learns
  assert aux['metrics']['relabelled'] == 0


def test_only_rows_of_low_importance_are_relabelled_as_in_the_paper():
  sure = OUTPUTS | {'importance': jnp.array([0.2, 0.9, 0.3, 0.8])}
  for group, count in (('low', 0), ('any', 2)):
    method, params, extra = started(high_share=0.5, relabel_from=1, relabel_group=group)
    extra = method.refresh(0, params, extra, {}, None)
    _, aux = method.loss(params, extra, sure, BATCH, 0)
    assert aux['metrics']['relabelled'] * 4 == count


def test_of_a_repeated_row_the_copy_that_changes_counts():
  method, params, extra = started(high_share=0.5, relabel_from=1)
  extra = method.refresh(0, params, extra, {}, None)
  batch = {'index': jnp.array([0, 0, 2, 3]), 'label': jnp.array([0, 0, 2, 0])}
  outputs = {
    'logits': jnp.array([[0.0, 9, 0]] * 2 + [[0.0, 0, 9], [9.0, 0, 0]]),
    'importance': jnp.array([0.5, 0.9, 0.9, 0.4]),
  }
  _, aux = method.loss(params, extra, outputs, batch, 0)
  carry = {'batch_stats': extra['batch_stats']}
  assert aux['metrics']['relabelled'] == 0.25
  extra = method.update(extra, params, carry, outputs, batch, aux)
  assert extra['label'].tolist() == [1, 1, 2, 0, 1, 2]


def test_equal_importances_have_finite_gradients():
  method, params, extra = started()
  outputs = OUTPUTS | {'importance': jnp.full(4, 0.5)}

  def total(outputs):
    return sum(method.loss(params, extra, outputs, BATCH, 0)[0].values())

  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.grad(total)(outputs)))


def in_parallel(dtype):
  method = scn.make(narrow(dtype), num_classes=CLASSES, relabel_from=1, relabel_margin=0.01)

  def init(rng, batch, table):
    params, extra = method.init(rng, batch, table)
    return params, method.refresh(0, params, extra, table, None)

  return method._replace(init=init)


def test_the_same_on_any_number_of_devices():
  metrics, state = check_ten_steps_in_float64([(8, 'pmap'), (4, 'shard_map')], in_parallel)
  assert sum(float(one['relabelled']) for one in metrics) > 0
  assert state['extra']['label'].any()  # all were 0


def test_a_run_with_new_labels_resumes_to_the_bit(small_config, tmp_path):
  small_config.method = {
    'name': 'scn',
    'relabel_from': 1,
    'relabel_margin': 0.02,
    'relabel_group': 'any',
  }
  small_config.noise.update(kind='symmetric', rate=0.4)
  small_config.checkpoint.update(every=3, keep=100)
  whole = loop.train(small_config, tmp_path / 'whole')
  shutil.copytree(tmp_path / 'whole', tmp_path / 'cut')
  for step in (9, 10):
    shutil.rmtree(tmp_path / 'cut' / 'checkpoints' / str(step))
  again = loop.train(small_config, tmp_path / 'cut')
  assert again['state_sha256'] == whole['state_sha256']
  assert again['mean_last_5'] == whole['mean_last_5']
  label = np.asarray(restore.load(tmp_path / 'cut').state.extra['label'])
  given = setup.prepare(small_config, tmp_path / 'other')[0].rows.split.table['label']
  assert (label != given).any()


@pytest.mark.parametrize(
  'options, message',
  [
    ({'relabel_group': 'lwo'}, "Did you mean 'low'"),
    ({'high_share': 1.5}, 'high_share=1.5 lies outside'),
    ({'relabel_from': 0}, 'relabel_from=0: an epoch'),
  ],
)
def test_options_that_cannot_work_are_refused(options, message):
  with pytest.raises(InputError, match=message):
    started(**options)


@pytest.mark.parametrize('share, rows', [(0.95, 4), (0.7, 1)])
def test_an_empty_group_is_refused(share, rows):
  with pytest.raises(InputError, match='leaves rows in both'):
    scn.rank_gap(jnp.ones(rows), share)
