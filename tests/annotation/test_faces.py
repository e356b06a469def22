import csv
import errno
import io
import json
import os
import subprocess
import sys
import types

import cv2
import numpy as np
import pytest
from PIL import Image

from ferjax.annotation import alignment, detector, environment, mesh, worker
from ferjax.annotation import faces as annotate
from ferjax.cli.annotate import main
from ferjax.datasets.manifest import parser
from ferjax.errors import InputError
from ferjax.files import cache_folder
from ferjax.images import files as picture_files


def disc(path, *discs, size=(240, 200), colour=(0, 0, 0)):
  """Draws a picture (RGB) with white discs, each (x, y, radius)."""
  path.parent.mkdir(parents=True, exist_ok=True)
  image = np.full((size[1], size[0], 3), colour, np.uint8)
  for x, y, radius in discs:
    cv2.circle(image, (x, y), radius, (255, 255, 255), -1)
  Image.fromarray(image).save(path)


def rows_of(path):
  with path.open(newline='') as file:
    return list(csv.DictReader(file))


def matrix_of(row):
  return np.array([float(row[name]) for name in annotate.MATRIX]).reshape(2, 3)


def landmarks_of(row):
  return np.array([[float(row[f'{axis}_{i}']) for axis in 'xy'] for i in range(68)])


def test_faces_are_in_pixels_of_the_picture(detector_command):
  found = detector.Detector(detector_command)
  try:
    for size, discs in {
      (40, 48): [(20, 25, 9)],
      (300, 250): [(120, 100, 30)],
      (800, 780): [(150, 160, 30), (600, 450, 50), (450, 100, 10)],
    }.items():
      image = np.zeros((size[1], size[0], 3), np.uint8)
      for x, y, radius in discs:
        cv2.circle(image, (x, y), radius, (255, 255, 255), -1)
      faces = found.find(image, every=True)
      order = sorted(discs, key=lambda one: -one[2])
      assert len(faces) == len(discs)
      for face, (x, y, radius) in zip(faces, order, strict=True):
        np.testing.assert_allclose(face.mesh[mesh.MESH_TO_IBUG68[30]], (x, y, 0), atol=0.1)
        assert face.mesh[263, 0] - face.mesh[33, 0] == pytest.approx(radius, rel=0.06)
  finally:
    found.close()


def test_a_mesh_beyond_the_picture_is_not_a_face(detector_command, monkeypatch):
  found = detector.Detector(detector_command)
  points = np.random.default_rng(0).uniform(0, 20, (mesh.POINTS, 3))
  try:
    for x, y in ((220, 50), (50, 160), (-40, 50), (50, -40)):
      far = detector.Face(points + (x, y, 0), {})
      monkeypatch.setattr(found, '_look', lambda view, far=far: [far])
      assert found.find(np.zeros((150, 210, 3), np.uint8)) == []
    edge = detector.Face(points + (205, 50, 0), {})
    monkeypatch.setattr(found, '_look', lambda view: [edge])
    assert found.find(np.zeros((150, 210, 3), np.uint8)) == [edge]
  finally:
    found.close()


