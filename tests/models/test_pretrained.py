"""Weights from PyTorch: equal outputs, their places in every method, networks that are refused."""

import csv
import hashlib
import json
import tracemalloc

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch_networks

from ferjax import config as configs
from ferjax import models
from ferjax.assembly import build, restore
from ferjax.errors import InputError
from ferjax.models import pretrained, weight_files
from ferjax.optim.ema import ema
from ferjax.training import loop, start

LAYOUTS = {
  'resnet18': models.resnet18(),
  'resnet34': models.resnet34(),
  'resnet50': models.resnet50(),
  'resnet50_dilated': models.resnet50(output_stride=16),
  'mobilenet_v2': models.mobilenet_v2(),
  'mobilenet_v2_timm': models.mobilenet_v2(),
  'resnet18_timm': models.resnet18(),
}


def shapes(model):
  picture = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
  return jax.eval_shape(lambda x: model.init(jax.random.key(0), x, False), picture)


def layout(model):
  """Names and shapes of a model's variables in PyTorch's layout."""
  for path, leaf in flax.traverse_util.flatten_dict(shapes(model)).items():
    layers = '.'.join(path[1:-1]).replace('_', '.')
    shape = leaf.shape if leaf.ndim < 4 else tuple(leaf.shape[i] for i in (3, 2, 0, 1))
    yield f'{layers}.{pretrained.LEAVES[path[-1]]}', shape


def state_dict(model, prefix=''):
  """Random weights of a model, with PyTorch's names and layout."""
  lines = [f'{name} {",".join(map(str, shape))}' for name, shape in layout(model)]
  return {prefix + name: value for name, value in torch_networks.draw(lines).items()}


def save(path, arrays):
  safetensors.numpy.save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, path)
  return path


@pytest.mark.parametrize('kind', LAYOUTS)
def test_features_and_logits_are_pytorchs(kind, tmp_path):
  with np.load(torch_networks.FILE) as stored:
    names, features, logits = (stored[f'{kind}/{k}'] for k in ('layout', 'features', 'logits'))
  path = save(tmp_path / 'weights.safetensors', torch_networks.draw(names))
  (arrays, _), model = weight_files.read(path), LAYOUTS[kind]
  found = pretrained.convert(arrays, shapes(model), str(path))
  image = torch_networks.pictures().transpose(0, 2, 3, 1)
  run = jax.jit(lambda variables, x: model.apply(variables, x, False)[-1].mean((1, 2)))
  ours = run(found.variables, image)
  np.testing.assert_allclose(ours, features, rtol=0, atol=1e-4)
  assert features.std() > 0.3 and np.abs(features[0] - features[1]).mean() > 0.01
  last = 'fc' if 'fc.weight' in arrays else 'classifier'
  last = last if f'{last}.weight' in arrays else 'classifier.1'
  assert set(found.left_out) == {f'{last}.weight', f'{last}.bias'}
  ours = ours @ arrays[f'{last}.weight'].T + arrays[f'{last}.bias']
  np.testing.assert_allclose(ours, logits, rtol=0, atol=1e-4)


def test_the_golden_file_is_small():
  assert torch_networks.FILE.stat().st_size < 300_000


@pytest.mark.parametrize('prefix', ['module.', 'backbone.', 'state_dict.module.encoder.'])
def test_any_prefix_is_taken_off_and_the_rest_left_out(prefix):
  model = models.resnet10(width=4)
  plain = pretrained.convert(state_dict(model), shapes(model), 'a')
  arrays = state_dict(model, prefix)
  arrays |= {f'{prefix}fc.weight': np.zeros((9, 32)), 'head.conv1.weight': np.zeros(3)}
  arrays['conv1.weight'] = 1 + arrays[f'{prefix}conv1.weight']
  arrays |= {f'{prefix}bn1.num_batches_tracked': np.array(5), 'optimizer.state.0': np.zeros(2)}
  found = pretrained.convert(arrays, shapes(model), 'b')
  jax.tree.map(np.testing.assert_array_equal, found.variables, plain.variables)
  assert found.names['params/layer1_0/conv1/kernel'] == f'{prefix}layer1.0.conv1.weight'
  assert found.names['batch_stats/bn1/var'] == f'{prefix}bn1.running_var'
  assert found.left_out == {
    f'{prefix}fc.weight': (9, 32),
    'head.conv1.weight': (3,),
    'conv1.weight': (4, 3, 7, 7),
    'optimizer.state.0': (2,),
  }


