"""Added terms of any method: by name, by path, with state; their weights; complete runs."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest
from device_counts import check_ten_steps_in_float64, run
from drawn_faces import strip_landmarks
from term_methods import drawn, linear_method, narrow, started
from user_losses import MINE

from ferjax import config as configs
from ferjax import core, losses
from ferjax.assembly import restore
from ferjax.assembly.terms import make_weights, with_terms
from ferjax.distributed import parallel
from ferjax.errors import InputError
from ferjax.evaluation import evaluate
from ferjax.losses import cross_entropy
from ferjax.losses import triplet as triplets
from ferjax.methods import dmlnet, ldl_alsg, sgm, softmax
from ferjax.optim.ema import ema
from ferjax.runs import history
from ferjax.terms import builtin, weighting, wrap
from ferjax.terms.added import check, make, stateful
from ferjax.training import loop, setup
from ferjax.training.step import make_train_step, weights_at

EXAMPLE = Path(__file__).parents[2] / 'configs' / 'examples' / 'my_loss.py'


def made(name, **options):
  return make(name, getattr(builtin, name), options, num_classes=7, num_poses=3)


@pytest.mark.parametrize('options', [{}, {'gradient_through_means': False, 'leave_one_out': True}])
def test_sgm_as_a_term_is_the_loss_of_the_method(options):
  method = sgm.make(narrow(), num_classes=7, embedding_width=5, sigma=0.8, **options)
  extra = {'subclass': jnp.asarray(drawn()[1]['label'])}
  term = made('sgm', sigma=0.8, **options)
  outputs, batch = drawn()

  def of_method(z):
    return method.loss({}, extra, {'embedding': z}, batch, 0)[0]['sgm']

  def of_term(z):
    return term({'embedding': z}, batch).mean()

  for f, g in ((of_method, of_term), (jax.grad(of_method), jax.grad(of_term))):
    np.testing.assert_allclose(g(outputs['embedding']), f(outputs['embedding']), rtol=1e-6)
  assert of_term(outputs['embedding']) > 0.1


def test_every_built_in_term_gives_a_loss_of_each_row():
  outputs, batch = drawn()
  batch |= {'distribution': jax.nn.softmax(outputs['logits'][::-1])}
  read = {name: set() for name in builtin.__all__}
  for name in builtin.__all__:
    term = made(name)
    read[name] = check(name, getattr(builtin, name), term, outputs, batch)
    triple = stateful(term)
    params, state = triple.init(jax.random.key(0), outputs, batch)
    found = triple.apply(params, state, outputs, batch)
    assert found.shape == (12,) and np.isfinite(found).all() and found.max() > 0, name
  assert read.pop('label_distribution') == {'distribution'}
  assert read.pop('nuisance_triplet') == {'label', 'pose'}
  assert set(map(frozenset, read.values())) == {frozenset({'label'})}


def with_own_terms_added(dtype):
  """DML-Net with two added terms."""
  method = small_dmlnet(dtype)

  def loss(params, extra, outputs, batch, step):
    own, aux = method.loss(params, extra, outputs, batch, step)
    return {'expression': own['expression']}, aux

  def pose(outputs, batch):
    return cross_entropy.cross_entropy(outputs['pose_logits'], batch['pose'])

  def triplet(outputs, batch):
    return sum(
      builtin.nuisance_triplet(outputs, batch, against=nuisance) for nuisance in ('pose', 'subject')
    )

  return wrap.with_terms(method._replace(loss=loss), {'pose': pose, 'triplet': triplet})


def small_dmlnet(dtype):
  return dmlnet.make(
    narrow(dtype),
    num_classes=7,
    num_poses=3,
    regions=False,
    fusion_width=8,
    head_width=8,
    embedding_width=6,
  )


def test_dynamic_weights_of_added_terms_are_those_of_a_methods_own():
  options = {'weights': {'pose': 0.1, 'triplet': optax.linear_schedule(0.0, 1.0, 4)}}
  options['weighting'] = weighting.make(name='dynamic', total=2.0, window=1)
  own, state = run(1, 'pmap', jnp.float32, 5, small_dmlnet, **options)
  added, other = run(1, 'pmap', jnp.float32, 5, with_own_terms_added, **options)
  for ours, theirs in zip(own, added, strict=True):
    for name, value in ours.items():
      np.testing.assert_allclose(theirs[name], value, rtol=1e-4, err_msg=name)
  assert len({float(metrics['weight/pose']) for metrics in own}) > 2
  assert own[0]['weight/triplet'] == 0 and own[4]['weight/triplet'] > 0.1
  chex.assert_trees_all_equal_shapes(state, other)


def with_states(dtype):
  """Centres, learned class weights, and an average of the network's parameters alone."""
  inner = ema(softmax.make(narrow(dtype), num_classes=7), 0.9, statistics=True)
  added = {
    'islands': losses.islands(num_classes=7),
    'head': losses.arcface_head(num_classes=7, scale=8.0),
    'sgm': made('sgm'),
  }
  return wrap.with_terms(inner, added)


