import shutil

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from device_counts import BATCH, check_ten_steps_in_float64
from drawn_faces import strip_landmarks, write_manifest

from ferjax import models
from ferjax.data import samplers
from ferjax.distributed.parallel import AXIS
from ferjax.errors import InputError
from ferjax.losses.divergence import neighbour_guidance
from ferjax.methods import ldl_alsg, softmax
from ferjax.models import resnet
from ferjax.runs import history
from ferjax.training import loop

CLASSES, EXAMPLES, NEIGHBOURS = 3, 4, 2


def narrow(dtype=jnp.float32):
  return resnet.ResNet(resnet.BasicBlock, (1, 1), 4, dtype=dtype, param_dtype=dtype)


def drawn():
  rng = np.random.default_rng(0)
  others = rng.normal(2, 3, size=(EXAMPLES, NEIGHBOURS, 16, 16, 3))
  return {
    'image': jnp.asarray(rng.normal(size=(EXAMPLES, 16, 16, 3)), jnp.float32),
    'neighbour_image': jnp.asarray(others, jnp.float32),
    'affinity': jnp.asarray(rng.random((EXAMPLES, NEIGHBOURS)), jnp.float32),
    'label': jnp.array([0, 1, 2, 1]),
  }


def started(**options):
  method = ldl_alsg.make(narrow(), num_classes=CLASSES, **options)
  return method, *method.init(jax.random.key(0), drawn(), {})


def on_one_device(f, *args):
  mapped = jax.jit(jax.vmap(f, axis_name=AXIS))
  return jax.tree.map(lambda x: x[0], mapped(*jax.tree.map(lambda x: x[None], args)))


def passed(params, extra, images):
  """The softmax baseline's outputs in training on one batch, and its new statistics."""
  baseline = softmax.make(narrow(), num_classes=CLASSES)
  return on_one_device(lambda x: baseline.forward(params, extra, {'image': x}, None), images)


@pytest.mark.parametrize('neighbours', ldl_alsg.PASSES)
def test_which_pictures_share_statistics(neighbours):
  method, params, extra = started(neighbours=neighbours)
  batch = drawn()
  outputs, carry = on_one_device(lambda b: method.forward(params, extra, b, None), batch)
  others = batch['neighbour_image'].reshape(-1, 16, 16, 3)
  if neighbours == 'joint':
    every, statistics = passed(params, extra, jnp.concatenate([batch['image'], others]))
    own, apart = every['logits'][:EXAMPLES], every['logits'][EXAMPLES:]
  else:
    every, statistics = passed(params, extra, batch['image'])
    own, apart = every['logits'], passed(params, extra, others)[0]['logits']
  np.testing.assert_allclose(outputs['logits'], own, atol=1e-5)
  apart = apart.reshape(EXAMPLES, NEIGHBOURS, CLASSES)
  np.testing.assert_allclose(outputs['neighbour_logits'], apart, atol=1e-5)
  after = method.update(extra, params, carry, outputs, batch, None)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), after, {**statistics})
  terms, _ = method.loss(params, extra, outputs, batch, 0)
  guidance = neighbour_guidance(own, apart, batch['affinity']).mean()
  np.testing.assert_allclose(terms['guidance'], guidance, rtol=1e-4)
  log_p = jax.nn.log_softmax(own)[np.arange(EXAMPLES), batch['label']]
  np.testing.assert_allclose(terms['cross_entropy'], -log_p.mean(), rtol=1e-4)


@pytest.mark.parametrize('neighbours', ldl_alsg.PASSES)
def test_neighbours_pictures_have_gradient_through_shared_statistics_only(neighbours):
  method, params, extra = started(neighbours=neighbours)
  batch = drawn()

  def total(images):
    def run(images):
      seen = batch | {'neighbour_image': images}
      outputs, _ = method.forward(params, extra, seen, None)
      return sum(method.loss(params, extra, outputs, seen, 0)[0].values())

    return jax.vmap(run, axis_name=AXIS)(images[None])[0]

  gradient = jax.jit(jax.grad(total))(batch['neighbour_image'])
  assert np.isfinite(gradient).all() and gradient.any() == (neighbours == 'joint')


def groups(rng):
  """Pictures of neighbours are columns of a batch."""
  return {
    'neighbour_image': rng.integers(0, 256, (BATCH, 2, 16, 16, 3), np.uint8),
    'affinity': rng.random((BATCH, 2)).astype(np.float32),
  }


