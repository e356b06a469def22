"""What a run starts from: dlib's weights, an earlier run, an export."""

import csv
import io
import json
import shutil
import tarfile
from pathlib import Path

import dlib_networks
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from network_shapes import shapes

from ferjax import config as configs
from ferjax import files, models
from ferjax.assembly import build, restore
from ferjax.data import dataset
from ferjax.errors import InputError
from ferjax.export import card, writer
from ferjax.images import augment
from ferjax.models import pretrained, weight_files
from ferjax.optim.ema import ema
from ferjax.training import dlib_package, loop, start, transfer

BEFORE = Path(__file__).parents[1] / 'fixtures' / 'before'
CLASSES = ('neutral', 'happiness', 'surprise', 'sadness', 'anger', 'disgust', 'fear')
# What the run and the export of `BEFORE` give for three pictures of random pixels
PROBABILITIES = np.array(
  [
    [0.0461967, 0.0098214, 0.4835600, 0.2375710, 0.0352692, 0.0901665, 0.0974152],
    [0.1034826, 0.0373800, 0.1480088, 0.4125247, 0.0791067, 0.1041280, 0.1153693],
    [0.0736734, 0.0198938, 0.2302597, 0.3621157, 0.0467440, 0.1003151, 0.1669982],
  ]
)


def image():
  return np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3)).astype(np.uint8)


# dlib's weights


def package(folder, content, version=dlib_package.VERSION, more=()):
  """A source package whose `setup.py` leaves a trace where it is run."""
  setup = f'open({str(folder / "ran")!r}, "w"); from setuptools import setup; setup()'
  root = dlib_package.MEMBER.partition('/')[0]
  members = {f'{root}/setup.py': setup.encode(), dlib_package.MEMBER: content, **dict(more)}
  path = folder / f'face_recognition_models-{version}.tar.gz'
  with tarfile.open(path, 'w:gz') as archive:
    for name, value in members.items():
      entry = tarfile.TarInfo(name)
      entry.size = len(value)
      archive.addfile(entry, io.BytesIO(value))
  return path


@pytest.fixture
def published(tmp_path, monkeypatch):
  """A package as if published, in the only index that pip has."""
  content = b'the weights'
  path = package(tmp_path, content)
  monkeypatch.setattr(dlib_package, 'PACKAGE_SHA256', digest(path.read_bytes()))
  monkeypatch.setattr(dlib_package, 'SHA256', digest(content))
  for name, value in {'NO_INDEX': '1', 'FIND_LINKS': str(tmp_path)}.items():
    monkeypatch.setenv(f'PIP_{name}', value)
  return path


def digest(content):
  return dlib_package.hashlib.sha256(content).hexdigest()


def test_the_package_is_fetched_once_and_nothing_of_it_is_run(published, tmp_path, caplog):
  caplog.set_level('INFO')
  path = dlib_package.fetch(tmp_path / 'cache')
  assert path.read_bytes() == b'the weights' and [p.name for p in path.parent.iterdir()] == [
    path.name
  ]
  assert not (tmp_path / 'ran').exists()
  (line,) = (r.getMessage() for r in caplog.records)
  assert line.startswith('downloading the weights of dlib with pip, only once')
  published.unlink()
  assert dlib_package.fetch(tmp_path / 'cache') == path
  path.write_bytes(b'the weight')
  with pytest.raises(InputError, match=r'\.dat is damaged: remove it'):
    dlib_package.fetch(tmp_path / 'cache')


def test_another_package_and_none_leave_nothing(published, tmp_path):
  package(tmp_path, b'the weights', more={'face_recognition_models-0.3.0/more': b''})
  with pytest.raises(InputError, match='gives another file as face-recognition-models 0.3.0'):
    dlib_package.fetch(tmp_path / 'cache')
  published.unlink()
  with pytest.raises(InputError, match=r'pip needs the network.*config.model.weights=PATH/dlib_'):
    dlib_package.fetch(tmp_path / 'cache')
  assert list((tmp_path / 'cache').iterdir()) == [] and not (tmp_path / 'ran').exists()
  (tmp_path / 'file').touch()
  with pytest.raises(InputError, match='Not a directory|File exists'):
    dlib_package.fetch(tmp_path / 'file')