def test_terms_with_a_state_are_the_same_on_any_number_of_devices():
  weights = {'islands': 0.01, 'sgm': optax.linear_schedule(0.0, 1.0, 5)}
  metrics, state = check_ten_steps_in_float64([(8, 'shard_map')], with_states, weights)
  extra = state['extra']
  assert set(extra) == {'method', 'average', 'updates', 'terms'}
  assert set(extra['terms']) == {'islands'} and np.abs(extra['terms']['islands']).max() > 0.1
  assert set(state['params']['terms']) == {'head'} and 'terms' not in extra['average']['params']
  assert metrics[0]['weight/sgm'] == 0 and metrics[9]['weight/sgm'] == 1
  assert not any(name.startswith('weight/') and name != 'weight/sgm' for name in metrics[0])
  for values in metrics:
    parts = values['cross_entropy'] + 0.01 * values['islands'] + values['head']
    np.testing.assert_allclose(values['loss'], parts + values['weight/sgm'] * values['sgm'])


def test_parameters_and_states_are_separate_and_prediction_ignores_them():
  added = {'centers': losses.centers(num_classes=3), 'head': losses.cosface_head(num_classes=3)}
  method = wrap.with_terms(linear_method(), added)
  batch, outputs, own = started(method)
  params = own | {'terms': {'head': {'kernel': jnp.ones((3, 3))}}}
  extra = {'terms': {'centers': jnp.zeros((3, 3))}}
  values, _ = method.loss(params, extra, outputs, batch, 0)
  by_hand = (np.asarray(outputs['embedding'], float) ** 2).sum(1).mean() / 2
  np.testing.assert_allclose(values['centers'], by_hand, rtol=1e-6)
  moved = method.update(extra, params, None, outputs, batch, None)
  assert set(moved) == {'terms'} and np.abs(moved['terms']['centers']).max() > 0
  for other in (method, wrap.with_terms(linear_method(), {})):
    found = other.predict(params, extra, batch)
    np.testing.assert_allclose(found['logits'], outputs['logits'])
    assert found['params'] == ['bias', 'kernel'] and found['extra'] == []
  assert (
    wrap.with_terms(linear_method(), {'sgm': made('sgm')}).update(
      {}, own, None, outputs, batch, None
    )
    == {}
  )
  clashing = wrap.with_terms(linear_method(), {'own': made('sgm')})
  with pytest.raises(InputError, match="config.terms.own: the method has a term 'own'"):
    clashing.loss(own, {}, outputs, batch, 0)


def test_changes_of_a_term_to_its_dicts_do_not_reach_others():
  def changing(outputs, batch):
    outputs['embedding'] = 2 * outputs['embedding']
    return outputs['embedding'].sum(1) + batch.pop('label')

  def plain(outputs, batch):
    return outputs['embedding'].sum(1) + batch['label']

  method = wrap.with_terms(linear_method(), {'a': changing, 'b': plain})
  batch, outputs, params = started(method)
  expected = plain(outputs, batch).mean()
  assert check('here', changing, changing, outputs, batch) == {'label'}
  values, _ = method.loss(params, {}, outputs, batch, 0)
  assert values['b'] == expected and 'label' in batch