@pytest.mark.parametrize('neighbours, where', [('joint', (8, 'pmap')), ('separate', (4, 'pmap'))])
def test_the_same_on_any_number_of_devices(neighbours, where):
  def make(dtype):
    return ldl_alsg.make(narrow(dtype), num_classes=7, neighbours=neighbours)

  metrics, _ = check_ten_steps_in_float64([where], make, {'guidance': 0.5}, more=groups)
  assert metrics[-1]['guidance'] > 0


def test_inference_is_the_softmax_baseline():
  model, image = models.resnet18(width=8), jnp.zeros((2, 32, 32, 3))
  flops = {}
  for method in (softmax.make(model, num_classes=7), ldl_alsg.make(model, num_classes=7)):
    params, extra = method.init(jax.random.key(0), {'image': image}, {})
    assert method.predict_needs == method.predict_uses == frozenset()
    step = jax.jit(lambda p, e, x, m=method: m.predict(p, e, {'image': x}))
    cost = step.lower(params, extra, image).compile().cost_analysis()
    flops[len(flops)] = cost['flops']
  assert flops[0] == flops[1]


@pytest.fixture
def ldl_config(small_config, tmp_path):
  small_config.method = ml_collections.ConfigDict({'name': 'ldl_alsg', 'neighbours': 'separate'})
  small_config.sampler = ml_collections.ConfigDict({'name': 'neighbour_groups', 'neighbours': 2})
  small_config.weights = {'guidance': 0.5}
  small_config.parallel.devices = 2
  return small_config


def test_a_run_resumes_to_the_bit_and_shows_the_spaces(ldl_config, tmp_path, caplog):
  ldl_config.checkpoint.update(every=3, keep=100)
  ldl_config.eval.sheets = True
  whole = loop.train(ldl_config, tmp_path / 'whole')
  shutil.copytree(tmp_path / 'whole', tmp_path / 'cut')
  for step in (9, 10):
    shutil.rmtree(tmp_path / 'cut' / 'checkpoints' / str(step))
  assert loop.train(ldl_config, tmp_path / 'cut')['state_sha256'] == whole['state_sha256']
  assert 'by au nearly all a_ij are 1' in caplog.text  # the drawn faces have the same ones
  lines = [
    x for x in history.read_lines(tmp_path / 'whole' / 'metrics.jsonl') if x['split'] == 'train'
  ]
  assert all(line['guidance'] > 0 for line in lines)
  expected = lines[0]['cross_entropy'] + 0.5 * lines[0]['guidance']
  np.testing.assert_allclose(lines[0]['loss'], expected, rtol=1e-5)
  for name in ('auxiliary_spaces', 'predicted_test'):
    assert (tmp_path / 'whole' / 'report' / f'{name}.png').stat().st_size > 5000


def test_bad_input_is_an_error(ldl_config, tmp_path):
  ldl_config.method.neighbours = 'jointly'
  with pytest.raises(InputError, match="Did you mean 'joint'"):
    loop.train(ldl_config, tmp_path / 'a')
  ldl_config.method.neighbours = 'joint'
  ldl_config.sampler.sigma = 1.0
  with pytest.raises(InputError, match='unknown key config.sampler.sigma'):
    loop.train(ldl_config, tmp_path / 'b')
  ldl_config.sampler = ml_collections.ConfigDict({'name': 'natural'})
  with pytest.raises(InputError, match='set config.sampler.name=neighbour_groups'):
    loop.train(ldl_config, tmp_path / 'c')
  ldl_config.sampler = ml_collections.ConfigDict({'name': 'neighbour_groups'})
  path = write_manifest(tmp_path, {'train': 14, 'test': 7})
  ldl_config.data.path = str(strip_landmarks(path, tmp_path / 'plain.csv'))
  ldl_config.batch = 8
  with pytest.raises(InputError, match="no 'landmarks'.*x_0"):
    loop.train(ldl_config, tmp_path / 'd')


@pytest.mark.parametrize(
  'options, message',
  [
    ({'graphs': 'au'}, r"tuple, such as \('au',\)"),
    ({'graphs': ('au',), 'au_sigma': float('nan')}, 'au_sigma=nan: it must be a number above 0'),
    ({'graphs': ('au',), 'au_sigma': float('inf')}, 'au_sigma=inf'),
    ({'graphs': ('au', 'landmarks')}, "no 'landmarks'"),
  ],
)
def test_the_sampler_refuses_before_it_builds_a_graph(options, message, tmp_path):
  table = {'au': np.random.default_rng(0).uniform(0, 5, (9, 3))}
  with pytest.raises(InputError, match=message):
    samplers.neighbour_groups(table=table, image_size=64, folder=tmp_path, **options)
  assert not list(tmp_path.iterdir())