def test_only_the_weights_are_taken_from_an_archive(tmp_path, monkeypatch):
  outside = {'../outside': b'x', '/tmp/ferjax-outside': b'x'}
  path = package(tmp_path, b'the weights', more=outside)
  monkeypatch.setattr(dlib_package, 'SHA256', digest(b'the weights'))
  assert dlib_package._extracted(path) == b'the weights'
  assert {p.name for p in tmp_path.iterdir()} == {path.name}
  monkeypatch.setattr(dlib_package, 'SHA256', digest(b'others'))
  with pytest.raises(InputError, match='holds another dlib_face_recognition'):
    dlib_package._extracted(path)
  for content in (b'', b'\x1f\x8b' + bytes(30)):
    path.write_bytes(content)
    with pytest.raises(InputError, match='lacks dlib_face_recognition'):
      dlib_package._extracted(path)


def test_dlib_is_for_its_own_network():
  config = configs.base()
  config.model.update(weights='dlib')
  with pytest.raises(InputError, match="for config.model.name='face_resnet29', not 'resnet18'"):
    start.read(config)


def test_descriptors_are_those_of_dlib():
  """The published weights, against what dlib itself computed."""
  try:
    path = dlib_package.fetch(files.cache_folder() / 'weights')
  except InputError as error:
    pytest.skip(f'no weights of dlib here: {error}')
  model = models.face_resnet29()
  arrays, sha256 = weight_files.read(path)
  assert sha256 == dlib_package.SHA256
  found = pretrained.convert(arrays, shapes(model)[1], str(path))
  run = jax.jit(lambda v, x: model.apply(v, augment.normalise(x), False)[-1].mean((1, 2)))
  descriptors = run(found.variables, dlib_networks.pictures()) @ arrays['fc.weight'].T
  expected = np.load(dlib_networks.FILE)
  assert expected.std() > 0.1 and np.abs(expected[0] - expected[1]).max() > 0.02
  np.testing.assert_allclose(descriptors, expected, atol=2e-6)


@pytest.fixture
def narrow(small_config, tmp_path):
  """A config that starts from a narrow network in dlib's format."""
  path = tmp_path / 'narrow.dat'
  path.write_bytes(dlib_networks.content(*dlib_networks.draw(1)))
  small_config.model.update(name='face_resnet29', width=2, weights=str(path))
  return small_config


def test_statistics_are_of_training_rows_and_the_same_each_time(narrow, monkeypatch):
  monkeypatch.setattr(start, 'AT_ONCE', 20)
  split = dataset.load(name='manifest', path=narrow.data.path, dir=narrow.data.dir).splits['train']
  weights = start.read(narrow)
  assert not weights.has_statistics and not weights.licence
  found = [start.with_statistics(narrow, weights, split) for _ in range(2)]
  jax.tree.map(np.testing.assert_array_equal, found[0].variables, found[1].variables)
  assert found[0].statistics == {'rows': 80, 'image_size': 32}
  mean = found[0].variables['batch_stats']['bn1']['mean']
  assert np.abs(mean - weights.variables['batch_stats']['bn1']['mean']).max() > 0.01
  x = augment.normalise(image())
  model = build.make_model(narrow)
  run = jax.jit(lambda variables: model.apply(variables, x, False)[-1])
  before, after = run(weights.variables), run(found[0].variables)
  np.testing.assert_allclose(after, before, atol=1e-5 * np.abs(before).max())


def test_a_run_measures_once_and_tells_licence_and_provenance(narrow, tmp_path, monkeypatch):
  narrow.steps = narrow.eval.every = 1
  narrow.parallel.devices = 1
  content = Path(narrow.model.weights).read_bytes()
  monkeypatch.setattr(dlib_package, 'SHA256', digest(content))
  loop.train(narrow, tmp_path / 'run')
  record = json.loads((tmp_path / 'run' / 'config.json').read_text())['weights']
  assert record['licence'] == 'CC0-1.0' and 'VGG-Face and FaceScrub' in record['provenance']
  assert record['statistics'] == {'rows': 64, 'image_size': 32}
  assert record['file'] == dlib_package.NAME and record['sha256'] == digest(content)
  with (tmp_path / 'run' / 'weights.csv').open(newline='') as file:
    rows = {row['model']: row for row in csv.DictReader(file)}
  assert rows['params/model/conv1/kernel'] == {
    'file': 'conv1.weight',
    'model': 'params/model/conv1/kernel',
    'shape': '1x3x7x7',
    'source': dlib_package.NAME,
    'licence': 'CC0-1.0',
  }
  assert rows['params/Dense_0/kernel']['licence'] == rows['params/Dense_0/kernel']['source'] == ''
  assert 'Licence of the weights: CC0-1.0. Davis King' in card._start(record)
  monkeypatch.setattr(start.batch_statistics, 'measure', None)  # fails if it is called
  narrow.steps = 2
  assert loop.train(narrow, tmp_path / 'run')['step'] == 2