def test_a_new_term_costs_no_retrace():
  method = wrap.with_terms(linear_method(), {'centers': losses.centers(num_classes=3)})
  batch, _, params = started(method)
  extra = {'terms': {'centers': jnp.zeros((3, 3))}}
  tx = optax.adam(1e-3)
  devices = parallel.make(devices=2)
  chex.clear_trace_counter()
  step = chex.assert_max_traces(
    make_train_step(
      method, tx, lambda keys, batch: batch, {'centers': optax.linear_schedule(0.0, 0.1, 3)}
    ),
    n=1,
  )
  step = devices.compile(step, donate=0)
  state = core.TrainState(jnp.int32(0), params, tx.init(params), extra, jax.random.key(0))
  state = devices.replicate(state)
  for number in range(4):
    state, metrics = step(state, devices.shard(jax.device_get(batch)))
    np.testing.assert_allclose(metrics['weight/centers'], min(number, 3) / 30, rtol=1e-6)


@pytest.mark.parametrize(
  'section, by_step',
  [
    (0.3, {0: 0.3, 99: 0.3}),
    ({'schedule': 'constant', 'value': 0.2}, {0: 0.2, 99: 0.2}),
    (
      {'schedule': 'linear', 'end': 0.1, 'epochs': 2, 'begin': 1},
      {0: 0, 10: 0, 15: 0.025, 20: 0.05, 30: 0.1, 99: 0.1},
    ),
    (
      {'schedule': 'cosine', 'start': 1.0, 'end': 3.0, 'begin': 1.0},
      {5: 1, 10: 1, 15: 2, 12: 2 - np.cos(np.pi / 5), 20: 3, 99: 3},
    ),
    ({'schedule': 'exponential', 'start': 8.0, 'end': 2.0}, {0: 8, 5: 4, 10: 2, 99: 2}),
    ({'schedule': 'exponential', 'start': 2.0, 'end': 8.0}, {0: 2, 5: 4, 10: 8, 99: 8}),
    ({'schedule': 'polynomial', 'start': 4.0, 'end': 0.0, 'power': 2.0}, {0: 4, 5: 1, 10: 0}),
    ({'schedule': 'step', 'begin': 2.0}, {0: 0, 19: 0, 20: 1, 99: 1}),
  ],
)
def test_weights_by_number_and_by_schedule(section, by_step):
  config = configs.base()
  config.weights = {'pose': section}
  config.terms = {'sgm': {'weight': section, 'sigma': 1.0}, 'focal': {}}
  found = make_weights(config, steps_per_epoch=10)
  assert set(found) == {'pose', 'sgm'}
  for step, expected in by_step.items():
    now = weights_at(found, jnp.int32(step))
    np.testing.assert_allclose(now['pose'], expected, atol=1e-6)
    np.testing.assert_allclose(now['sgm'], expected, atol=1e-6)


@pytest.mark.parametrize(
  'weight, message',
  [
    ('high', "config.terms.sgm.weight is 'high': give a finite number"),
    (True, 'give a finite number'),
    (float('nan'), "config.terms.sgm.weight is nan: give a finite number, or a dict such as {'sch"),
    (float('-inf'), 'weight is -inf: give a finite number'),
    ({'start': 1.0}, 'give a finite number'),
    ({'schedule': 3}, "config.terms.sgm.weight.schedule is '3'. There are: constant, cosine"),
    ({'schedule': []}, r"config.terms.sgm.weight.schedule is '\[\]'. There are: constant, cosine"),
    ({'schedule': 'linear', 'end': 'high'}, "config.terms.sgm.weight.end is 'high': give a finite"),
    ({'schedule': 'linaer'}, "config.terms.sgm.weight.schedule is 'linaer'.* 'linear'"),
    ({'schedule': 'linear', 'epoch': 2}, "unknown key config.terms.sgm.weight.epoch.*'epochs'"),
    ({'schedule': 'linear', 'epochs': 0}, 'epochs=0, which must be above 0'),
    ({'schedule': 'exponential', 'end': 0.0}, 'numbers above 0, not 1.0 and 0.0'),
  ],
)
def test_invalid_weights_are_refused(weight, message):
  config = configs.base()
  config.terms = {'sgm': {'weight': weight}}
  with pytest.raises(InputError, match=message):
    make_weights(config, 10)


@pytest.mark.parametrize('name', ['loss', 'step', 'acc', 'images_per_s'])
def test_names_of_the_log_are_refused(name):
  config = configs.base()
  config.terms = {name: {'path': 'my_losses.island'}}
  with pytest.raises(InputError, match=f"the log has '{name}' already"):
    configs.check(config)


