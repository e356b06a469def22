"""Weights of PyTorch: parity with it, where they go in every method, and files that are refused."""

import csv
import io
import json
import os
import pickle
import struct
import sys
import types
import zipfile

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch_networks

from ferjax import build, models, train, trained, weights, wrap
from ferjax import config as configs
from ferjax.errors import InputError

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
  """Names and shapes of a model's variables, as PyTorch has them."""
  for path, leaf in flax.traverse_util.flatten_dict(shapes(model)).items():
    layers = '.'.join(path[1:-1]).replace('_', '.')
    shape = leaf.shape if leaf.ndim < 4 else tuple(leaf.shape[i] for i in (3, 2, 0, 1))
    yield f'{layers}.{weights.LEAVES[path[-1]]}', shape


def state_dict(model, prefix=''):
  """Random weights of a model, named and laid out as PyTorch has them."""
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
  arrays, model = weights.read(path), LAYOUTS[kind]
  found = weights.convert(arrays, shapes(model), str(path))
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
  plain = weights.convert(state_dict(model), shapes(model), 'a')
  arrays = state_dict(model, prefix)
  arrays |= {f'{prefix}fc.weight': np.zeros((9, 32)), 'head.conv1.weight': np.zeros(3)}
  arrays |= {f'{prefix}bn1.num_batches_tracked': np.array(5), 'optimizer.state.0': np.zeros(2)}
  found = weights.convert(arrays, shapes(model), 'b')
  jax.tree.map(np.testing.assert_array_equal, found.variables, plain.variables)
  assert found.names['params/layer1_0/conv1/kernel'] == f'{prefix}layer1.0.conv1.weight'
  assert found.names['batch_stats/bn1/var'] == f'{prefix}bn1.running_var'
  assert found.left_out == {
    f'{prefix}fc.weight': (9, 32),
    'head.conv1.weight': (3,),
    'optimizer.state.0': (2,),
  }


def test_kernels_turn_and_a_sequential_resnet_goes_by_number():
  model = models.resnet10(width=4)
  arrays, numbers = state_dict(model), {v: k for k, v in weights.IN_SEQUENCE.items()}
  renamed = {}
  for name, value in arrays.items():
    first, _, rest = name.partition('.')
    renamed[f'base.{numbers[first]}.{rest}'] = value
  found = weights.convert(renamed, shapes(model), 'file')
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
      'another network than that of config.model.name; it has layer1.1.conv1.weight besides',
    ),
    (with_less, 'it lacks params/layer4_0/bn2/bias, params/layer4_0/bn2/scale, .* and 1 more'),
    (twice, 'several such networks, under key., query.: save'),
    (lambda arrays: {}, 'it has no arrays'),
    (lambda arrays: {'blocks.0.qkv.weight': np.zeros(3)}, 'it has blocks.0.qkv.weight'),
    (
      lambda arrays: arrays | {'bn1.bias': np.full(4, np.nan)},
      'bn1.bias holds other than finite floating-point numbers',
    ),
    (lambda arrays: arrays | {'bn1.bias': np.zeros(4, np.int8)}, 'bn1.bias holds other'),
    (
      lambda arrays: arrays | {'conv1.weight': np.zeros((4, 1, 7, 7))},
      r'conv1.weight: \(4, 1, 7, 7\) there, \(4, 3, 7, 7\) here',
    ),
  ],
)
def test_other_networks_are_refused(change, message):
  model = models.resnet10(width=4)
  with pytest.raises(InputError, match=message):
    weights.convert(change(state_dict(model)), shapes(model), 'file.safetensors')


@pytest.mark.parametrize(
  'theirs, ours, message',
  [
    (models.resnet34(), models.resnet18(), 'it has layer1.2.bn1'),
    (models.resnet18(), models.resnet34(), 'it lacks params/layer1_2'),
    (models.resnet50(), models.resnet18(), 'another network.*layer1.0.bn3'),
    (models.mobilenet_v2(), models.resnet50(), 'does not hold the network'),
    (models.resnet18(), models.mobilenet_v2(), 'does not hold the network'),
    (models.resnet18(), models.alexnet(), 'another network'),
    (models.resnet18(), models.resnet18(width=32), 'config.model.width=64'),
  ],
)
def test_published_networks_are_told_apart(theirs, ours, message):
  """By names and shapes alone: no array is ever looked into."""
  arrays = {name: np.broadcast_to(np.float32(0), shape) for name, shape in layout(theirs)}
  with pytest.raises(InputError, match=message):
    weights.convert(arrays, shapes(ours), 'file')