# A run or an export


def new(method, classes=CLASSES, table=None, wrap=None, **options):
  """A config, a method and a run of it before its first step, with the network of `BEFORE`."""
  config = configs.base()
  config.model.update(name='resnet10', width=4)
  config.data.image_size = 32
  config.method = {'name': method, **options}
  made = build.make_method(config, len(classes), 0)
  made = wrap(made) if wrap else made
  batch = {'image': jnp.zeros((1, 32, 32, 3)), 'landmarks': jnp.full((1, 68, 2), 9.0)}
  table = table or {'label': np.arange(14) % len(classes)}
  params, extra = made.init(jax.random.key(0), batch, table)
  begun = transfer.New(params, extra, batch, table, method, made.classifier, classes, ())
  return config, made, begun


def begun(config, begun, weights, head='auto'):
  config.model.update(weights=str(weights), weights_head=head)
  return start.insert(config, start.read(config), begun)


def probabilities(method, params, extra):
  batch = augment.evaluation({'image': jnp.asarray(image())})
  return jax.nn.softmax(jax.jit(method.predict)(params, extra, batch)['logits'])


@pytest.mark.parametrize('source', ['run', 'run@best', 'run@2', 'export'])
def test_a_run_begins_with_the_logits_of_a_run_or_export(source):
  config, method, first = new('softmax')
  weights, params, extra, placed = begun(config, first, BEFORE / source)
  np.testing.assert_allclose(probabilities(method, params, extra), PROBABILITIES, atol=1e-5)
  assert len(weights.names) == len(placed) == len(jax.tree.leaves((params, extra)))
  assert weights.left_out == {} and placed['params/Dense_0/bias'] == 'params/Dense_0/bias'
  assert weights.source['step'] == 2 and weights.source['method'] == 'softmax'
  assert len(weights.sha256) == 64


@pytest.mark.parametrize('method', ['softmax', 'ldl_alsg', 'lanet'])
def test_classes_are_matched_by_name(method):
  """Also by another method that has a classifier of the same kind."""
  classes = ('fear', 'neutral', 'surprise')
  config, made, first = new(method, classes)
  _, params, extra, placed = begun(config, first, BEFORE / 'run')
  expected = PROBABILITIES[:, [CLASSES.index(name) for name in classes]]
  found = probabilities(made, params, extra)
  np.testing.assert_allclose(found, expected / expected.sum(1, keepdims=True), atol=1e-5)
  where = 'params/classifier' if method == 'lanet' else 'params/Dense_0'
  assert placed[f'{where}/kernel'] == 'params/Dense_0/kernel'


def test_averages_and_momentum_follow():
  config, method, first = new('lanet', wrap=lambda m: ema(m, 0.9, statistics=True))
  _, params, extra, placed = begun(config, first, BEFORE / 'run')
  np.testing.assert_allclose(probabilities(method, params, extra), PROBABILITIES, atol=1e-5)
  average, momentum = extra['average']['params'], extra['method']['momentum']
  np.testing.assert_array_equal(average['classifier']['bias'], params['classifier']['bias'])
  kernels = [
    tree[part]['layer3_0']['conv1']['kernel']
    for tree in (params, momentum, average)
    for part in ('expression', 'landmark')
  ]
  assert all((kernel == kernels[0]).all() for kernel in kernels)
  assert placed['extra/average/params/classifier/bias'] == 'params/Dense_0/bias'