@pytest.fixture
def folder(tmp_path):
  """Faces in sub-folders by split and class, and files without a face."""
  path = tmp_path / 'pictures'
  disc(path / 'train' / 'Happy' / 'one.png', (120, 90, 30))
  disc(path / 'train' / 'Happy' / 'one.jpg', (60, 120, 40))
  disc(path / 'test' / 'sad' / 'anna' / 'two.bmp', (50, 60, 15), (150, 100, 40))
  disc(path / 'elsewhere' / 'three.png', (20, 24, 9), size=(40, 48))
  disc(path / 'elsewhere' / 'nobody.png')
  disc(path / 'elsewhere' / 'blue.png', colour=(0, 0, 255))
  disc(path / 'elsewhere' / 'green.png', colour=(0, 255, 0))
  (path / 'elsewhere' / 'empty.png').write_bytes(b'')
  whole = (path / 'train' / 'Happy' / 'one.jpg').read_bytes()
  (path / 'elsewhere' / 'cut.jpg').write_bytes(whole[: len(whole) // 2])
  (path / 'notes.txt').write_text('no picture')
  return path


def test_a_folder_becomes_a_manifest(folder, tmp_path, detector_command):
  out = tmp_path / 'out'
  text = annotate.annotate(folder, out, detector_command, size=64, workers=2)
  assert '9 pictures, 4 with a face (44.4 %), 4 crops' in text
  assert 'cannot be read: 2' in text and 'the detector failed: 2' in text
  assert 'happiness 2, sadness 1' in text and 'no folder of 1 crops has the name of a class' in text
  rows = rows_of(out / 'manifest.csv')
  assert [(row['source'], row['split'], row['label'], row['face']) for row in rows] == [
    ('elsewhere/three.png', 'train', '', '0'),
    ('test/sad/anna/two.bmp', 'test', 'sadness', '0'),
    ('train/Happy/one.jpg', 'train', 'happiness', '0'),
    ('train/Happy/one.png', 'train', 'happiness', '0'),
  ]
  left_out = {row['picture']: row['reason'] for row in rows_of(out / 'left_out.csv')}
  assert left_out['elsewhere/nobody.png'] == 'no face found'
  assert left_out['elsewhere/blue.png'] == 'the detector failed: blue'
  assert 'ended with status 3: out of memory' in left_out['elsewhere/green.png']
  assert left_out['elsewhere/empty.png'].startswith('cannot be read: ')
  assert left_out['elsewhere/cut.jpg'].startswith('cannot be read: ') and len(left_out) == 5
  target = alignment.target(64, 0.1)
  for row, (x, y) in zip(rows, ((20, 24), (150, 100), (60, 120), (120, 90)), strict=True):
    matrix = matrix_of(row)
    np.testing.assert_allclose(matrix @ (x, y, 1), target[30], atol=0.4)
    np.testing.assert_allclose(landmarks_of(row), target, atol=0.4)
    assert [float(row[name]) for name in parser.POSE.values()] == pytest.approx([0, 0, 0], abs=1e-3)
    crop = cv2.imread(str(out / row['path']))
    assert crop.shape == (64, 64, 3)
    column, line = target[30].round().astype(int)
    assert crop[line, column].min() > 200
  parsed = parser.parse(out / 'manifest.csv')
  assert [p.line for p in parsed.problems] == [2] and len(parsed.rows) == 3
  assert np.shape(parsed.rows[0]['landmarks']) == (68, 2) and 'yaw' in parsed.rows[0]


def test_all_faces_and_no_class(folder, tmp_path, detector_command):
  out = tmp_path / 'out'
  text = annotate.annotate(folder / 'test' / 'sad', out, detector_command, all_faces=True)
  rows = rows_of(out / 'manifest.csv')
  assert [row['path'] for row in rows] == [f'faces/anna/two.bmp.{i}.png' for i in (0, 1)]
  assert 'no folder has the name of a class' in text and 'label' not in rows[0]
  with pytest.raises(InputError, match="no column 'label'"):
    parser.parse(out / 'manifest.csv')


def test_a_killed_run_continues(folder, tmp_path, detector_command, monkeypatch):
  whole, out = tmp_path / 'whole', tmp_path / 'out'
  annotate.annotate(folder, whole, detector_command)
  picture, looked_at = annotate._picture, []

  def dies(folder, out, name, *rest):
    looked_at.append(name)
    if len(looked_at) == 8:
      raise KeyboardInterrupt
    return picture(folder, out, name, *rest)

  monkeypatch.setattr(annotate, '_picture', dies)
  with pytest.raises(KeyboardInterrupt):
    annotate.annotate(folder, out, detector_command)
  assert not (out / 'manifest.csv').exists()
  with (out / 'annotate.jsonl').open('a') as file:
    file.write('{"picture": "train/Happy/one.p')
  finished = {json.loads(line)['picture'] for line in open_lines(out)[1:-1]}
  assert len(finished) == 7
  failed = {f'elsewhere/{name}' for name in ('blue.png', 'green.png', 'cut.jpg', 'empty.png')}
  (out / 'faces' / 'test' / 'sad' / 'anna' / 'two.bmp.png').unlink()  # done, and lost since
  looked_at.clear()
  monkeypatch.setattr(annotate, '_picture', lambda *a: looked_at.append(a[2]) or picture(*a))
  annotate.annotate(folder, out, detector_command)
  assert failed <= finished and set(looked_at) == failed | {
    'test/sad/anna/two.bmp',
    'train/Happy/one.jpg',
    'train/Happy/one.png',
  }
  for name in ('manifest.csv', 'left_out.csv', 'faces/test/sad/anna/two.bmp.png'):
    assert (out / name).read_bytes() == (whole / name).read_bytes()
  disc(folder / 'elsewhere' / 'nobody.png', (100, 100, 31))  # changed: looked at again
  looked_at.clear()
  annotate.annotate(folder, out, detector_command)
  assert set(looked_at) == failed | {'elsewhere/nobody.png'}
  assert len(rows_of(out / 'manifest.csv')) == 5


def test_temporary_failures_and_empty_crops_are_annotated_again(
  folder, tmp_path, detector_command, monkeypatch
):
  out, read = tmp_path / 'out', picture_files.read

  def refuse(path):
    raise PermissionError(13, 'Permission denied')

  monkeypatch.setattr(picture_files, 'read', refuse)
  text = annotate.annotate(folder / 'train', out, detector_command)
  assert '0 with a face' in text and 'cannot be read: 2' in text
  monkeypatch.setattr(picture_files, 'read', read)
  annotate.annotate(folder / 'train', out, detector_command)
  assert len(rows_of(out / 'manifest.csv')) == 2 and not rows_of(out / 'left_out.csv')
  crop = out / rows_of(out / 'manifest.csv')[0]['path']
  whole = crop.read_bytes()
  crop.write_bytes(b'')
  annotate.annotate(folder / 'train', out, detector_command)
  assert crop.read_bytes() == whole


def test_a_bad_name_affects_only_its_picture(tmp_path, detector_command):
  folder, out = tmp_path / 'pictures', tmp_path / 'out'
  long, odd = 'n' * 240 + '.png', os.fsdecode(b'caf\xe9.png')
  for name in (long, 'x.jpg', 'x.jpg.png/y.png', 'z.png'):
    disc(folder / name, (120, 90, 30))
  try:
    (folder / odd).write_bytes((folder / 'z.png').read_bytes())
  except OSError:
    pytest.skip('this file system takes no such name')
  text = annotate.annotate(folder, out, detector_command)
  assert '5 pictures, 2 with a face' in text and 'its crop cannot be written: 2' in text
  left_out = {row['picture']: row['reason'] for row in rows_of(out / 'left_out.csv')}
  assert left_out == {
    r'caf\udce9.png': 'its name is not UTF-8',
    long: f'its crop cannot be written: {os.strerror(errno.ENAMETOOLONG)}',
    'x.jpg.png/y.png': f'its crop cannot be written: {os.strerror(errno.EEXIST)}',
  }
  assert len(rows_of(out / 'manifest.csv')) == 2


def open_lines(out):
  return (out / 'annotate.jsonl').read_text().splitlines()


def test_invalid_arguments_are_errors(folder, tmp_path, detector_command):
  out = tmp_path / 'out'
  for match, values in {
    'nowhere is not a folder': {'folder': tmp_path / 'nowhere'},
    'out is in': {'out': folder / 'out'},
    'from 16 to 4096': {'size': 8},
    'from 0 to 0.4': {'margin': 0.5},
    'at least 1': {'workers': 0},
    'holds no picture': {'folder': tmp_path / 'bare'},
    'cannot run': {'command': [str(tmp_path / 'none')]},
    'MediaPipe does not start: it ended with status 2': {'command': [sys.executable, 'none.py']},
  }.items():
    (tmp_path / 'bare').mkdir(exist_ok=True)
    with pytest.raises(InputError, match=match):
      annotate.annotate(**{'folder': folder, 'out': out, 'command': detector_command} | values)
  assert not out.exists()
  annotate.annotate(folder / 'test', out, detector_command)
  with pytest.raises(InputError, match='started with other settings .size 112, now 64'):
    annotate.annotate(folder / 'test', out, detector_command, size=64)
  settings, entry = open_lines(out)
  bare = {key: value for key, value in json.loads(entry).items() if key != 'stamp'}
  for lines in (['{"nothing": 1}'], ['{"settings": 5}'], [settings, json.dumps(bare)]):
    (out / 'annotate.jsonl').write_text('\n'.join(lines) + '\n')
    with pytest.raises(InputError, match='is damaged'):
      annotate.annotate(folder / 'test', out, detector_command)
  with pytest.raises(InputError, match='none.task: no such file'):
    main([str(folder), '--model=none.task'])


def test_crops_are_never_among_the_pictures(tmp_path, detector_command):
  disc(tmp_path / 'faces' / 'deep' / 'one.png', (120, 90, 30))
  (tmp_path / 'link').mkdir()
  (tmp_path / 'link' / 'faces').symlink_to(tmp_path / 'faces')
  for folder, out in (('faces', '.'), ('faces/deep', '.'), ('faces', 'link')):
    with pytest.raises(InputError, match='give another'):
      annotate.annotate(tmp_path / folder, tmp_path / out, detector_command)
  assert len(annotate.folders.files(tmp_path / 'faces')) == 1


def test_a_second_command_on_one_folder_is_refused(folder, tmp_path, detector_command):
  fcntl = pytest.importorskip('fcntl')
  out = tmp_path / 'out'
  annotate.annotate(folder / 'test', out, detector_command)
  before = open_lines(out)
  with (out / 'annotate.lock').open('w') as held:
    fcntl.flock(held, fcntl.LOCK_EX)
    with pytest.raises(InputError, match='another command is writing to'):
      annotate.annotate(folder / 'test', out, detector_command)
  assert open_lines(out) == before
  annotate.annotate(folder / 'test', out, detector_command)


def test_a_file_system_without_locks_causes_a_warning(
  folder, tmp_path, detector_command, monkeypatch, caplog
):
  fcntl = pytest.importorskip('fcntl')

  def unknown(*_):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

  monkeypatch.setattr(fcntl, 'flock', unknown)
  assert '1 with a face' in annotate.annotate(folder / 'test', tmp_path / 'out', detector_command)
  assert 'cannot lock' in caplog.text


def test_the_command_and_its_default_folder(
  folder, tmp_path, detector_command, monkeypatch, capsys
):
  monkeypatch.setattr(detector, 'worker', lambda python, model: detector_command)
  main([str(folder), f'--python={sys.executable}', '--workers=1'])
  assert 'pictures_faces' in capsys.readouterr().out
  assert len(rows_of(tmp_path / 'pictures_faces' / 'manifest.csv')) == 4


def test_pictures_are_read_upright_and_with_8_bits(tmp_path):
  image = Image.fromarray(np.uint16([[0x1234, 0xFF00]]))
  image.save(tmp_path / 'deep.png')
  assert picture_files.read(tmp_path / 'deep.png').tolist() == [[[0x12] * 3, [0xFF] * 3]]
  turned = Image.new('RGB', (4, 2))
  exif = turned.getexif()
  exif[0x0112] = 6
  turned.save(tmp_path / 'turned.jpg', exif=exif)
  assert picture_files.read(tmp_path / 'turned.jpg').shape == (4, 2, 3)


def test_the_script_answers_the_requests_of_the_detector():
  received = []

  def find(image):
    received.append(image)
    if image.shape[1] == 1:
      raise ValueError('too narrow')
    return [np.full((worker.POINTS, 3), 7, np.float32)], [{'jawOpen': 0.5}]

  picture = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
  requests = b'{"height": 2, "width": 3}\n' + picture.tobytes() + b'{"height": 1, "width": 1}\nabc'
  answers = io.BytesIO()
  worker.serve(find, io.BytesIO(requests), answers)
  np.testing.assert_array_equal(received[0], picture)
  head, rest = answers.getvalue().split(b'\n', 1)
  assert json.loads(head) == {'faces': 1, 'blendshapes': [{'jawOpen': 0.5}]}
  count = worker.POINTS * 12
  assert (np.frombuffer(rest[:count], '<f4') == 7).all() and worker.POINTS == mesh.POINTS
  assert json.loads(rest[count:]) == {'error': 'ValueError: too narrow'}
  point = types.SimpleNamespace(x=0.5, y=0.25, z=-0.1)
  np.testing.assert_allclose(worker.pixels([point], 200, 100), [[99.5, 24.5, -20]], rtol=1e-6)


def test_the_landmarker_gives_blendshapes(monkeypatch):
  """The calls of MediaPipe 1's interface, recorded by a substitute."""
  options = {}
  point = types.SimpleNamespace(x=0.5, y=0.5, z=0.0)
  share = types.SimpleNamespace(category_name='jawOpen', score=0.25)
  result = types.SimpleNamespace(face_landmarks=[[point] * 478], face_blendshapes=[[share]])
  model = types.SimpleNamespace(detect=lambda picture: result)
  vision = types.SimpleNamespace(
    FaceLandmarkerOptions=lambda **given: options.update(given),
    FaceLandmarker=types.SimpleNamespace(create_from_options=lambda _: model),
  )
  tasks = types.ModuleType('mediapipe.tasks.python')
  tasks.BaseOptions, tasks.vision = dict, vision
  above = types.ModuleType('mediapipe.tasks')
  above.python = tasks
  mediapipe = types.ModuleType('mediapipe')
  mediapipe.Image, mediapipe.ImageFormat = dict, types.SimpleNamespace(SRGB=1)
  for module in (mediapipe, above, tasks):
    monkeypatch.setitem(sys.modules, module.__name__, module)
  faces, shares = worker.landmarker('some.task')(np.zeros((10, 20, 3), np.uint8))
  assert options['base_options'] == {'model_asset_path': 'some.task'}
  assert options['output_face_blendshapes'] and shares == [{'jawOpen': 0.25}]
  np.testing.assert_allclose(faces[0][0], (9.5, 4.5, 0))


def test_intensities_are_in_the_manifest():
  points = np.zeros((mesh.POINTS, 3))
  points[mesh.MESH_TO_IBUG68] = mesh.AVERAGE_FACE * (50, -50, -50) + (100, 100, 0)
  shares = {part: 0.2 for parts in mesh.ACTION_UNITS.values() for part in parts}
  face = detector.Face(points, shares | {'mouthClose': 0.0})
  fields, crop = annotate.describe(np.zeros((200, 200, 3), np.uint8), face, 32, 0.1)
  assert fields['AU12_r'] == '1.00' and fields['AU25_r'] == '1.00' and crop.shape == (32, 32, 3)


def test_an_environment_is_complete_or_does_not_exist(tmp_path, monkeypatch, caplog):
  calls = []

  def run(command, **options):
    calls.append(command)
    assert 'PYTHONPATH' not in (options.get('env') or {})
    if 'sys.version_info' in command[-1]:
      return subprocess.CompletedProcess(command, 0, '3 11\n', '')
    if 'venv' in command:
      home = environment.Path(command[-1])
      found = environment._python_of(home)
      found.parent.mkdir(parents=True)
      found.write_text('')
    failed = fails and 'numpy>=1.26,<2' in command
    return subprocess.CompletedProcess(command, int(failed), '', 'no network' if failed else '')

  monkeypatch.setenv('PYTHONPATH', 'somewhere')
  monkeypatch.setattr(environment.subprocess, 'run', run)
  fails = True
  with pytest.raises(InputError, match='(?s)cannot install mediapipe==0.10.21.*no network'):
    environment.python(environment.MESH, tmp_path / 'made')
  assert list((tmp_path / 'made').iterdir()) == []
  assert environment.made(environment.MESH, tmp_path / 'made') is None
  fails = False
  with caplog.at_level('INFO', 'ferjax'):
    found = environment.python(environment.MESH, tmp_path / 'made')
  assert found.exists() and 'installing mediapipe==0.10.21 with pip' in caplog.text
  assert [environment._python_of(p) for p in (tmp_path / 'made').iterdir()] == [found]
  assert environment.made(environment.MESH, tmp_path / 'made') == found
  calls.clear()
  assert environment.python(environment.MESH, tmp_path / 'made') == found and len(calls) == 1
  monkeypatch.setattr(environment, '_candidates', lambda *_: iter(()))
  with pytest.raises(InputError, match=r'runs on Python 3\.9 to 3\.12'):
    environment.python(environment.MESH, tmp_path / 'made')


def test_mediapipe_finds_a_rendered_face():
  """Runs only if `ferjax annotate` has already made its environment."""
  python = environment.made(environment.MESH, cache_folder() / 'environments')
  if python is None:
    pytest.skip('MediaPipe has no environment yet')
  from ferjax.datasets.synthetic_faces.drawing import sample

  config = sample.Config(num=35, size=112, seed=0, difficulty=0.5, subjects=1)
  row = next(row for row in sample.rows(config) if row.yaw_bin == 0)
  drawn = sample.draw(config, row)
  process = detector.Detector(detector.worker(python, None))
  try:
    (face,) = process.find(drawn.image)
  finally:
    process.close()
  points = mesh.landmarks(face.mesh)
  error = np.linalg.norm(points[:, :2] - drawn.landmarks, axis=1).mean()
  assert error < 0.08 * np.ptp(drawn.landmarks, axis=0).max()
  assert process.version == 'mediapipe 0.10.21'