# Of each method, the parts of its parameters that together are a whole network.
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
  'name, options, networks',
  [
    *((name, {}, networks) for name, networks in NETWORKS.items()),
    ('lanet', {'shared_stem': False}, TWO_STEMS),
  ],
)
def test_every_method_takes_them(name, options, networks, average):
  """The whole network arrives in each part, its averages and statistics, and nowhere else."""
  config = configs.base()
  config.model.update(name='resnet10', width=4, weights='file')
  config.method = {'name': name, **options}
  method = build.make_method(config, 7, 3)
  method = wrap.ema(method, 0.9, statistics=True) if average else method
  batch = {
    'image': jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32),
    'landmarks': jax.ShapeDtypeStruct((1, 68, 2), jnp.float32),
  }
  table = {'label': np.arange(7)}
  params, extra = jax.eval_shape(lambda b: method.init(jax.random.key(0), b, table), batch)
  model = build.make_model(config)
  found = weights.convert(state_dict(model), shapes(model), 'file')
  params, extra, placed = weights.insert(found, params, extra)
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
      for start in (f'{root}/{part}/' for part in parts):
        places |= {path.removeprefix(start): path for path in filled if path.startswith(start)}
      assert set(places) == set(variables)
      for variable, path in places.items():
        np.testing.assert_array_equal(filled[path], variables[variable])
        assert placed[path] == found.names[f'{kind}/{variable}']
      seen |= set(places.values())
  assert seen == set(filled)


def test_a_method_without_the_network_is_told():
  model = models.resnet10(width=4)
  found = weights.convert(state_dict(model), shapes(model), 'file')
  params = {'net': {**shapes(model)['params'], 'more': {'kernel': jnp.zeros(3)}}}
  with pytest.raises(InputError, match='no place in this method'):
    weights.insert(found, params, {'batch_stats': {}})


def test_a_run_starts_from_them_and_goes_on_without_the_file(small_config, tmp_path):
  path = tmp_path / 'weights.safetensors'
  model = build.make_model(small_config)
  arrays = state_dict(model, 'module.') | {'module.fc.weight': np.zeros((3, 64), 'f4')}
  save(path, arrays)
  small_config.model.weights = str(path)
  small_config.steps = 2
  small_config.parallel.devices = 1
  small_config.checkpoint.every = 0
  small_config.optimizer.lr_rules = (('model/.*', 0.0),)
  train.train(small_config, tmp_path / 'run')
  params = trained.load(tmp_path / 'run').state.params['model']
  kernel = arrays['module.layer2.0.conv1.weight'].transpose(2, 3, 1, 0)
  np.testing.assert_array_equal(params['layer2_0']['conv1']['kernel'], kernel)
  np.testing.assert_array_equal(params['bn1']['scale'], arrays['module.bn1.weight'])
  record = json.loads((tmp_path / 'run' / 'config.json').read_text())
  count = len(arrays) - 1
  assert record['weights'] == {
    'file': str(path),
    'sha256': weights.sha256(path),
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
  } in used
  assert {'file': 'module.fc.weight', 'model': '', 'shape': '3x64'} in rows
  assert {row['model'] for row in rows if not row['file']} == {
    'params/Dense_0/kernel',
    'params/Dense_0/bias',
  }
  path.unlink()
  small_config.steps = 4
  assert train.train(small_config, tmp_path / 'run')['step'] == 4
  assert json.loads((tmp_path / 'run' / 'config.json').read_text())['weights'] == record['weights']
  with pytest.raises(InputError, match='there is no such file'):
    train.train(small_config, tmp_path / 'new')


def safetensors_bytes(header, body=b''):
  header = header if isinstance(header, bytes) else json.dumps(header).encode()
  return struct.pack('<Q', len(header)) + header + body


def entry(shape, end, dtype='F32'):
  return {'conv1.weight': {'dtype': dtype, 'shape': shape, 'data_offsets': [0, end]}}


@pytest.mark.parametrize(
  'content, message',
  [
    (safetensors_bytes(entry([2, 1000], 8), b'\0' * 8), 'is damaged, or no safetensors file'),
    (safetensors_bytes(entry([2], 8), b'\0' * 4), 'is damaged'),
    (safetensors_bytes(entry([2**40, 2**40], 8), b'\0' * 8), 'is damaged'),
    (safetensors_bytes(entry([2], 8), b'\0' * 8)[:-3], 'is damaged'),
    (struct.pack('<Q', 2**60) + b'{}', 'is damaged'),
    (safetensors_bytes(b'{not json'), 'is damaged'),
    (b'', 'is damaged'),
    (pickle.dumps({'conv1.weight': 1}), 'is damaged'),
    (safetensors_bytes(entry([2], 2, 'F8_E4M3'), b'\0' * 2), 'save it as float32'),
  ],
)
def test_damaged_safetensors_are_refused(content, message, tmp_path):
  path = tmp_path / 'weights.safetensors'
  path.write_bytes(content)
  with pytest.raises(InputError, match=message):
    weights.read(path)