def test_kernels_are_transposed_and_a_sequential_resnet_is_named_by_number():
  model = models.resnet10(width=4)
  arrays, numbers = state_dict(model), {v: k for k, v in pretrained.IN_SEQUENCE.items()}
  renamed = {}
  for name, value in arrays.items():
    first, _, rest = name.partition('.')
    renamed[f'base.{numbers[first]}.{rest}'] = value
  found = pretrained.convert(renamed, shapes(model), 'file')
  assert found.names['params/layer4_0/conv2/kernel'] == 'base.7.0.conv2.weight'
  kernel = found.variables['params']['layer2_0']['conv1']['kernel']
  assert kernel.shape == (3, 3, 4, 8)
  assert kernel[2, 0, 1, 5] == arrays['layer2.0.conv1.weight'][5, 1, 2, 0]


def with_more(arrays):
  return arrays | {'layer1.1.conv1.weight': np.zeros((4, 4, 3, 3))}


def with_less(arrays):
  return {k: v for k, v in arrays.items() if not k.startswith('layer4.0.bn2')}


def twice(arrays):
  return {f'{p}.{name}': value for p in ('query', 'key') for name, value in arrays.items()}


@pytest.mark.parametrize(
  'change, message',
  [
    (
      with_more,
      'holds another network than that of config.model.name; '
      "not in the network: 'layer1.1.conv1.weight'$",
    ),
    (
      with_less,
      "missing in the file: 'params/layer4_0/bn2/bias', 'params/layer4_0/bn2/scale', .* and 1 more",
    ),
    (twice, "several such networks, at 'key.', 'query.': save"),
    (lambda arrays: {}, 'it has no arrays'),
    (lambda arrays: {'blocks.0.qkv.weight': np.zeros(3)}, "it has 'blocks.0.qkv.weight'"),
    (
      lambda arrays: arrays | {'bn1.bias': np.full(4, np.nan)},
      "file.safetensors: 'bn1.bias' has values that are not finite float32 numbers",
    ),
    (lambda arrays: arrays | {'bn1.bias': np.zeros(4, np.int8)}, 'values that are not finite'),
    (lambda arrays: arrays | {'bn1.bias': np.zeros(4, complex)}, 'values that are not finite'),
    (
      lambda arrays: arrays | {'bn1.bias': np.full(4, 1e300)},
      'values that are not finite float32 numbers',
    ),
    (
      lambda arrays: arrays | {'bn1.running_var': -np.ones(4, 'f4')},
      "file.safetensors: 'bn1.running_var' has negative variances",
    ),
    (
      lambda arrays: arrays | {'conv1_weight': arrays['conv1.weight']},
      "'conv1.weight' and 'conv1_weight' are both params/conv1/kernel",
    ),
    (
      lambda arrays: {f'm.{n}': v for n, v in arrays.items()} | {'m.0.weight': np.zeros(3)},
      "'m.conv1.weight' and 'm.0.weight' are both params/conv1/kernel",
    ),
    (lambda arrays: {'\x1b[1mé': np.zeros(3)}, r"it has '\\x1b\[1m\\xe9'$"),
    (lambda arrays: {'x' * 9999: np.zeros(3)}, "it has 'x{100}[.]{3}'$"),
    (
      lambda arrays: arrays | {'conv1.weight': np.zeros((4, 1, 7, 7))},
      r"'conv1.weight': \(4, 1, 7, 7\) in the file, \(4, 3, 7, 7\) in the model",
    ),
  ],
)
def test_other_networks_are_refused(change, message):
  model = models.resnet10(width=4)
  with pytest.raises(InputError, match=message):
    pretrained.convert(change(state_dict(model)), shapes(model), 'file.safetensors')