def test_invalid_sections_are_refused():
  config = configs.base()
  config.weights = {'sgm': 0.1}
  config.terms = {'sgm': {'weight': 0.1}}
  with pytest.raises(InputError, match='config.weights.sgm or config.terms.sgm.weight, not both'):
    make_weights(config, 10)
  config.terms = {'sgm': 0.1}
  with pytest.raises(InputError, match='config.terms.sgm is 0.1: give a dict'):
    configs.check(config)
  config.terms = {'mine': {'name': 'sgm', 'path': 'a.b'}}
  with pytest.raises(InputError, match='config.terms.mine: give path'):
    configs.check(config)


def test_functions_of_the_host_see_the_methods_own_state():
  """`refresh`, `enroll` and `columns` of a method with terms, whose states they do not change."""
  seen = []

  def change(name):
    def run(*args):
      *epoch, params, extra, table, embed = args
      seen.append((name, epoch, sorted(params), sorted(extra), table, embed))
      return extra | {name: 1}

    return run

  inner = linear_method()._replace(
    refresh=change('refresh'),
    enroll=change('enroll'),
    columns=lambda extra: {'subclass': sorted(extra)},
  )
  method = wrap.with_terms(inner, {'centers': losses.centers(num_classes=3)})
  params = {'kernel': 0, 'terms': {'head': 1}}
  extra = {'map': 2, 'terms': {'centers': 3}}
  assert method.refresh(7, params, extra, 'table', 'embed') == extra | {'refresh': 1}
  assert method.enroll(params, extra, 'table', 'embed') == extra | {'enroll': 1}
  assert method.columns(extra) == {'subclass': ['map']}
  assert seen == [
    ('refresh', [7], ['kernel'], ['map'], 'table', 'embed'),
    ('enroll', [], ['kernel'], ['map'], 'table', 'embed'),
  ]
  assert wrap.with_terms(linear_method(), {}).refresh is None


@pytest.fixture
def config_with_terms(small_config, my_losses):
  """With two terms of a user (one needs subjects, one has parameters), an average of parameters,
  and two built-in terms."""
  small_config.terms = {
    'mine': {'path': 'my_losses.subjects', 'weight': 0.1, 'width': 2.0},
    'running': {'path': 'my_losses.running_mean', 'weight': 0.01, 'rate': 0.1},
    'smooth': {'name': 'label_smoothing', 'smoothing': 0.2},
    'centers': {'weight': {'schedule': 'linear', 'end': 0.01, 'epochs': 1}},
  }
  small_config.ema = 0.9
  small_config.weighting.name = 'uncertainty'
  small_config.model.width = 4
  small_config.parallel.devices = 2
  small_config.checkpoint.update(every=3, keep=100)
  return small_config


def test_a_run_with_terms_resumes_to_the_bit_and_is_read_without_them(
  config_with_terms, my_losses, tmp_path, caplog
):
  whole = loop.train(config_with_terms, tmp_path / 'whole')
  shutil.copytree(tmp_path / 'whole', tmp_path / 'cut')
  for step in (9, 10):
    shutil.rmtree(tmp_path / 'cut' / 'checkpoints' / str(step))
  my_losses.write_text(MINE + '\n# changed\n')
  caplog.clear()
  assert loop.train(config_with_terms, tmp_path / 'cut')['state_sha256'] == whole['state_sha256']
  assert 'source of the loss config.terms.mine, my_losses.py, has changed;' in caplog.text

  lines = history.read_lines(tmp_path / 'whole' / 'metrics.jsonl')
  first, *_, last = (line for line in lines if line['split'] == 'train')
  for name in ('cross_entropy', 'mine', 'running', 'smooth', 'centers'):
    assert first[name] > 0 and f'weight/{name}' in first
  assert first['weight/centers'] == 0 and last['weight/centers'] > 0.009
  record = json.loads((tmp_path / 'whole' / 'config.json').read_text())
  assert record['config']['terms']['mine']['width'] == 2.0
  assert record['term_sources']['mine']['file'] == 'my_losses.py'
  assert len(record['term_sources']['running']['sha256']) == 64
  assert set(record['term_sources']) == {'mine', 'running'}
  config_with_terms.terms.mine.width = 3.0
  with pytest.raises(InputError, match='config.terms.mine.width: 2.0 in the run, 3.0 now'):
    loop.train(config_with_terms, tmp_path / 'whole')

  my_losses.unlink()
  sys.modules.pop('my_losses')
  assert evaluate.evaluate_run(tmp_path / 'whole')['test']['acc'] == whole['last']['test']['acc']
  model = restore.load(tmp_path / 'whole')
  assert set(model.state.params['terms']) == {'running'}
  assert set(model.state.extra['terms']) == {'running', 'centers'}
  assert 'my_losses' not in sys.modules


