"""Exported models: the same predictions, files that are whole or refused, a card that is true."""

import hashlib
import json
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
import safetensors.numpy
from conftest import draw_face

import ferjax
from ferjax import build, checkpoint, config, core, export, exported, model_card
from ferjax.data import augment
from ferjax.errors import InputError

HAS_ONNX = export._has_onnx()
needs_onnx = pytest.mark.skipif(not HAS_ONNX, reason="pip install 'ferjax[onnx]'")
NAMES = {'README.md', 'model.json', 'model.stablehlo', 'parameters.safetensors'}


@pytest.fixture(scope='module')
def folder(trained_run, tmp_path_factory):
  out = tmp_path_factory.mktemp('exports') / 'softmax'
  export.export(trained_run, out, evaluate=True)
  return out


@pytest.fixture
def copy(folder, tmp_path):
  """A copy of the export to spoil."""
  out = tmp_path / 'copy'
  out.mkdir()
  for path in folder.iterdir():
    (out / path.name).write_bytes(path.read_bytes())
  return out


def signed(folder, content):
  """Puts another program into an export, with the digest that fits."""
  (folder / 'model.stablehlo').write_bytes(content)
  changed(folder, lambda r: r['files']['model.stablehlo'].update(sha256=digest(content)))


def changed(folder, change):
  path = folder / 'model.json'
  record = json.loads(path.read_text())
  change(record)
  path.write_text(json.dumps(record))


def digest(content):
  return hashlib.sha256(content).hexdigest()