@pytest.mark.parametrize(
  'theirs, ours, message',
  [
    (models.resnet34(), models.resnet18(), "not in the network: 'layer1.2.bn1"),
    (models.resnet18(), models.resnet34(), "missing in the file: 'params/layer1_2"),
    (models.resnet50(), models.resnet18(), 'another network.*layer1.0.bn3'),
    (models.mobilenet_v2(), models.resnet50(), 'does not hold the network'),
    (models.resnet18(), models.mobilenet_v2(), 'does not hold the network'),
    (models.resnet18(), models.alexnet(), 'another network'),
    (models.resnet18(), models.resnet18(width=32), 'config.model.width=64'),
  ],
)
def test_published_networks_are_distinguished(theirs, ours, message):
  """By names and shapes alone; the values are not read."""
  arrays = {name: np.broadcast_to(np.float32(0), shape) for name, shape in layout(theirs)}
  with pytest.raises(InputError, match=message):
    pretrained.convert(arrays, shapes(ours), 'file')


def test_a_mobilenet_of_timm_with_more_layers_is_refused():
  with np.load(torch_networks.FILE) as stored:
    lines = [line.partition(' ') for line in stored['mobilenet_v2_timm/layout']]
  sizes = {name: tuple(map(int, size.split(','))) if size else () for name, _, size in lines}
  arrays = {name: np.broadcast_to(np.float32(0), size) for name, size in sizes.items()}
  network = shapes(models.mobilenet_v2())
  more = ['1.0.se.conv_reduce', '2.10.conv_pw', '2.3.conv_pw', '7.0.bn1', '0.0.bn3', '6.0.bn4']
  for name in (f'blocks.{layer}.weight' for layer in more):
    with pytest.raises(InputError, match=f"not in the network: '{name}'$"):
      pretrained.convert(arrays | {name: np.zeros(3, np.float32)}, network, 'file')


def test_a_name_of_many_dots_costs_no_more_than_its_length():
  model = models.resnet10(width=4)
  arrays = state_dict(model) | {'a.' * 20_000 + 'x': np.zeros(3)}
  network = shapes(model)
  tracemalloc.start()
  try:
    assert len(pretrained.convert(arrays, network, 'file').left_out) == 1
    assert tracemalloc.get_traced_memory()[1] < 20e6
  finally:
    tracemalloc.stop()


@pytest.mark.parametrize('kind', ['float16', 'float64', 'bfloat16'])
def test_weights_get_the_types_of_what_they_replace(kind):
  model = models.resnet10(width=4)
  network = shapes(model)
  arrays = {name: value.astype(jnp.dtype(kind)) for name, value in state_dict(model).items()}
  found = pretrained.convert(arrays, network, 'file')
  assert {leaf.dtype for leaf in jax.tree.leaves(found.variables)} == {np.dtype('float32')}
  kernel = found.variables['params']['conv1']['kernel']
  np.testing.assert_array_equal(kernel.transpose(3, 2, 0, 1), arrays['conv1.weight'])
  half = jax.tree.map(lambda leaf: leaf.update(dtype=jnp.float16), network)
  extra = {'batch_stats': half['batch_stats'], 'average': network['params']}
  params, extra, _ = pretrained.insert(found, half['params'], extra)
  assert params['conv1']['kernel'].dtype == extra['batch_stats']['bn1']['var'].dtype == 'float16'
  assert extra['average']['conv1']['kernel'].dtype == 'float32'