def test_files_of_other_kinds_and_none(tmp_path):
  with pytest.raises(InputError, match='there is no such file'):
    weights.read(tmp_path / 'none.pth')
  (tmp_path / 'weights.h5').write_bytes(b'')
  with pytest.raises(InputError, match=r'\.safetensors file, or one of PyTorch'):
    weights.read(tmp_path / 'weights.h5')


class Malicious:
  """Unpickling it makes a folder."""

  def __init__(self, folder):
    self.folder = str(folder)

  def __reduce__(self):
    return os.mkdir, (self.folder,)


def in_archive(content):
  """A pickle in the zip archive that torch.save writes."""
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, 'w') as archive:
    for name, value in {'data.pkl': content, 'byteorder': b'little', 'version': b'3\n'}.items():
      archive.writestr(f'archive/{name}', value)
  return buffer.getvalue()


@pytest.mark.parametrize('pack', [lambda content: content, in_archive], ids=['pickle', 'archive'])
def test_code_in_a_file_is_never_run(pack, tmp_path):
  """Refused by PyTorch where it is installed, and for the lack of it where it is not."""
  marker, path = tmp_path / 'ran', tmp_path / 'weights.pth'
  content = pickle.dumps({'state_dict': {'conv1.weight': Malicious(marker)}}, protocol=2)
  pickle.loads(content)
  marker.rmdir()
  path.write_bytes(pack(content))
  with pytest.raises(InputError, match=r"none of it was run|pip install 'ferjax\[torch\]'"):
    weights.read(path)
  assert not marker.exists()


def test_without_pytorch_the_extra_is_named(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'torch', None)
  (tmp_path / 'weights.pth').write_bytes(b'')
  with pytest.raises(InputError, match=r"pip install 'ferjax\[torch\]'"):
    weights.read(tmp_path / 'weights.pth')


class Tensor:
  """What is used of PyTorch's, around an array."""

  def __init__(self, array):
    self.array = array

  def detach(self):
    return self

  def is_floating_point(self):
    return np.issubdtype(self.array.dtype, np.floating)

  def element_size(self):
    return self.array.itemsize

  def float(self):
    return Tensor(self.array.astype(np.float32))

  def numpy(self):
    return self.array


def stand_in(monkeypatch, held, version=(2, 13)):
  """A torch whose `load` gives `held`, or raises it; returns the list of calls."""
  calls = []

  def load(path, **options):
    calls.append(options)
    if isinstance(held, Exception):
      raise held
    return held

  torch = types.SimpleNamespace(__version__=version, Tensor=Tensor, load=load)
  monkeypatch.setitem(sys.modules, 'torch', torch)
  return calls


def test_pytorch_is_asked_for_tensors_only(tmp_path, monkeypatch):
  path = tmp_path / 'weights.pth.tar'
  path.write_bytes(b'')
  held = {
    'epoch': 3,
    'state_dict': {'conv1.weight': Tensor(np.float16([1.5]))},
    'optimizer': {'state': {0: {'step': Tensor(np.array(7))}}},
  }
  calls = stand_in(monkeypatch, held)
  found = weights.read(path)
  assert calls == [{'map_location': 'cpu', 'weights_only': True}]
  assert list(found) == ['state_dict.conv1.weight', 'optimizer.state.0.step']
  assert found['state_dict.conv1.weight'].dtype == np.float32
  assert found['optimizer.state.0.step'].dtype == np.int64
  stand_in(monkeypatch, [1, 2])
  assert weights.read(path) == {}
  stand_in(monkeypatch, pickle.UnpicklingError('Weights only load failed.\nRe-run with False'))
  with pytest.raises(InputError, match=r'none of it was run.*says: Weights only load failed\.$'):
    weights.read(path)
  round = {}
  round['again'] = round
  stand_in(monkeypatch, round)
  with pytest.raises(InputError, match='is damaged'):
    weights.read(path)


def test_an_unsafe_pytorch_is_not_asked(tmp_path, monkeypatch):
  path = tmp_path / 'weights.pth'
  path.write_bytes(b'')
  calls = stand_in(monkeypatch, {}, version=(2, 9))
  with pytest.raises(InputError, match="may run code(.|\n)*'torch>=2.10'"):
    weights.read(path)
  assert not calls


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
    found = weights.convert(weights.read(path), shapes(model), 'file')
    wanted = weights.convert(arrays, shapes(model), 'file')
    jax.tree.map(np.testing.assert_array_equal, found.variables, wanted.variables)
    content = path.read_bytes()
    for end in (0, 10, len(content) // 2, len(content) - 1):
      path.write_bytes(content[:end])
      with pytest.raises(InputError, match='is damaged, or holds more than tensors'):
        weights.read(path)
  torch.save({'conv1.weight': torch.ones(3, dtype=torch.bfloat16)}, path)
  assert weights.read(path)['conv1.weight'].dtype == np.float32
  torch.save(torch.nn.Linear(2, 2), path)
  with pytest.raises(InputError, match='save its state_dict alone'):
    weights.read(path)