def test_a_term_sees_what_the_sampler_plans_and_both_views(manifest, data_dir, small_config):
  """With a method whose forward uses neighbours; the columns that the term reads join `needs`."""
  small_config.terms = {'nuisance_triplet': {'against': 'subject'}}
  small_config.data.path = str(strip_landmarks(manifest, manifest.with_name('no_landmarks.csv')))
  data = setup.sources.load(small_config).data
  split = data.splits['train']
  index = np.arange(32).reshape(2, 16)
  plan = {'index': index, 'neighbours': index[..., None] + np.arange(3), 'affinity': None}
  plan['affinity'] = np.ones(plan['neighbours'].shape, np.float32)
  method = ldl_alsg.make(narrow(), num_classes=7)
  found = with_terms(small_config, method, split, lambda *_: plan, 7, 3)
  assert found.needs == {'subject'}
  twice = softmax.make(narrow(), num_classes=7)
  forward = twice.forward

  def second_view(params, extra, batch, keys):
    return forward(params, extra, batch | {'image': batch['image'][:, 1]}, keys)

  twice = twice._replace(forward=second_view, views=2)
  assert with_terms(small_config, twice, split, lambda *_: plan, 7, 3).needs == {'subject'}
  small_config.terms = {'label_distribution': {}}
  del split.table['distribution']
  with pytest.raises(InputError, match="reads 'distribution'.*p_<class>"):
    with_terms(small_config, method, split, lambda *_: plan, 7, 3)


def test_weights_that_name_no_term_are_still_refused(small_config, tmp_path):
  small_config.terms = {'sgm': {}}
  small_config.weights = ml_collections.ConfigDict({'sgmm': 0.1})
  with pytest.raises(InputError, match="config.weights names 'sgmm'.* Did you mean 'sgm'"):
    loop.train(small_config, tmp_path)


def test_ten_lines_outside_the_repository(manifest, data_dir, tmp_path):
  """The lines of a new user, with the console script, whose path does not include the folder."""
  shutil.copy(EXAMPLE, tmp_path / 'my_loss.py')
  assert sum(bool(line.strip()) for line in ten_lines(EXAMPLE.read_text())) <= 10
  command = [sys.executable, '-P', '-c', 'from ferjax.main import run; run()']
  section = "{'mine': {'path': 'my_loss.island', 'weight': 0.02, 'apart': 0.5}}"
  flags = [
    '--config=my_loss.py:smoke',
    f'--config.terms={section}',
    '--workdir=run',
    '--config.steps=2',
    '--config.data.name=manifest',
    f'--config.data.path={manifest}',
    f'--config.data.dir={data_dir}',
    '--config.eval.sheets=False',
    '--config.eval.embeddings=False',
    '--config.eval.heatmaps=0',
  ]
  result = subprocess.run([*command, *flags], cwd=tmp_path, capture_output=True, text=True)
  assert result.returncode == 0, result.stderr
  line = history.read_lines(tmp_path / 'run' / 'metrics.jsonl')[0]
  assert line['mine'] > 0 and 'island' not in line
  np.testing.assert_allclose(line['loss'], line['cross_entropy'] + 0.02 * line['mine'], rtol=1e-5)


def ten_lines(source):
  """The lines of the function `island` in a file."""
  start = source.index('def island')
  return source[start : source.index('\n\n\n', start)].splitlines()


def test_triplets_against_a_nuisance_are_the_means_of_the_batch():
  outputs, batch = drawn()
  distance = triplets.squared_distances(outputs['embedding'])
  masks = triplets.nuisance_masks(batch['label'], batch['subject'])
  found = made('nuisance_triplet', against='subject', margin=0.5)(outputs, batch)
  np.testing.assert_allclose(found, triplets.batch_hard(distance, *masks, 0.5), rtol=1e-6)
  with pytest.raises(InputError, match="is 'person'. Use pose or subject"):
    made('nuisance_triplet', against='person')(outputs, batch)