# For each method, the parts of its parameters that together make a whole network.
NETWORKS = {
  'softmax': [['model']],
  'ldl_alsg': [['model']],
  'sgm': [['model']],
  'triplet': [['model']],
  'hrl': [['encoder']],
  'dmlnet': [['features/face'], ['features/eyes'], ['features/mouth']],
  'lanet': [['shared', 'expression'], ['shared', 'landmark']],
}
TWO_STEMS = [['expression'], ['landmark']]


@pytest.mark.parametrize('average', [False, True], ids=['plain', 'ema'])
@pytest.mark.parametrize(
  'name, options, networks, network',
  [
    *((name, {}, networks, 'resnet10') for name, networks in NETWORKS.items()),
    ('lanet', {'shared_stem': False}, TWO_STEMS, 'resnet10'),
    *((name, {}, NETWORKS[name], 'face_resnet29') for name in ('lanet', 'hrl', 'dmlnet')),
  ],
)
def test_every_method_takes_the_weights(name, options, networks, network, average):
  """The whole network goes to each part, its averages and its statistics, and nowhere else."""
  config = configs.base()
  config.model.update(name=network, width=4, weights='file')
  config.method = {'name': name, **options}
  method = build.make_method(config, 7, 3)
  method = ema(method, 0.9, statistics=True) if average else method
  batch = {
    'image': jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32),
    'landmarks': jax.ShapeDtypeStruct((1, 68, 2), jnp.float32),
  }
  table = {'label': np.arange(7)}
  params, extra = jax.eval_shape(lambda b: method.init(jax.random.key(0), b, table), batch)
  model = build.make_model(config)
  found = pretrained.convert(state_dict(model), shapes(model), 'file')
  params, extra, placed = pretrained.insert(found, params, extra)
  filled = flax.traverse_util.flatten_dict({'params': params, 'extra': extra}, sep='/')
  filled = {path: value for path, value in filled.items() if isinstance(value, jax.Array)}
  assert set(filled) == set(placed)

  inner = 'extra/method' if average else 'extra'
  roots = {'params': 'params', f'{inner}/batch_stats': 'batch_stats'}
  if name == 'lanet':
    roots[f'{inner}/momentum'] = 'params'
  if average:
    roots |= {f'extra/average/{kind}': kind for kind in ('params', 'batch_stats')}
  seen = set()
  for root, kind in roots.items():
    variables = flax.traverse_util.flatten_dict(found.variables[kind], sep='/')
    for parts in networks:
      places = {}
      for place in (f'{root}/{part}/' for part in parts):
        places |= {path.removeprefix(place): path for path in filled if path.startswith(place)}
      assert set(places) == set(variables)
      for variable, path in places.items():
        np.testing.assert_array_equal(filled[path], variables[variable])
        assert placed[path] == found.names[f'{kind}/{variable}']
      seen |= set(places.values())
  assert seen == set(filled)


def test_a_method_without_the_network_is_refused():
  model = models.resnet10(width=4)
  found = pretrained.convert(state_dict(model), shapes(model), 'file')
  params = {'net': {**shapes(model)['params'], 'more': {'kernel': jnp.zeros(3)}}}
  with pytest.raises(InputError, match='no place in this method'):
    pretrained.insert(found, params, {'batch_stats': {}})