def saved(tmp_path, monkeypatch, begun, config, name='run'):
  """A run whose checkpoint is a state before its first step."""
  folder = tmp_path / name
  folder.mkdir()
  record = {'config': configs.plain(config), 'classes': begun.classes, 'poses': list(begun.poses)}
  record |= {'steps': 1, 'fingerprint': '', 'labels_sha256': '', 'data': 'faces'}
  record['weights'] = {'licence': 'CC0-1.0', 'provenance': 'of old'}
  (folder / 'config.json').write_text(json.dumps(record))
  state = jax.tree.map(np.asarray, {'params': begun.params, 'extra': begun.extra})
  monkeypatch.setattr(start.checkpoint, 'restore', lambda *_: state | {'step': np.array(7)})
  return folder


@pytest.mark.parametrize('name', ['lanet', 'dmlnet', 'hrl', 'sgm'])
def test_a_run_of_the_same_method_gives_all_its_parameters(name, tmp_path, monkeypatch):
  options = {'hrl': {'branch': 'dense', 'dense_widths': (3,), 'dense_reduction': 2}}.get(name, {})
  if name == 'dmlnet':
    options = {'pose_head': False, 'pose_triplets': False, 'fusion_width': 8, 'head_width': 8}
  config, _, first = new(name, **options)
  rng = np.random.default_rng(0)
  moved = jax.tree.map(lambda x: x + rng.normal(0, 0.1, x.shape), first.params)
  folder = saved(tmp_path, monkeypatch, first._replace(params=moved), config)
  weights, params, extra, placed = begun(config, first, folder)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), params, moved)
  assert weights.licence == 'CC0-1.0' and weights.provenance == 'of old'
  if name == 'lanet':
    followed = {key: params[key] for key in extra['momentum']}
    jax.tree.map(np.testing.assert_array_equal, extra['momentum'], followed)
  _, dropped, _, placed = begun(config, first, folder, head='drop')
  lost = {path for path in placed if path.startswith('params/')}
  fresh = {
    'params/' + jax.tree_util.keystr(p, simple=True, separator='/')
    for p, _ in jax.tree_util.tree_flatten_with_path(params)[0]
  } - lost
  heads = {'lanet': {'classifier'}, 'dmlnet': {'expression_head/scores'}, 'sgm': set()}
  heads['hrl'] = {'naive/classifier', 'branch/classifier'}
  assert fresh == {f'params/{head}/{leaf}' for head in heads[name] for leaf in ('kernel', 'bias')}


def test_the_face_of_dmlnet_and_the_average_are_what_others_get(tmp_path, monkeypatch):
  small = {'pose_head': False, 'pose_triplets': False, 'fusion_width': 8, 'head_width': 8}
  config, _, source = new('dmlnet', wrap=lambda m: ema(m, 0.9), **small)
  config.ema = 0.9
  extra = jax.tree.map(lambda x: x, source.extra)
  extra['average']['features']['face']['conv1']['kernel'] += 1
  folder = saved(tmp_path, monkeypatch, source._replace(extra=extra), config)
  config, _, first = new('softmax')
  _, params, _, placed = begun(config, first, folder)
  face = source.params['features']['face']['conv1']['kernel']
  np.testing.assert_allclose(params['model']['conv1']['kernel'], face + 1, rtol=1e-6)
  assert placed['params/model/conv1/kernel'] == 'params/features/face/conv1/kernel'
  assert not any('Dense_0' in path for path in placed)


def test_heads_that_cannot_be_kept_are_refused_or_start_anew(caplog):
  caplog.set_level('INFO')
  more = (*CLASSES, 'contempt')
  config, _, first = new('softmax', more)
  _, params, _, placed = begun(config, first, BEFORE / 'run')
  assert 'has no class contempt' in caplog.text and 'params/Dense_0/kernel' not in placed
  with pytest.raises(InputError, match="weights_head=keep: .*run has no class 'contempt'; its"):
    begun(config, first, BEFORE / 'run', head='keep')
  config, _, first = new('sgm')
  with pytest.raises(
    InputError, match='keep: sgm has no classifier that fits the one of .*softmax'
  ):
    begun(config, first, BEFORE / 'run', head='keep')
  config, _, first = new('softmax')
  assert 'params/Dense_0/kernel' not in begun(config, first, BEFORE / 'run', head='drop')[3]
  assert 'params/Dense_0/kernel' in begun(config, first, BEFORE / 'run', head='keep')[3]


