"""SGM, DGMS and the triplet baseline. They differ only in the loss and the sub-classes."""

import shutil

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from device_counts import check_ten_steps_in_float64

from ferjax.assembly import restore, sources
from ferjax.distributed import parallel
from ferjax.errors import InputError
from ferjax.evaluation import evaluate
from ferjax.losses import gaussian
from ferjax.methods import sgm, triplet
from ferjax.metrics import mixtures
from ferjax.models import resnet
from ferjax.optim.ema import ema
from ferjax.runs import checkpoint, history
from ferjax.training import loop

BATCH, CLASSES, ROWS = 12, 3, 40
TABLE = {'label': np.arange(ROWS, dtype=np.int32) % CLASSES}


def narrow(dtype=jnp.float32):
  return resnet.ResNet(resnet.BasicBlock, (1, 1), 4, dtype=dtype, param_dtype=dtype)


def started(make=sgm.make, **options):
  method = make(narrow(), num_classes=CLASSES, embedding_width=5, **options)
  example = {'image': jnp.zeros((1, 16, 16, 3))}
  return method, *method.init(jax.random.key(0), example, TABLE)


def drawn(seed=0, spread=0.4):
  rng = np.random.default_rng(seed)
  index = rng.permutation(ROWS)[:BATCH]
  batch = {'index': jnp.asarray(index), 'label': jnp.asarray(TABLE['label'][index])}
  return batch, {'embedding': jnp.asarray(spread * rng.normal(size=(BATCH, 5)), jnp.float32)}


def slow_posterior(z, means, sigma):
  """{group: f64[n]} of {group: mean}."""
  density = {g: np.exp(-((z - m) ** 2).sum(1) / (2 * sigma**2)) for g, m in means.items()}
  total = sum(density.values())
  return {g: value / total for g, value in density.items()}