def faces(rows, size=32):
  """Drawn faces and random pixels in turn."""
  rng = np.random.default_rng(0)
  pictures = [cv2.resize(draw_face(rng, i % 7)[0], (size, size)) for i in range(0, rows, 2)]
  noise = rng.integers(0, 256, (rows // 2, size, size, 3)).astype(np.uint8)
  return np.concatenate([np.stack(pictures), noise])


def test_the_folder_says_what_is_in_it(folder, trained_run):
  assert {path.name for path in folder.iterdir()} == NAMES | ({'model.onnx'} if HAS_ONNX else set())
  record = json.loads((folder / 'model.json').read_text())
  for name, file in record['files'].items():
    content = (folder / name).read_bytes()
    assert digest(content) == file['sha256'] and len(content) == file['bytes']
    assert not content.startswith(b'\x80')  # of a pickle
  run = config.read(trained_run)
  assert record['classes'] == run['classes'] and record['step'] == 4
  assert record['inputs']['image']['shape'] == ['batch', 32, 32, 3]
  assert record['outputs']['logits']['shape'] == ['batch', 7]
  assert record['platforms'] == ['cpu', 'cuda', 'tpu']
  assert record['run']['rows'] == run['rows'] and record['config']['noise']['rate'] == 0.3
  assert str(trained_run.parent) not in json.dumps(record)
  assert run['config']['data']['dir'] not in json.dumps(record)
  assert record['config']['data']['path'] == 'manifest.csv'
  program = jax.export.deserialize(bytearray((folder / 'model.stablehlo').read_bytes()))
  assert program.platforms == ('cpu', 'cuda', 'tpu')
  arrays = safetensors.numpy.load_file(folder / 'parameters.safetensors')
  saved = checkpoint.restore(trained_run, 'last')
  np.testing.assert_array_equal(
    arrays['params/Dense_0/kernel'], saved['params']['Dense_0']['kernel']
  )
  kinds = {name.split('/')[0] for name in arrays}
  assert kinds == {'params', 'extra'} and len(arrays) == len(
    jax.tree.leaves((saved['params'], saved['extra']))
  )


def test_an_export_predicts_as_its_run(folder, trained_run):
  run, model = ferjax.load(trained_run), ferjax.load(folder)
  assert (model.classes, model.poses, model.image_size) == (run.classes, run.poses, run.image_size)
  rng = np.random.default_rng(0)
  for rows in (1, 3, 70):
    pictures = rng.integers(0, 256, (rows, 40, 36, 3)).astype(np.uint8)
    wanted, found = run.outputs(pictures), model.outputs(pictures)
    assert wanted.keys() == found.keys()
    for name in wanted:
      np.testing.assert_allclose(found[name], wanted[name], atol=1e-5, rtol=1e-5)
  with pytest.raises(InputError, match="holds one checkpoint: leave 'best' out"):
    ferjax.load(folder, 'best')


def test_a_thousand_pictures_have_the_same_class_everywhere(folder, trained_run):
  pictures = faces(1000)
  wanted = ferjax.load(trained_run)(pictures).argmax(1)
  assert len(np.unique(wanted)) > 1
  np.testing.assert_array_equal(ferjax.load(folder)(pictures).argmax(1), wanted)
  if HAS_ONNX:
    outputs = run_onnx((folder / 'model.onnx').read_bytes(), {'image': pictures})
    np.testing.assert_array_equal(outputs['logits'].argmax(1), wanted)


def run_onnx(content, inputs):
  import onnxruntime

  session = onnxruntime.InferenceSession(content, providers=['CPUExecutionProvider'])
  names = [output.name for output in session.get_outputs()]
  return dict(zip(names, session.run(None, inputs), strict=True))


@pytest.mark.skipif(not HAS_ONNX, reason="pip install 'ferjax[onnx]'")
def test_onnx_runs_on_any_number_of_pictures_and_refuses_others(folder):
  import onnx

  model = onnx.load(folder / 'model.onnx')
  assert model.opset_import[0].version >= 17
  (classes,) = model.metadata_props
  assert classes.key == 'classes' and json.loads(classes.value)[0] == 'neutral'
  (given,) = model.graph.input
  sizes = given.type.tensor_type.shape.dim
  assert given.name == 'image' and given.type.tensor_type.elem_type == onnx.TensorProto.UINT8
  assert sizes[0].dim_param == 'batch' and [s.dim_value for s in sizes[1:]] == [32, 32, 3]
  content = (folder / 'model.onnx').read_bytes()
  for rows in (1, 5):
    outputs = run_onnx(content, {'image': faces(10)[:rows]})
    assert outputs['embedding'].shape == (rows, 64)
    np.testing.assert_allclose(outputs['probabilities'].sum(1), 1, rtol=1e-5)
  with pytest.raises(Exception, match='Unexpected input data type'):
    run_onnx(content, {'image': faces(2).astype(np.float32)})


def made(name, *, precision='float32', features=(), network=None, **options):
  """The model of a method around a narrow network, whose numbers are drawn."""
  network = {'name': 'resnet10', 'width': 8, 'output_stride': 32} | (network or {})
  settings = config.base()
  settings.precision = precision
  settings.model = network
  settings.method = ml_collections.ConfigDict({'name': name} | options)
  method = build.make_method(settings, 7, 5)
  record = {'config': {'data': {'image_size': 32}}, 'landmarks': 20}
  shapes = {'image': jax.ShapeDtypeStruct((1, 32, 32, 3), np.uint8)}
  shapes['landmarks'] = jax.ShapeDtypeStruct((1, 20, 2), np.float32)
  table = export.random_inputs(shapes, 1)
  table |= {key: derive(table) for key, derive in method.derived.items()}
  dtype = build.picture_dtype(settings)
  batch = augment.evaluation(jax.tree.map(jnp.asarray, table), dtype)
  rng = np.random.default_rng(0)

  def draw(x):
    if not jnp.issubdtype(x.dtype, jnp.floating):
      return np.ones(x.shape, x.dtype)
    if len(x.shape) < 2:
      return (0.05 + np.abs(rng.normal(0, 0.2, x.shape))).astype(x.dtype)
    return rng.normal(0, np.prod(x.shape[:-1]) ** -0.5, x.shape).astype(x.dtype)

  labels = {'label': np.arange(7)}
  state = jax.eval_shape(lambda: method.init(jax.random.key(0), batch, labels))
  params, extra = jax.tree.map(draw, state)
  state = core.TrainState(0, params, (), extra, None)
  return export.describe(method, state, record, dtype, features)


HRL = {'groups': 4, 'widths': (8, 8), 'features': ('landmarks',)}
MODELS = {
  'softmax-mobilenet': ('softmax', {'network': {'name': 'mobilenet_v2', 'output_stride': 8}}),
  'triplet-vgg': ('triplet', {'network': {'name': 'vgg13'}}),
  'ldl_alsg-alexnet': ('ldl_alsg', {'network': {'name': 'alexnet'}}),
  'sgm-preact': ('sgm', {'network': {'name': 'preact_resnet18'}}),
  'dgms': ('sgm', {'levels': 3, 'normalise': True}),
  'lanet': ('lanet', {'network': {'output_stride': 8}}),
  'dmlnet': ('dmlnet', {'region_resize': True, 'heads_on': 'embedding'}),
  'hrl-naive': ('hrl', HRL | {'features': ()}),
  'hrl-dense': ('hrl', HRL | {'branch': 'dense', 'dense_widths': (8, 8), 'naive': False}),
  'hrl-rank': ('hrl', HRL),
  'hrl-random': ('hrl', HRL | {'graph': 'random'}),
  'hrl-delaunay-pixel': ('hrl', HRL | {'graph': 'delaunay', 'offsets': 'pixel'}),
}


@needs_onnx
@pytest.mark.parametrize('name', MODELS)
def test_onnx_is_jax_for_every_method_and_network(name):
  from ferjax import onnx_graph

  method, options = MODELS[name]
  model = made(method, **options)
  graph = onnx_graph.model(model.function, model.variables, model.inputs)
  found = export.check_onnx(graph.SerializeToString(), model)
  assert found['pictures'] == found['same_class'] == 8
  assert set(found['largest_difference']) >= {'logits', 'probabilities', 'embedding'}
  names = {tensor.name for tensor in graph.graph.initializer}
  assert any(name.startswith('params/') for name in names)


@needs_onnx
def test_an_onnx_file_that_is_off_is_refused():
  from ferjax import onnx_graph

  model = made('softmax')
  graph = onnx_graph.model(model.function, model.variables, model.inputs)
  bias = dict(model.variables)
  bias['params/Dense_0/bias'] = bias['params/Dense_0/bias'] + np.float32(3e-4)
  with pytest.raises(InputError, match=r'differs from JAX by 0.0003 in logits'):
    export.check_onnx(graph.SerializeToString(), model._replace(variables=bias))


@needs_onnx
@pytest.mark.parametrize(
  'function',
  [
    lambda v, x: x['image'].astype(jnp.float32)[:, :, 0, 0],
    lambda v, x: x['image'][:, ::-1, 1:7:2, 0].astype(jnp.int32) % 7 - 3,
    lambda v, x: jnp.sort(x['image'].astype(jnp.float32) / 7, axis=1)[:, :, 0, 0],
    lambda v, x: jnp.take(x['image'].astype(jnp.float32), v['order'], axis=2).sum((1, 3)),
    lambda v, x: jnp.take_along_axis(x['image'][:, 0] * 1.0, x['image'][:, 0, :9] % 32, 1),
    lambda v, x: jnp.pad(x['image'][..., 0] * 1.0, ((0, 0), (1, 2), (0, 0)), constant_values=5),
    lambda v, x: jnp.where(x['image'][..., 0] > 99, jnp.inf, -1.0) * v['scale'],
    lambda v, x: jnp.isfinite(jnp.log(x['image'][..., 0] - 99.5)).astype(jnp.float32),
    lambda v, x: jnp.einsum('bhwc,hk->bkc', x['image'] / 255, v['table'][:1].repeat(32, 0)),
    lambda v, x: jnp.broadcast_to(v['table'], (x['image'].shape[0], 9, 4)).max(2),
    lambda v, x: x['image'][:, 0, :9, 0] / 9.0 @ v['table'] @ v['table'].T + v['table'].ravel()[:9],
    lambda v, x: jnp.concatenate([f(x['image'] * 1.0, (2, 3)) for f in (jnp.min, jnp.max)], 1) ** 3,
    lambda v, x: jax.nn.logsumexp(x['image'][..., 0] / 9.0, -1) + jnp.linalg.norm(v['table']),
    lambda v, x: jnp.arange(32).reshape(1, 32, 1) * (x['image'][..., 1] // 3).astype(jnp.int32),
  ],
)
def test_nodes_compute_what_jax_does(function):
  from ferjax import onnx_graph

  rng = np.random.default_rng(0)
  variables = {
    'order': rng.permutation(32).astype(np.int32),
    'table': rng.normal(size=(9, 4)).astype(np.float32),
    'scale': np.float32(2),
  }
  inputs = {'image': jax.ShapeDtypeStruct((1, 32, 32, 3), np.uint8)}

  def predict(variables, batch):
    return {'y': function(variables, batch)}

  graph = onnx_graph.model(predict, variables, inputs)
  for rows in (1, 4):
    image = rng.integers(0, 256, (rows, 32, 32, 3)).astype(np.uint8)
    found = run_onnx(graph.SerializeToString(), {'image': image})['y']
    wanted = np.asarray(predict(variables, {'image': jnp.asarray(image)})['y'])
    assert found.shape == wanted.shape and found.dtype == wanted.dtype
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


@needs_onnx
def test_a_primitive_without_a_node_is_named_before_anything_is_written(
  trained_run, tmp_path, monkeypatch
):
  from ferjax import onnx_graph

  monkeypatch.delitem(onnx_graph.OPERATIONS, 'dot_general')
  with pytest.raises(InputError, match="the primitive 'dot_general'.*--onnx=no"):
    export.export(trained_run, tmp_path / 'out')
  assert not list(tmp_path.iterdir())
  inputs = {'image': jax.ShapeDtypeStruct((1, 8, 8, 3), np.uint8)}
  for function, what in (
    (lambda v, x: {'y': jnp.cumsum(x['image'] * 1.0, 1)}, "'cumsum'"),
    (lambda v, x: {'y': jnp.fft.fft(x['image'][..., 0] * 1.0).real}, "'fft'"),
  ):
    with pytest.raises(InputError, match=what):
      onnx_graph.model(function, {}, inputs)


@pytest.mark.parametrize('precision', ['float64', 'bfloat16'])
def test_other_kinds_of_numbers(precision):
  with jax.enable_x64(precision == 'float64'):
    model = made('softmax', precision=precision)
    batch = export.random_inputs(model.inputs, 3)
    wanted = jax.jit(lambda batch: model.function(model.variables, batch))(batch)
    content = bytes(export.lower(model).serialize())
    found = jax.jit(jax.export.deserialize(bytearray(content)).call)(batch)
    assert found['logits'].dtype == ('float64' if precision == 'float64' else 'float32')
    for name, value in wanted.items():
      np.testing.assert_allclose(found[name], value, rtol=1e-6, atol=1e-6)


def test_the_platform_chooses_the_convolutions():
  """On a CPU those of 1x1 pixels and of small maps are matrix products."""
  model = made('softmax')
  assert '_platform_index' in export.lower(model).mlir_module()
  (batch,) = jax.export.symbolic_shape('b')
  inputs = {'image': jax.ShapeDtypeStruct((batch, 32, 32, 3), np.uint8)}
  predict = jax.jit(lambda inputs: model.function(model.variables, inputs))
  native, fast = (
    jax.export.export(predict, platforms=[platform])(inputs).mlir_module()
    for platform in ('cuda', 'cpu')
  )
  assert native.count('stablehlo.convolution(') == 12 > fast.count('stablehlo.convolution(') > 0


def test_landmarks_are_an_input_where_they_are_asked_for(landmark_run, tmp_path):
  plain = tmp_path / 'plain'
  export.export(landmark_run, plain, onnx='no')
  pictures = faces(6)
  model, run = ferjax.load(plain), ferjax.load(landmark_run)
  assert not model.needs and not model.uses
  np.testing.assert_allclose(model(pictures), run(pictures), atol=1e-6)
  with pytest.raises(InputError, match='does not look at landmarks'):
    model(pictures, landmarks=np.zeros((6, 68, 2)))
  card, summary = (plain / 'README.md').read_text(), (landmark_run / 'summary.json').read_text()
  test = json.loads(summary)['last']['test']
  shares = [f'{100 * test[f"naive/{k}"]:.2f} %' for k in ('acc', 'mean_class_acc', 'f1_macro')]
  assert f'| test | {" | ".join(shares)} |' in card and 'By class' not in card
  assert 'predicts better with landmarks, which this export does not take' in card
  out = tmp_path / 'landmarks'
  record = export.export(landmark_run, out, onnx='no', features=('landmarks',))
  assert record['inputs']['landmark_graph']['derived_from'] == ['landmarks']
  assert record['landmark_indices'][:2] == [17, 18] and record['landmark_scheme'] == 'ibug68'
  model = ferjax.load(out)
  assert model.needs == {'landmarks'}
  points = np.random.default_rng(0).uniform(0, 31, (6, 68, 2))
  wanted, found = (m.outputs(pictures, landmarks=points) for m in (run, model))
  for name in wanted:
    np.testing.assert_allclose(found[name], wanted[name], rtol=1e-5, atol=1e-5)
  with pytest.raises(InputError, match='needs landmarks besides pictures'):
    model(pictures)
  card = (out / 'README.md').read_text()
  assert f'| test | {100 * test["acc"]:.2f} % |' in card and 'does not take' not in card
  assert 'points 17, 18' in card and 'landmark_graph have to be made of the landmarks' in card
  with pytest.raises(InputError, match='--features=au: .* it uses: landmarks'):
    export.export(landmark_run, tmp_path / 'au', features=('au',))


@pytest.mark.parametrize('share', [0.0, 0.001, 0.5, 0.99])
def test_a_program_that_is_cut_short_is_refused(copy, share):
  content = (copy / 'model.stablehlo').read_bytes()
  cut = content[: int(share * len(content))]
  (copy / 'model.stablehlo').write_bytes(cut)
  with pytest.raises(InputError, match='not the file that model.json names'):
    ferjax.load(copy)
  signed(copy, cut)  # even where the digest fits
  with pytest.raises(InputError, match='model.stablehlo is damaged, or no StableHLO program'):
    ferjax.load(copy)


def test_a_program_that_was_changed_is_refused(copy):
  content = bytearray((copy / 'model.stablehlo').read_bytes())
  content[len(content) // 2] ^= 1
  (copy / 'model.stablehlo').write_bytes(content)
  with pytest.raises(InputError, match='not the file that model.json names'):
    ferjax.load(copy)


class Harmful:
  def __reduce__(self):
    return sys.exit, ('a pickle was run',)


def test_files_of_other_kinds_are_refused(copy):
  for content in (pickle.dumps(Harmful()), b'#!/bin/sh\n', b'\0' * 4096, b'PK\x03\x04' * 99):
    signed(copy, content)
    with pytest.raises(InputError, match='is damaged, or no StableHLO program'):
      ferjax.load(copy)


def program_of(function):
  (batch,) = jax.export.symbolic_shape('b')
  image = {'image': jax.ShapeDtypeStruct((batch, 32, 32, 3), np.uint8)}
  return bytes(jax.export.export(jax.jit(function), platforms=('cpu',))(image).serialize())


def test_a_program_that_calls_out_is_refused_before_it_is_run(copy):
  def harmful(inputs):
    x = inputs['image'][:, 0, :7, :1] * 1.0
    jnp.linalg.cholesky(jnp.eye(7))  # unused, and not in the program
    square = x * jnp.swapaxes(x, 1, 2) + jnp.eye(7)
    logits = jnp.linalg.cholesky(square)[:, 0]
    return {'logits': logits, 'probabilities': logits, 'embedding': jnp.tile(logits, 10)[:, :64]}

  signed(copy, program_of(harmful))
  with pytest.raises(InputError, match='calls functions outside itself'):
    ferjax.load(copy)


def test_another_program_than_the_one_described_is_refused(copy):
  def other(inputs):
    logits = inputs['image'][:, 0, :6, 0] * 1.0
    return {'logits': logits, 'probabilities': logits, 'embedding': logits}

  signed(copy, program_of(other))
  with pytest.raises(InputError, match='another program than model.json describes'):
    ferjax.load(copy)


def test_descriptions_that_do_not_fit_are_refused(copy, monkeypatch):
  text = (copy / 'model.json').read_text()
  for change, said in (
    (lambda r: r.update(format_version=2), 'has the format 2, this ferjax reads 1'),
    (lambda r: r.update(format='other'), 'is not of an export of ferjax'),
    (lambda r: r.pop('inputs'), 'is damaged'),
    (lambda r: r.update(classes=[1, 2]), 'is damaged'),
    (lambda r: r.update(classes=r['classes'][1:]), r'is damaged \(6 classes\)'),
    (lambda r: r.update(classes=['a'] * 7), r'is damaged \(a class twice\)'),
    (lambda r: r.update(classes='abcdefg'), r'is damaged \(classes\)'),
    (lambda r: r.update(image_size=10**6), r'is damaged \(image_size'),
    (lambda r: r['outputs'].update(logits='none'), 'is damaged'),
    (lambda r: r.update(landmark_indices=5), 'is damaged'),
    (lambda r: r.update(versions='none'), 'is damaged'),
    (lambda r: r.update(calling_convention=999), r'written by JAX .* \(calling convention 999\)'),
    (lambda r: r.update(calling_convention=3), r'\(calling convention 3\); JAX .* reads'),
  ):
    changed(copy, change)
    with pytest.raises(InputError, match=said):
      ferjax.load(copy)
    (copy / 'model.json').write_text(text)
  for content in (b'', b'[]', b'{"format": ', b'\xff\xfe', b'[' * 100_000):
    (copy / 'model.json').write_bytes(content)
    with pytest.raises(InputError, match='is damaged'):
      ferjax.load(copy)
  (copy / 'model.json').write_text(text)
  (copy / 'model.stablehlo').unlink()
  with pytest.raises(InputError, match='lacks model.stablehlo'):
    ferjax.load(copy)
  with pytest.raises(InputError, match='is no export'):
    exported.describe(copy / 'none')


def test_what_is_there_is_not_written_over(trained_run, folder, tmp_path, monkeypatch):
  with pytest.raises(InputError, match='holds an export: give another folder, or --overwrite'):
    export.export(trained_run, folder)
  with pytest.raises(InputError, match='exists and is no export'):
    export.export(trained_run, trained_run, overwrite=True)
  with pytest.raises(InputError, match='--onnx=yes'):
    export.export(trained_run, tmp_path / 'out', onnx='yes')
  other = tmp_path / 'other'
  other.mkdir()
  (other / 'model.json').write_text('{"format": "layers-model"}')
  with pytest.raises(InputError, match='exists and is no export'):
    export.export(trained_run, other, overwrite=True)
  shutil.rmtree(other)
  shutil.copytree(folder, other)
  (other / 'notes.txt').write_text('mine')
  with pytest.raises(InputError, match='more than an export, such as notes.txt: it stays'):
    export.export(trained_run, other, overwrite=True)
  shutil.rmtree(other)
  with pytest.raises(InputError, match='is no run'):
    export.export(tmp_path, tmp_path / 'out')

  def full(*arguments):
    raise OSError(28, 'No space left on device')

  with monkeypatch.context() as patch:
    patch.setattr(export.logs, 'write_json', full)
    with pytest.raises(InputError, match='cannot write .*: No space left on device'):
      export.export(trained_run, tmp_path / 'out', onnx='no')
  assert not list(tmp_path.iterdir())


def test_nothing_names_a_folder_of_this_machine(folder):
  """Folders in the config, and source files in the program."""
  paths = {
    'sets': ('manifest:/home/anna/secret/faces.csv', 'raf_db'),
    'noise': {'file': '/home/anna/noise.csv', 'rate': 0.5},
    'dir': '/data',
  }
  assert export._without_folders(paths) == {
    'sets': ['manifest:faces.csv', 'raf_db'],
    'noise': {'file': 'noise.csv', 'rate': 0.5},
    'dir': 'data',
  }
  for path in folder.iterdir():
    assert str(Path(export.__file__).parent).encode() not in path.read_bytes(), path.name


def test_without_the_extra_the_rest_is_written(trained_run, tmp_path, monkeypatch, caplog):
  monkeypatch.setattr(export, '_has_onnx', lambda: False)
  out = tmp_path / 'out'
  with pytest.raises(InputError, match=r"pip install 'ferjax\[onnx\]'"):
    export.export(trained_run, out, onnx='require')
  arguments = [f'--workdir={trained_run}', f'--out={out}', '--data_licence=CC0']
  export.main(arguments)
  assert "model.onnx is left out: pip install 'ferjax[onnx]'" in caplog.text
  assert {path.name for path in out.iterdir()} == NAMES
  card = (out / 'README.md').read_text()
  assert 'Licence of the data: CC0.' in card and '`model.onnx` was left out' in card
  export.main([*arguments, '--overwrite', '--checkpoint=4'])
  assert 'given by number' in (out / 'README.md').read_text()
  assert [path.name for path in tmp_path.iterdir()] == ['out']


def test_the_card_tells_the_figures_of_the_run(folder, trained_run):
  card = (folder / 'README.md').read_text()
  summary = json.loads((trained_run / 'summary.json').read_text())
  for split in ('val', 'test'):
    found = summary['last'][split]
    shares = ' | '.join(f'{100 * found[k]:.2f} %' for k in ('acc', 'mean_class_acc', 'f1_macro'))
    assert f'| {split} | {shares} |' in card
  test = summary['last']['test']
  for name in config.read(trained_run)['classes']:
    assert f'| {name} | 4 | {100 * test[f"recall/{name}"]:.2f} % | ' in card
  for angle in (-30, 0, 30):
    assert f'{angle}°: {100 * test[f"acc/pose_{angle}"]:.2f} %' in card
  rotation = summary['last']['test/rotation']['acc']
  assert f'Distorted pictures: rotation: {100 * rotation:.2f} %' in card
  right = summary['training_labels']['given']['acc']
  assert f'symmetric, rate 0.3; {100 * right:.2f} % of them were right' in card
  people = re.search(r'of (\d+) people with 7 pictures each, mean ([\d.]+) %', card)
  assert people[1] == '4' and float(people[2]) == pytest.approx(100 * test['acc'], abs=0.006)
  assert 'At step 4, the exported one, the last of the run, the best by validation' in card
  assert '84 train, 21 val, 28 test' in card and 'not stated: ask the owner of the data' in card
  for number, name in enumerate(config.read(trained_run)['classes']):
    assert f'| {number} | {name} |' in card


def test_the_snippets_of_the_card_run(folder, tmp_path, monkeypatch, capsys):
  image, _ = draw_face(np.random.default_rng(0), 3)
  for path in folder.iterdir():
    (tmp_path / path.name).symlink_to(path)
  cv2.imwrite(str(tmp_path / 'face.png'), image)
  snippets = re.findall(r'```python\n(.*?)```', (folder / 'README.md').read_text(), re.S)
  assert len(snippets) == 2 + HAS_ONNX
  monkeypatch.chdir(tmp_path)
  exec(snippets[0], {})
  texts = [capsys.readouterr().out]
  program = "import sys; sys.modules['ferjax'] = None\n" + '\n'.join(snippets[1:])
  run = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, check=True)
  texts += run.stdout.splitlines()
  found = [json.loads(text.replace("'", '"')) for text in texts]
  assert len(found) == len(snippets)
  for shares in found:
    assert list(shares) == list(found[0])
    np.testing.assert_allclose(list(shares.values()), list(found[0].values()), atol=1e-5)
  wanted = ferjax.load(folder)(tmp_path / 'face.png')[0]
  np.testing.assert_allclose(list(found[0].values()), wanted, atol=1e-6)


def test_accuracy_by_pose_and_person_by_hand():
  right = np.array([True, True, False, True, False, False])
  table = {
    'yaw_bin': np.array([0, 0, 0, 30, 30, 30]),
    'subject': np.array(['a', 'a', 'b', 'b', 'c', 'c']),
  }
  found = export.by_group(right, table)
  assert found['rows'] == 6 and found['acc'] == 0.5
  assert found['pose'] == {'0': {'rows': 3, 'acc': 2 / 3}, '30': {'rows': 3, 'acc': 1 / 3}}
  people = found['subject']
  assert people['people'] == 3 and people['rows_of_each'] == [2, 2]
  assert people['mean'] == 0.5 and people['worst'] == 0 and people['lowest_tenth'] == 0.1
  assert people['stddev'] == pytest.approx((1 / 6) ** 0.5)
  assert set(export.by_group(right, {})) == {'rows', 'acc'}


def test_terms_of_the_data_are_those_that_their_builders_state():
  def terms(**section):
    return model_card.data_terms({'data': {'name': '', 'sets': []} | section})

  assert terms(name='raf_db') == (
    'raf_db: for non-commercial research only; no picture may be passed on'
  )
  assert terms(name='manifest') == 'not stated: ask the owner of the data'
  both = terms(sets=['fer_plus', 'manifest:faces.csv'])
  assert (
    both.startswith('fer_plus: the votes are under the MIT licence') and 'ask the owner' in both
  )
  assert 'no real person' in terms(name='synthetic_faces')
