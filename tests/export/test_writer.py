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
import numpy as np
import pytest
import safetensors.numpy
from drawn_faces import draw_face
from onnx_sessions import HAS_ONNX, needs_onnx, run_onnx

import ferjax
from ferjax.cli import export
from ferjax.errors import InputError
from ferjax.export import reader, writer
from ferjax.export.card import data_terms
from ferjax.runs import checkpoint
from ferjax.runs.record import read

NAMES = {'README.md', 'model.json', 'model.stablehlo', 'parameters.safetensors'}


@pytest.fixture(scope='module')
def folder(trained_run, tmp_path_factory):
  out = tmp_path_factory.mktemp('exports') / 'softmax'
  writer.export(trained_run, out, evaluate=True)
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
  description = json.loads(path.read_text())
  change(description)
  path.write_text(json.dumps(description))


def digest(content):
  return hashlib.sha256(content).hexdigest()


def card_of(folder):
  """The model card, with single spaces in its tables."""
  return re.sub(' +', ' ', (folder / 'README.md').read_text())


def faces(rows, size=32):
  """Drawn faces and random pixels in turn."""
  rng = np.random.default_rng(0)
  pictures = [cv2.resize(draw_face(rng, i % 7)[0], (size, size)) for i in range(0, rows, 2)]
  noise = rng.integers(0, 256, (rows // 2, size, size, 3)).astype(np.uint8)
  return np.concatenate([np.stack(pictures), noise])


def test_the_folder_says_what_is_in_it(folder, trained_run):
  assert {path.name for path in folder.iterdir()} == NAMES | ({'model.onnx'} if HAS_ONNX else set())
  description = json.loads((folder / 'model.json').read_text())
  for name, file in description['files'].items():
    content = (folder / name).read_bytes()
    assert digest(content) == file['sha256'] and len(content) == file['bytes']
    assert not content.startswith(b'\x80')  # of a pickle
  run = read(trained_run)
  assert description['classes'] == run['classes'] and description['step'] == 4
  assert description['inputs']['image']['shape'] == ['batch', 32, 32, 3]
  assert description['outputs']['logits']['shape'] == ['batch', 7]
  assert description['platforms'] == ['cpu', 'cuda', 'tpu']
  assert description['run']['rows'] == run['rows'] and description['config']['noise']['rate'] == 0.3
  assert str(trained_run.parent) not in json.dumps(description)
  assert run['config']['data']['dir'] not in json.dumps(description)
  assert description['config']['data']['path'] == 'manifest.csv'
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
  with pytest.raises(InputError, match="has only one checkpoint: leave 'best' out"):
    ferjax.load(folder, 'best')


def test_a_thousand_pictures_have_the_same_class_everywhere(folder, trained_run):
  pictures = faces(1000)
  wanted = ferjax.load(trained_run)(pictures).argmax(1)
  assert len(np.unique(wanted)) > 1
  np.testing.assert_array_equal(ferjax.load(folder)(pictures).argmax(1), wanted)
  if HAS_ONNX:
    outputs = run_onnx((folder / 'model.onnx').read_bytes(), {'image': pictures})
    np.testing.assert_array_equal(outputs['logits'].argmax(1), wanted)


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


@needs_onnx
def test_a_primitive_without_a_node_is_named_before_anything_is_written(
  trained_run, tmp_path, monkeypatch
):
  from ferjax.export import onnx as onnx_graph

  monkeypatch.delitem(onnx_graph.OPERATIONS, 'dot_general')
  with pytest.raises(InputError, match="the primitive 'dot_general'.*--onnx=no"):
    writer.export(trained_run, tmp_path / 'out')
  assert not list(tmp_path.iterdir())
  inputs = {'image': jax.ShapeDtypeStruct((1, 8, 8, 3), np.uint8)}
  for function, what in (
    (lambda v, x: {'y': jnp.cumsum(x['image'] * 1.0, 1)}, "'cumsum'"),
    (lambda v, x: {'y': jnp.fft.fft(x['image'][..., 0] * 1.0).real}, "'fft'"),
  ):
    with pytest.raises(InputError, match=what):
      onnx_graph.model(function, {}, inputs)


def test_landmarks_are_an_input_where_they_are_asked_for(landmark_run, tmp_path):
  plain = tmp_path / 'plain'
  writer.export(landmark_run, plain, onnx='no')
  pictures = faces(6)
  model, run = ferjax.load(plain), ferjax.load(landmark_run)
  assert not model.needs and not model.uses
  np.testing.assert_allclose(model(pictures), run(pictures), atol=1e-6)
  with pytest.raises(InputError, match='does not use landmarks'):
    model(pictures, landmarks=np.zeros((6, 68, 2)))
  card, summary = card_of(plain), (landmark_run / 'summary.json').read_text()
  test = json.loads(summary)['last']['test']
  shares = [f'{100 * test[f"naive/{k}"]:.2f} %' for k in ('acc', 'mean_class_acc', 'f1_macro')]
  assert f'| test | {" | ".join(shares)} |' in card and 'By class' not in card
  assert 'predicts better with landmarks, which this export does not take' in card
  out = tmp_path / 'landmarks'
  description = writer.export(landmark_run, out, onnx='no', features=('landmarks',))
  assert description['inputs']['landmark_graph']['derived_from'] == ['landmarks']
  assert (
    description['landmark_indices'][:2] == [17, 18] and description['landmark_scheme'] == 'ibug68'
  )
  model = ferjax.load(out)
  assert model.needs == {'landmarks'}
  points = np.random.default_rng(0).uniform(0, 31, (6, 68, 2))
  wanted, found = (m.outputs(pictures, landmarks=points) for m in (run, model))
  for name in wanted:
    np.testing.assert_allclose(found[name], wanted[name], rtol=1e-5, atol=1e-5)
  with pytest.raises(InputError, match='needs landmarks besides pictures'):
    model(pictures)
  card = card_of(out)
  assert f'| test | {100 * test["acc"]:.2f} % |' in card and 'does not take' not in card
  assert 'points 17, 18' in card and 'landmark_graph have to be made of the landmarks' in card
  with pytest.raises(InputError, match='--features=au: .* it uses: landmarks'):
    writer.export(landmark_run, tmp_path / 'au', features=('au',))


@pytest.mark.parametrize('share', [0.0, 0.001, 0.5, 0.99])
def test_a_program_that_is_cut_short_is_refused(copy, share):
  content = (copy / 'model.stablehlo').read_bytes()
  cut = content[: int(share * len(content))]
  (copy / 'model.stablehlo').write_bytes(cut)
  with pytest.raises(InputError, match='has another checksum than in model.json'):
    ferjax.load(copy)
  signed(copy, cut)  # even where the digest fits
  with pytest.raises(InputError, match='model.stablehlo is damaged or not a StableHLO program'):
    ferjax.load(copy)


def test_a_program_of_another_jax_says_what_is_needed(copy):
  signed(copy, b'ML\xefR of a later version')
  record = json.loads((copy / 'model.json').read_text())
  record['versions']['jax'] = '99.0'
  (copy / 'model.json').write_text(json.dumps(record))
  with pytest.raises(InputError, match='JAX 99.0 wrote it, .* install JAX 99.0 or newer'):
    ferjax.load(copy)


def test_a_program_that_was_changed_is_refused(copy):
  content = bytearray((copy / 'model.stablehlo').read_bytes())
  content[len(content) // 2] ^= 1
  (copy / 'model.stablehlo').write_bytes(content)
  with pytest.raises(InputError, match='has another checksum than in model.json'):
    ferjax.load(copy)


class Harmful:
  def __reduce__(self):
    return sys.exit, ('a pickle was run',)


def test_files_of_other_kinds_are_refused(copy):
  for content in (pickle.dumps(Harmful()), b'#!/bin/sh\n', b'\0' * 4096, b'PK\x03\x04' * 99):
    signed(copy, content)
    with pytest.raises(InputError, match='is damaged or not a StableHLO program'):
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
  with pytest.raises(InputError, match='calls external functions'):
    ferjax.load(copy)


def test_another_program_than_the_one_described_is_refused(copy):
  def other(inputs):
    logits = inputs['image'][:, 0, :6, 0] * 1.0
    return {'logits': logits, 'probabilities': logits, 'embedding': logits}

  signed(copy, program_of(other))
  with pytest.raises(InputError, match='is not the program that model.json describes'):
    ferjax.load(copy)


def test_descriptions_that_do_not_fit_are_refused(copy, monkeypatch):
  text = (copy / 'model.json').read_text()
  for change, said in (
    (lambda r: r.update(format_version=2), 'has format 2, but this ferjax reads 1'),
    (lambda r: r.update(format='other'), 'is not from ferjax export'),
    (lambda r: r.pop('inputs'), 'is damaged'),
    (lambda r: r.update(classes=[1, 2]), 'is damaged'),
    (lambda r: r.update(classes=r['classes'][1:]), r'is damaged \(6 classes\)'),
    (lambda r: r.update(classes=['a'] * 7), r'is damaged \(a class occurs twice\)'),
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
  with pytest.raises(InputError, match='has no model.stablehlo'):
    ferjax.load(copy)
  with pytest.raises(InputError, match='is not an export'):
    reader.describe(copy / 'none')


def test_what_is_there_is_not_written_over(trained_run, folder, tmp_path, monkeypatch):
  with pytest.raises(InputError, match='holds an export: give another folder, or --overwrite'):
    writer.export(trained_run, folder)
  with pytest.raises(InputError, match='exists and is no export'):
    writer.export(trained_run, trained_run, overwrite=True)
  with pytest.raises(InputError, match='--onnx=yes'):
    writer.export(trained_run, tmp_path / 'out', onnx='yes')
  other = tmp_path / 'other'
  other.mkdir()
  (other / 'model.json').write_text('{"format": "layers-model"}')
  with pytest.raises(InputError, match='exists and is no export'):
    writer.export(trained_run, other, overwrite=True)
  shutil.rmtree(other)
  shutil.copytree(folder, other)
  (other / 'notes.txt').write_text('mine')
  with pytest.raises(InputError, match='more than an export, such as notes.txt: it stays'):
    writer.export(trained_run, other, overwrite=True)
  shutil.rmtree(other)
  with pytest.raises(InputError, match='is not a run'):
    writer.export(tmp_path, tmp_path / 'out')

  def full(*arguments):
    raise OSError(28, 'No space left on device')

  with monkeypatch.context() as patch:
    patch.setattr(writer.files, 'write_json', full)
    with pytest.raises(InputError, match='cannot write .*: No space left on device'):
      writer.export(trained_run, tmp_path / 'out', onnx='no')
  assert not list(tmp_path.iterdir())


def test_nothing_names_a_folder_of_this_machine(folder):
  """Folders in the config, and source files in the program."""
  paths = {
    'sets': ('manifest:/home/anna/secret/faces.csv', 'raf_db'),
    'noise': {'file': '/home/anna/noise.csv', 'rate': 0.5},
    'dir': '/data',
  }
  assert writer._without_folders(paths) == {
    'sets': ['manifest:faces.csv', 'raf_db'],
    'noise': {'file': 'noise.csv', 'rate': 0.5},
    'dir': 'data',
  }
  for path in folder.iterdir():
    assert str(Path(writer.__file__).parent).encode() not in path.read_bytes(), path.name


def test_without_the_extra_the_rest_is_written(trained_run, tmp_path, monkeypatch, caplog):
  monkeypatch.setattr(writer, '_has_onnx', lambda: False)
  out = tmp_path / 'out'
  with pytest.raises(InputError, match=r"pip install 'ferjax\[onnx\]'"):
    writer.export(trained_run, out, onnx='require')
  arguments = [f'--workdir={trained_run}', f'--out={out}', '--data_licence=CC0']
  export.main(arguments)
  assert "model.onnx is left out: pip install 'ferjax[onnx]'" in caplog.text
  assert {path.name for path in out.iterdir()} == NAMES
  card = card_of(out)
  assert 'Licence of the data: CC0.' in card and '`model.onnx` was left out' in card
  export.main([*arguments, '--overwrite', '--checkpoint=4'])
  assert 'given by number' in (out / 'README.md').read_text()
  assert [path.name for path in tmp_path.iterdir()] == ['out']


def test_the_card_tells_the_figures_of_the_run(folder, trained_run):
  card = card_of(folder)
  summary = json.loads((trained_run / 'summary.json').read_text())
  for split in ('val', 'test'):
    found = summary['last'][split]
    shares = ' | '.join(f'{100 * found[k]:.2f} %' for k in ('acc', 'mean_class_acc', 'f1_macro'))
    assert f'| {split} | {shares} |' in card
  test = summary['last']['test']
  for name in read(trained_run)['classes']:
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
  for number, name in enumerate(read(trained_run)['classes']):
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
  found = writer.by_group(right, table)
  assert found['rows'] == 6 and found['acc'] == 0.5
  assert found['pose'] == {'0': {'rows': 3, 'acc': 2 / 3}, '30': {'rows': 3, 'acc': 1 / 3}}
  people = found['subject']
  assert people['people'] == 3 and people['rows_of_each'] == [2, 2]
  assert people['mean'] == 0.5 and people['worst'] == 0 and people['lowest_tenth'] == 0.1
  assert people['stddev'] == pytest.approx((1 / 6) ** 0.5)
  assert set(writer.by_group(right, {})) == {'rows', 'acc'}


def test_terms_of_the_data_are_those_that_their_builders_state():
  def terms(**section):
    return data_terms({'data': {'name': '', 'sets': []} | section})

  assert terms(name='raf_db') == (
    'raf_db: for non-commercial research only; do not pass on any picture'
  )
  assert terms(name='manifest') == 'not stated: ask the owner of the data'
  both = terms(sets=['fer_plus', 'manifest:faces.csv'])
  assert (
    both.startswith('fer_plus: the votes are under the MIT licence') and 'ask the owner' in both
  )
  assert 'no real person' in terms(name='synthetic_faces')