@pytest.mark.parametrize('levels', [1, 2])
def test_the_loss_is_over_the_sub_classes_of_the_batch(levels):
  method, params, extra = started(levels=levels)
  np.testing.assert_array_equal(extra['subclass'], TABLE['label'] * levels)
  if levels == 2:
    extra['subclass'] = jnp.asarray(TABLE['label'] * 2 + np.arange(ROWS) // 3 % 2)
  batch, outputs = drawn()
  z, group = np.asarray(outputs['embedding'], float), np.asarray(extra['subclass'])[batch['index']]
  means = {g: z[group == g].mean(0) for g in np.unique(group)}
  assert len(means) == CLASSES * levels
  pi = slow_posterior(z, means, 0.5)
  expected = np.mean([sum((pi[g][i] - (g == group[i])) ** 2 for g in pi) for i in range(BATCH)])
  terms, aux = method.loss(params, extra, outputs, batch, 0)
  np.testing.assert_allclose(terms['sgm'], expected, rtol=1e-5)
  by_class = np.stack([sum(pi[g] for g in pi if g // levels == c) for c in range(CLASSES)], 1)
  right = by_class.argmax(1) == batch['label']
  np.testing.assert_allclose(aux['metrics']['acc'], right.mean(), rtol=1e-6)

  far = {'embedding': outputs['embedding'].at[0].add(30.0)}
  _, aux = method.loss(params, extra, far, batch, 0)
  z = np.asarray(far['embedding'], float)
  alike = group == group[0]
  assert (
    alike.sum() > 1
  )  # so the first row is far from its own mean, and its class is far from the other means
  share = aux['metrics']['posterior/true_below_0.001']
  np.testing.assert_allclose(share, (alike.sum() - 1) / BATCH, rtol=1e-6)


def test_a_row_can_be_left_out_of_its_own_mean():
  method, params, extra = started(leave_one_out=True)
  batch, outputs = drawn()
  z, label = np.asarray(outputs['embedding'], float), np.asarray(batch['label'])
  losses = []
  for i in range(BATCH):
    others = np.arange(BATCH) != i
    means = {c: z[(label == c) & others].mean(0) for c in range(CLASSES)}
    pi = slow_posterior(z[i : i + 1], means, 0.5)
    losses.append(sum((pi[c][0] - (c == label[i])) ** 2 for c in range(CLASSES)))
  terms, _ = method.loss(params, extra, outputs, batch, 0)
  np.testing.assert_allclose(terms['sgm'], np.mean(losses), rtol=1e-5)


def test_running_means_by_hand():
  method, params, extra = started(class_means='running', means_momentum=0.8)
  sgm_of_batch, *_ = started()
  batch, outputs = drawn()
  z, label = np.asarray(outputs['embedding'], float), np.asarray(batch['label'])
  first = {c: z[label == c].mean(0) for c in range(CLASSES)}
  terms, aux = method.loss(params, extra, outputs, batch, 0)
  plain, _ = sgm_of_batch.loss(params, extra, outputs, batch, 0)
  np.testing.assert_allclose(terms['sgm'], plain['sgm'], rtol=1e-6)  # no mean was known
  carry = {'batch_stats': extra['batch_stats']}
  extra = method.update(extra, params, carry, outputs, batch, aux)

  seen = np.flatnonzero(label != 2)  # a batch without class 2, which keeps its mean
  other = {'embedding': outputs['embedding'][seen] + 0.5}
  again = {name: column[seen] for name, column in batch.items()}
  terms, aux = method.loss(params, extra, other, again, 1)
  means = {c: 0.8 * first[c] + 0.2 * (first[c] + 0.5) for c in (0, 1)} | {2: first[2]}
  pi = slow_posterior(z[seen] + 0.5, means, 0.5)
  losses = [
    sum((pi[c][i] - (c == own)) ** 2 for c in range(CLASSES)) for i, own in enumerate(label[seen])
  ]
  np.testing.assert_allclose(terms['sgm'], np.mean(losses), rtol=1e-5)
  extra = method.update(extra, params, carry, other, again, aux)
  found = extra['running']['means']
  np.testing.assert_allclose(found, [means[c] for c in range(CLASSES)], rtol=1e-5)


def test_a_classifier_beside_is_trained_and_measured_but_does_not_predict():
  method, params, extra = started(cross_entropy=True)
  batch, outputs = drawn()
  scores = np.random.default_rng(0).normal(size=(BATCH, CLASSES)).astype(np.float32)
  terms, _ = method.loss(params, extra, outputs | {'classifier_logits': scores}, batch, 0)
  expected = np.log(np.exp(scores).sum(1)) - scores[np.arange(BATCH), batch['label']]
  np.testing.assert_allclose(terms['cross_entropy'], expected.mean(), rtol=1e-5)
  image = jnp.ones((2, 16, 16, 3))
  extra |= {'means': jnp.eye(3, 5), 'rows': jnp.ones(3, jnp.int32)}
  found = method.predict(params, extra, {'image': image})
  by_hand = found['embedding'] @ params['classifier']['kernel']
  np.testing.assert_allclose(found['classifier_logits'], by_hand, atol=1e-5)
  plain = started()[0].predict(
    {name: part for name, part in params.items() if name != 'classifier'}, extra, {'image': image}
  )
  np.testing.assert_allclose(found['logits'], plain['logits'], rtol=1e-5)


def test_centred_embeddings_of_length_1_lie_apart():
  """Features of a random network are positive: its embeddings nearly point the same way."""
  image = jnp.asarray(np.random.default_rng(0).normal(size=(BATCH, 16, 16, 3)), jnp.float32)
  found = []
  for centre in (False, True):
    method, params, extra = started(triplet.make, centre=centre)

    def run(image, method=method, params=params, extra=extra):
      return method.forward(params, extra, {'image': image}, None)[0]['embedding']

    (z,) = np.asarray(jax.vmap(run, axis_name=parallel.AXIS)(image[None]), float)
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, rtol=1e-5)
    _, aux = method.loss(params, extra, {'embedding': jnp.asarray(z, jnp.float32)}, drawn()[0], 0)
    pairs = [((a - b) ** 2).sum() for i, a in enumerate(z) for j, b in enumerate(z) if i != j]
    np.testing.assert_allclose(aux['metrics']['mean_distance'], np.mean(pairs), rtol=1e-4)
    found.append(np.mean(pairs))
  assert found[1] > 2 * found[0]


def test_triplets_of_any_length_and_plain_distances_by_a_slow_loop():
  method, params, extra = started(
    triplet.make, normalise=False, squared=False, mining='all_active', margin=1.0
  )
  batch, outputs = drawn(1, spread=2.0)
  terms, _ = method.loss(params, extra, outputs, batch, 0)
  z, label = np.asarray(outputs['embedding'], float), np.asarray(batch['label'])
  distance = np.sqrt(((z[:, None] - z[None]) ** 2).sum(-1))
  rows, losses = range(BATCH), []
  for a in rows:
    for p in rows:
      for n in rows:
        if p != a and label[p] == label[a] != label[n]:
          losses.append(1 + distance[a, p] - distance[a, n])
  losses = [loss for loss in losses if loss > 0]
  np.testing.assert_allclose(terms['triplet'], np.mean(losses), rtol=1e-5)
  np.testing.assert_allclose(terms['norm'], np.linalg.norm(z, axis=1).mean(), rtol=1e-5)
  one = {'embedding': jnp.ones((BATCH, 5))}

  def total(outputs):
    return sum(method.loss(params, extra, outputs, batch, 0)[0].values())

  assert np.isfinite(jax.grad(total)(one)['embedding']).all()


def test_first_embeddings_grow_with_the_gain():
  image = np.random.default_rng(0).normal(size=(4, 16, 16, 3)).astype(np.float32)
  plain, larger = (
    method.predict(params, extra, {'image': image})['embedding']
    for method, params, extra in (started(), started(embedding_gain=3.0))
  )
  np.testing.assert_allclose(larger, 3 * plain, rtol=1e-4)


def test_the_mean_has_a_gradient_or_not():
  batch, outputs = drawn()
  found = []
  for flag in (True, False):
    method, params, extra = started(gradient_through_means=flag)

    def loss(z, method=method, params=params, extra=extra):
      return method.loss(params, extra, {'embedding': z}, batch, 0)[0]['sgm']

    found.append(jax.grad(loss)(outputs['embedding']))
  # Moving all rows alike moves the means along, and changes nothing.
  np.testing.assert_allclose(found[0].sum(0), 0, atol=1e-7)
  assert np.abs(found[1].sum(0)).max() > 1e-3


def test_prediction_by_stored_means_and_sub_classes():
  method, params, extra = started(levels=2)
  embedding = np.random.default_rng(0).normal(size=(ROWS, 5)).astype(np.float32)
  extra['subclass'] = np.asarray(TABLE['label'] * 2 + (embedding[:, 0] > 0) * (TABLE['label'] > 0))
  extra = method.enroll(params, extra, TABLE, lambda: embedding)
  np.testing.assert_array_equal(extra['rows'], np.bincount(extra['subclass'], minlength=6))
  assert extra['rows'][1] == 0 and (extra['rows'][[0, 2, 3, 4, 5]] > 0).all()
  image = np.random.default_rng(1).normal(size=(4, 16, 16, 3)).astype(np.float32)
  found = method.predict(params, extra, {'image': image})
  groups = [0, 2, 3, 4, 5]
  means = {g: embedding[extra['subclass'] == g].astype(float).mean(0) for g in groups}
  pi = slow_posterior(np.asarray(found['embedding'], float), means, 0.5)
  for g in groups:
    np.testing.assert_allclose(np.exp(found['subclass_log_posterior'][:, g]), pi[g], rtol=1e-3)
  expected = np.stack([pi[0], pi[2] + pi[3], pi[4] + pi[5]], 1)
  np.testing.assert_allclose(np.exp(found['logits']), expected, rtol=1e-3)
  mapped = method.predict(params, extra, {'image': image}, jnp.zeros(()))
  assert mapped['last_map'].shape == (4, 2, 2, 8)


def test_levels_rise_and_find_planted_sub_classes(monkeypatch):
  rng = np.random.default_rng(0)
  part = np.arange(ROWS) // 3 % 2
  embedding = 8 * part[:, None] + rng.normal(size=(ROWS, 5))
  options = {'levels': 2, 'level_epochs': 3, 'component_rows': 5, 'least_rows': 10}
  method, params, extra = started(**options)
  calls = []

  def embed():
    calls.append(1)
    return embedding

  for epoch in range(3):
    assert method.refresh(epoch, params, extra, TABLE, embed) is extra
  assert not calls
  split = method.refresh(3, params, extra, TABLE, embed)
  assert split['level'] == 2 and split['level'].dtype == split['subclass'].dtype == np.int32
  for label in range(CLASSES):
    rows = TABLE['label'] == label
    found = split['subclass'][rows] - 2 * label
    assert set(found) == {0, 1}
    assert len(set(zip(found, part[rows], strict=True))) == 2
  assert method.columns(split)['subclass'] is split['subclass']
  seeds = []
  monkeypatch.setattr(
    mixtures, 'gaussian_mixture', lambda z, n, seed: seeds.append(seed) or np.zeros(len(z), int)
  )
  for seed, epoch in ((0, 3), (0, 4), (5, 3)):
    other, _, extra = started(seed=seed, **options)
    other.refresh(epoch, params, extra, TABLE, embed)
  assert len(set(seeds)) == len(seeds) == 3 * CLASSES
  calls = calls[:1]
  for epoch in (4, 6, 20):
    assert method.refresh(epoch, params, split, TABLE, embed) is split
  assert len(calls) == 1
  assert started()[0].refresh is None and started()[0].columns is None


def test_an_average_of_parameters_is_what_is_enrolled():
  inner = sgm.make(narrow(), num_classes=CLASSES, embedding_width=5, levels=2, level_epochs=1)
  method = ema(inner, 0.9)
  params, extra = method.init(jax.random.key(0), {'image': jnp.zeros((1, 16, 16, 3))}, TABLE)
  embedding = np.random.default_rng(0).normal(size=(ROWS, 5))
  extra = method.enroll(params, extra, TABLE, lambda: embedding)
  expected, _ = mixtures.means(embedding, TABLE['label'] * 2, 6)
  np.testing.assert_array_equal(extra['method']['means'], expected)
  extra = method.refresh(1, params, extra, TABLE, lambda: embedding)
  assert extra['method']['level'] == 2
  np.testing.assert_array_equal(method.columns(extra)['subclass'], extra['method']['subclass'])


@pytest.mark.parametrize('mining', ['semi_hard', 'batch_hard'])
def test_triplets_by_a_slow_loop(mining):
  method, params, extra = started(triplet.make, mining=mining, margin=0.3)
  batch, outputs = drawn(1)
  z = outputs['embedding'] / jnp.linalg.norm(outputs['embedding'], axis=1, keepdims=True)
  terms, _ = method.loss(params, extra, {'embedding': z}, batch, 0)
  z, label, losses = np.asarray(z, float), np.asarray(batch['label']), []
  distance = ((z[:, None] - z[None]) ** 2).sum(-1)
  for i in range(BATCH):
    positives = [distance[i, j] for j in range(BATCH) if j != i and label[j] == label[i]]
    negatives = [distance[i, j] for j in range(BATCH) if label[j] != label[i]]
    if mining == 'batch_hard':
      losses.append(max(0, 0.3 + max(positives) - min(negatives)))
      continue
    for p in positives:
      farther = [n for n in negatives if n > p]
      losses.append(max(0, 0.3 + p - (min(farther) if farther else max(negatives))))
  np.testing.assert_allclose(terms['triplet'], np.mean(losses), rtol=1e-5)
  image = np.random.default_rng(1).normal(size=(4, 16, 16, 3))
  found = method.predict(params, extra, {'image': jnp.asarray(image, jnp.float32)})
  np.testing.assert_allclose(np.linalg.norm(found['embedding'], axis=1), 1, rtol=1e-5)


def test_options_of_the_triplets():
  batch, outputs = drawn(1)
  method, params, extra = started(triplet.make, mining='batch_hard', hinge='softplus', margin=0.3)
  hinged, _ = started(triplet.make, mining='batch_hard', margin=0.3)[0].loss(
    params, extra, outputs, batch, 0
  )
  soft, _ = method.loss(params, extra, outputs, batch, 0)
  assert soft['triplet'] > hinged['triplet'] + 0.01
  image = np.random.default_rng(1).normal(size=(4, 16, 16, 3)).astype(np.float32)
  extra |= {'means': jnp.eye(3, 5), 'rows': jnp.ones(3, jnp.int32)}
  narrow_one, wide = (
    started(triplet.make, sigma=sigma)[0].predict(params, extra, {'image': image})['logits']
    for sigma in (0.5, 1.0)
  )
  difference = narrow_one - narrow_one.max(1, keepdims=True)
  np.testing.assert_allclose(difference, 4 * (wide - wide.max(1, keepdims=True)), atol=1e-4)


def in_parallel(make, **options):
  def made(dtype):
    method = make(narrow(dtype), num_classes=7, embedding_width=6, **options)

    def init(rng, batch, table):
      params, extra = method.init(rng, batch, {'label': np.arange(24) % 7})
      parts = extra['subclass'] // options.get('levels', 1) * options.get('levels', 1)
      return params, extra | {'subclass': parts + jnp.arange(24) // 7 % options.get('levels', 1)}

    return method._replace(init=init)

  return made


def test_dgms_is_the_same_on_any_number_of_devices():
  """Means are over the global batch; a single device has only one or two rows."""
  metrics, _ = check_ten_steps_in_float64([(8, 'pmap')], in_parallel(sgm.make, levels=2))
  assert metrics[0]['sgm'] > 1e-3 and metrics[0]['l2_grads'] > 1e-3


def test_running_means_and_a_classifier_are_the_same_on_any_number_of_devices():
  options = {'class_means': 'running', 'cross_entropy': True, 'centre': True}
  metrics, _ = check_ten_steps_in_float64([(8, 'pmap')], in_parallel(sgm.make, **options))
  assert metrics[0]['sgm'] > 1e-3 and metrics[0]['cross_entropy'] > 1e-3


def test_triplets_are_the_same_on_any_number_of_devices():
  metrics, _ = check_ten_steps_in_float64([(8, 'shard_map')], in_parallel(triplet.make))
  assert metrics[0]['triplet'] > 1e-3 and metrics[0]['l2_grads'] > 1e-3


@pytest.mark.parametrize(
  'make, options, message',
  [
    (sgm.make, {'sigma': 0.0}, 'sigma=0.0: it must be above 0'),
    (sgm.make, {'embedding_gain': 0.0}, 'embedding_gain=0.0: it must be above 0'),
    (sgm.make, {'levels': 0}, 'levels=0: at least 1'),
    (sgm.make, {'component_rows': 0}, 'component_rows=0: at least 1'),
    (triplet.make, {'mining': 'semihard'}, "Did you mean 'semi_hard'"),
    (triplet.make, {'hinge': 'max'}, "no hinge 'max'"),
    (sgm.make, {'class_means': 'runing'}, "Did you mean 'running'"),
    (sgm.make, {'class_means': 'running', 'levels': 2}, 'several levels change'),
    (sgm.make, {'class_means': 'running', 'leave_one_out': True}, 'cannot be left out'),
    (sgm.make, {'means_momentum': 1.0}, 'means_momentum=1.0 lies outside'),
    (sgm.make, {'seed': -1}, 'seed=-1: it must not be below 0'),
  ],
)
def test_impossible_settings_are_refused(make, options, message):
  with pytest.raises(InputError, match=message):
    make(narrow(), num_classes=7, **options)


def test_a_class_without_training_rows_is_refused():
  method = sgm.make(narrow(), num_classes=4)
  with pytest.raises(InputError, match='class 3 .* has no training row'):
    method.init(jax.random.key(0), {'image': jnp.zeros((1, 16, 16, 3))}, TABLE)


@pytest.fixture
def dgms_config(small_config):
  """Five steps an epoch; split in two at step 5, in three at step 10."""
  small_config.method = ml_collections.ConfigDict(
    {
      'name': 'sgm',
      'embedding_width': 6,
      'levels': 3,
      'level_epochs': 1,
      'component_rows': 3,
      'least_rows': 6,
    }
  )
  small_config.sampler = ml_collections.ConfigDict({'name': 'p_by_k', 'k': 2})
  small_config.steps = 12
  small_config.precision = 'float64'
  small_config.model.width = 4
  small_config.data.image_size = 16
  small_config.parallel.devices = 1
  small_config.checkpoint.update(every=3, keep=100)
  return small_config


def test_runs_across_refreshes_resume_to_the_bit_and_do_not_depend_on_devices(
  dgms_config, tmp_path
):
  whole = loop.train(dgms_config, tmp_path / 'whole')
  for last in (10, 9):  # at a refresh, and in the middle of an epoch after another
    workdir = tmp_path / f'cut-{last}'
    shutil.copytree(tmp_path / 'whole', workdir)
    for path in (workdir / 'checkpoints').iterdir():
      if int(path.name) > last:
        shutil.rmtree(path)
    assert loop.train(dgms_config, workdir)['state_sha256'] == whole['state_sha256']
  steps = {}
  for path in (tmp_path / 'whole' / 'checkpoints').iterdir():
    extra = checkpoint.restore(tmp_path / 'whole', path.name)['extra']
    steps[int(path.name)] = int(extra['level'])
    assert extra['rows'].sum() == 84
    of_class = extra['rows'].reshape(7, 3).sum(1)
    np.testing.assert_array_equal(of_class, [12] * 7)
    assert (extra['rows'] > 0).reshape(7, 3).sum(1).max() <= extra['level']
  assert steps == {3: 1, 5: 1, 6: 2, 9: 2, 10: 2, 12: 3}
  assert whole['last']['test']['acc'] == evaluate.evaluate_run(tmp_path / 'whole')['test']['acc']
  lines = history.read_lines(tmp_path / 'whole' / 'metrics.jsonl')
  first = next(line for line in lines if line['split'] == 'train')
  assert {'acc', 'sgm', 'posterior/true_below_0.001'} <= set(first)
  assert first['loss'] == first['sgm']

  dgms_config.parallel.devices = 8
  loop.train(dgms_config, tmp_path / 'eight')
  one, eight = (checkpoint.restore(tmp_path / name, 'last') for name in ('whole', 'eight'))
  for name in ('params', 'extra'):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-8), one[name], eight[name]
    )


def test_the_stored_means_are_of_all_training_embeddings(small_config, tmp_path):
  """Embeddings of the predicting model, for any `eval.limit` and batch size."""
  small_config.method = ml_collections.ConfigDict({'name': 'triplet', 'embedding_width': 6})
  small_config.sampler = ml_collections.ConfigDict({'name': 'p_by_k', 'k': 2})
  small_config.steps = 3
  small_config.ema = 0.9
  small_config.eval.update(limit=7)
  loop.train(small_config, tmp_path)
  model = restore.load(tmp_path)
  data = sources.load(small_config).data
  split = data.splits['train']
  statistics = model.state.extra['method']['batch_stats']['model']['bn1']
  assert np.abs(statistics['mean']).min() > 0 and np.ptp(statistics['var']) > 0
  found = model.predict(model.state, split, limit=0)
  assert len(found.outputs['embedding']) == 84
  extra = parallel.host(model.state.extra)['method']
  means, rows = mixtures.means(found.outputs['embedding'], split.table['label'], 7)
  np.testing.assert_allclose(extra['means'], means, atol=1e-6)
  np.testing.assert_array_equal(extra['rows'], rows)
  log_posterior = gaussian.log_posterior(found.outputs['embedding'], means, rows > 0, 0.5)
  np.testing.assert_allclose(found.outputs['logits'], log_posterior, atol=1e-4)