def test_a_run_starts_from_the_weights_and_continues_without_the_file(small_config, tmp_path):
  path = tmp_path / 'weights.safetensors'
  model = build.make_model(small_config)
  arrays = state_dict(model, 'module.') | {'module.fc.weight': np.zeros((3, 64), 'f4')}
  save(path, arrays)
  small_config.model.weights = str(path)
  small_config.steps = 2
  small_config.parallel.devices = 1
  small_config.checkpoint.every = 0
  small_config.optimizer.lr_rules = (('model/.*', 0.0),)
  loop.train(small_config, tmp_path / 'run')
  params = restore.load(tmp_path / 'run').state.params['model']
  kernel = arrays['module.layer2.0.conv1.weight'].transpose(2, 3, 1, 0)
  np.testing.assert_array_equal(params['layer2_0']['conv1']['kernel'], kernel)
  np.testing.assert_array_equal(params['bn1']['scale'], arrays['module.bn1.weight'])
  record = json.loads((tmp_path / 'run' / 'config.json').read_text())
  count = len(arrays) - 1
  assert record['weights'] == {
    'file': str(path),
    'sha256': hashlib.sha256(path.read_bytes()).hexdigest(),
    'used': count,
    'left_out': ['module.fc.weight'],
  }
  with (tmp_path / 'run' / 'weights.csv').open(newline='') as file:
    rows = list(csv.DictReader(file))
  used = [row for row in rows if row['file'] and row['model']]
  assert {row['file'] for row in used} == set(arrays) - {'module.fc.weight'}
  assert {
    'file': 'module.conv1.weight',
    'model': 'params/model/conv1/kernel',
    'shape': '8x3x7x7',
    'source': str(path),
    'licence': '',
  } in used
  assert ('module.fc.weight', '', '3x64') in {(r['file'], r['model'], r['shape']) for r in rows}
  assert {row['model'] for row in rows if not row['file']} == {
    'params/Dense_0/kernel',
    'params/Dense_0/bias',
  }
  path.unlink()
  small_config.steps = 4
  small_config.model.weights = ''
  assert loop.train(small_config, tmp_path / 'run')['step'] == 4
  assert json.loads((tmp_path / 'run' / 'config.json').read_text())['weights'] == record['weights']
  small_config.model.weights = str(path)
  with pytest.raises(InputError, match='there is no such file'):
    loop.train(small_config, tmp_path / 'new')


def test_the_record_is_of_the_bytes_that_were_read(small_config, tmp_path):
  path = save(tmp_path / 'weights.safetensors', state_dict(build.make_model(small_config)))
  small_config.model.weights = str(path)
  sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
  found = start.read(small_config)
  path.unlink()
  facts = pretrained.facts(found)
  assert facts == {'file': str(path), 'sha256': sha256, 'used': len(found.names), 'left_out': []}


def test_files_of_pytorch_itself(tmp_path):
  torch = pytest.importorskip('torch', reason="without PyTorch: pip install 'ferjax[torch]'")
  model, path = models.resnet10(width=4), tmp_path / 'weights.pth'
  arrays = state_dict(model, 'module.')
  tensors = {name: torch.from_numpy(value) for name, value in arrays.items()}
  found = {}
  for legacy in (False, True):
    torch.save(
      {'epoch': 1, 'arch': 'resnet', 'state_dict': tensors},
      path,
      _use_new_zipfile_serialization=not legacy,
    )
    found = pretrained.convert(weight_files.read(path)[0], shapes(model), 'file')
    wanted = pretrained.convert(arrays, shapes(model), 'file')
    jax.tree.map(np.testing.assert_array_equal, found.variables, wanted.variables)
    content = path.read_bytes()
    for end in (0, 10, len(content) // 2, len(content) - 1):
      path.write_bytes(content[:end])
      with pytest.raises(InputError, match='is damaged, or holds more than tensors'):
        weight_files.read(path)
  held = {
    'half': torch.ones(3, dtype=torch.bfloat16),
    'wide': torch.ones(1, dtype=torch.bfloat16).expand(2**40),
    'learned': torch.nn.Parameter(torch.ones(3)),
    'sparse': torch.eye(3).to_sparse(),
    'empty': torch.ones(3, device='meta'),
  }
  torch.save(held, path)
  found, _ = weight_files.read(path)
  assert {name: str(value.dtype) for name, value in found.items()} == {
    'half': 'bfloat16',
    'wide': 'bfloat16',
    'learned': 'float32',
  }
  torch.save(torch.nn.Linear(2, 2), path)
  with pytest.raises(InputError, match='save its state_dict alone'):
    weight_files.read(path)