@pytest.mark.parametrize(
  'weights, head, message',
  [
    ('dlib', 'keep', 'weights_head=keep: only a run or an export'),
    ('', 'keep', 'only a run or an export'),
    ('', 'kept', "weights_head is 'kept'. Did you mean 'keep'"),
    (BEFORE, 'auto', 'is a folder, but neither of a run nor of an export'),
    (BEFORE / 'run@best@2', 'auto', 'there is no such file'),
    (BEFORE / 'run@9', 'auto', "has no checkpoint '9'"),
    (BEFORE / 'export@best', 'auto', 'an export has only one checkpoint'),
    (BEFORE / 'none@best', 'auto', 'there is no such file'),
    ('~nobody-here/run@best', 'auto', 'run@best cannot be read: .Could not determine home'),
    ('x' * 300, 'auto', 'xxx cannot be read: .*File name too long'),
  ],
)
def test_other_places_are_refused(weights, head, message):
  config = configs.base()
  config.model.update(name='resnet10', width=4, weights=str(weights), weights_head=head)
  with pytest.raises(InputError, match=message):
    start.read(config)


@pytest.mark.parametrize('method', ['softmax', 'ldl_alsg'])
def test_weights_that_are_not_finite_are_refused(method, tmp_path, monkeypatch):
  config, _, source = new('softmax')
  source.params['model']['conv1']['kernel'] *= jnp.nan
  folder = saved(tmp_path, monkeypatch, source, config)
  config, _, first = new(method)
  with pytest.raises(InputError, match='params/model/conv1/kernel has values that are not finite'):
    begun(config, first, folder)


@pytest.mark.parametrize('kind, file', [('run', 'config.json'), ('export', 'model.json')])
def test_a_model_trained_with_onednn_is_a_start_without_it(kind, file, tmp_path, monkeypatch):
  shutil.copytree(BEFORE / kind, tmp_path / kind)
  record = json.loads((tmp_path / kind / file).read_text())
  record['config']['convolution'] = 'onednn'
  (tmp_path / kind / file).write_text(json.dumps(record))
  monkeypatch.setattr(build, '_loaded', lambda folder: ('', 'not installed'))
  config, _, first = new('softmax')
  assert 'params/Dense_0/kernel' in begun(config, first, tmp_path / kind)[3]


def test_other_networks_and_damaged_exports_are_refused(tmp_path):
  config = configs.base()
  config.model.update(name='resnet10', width=8, weights=str(BEFORE / 'run'))
  with pytest.raises(
    InputError, match='has the network resnet10 of width 4, not resnet10 of width 8'
  ):
    start.read(config)
  shutil.copytree(BEFORE / 'export', tmp_path / 'export')
  config.model.update(width=4, weights=str(tmp_path / 'export'))
  path = tmp_path / 'export' / 'parameters.safetensors'
  path.write_bytes(path.read_bytes()[:-4] + b'abcd')
  with pytest.raises(InputError, match='parameters.safetensors has another checksum'):
    start.read(config)
  path.write_bytes(b'')
  with pytest.raises(InputError, match='parameters.safetensors is damaged'):
    start.read(config)


def test_a_whole_run_starts_from_a_run(small_config, trained_run, tmp_path):
  small_config.steps = small_config.eval.every = 1
  small_config.optimizer.lr = 0.0
  small_config.model.weights = str(trained_run)
  loop.train(small_config, tmp_path / 'run')
  ours, theirs = (restore.load(folder) for folder in (tmp_path / 'run', trained_run))
  jax.tree.map(np.testing.assert_array_equal, ours.state.params, theirs.state.params)
  record = json.loads((tmp_path / 'run' / 'config.json').read_text())['weights']
  assert record['source'] == {
    'checkpoint': 'last',
    'step': 4,
    'method': 'softmax',
    'data': 'manifest',
  }
  assert record['left_out'] == [] and record['file'] == str(trained_run)
  about = writer.start_of(record)
  assert about['file'] == 'softmax' and 'left_out' not in about
  text = card._start(about)
  assert (
    text.startswith(' Training started from a run of softmax on manifest') and 'step 4)' in text
  )
  with (tmp_path / 'run' / 'weights.csv').open(newline='') as file:
    rows = {row['model']: row for row in csv.DictReader(file)}
  assert rows['params/Dense_0/kernel']['file'] == 'params/Dense_0/kernel'
  assert rows['params/Dense_0/kernel']['shape'] == '64x7'
