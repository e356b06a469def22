"""Data sets as manifests: every label stays, faces are added, rows without a face are marked."""

import csv
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import trees

from ferjax.annotation import alignment, detector, faces, sets
from ferjax.cli.annotate import main
from ferjax.data import dataset
from ferjax.errors import InputError
from ferjax.images.files import decode

HEADER = ['path', 'split', 'label', 'subject', 'yaw_bin', 'AU01_r']
HEADER += ['votes_happiness', 'votes_sadness', 'x_0', 'y_0']
# path; split, label, subject; disc x, y, radius; size of the picture
PICTURES = (
  ('a/one.png', 'train', 'happiness', 'p', (60, 50, 20), (120, 100)),
  ('b/one.png', 'train', 'sadness', 'q', (30, 25, 10), (60, 50)),
  ('b/two.png', 'train', 'sadness', 'q', (70, 50, 20), (120, 100)),
  ('b/nobody.png', 'train', 'sadness', 'r', None, (240, 200)),
  ('a/nobody.png', 'test', 'happiness', 's', None, (60, 50)),
  ('a/two.png', 'test', 'happiness', 's', (60, 50, 20), (120, 100)),
)


def draw(path: Path, disc, size) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  image = np.zeros((size[1], size[0], 3), np.uint8)
  if disc:
    cv2.circle(image, disc[:2], disc[2], (255, 255, 255), -1)
  else:
    cv2.circle(image, (size[0] // 2, size[1] // 2), 2, (200, 200, 0), -1)
  cv2.imwrite(str(path), image)


def rows_of(path):
  with path.open(newline='') as file:
    return list(csv.DictReader(file))


@pytest.fixture(scope='module')
def labelled(tmp_path_factory):
  """A manifest of six pictures, two without a face, and its rows."""
  folder = tmp_path_factory.mktemp('labelled')
  with (folder / 'set.csv').open('w', newline='') as file:
    lines = csv.writer(file)
    lines.writerow(HEADER)
    for number, (path, split, label, subject, disc, size) in enumerate(PICTURES):
      draw(folder / path, disc, size)
      votes = (7, 3) if label == 'happiness' else (1, 8)
      lines.writerow([path, split, label, subject, 30, number / 3, *votes, 5, 5])
  return sets.load(f'manifest:{folder / "set.csv"}', dir=str(folder / 'prepared'))


@pytest.fixture
def short(detector_command):
  """Arguments of `annotate` for small crops."""
  return {'command': detector_command, 'size': 64}


def test_every_label_stays_and_faces_are_added(labelled, short, tmp_path, data_dir):
  text = sets.annotate(labelled, tmp_path / 'out', **short)
  assert 'manifest: 6 rows, 4 with a face (66.7 %)' in text and 'replaced: landmarks of' in text
  counts = [line.split() for line in text.splitlines()]
  assert ['train', 'test'] in counts
  assert ['happiness', *'0 of 1 1 of 2'.split()] in counts
  assert ['sadness', *'1 of 3 0 of 0'.split()] in counts
  rows = {row['source']: row for row in rows_of(tmp_path / 'out' / 'manifest.csv')}
  assert list(rows) == [path for path, *_ in PICTURES]
  target = alignment.target(64, 0.1)
  for number, (path, split, label, subject, disc, _) in enumerate(PICTURES):
    row = rows[path]
    assert (row['split'], row['label'], row['subject'], row['yaw_bin']) == (
      split,
      label,
      subject,
      '30',
    )
    shares = (0.7, 0.3) if label == 'happiness' else (1 / 9, 8 / 9)
    assert (float(row['p_happiness']), float(row['p_sadness'])) == pytest.approx(shares)
    assert float(row['AU01_r']) == pytest.approx(number / 3) and row['has_face'] == str(
      int(bool(disc))
    )
    points = np.array([[float(row[f'{axis}_{i}']) for axis in 'xy'] for i in range(68)])
    np.testing.assert_allclose(points, target, atol=0.4)
    crop = cv2.imread(str(tmp_path / 'out' / row['path']))
    assert crop.shape == (64, 64, 3)
    column, line = target[30].round().astype(int)
    assert (crop[line, column].min() > 200) == bool(disc)
  missing = rows_of(tmp_path / 'out' / 'without_face.csv')
  assert [(row['source'], row['reason']) for row in missing] == [
    ('b/nobody.png', 'no face found'),
    ('a/nobody.png', 'no face found'),
  ]
  data = dataset.load(
    name='manifest', path=str(tmp_path / 'out' / 'manifest.csv'), dir=data_dir, image_size=32
  )
  table = data.splits['train'].table
  assert len(table['label']) == 4 and table['landmarks'].shape == (4, 68, 2)
  assert {'distribution', 'subject', 'pose', 'yaw', 'au'} <= set(table)


def test_a_row_without_a_face_is_cropped_at_the_median_place(labelled, short, tmp_path):
  """Of three faces in the middle of their pictures and one elsewhere, all of one size relative to
  the picture: the median puts the centre of any picture where the centre of a face is."""
  sets.annotate(labelled, tmp_path, **short)
  rows = {row['source']: row for row in rows_of(tmp_path / 'manifest.csv')}
  usual = {k: float(rows['a/one.png'][k]) for k in faces.MATRIX}
  linear = np.array([[usual['crop_00'], usual['crop_01']], [usual['crop_10'], usual['crop_11']]])
  middle = linear @ (59.5, 49.5) + (usual['crop_02'], usual['crop_12'])
  for name, (width, height) in (('b/nobody.png', (240, 200)), ('a/nobody.png', (60, 50))):
    matrix = np.array([float(rows[name][k]) for k in faces.MATRIX]).reshape(2, 3)
    centre = ((width - 1) / 2, (height - 1) / 2)
    np.testing.assert_allclose(matrix[:, :2], linear * 120 / width, atol=0.02)
    np.testing.assert_allclose(matrix[:, :2] @ centre + matrix[:, 2], middle, atol=0.7)
    image = decode(labelled.picture('train/3' if width == 240 else 'test/0'))
    crop = cv2.imread(str(tmp_path / rows[name]['path']))[..., ::-1]
    np.testing.assert_array_equal(crop, alignment.crop(image, matrix, 64))


def test_a_killed_run_continues_and_rows_without_a_face_can_be_dropped(
  labelled, short, tmp_path, monkeypatch
):
  whole, out, looked_at = tmp_path / 'whole', tmp_path / 'out', []
  sets.annotate(labelled, whole, **short)
  find = detector.Detector.find

  def dies(self, image, every=False):
    if len(looked_at) == 3:
      raise KeyboardInterrupt
    looked_at.append(image)
    return find(self, image, every)

  monkeypatch.setattr(detector.Detector, 'find', dies)
  with pytest.raises(KeyboardInterrupt):
    sets.annotate(labelled, out, **short)
  assert not (out / 'manifest.csv').exists() and (out / 'faces/train/a/one.png').is_file()
  (out / 'faces/train/a/one.png').unlink()  # found, and lost since
  monkeypatch.setattr(
    detector.Detector, 'find', lambda *args: looked_at.append(args[1]) or find(*args)
  )
  looked_at.clear()
  sets.annotate(labelled, out, **short)
  assert len(looked_at) == 4
  names = ('manifest.csv', 'without_face.csv', 'faces/train/b/nobody.png')
  for name in names:
    assert (out / name).read_bytes() == (whole / name).read_bytes()
  text = sets.annotate(labelled, out, drop=True, **short)
  assert len(looked_at) == 4 and 'They are left out.' in text
  assert {row['has_face'] for row in rows_of(out / 'manifest.csv')} == {'1'}
  assert '4 rows, 3 with a face' in sets.annotate(labelled, out, most=2, **short)
  found = [row['source'] for row in rows_of(out / 'manifest.csv')]
  assert found == ['a/one.png', 'b/two.png', 'a/nobody.png', 'a/two.png'] and len(looked_at) == 4


def test_rows_of_each_split_are_spread_evenly(labelled):
  assert labelled.keys() == [*(f'train/{i}' for i in range(4)), 'test/0', 'test/1']
  assert labelled.keys(2) == ['train/0', 'train/2', 'test/0', 'test/1']
  assert labelled.keys(3) == ['train/0', 'train/1', 'train/2', 'test/0', 'test/1']


def test_a_detector_that_fails_is_asked_again(labelled, short, tmp_path, monkeypatch):
  find = detector.Detector.find

  def fails(self, image, every=False):
    if image.shape[0] == 200:
      raise detector.DetectorError('too large')
    return find(self, image, every)

  monkeypatch.setattr(detector.Detector, 'find', fails)
  assert 'the detector failed: 1' in sets.annotate(labelled, tmp_path, **short)
  assert rows_of(tmp_path / 'without_face.csv')[0]['reason'] == 'the detector failed: too large'
  assert len(rows_of(tmp_path / 'manifest.csv')) == 6
  monkeypatch.setattr(detector.Detector, 'find', find)
  text = sets.annotate(labelled, tmp_path, **short)
  assert 'the detector failed' not in text and 'no face found: 2' in text


def test_no_face_at_all_and_other_data_are_errors(labelled, short, tmp_path, monkeypatch):
  sets.annotate(labelled, tmp_path / 'out', **short)
  other = labelled._replace(fingerprint='0' * 64)
  with pytest.raises(InputError, match='other settings .data manifest .* manifest 000000000000'):
    sets.annotate(other, tmp_path / 'out', **short)
  monkeypatch.setattr(detector.Detector, 'find', lambda *_: [])
  with pytest.raises(InputError, match=r'no face found in the 6 pictures of manifest \(first: no'):
    sets.annotate(labelled, tmp_path / 'none', **short)
  assert not list(tmp_path.glob('none/*.csv')) and not (tmp_path / 'none' / 'faces').exists()


def test_a_folder_of_crops_of_a_folder_is_refused(labelled, short, tmp_path):
  draw(tmp_path / 'pictures' / 'one.png', *PICTURES[0][4:])
  faces.annotate(tmp_path / 'pictures', tmp_path / 'a', **short)
  with pytest.raises(InputError, match='started with other settings .data None, now manifest'):
    sets.annotate(labelled, tmp_path / 'a', **short)
  sets.annotate(labelled, tmp_path / 'b', **short)
  with pytest.raises(InputError, match='started with other settings .all_faces None, now False'):
    faces.annotate(tmp_path / 'pictures', tmp_path / 'b', **short)


def test_names_become_paths_below_the_folder():
  names = ['a/b.jpg', 'A/B.png', '../../etc/x.png', '/x.png', 'c:\\d?.bmp', '..', 'é 1.JPG', '.png']
  assert sets._places(names) == [
    'a/b',
    'A/B-2',
    'etc/x',
    'x',
    'c_/d_',
    'picture',
    'é 1',
    'picture-2',
  ]


def test_the_longest_names_of_files_are_cut(short, tmp_path):
  name = 'x' * 249 + 'é.png'
  draw(tmp_path / name, *PICTURES[0][4:])
  (tmp_path / 'set.csv').write_text(f'path,split,label\n{name},train,fear\n')
  rows = sets.load(f'manifest:{tmp_path / "set.csv"}', dir=str(tmp_path / 'prepared'))
  sets.annotate(rows, tmp_path / 'out', **short)
  (row,) = rows_of(tmp_path / 'out' / 'manifest.csv')
  assert row['source'] == name and (tmp_path / 'out' / row['path']).is_file()
  assert sets._places([name, name]) == ['x' * 200, f'{"x" * 200}-2']


def test_a_prepared_set_and_its_manifest_are_equal(manifest, data_dir, tmp_path):
  """With every label that a set can have, and the pictures byte for byte."""
  rows = sets.load(f'manifest:{manifest}', dir=data_dir)
  text = sets.write(rows, tmp_path / 'copy.csv')
  assert 'train 84, val 21, test 28' in text
  options = {'name': 'manifest', 'dir': data_dir, 'image_size': 32}
  first = dataset.load(path=str(manifest), **options)
  second = dataset.load(path=str(tmp_path / 'copy.csv'), **options)
  assert first.classes == second.classes and first.action_units == second.action_units
  assert first.poses == second.poses and list(first.splits) == list(second.splits)
  for split, like in zip(second.splits.values(), first.splits.values(), strict=True):
    assert set(split.table) == set(like.table)
    for column in set(like.table) - {'name'}:
      found, expected = split.table[column], like.table[column]
      if expected.dtype.kind == 'f':
        np.testing.assert_allclose(found, expected, atol=2e-5)
      else:
        np.testing.assert_array_equal(found, expected)
  before = (tmp_path / 'copy.csv').read_bytes()
  with pytest.raises(InputError, match='copy_pictures exists already'):
    sets.write(rows, tmp_path / 'copy.csv')
  with pytest.raises(InputError, match='there is no folder'):
    sets.write(rows, tmp_path / 'none' / 'copy.csv')
  (tmp_path / 'folder').mkdir()
  with pytest.raises(InputError, match='is a folder: give a file'):
    sets.write(rows, tmp_path / 'folder')
  (tmp_path / 'folder').rmdir()
  assert (tmp_path / 'copy.csv').read_bytes() == before
  assert sorted(p.name for p in tmp_path.iterdir()) == ['copy.csv', 'copy_pictures']


def test_a_write_that_fails_leaves_nothing(labelled, tmp_path, monkeypatch):
  def full(self, content):
    raise OSError(28, 'No space left on device', str(self))

  monkeypatch.setattr(Path, 'write_bytes', full)
  with pytest.raises(InputError, match='cannot write .*: No space left on device'):
    sets.write(labelled, tmp_path / 'copy.csv')
  assert not list(tmp_path.iterdir())


def test_the_manifest_that_is_read_is_not_replaced(tmp_path):
  draw(tmp_path / 'one.png', None, (60, 50))
  (tmp_path / 'set.csv').write_text('path,split,label,note\none.png,train,fear,mine\n')
  with pytest.raises(InputError, match='set.csv is the manifest that is read'):
    sets.check_out(tmp_path / 'set.csv', f'manifest:{tmp_path / "set.csv"}')
  assert sets.check_out(tmp_path / 'b.csv', f'manifest:{tmp_path / "set.csv"}').name == 'b_pictures'


def test_folds_by_subject_stay_when_people_are_dropped(tmp_path):
  trees.jaffe(tmp_path)
  prepared = str(tmp_path / 'prepared')
  rows = sets.load('jaffe', manual_dir=str(tmp_path), dir=prepared)
  sets.write(rows, tmp_path / 'jaffe.csv')
  lines = (tmp_path / 'jaffe.csv').read_text().splitlines()
  kept = [line for line in lines if ',KL,' not in line]
  assert len(lines) == 71 and len(kept) == 64
  (tmp_path / 'jaffe.csv').write_text('\n'.join(kept) + '\n')
  for fold in (0, 2, 9):
    whole = dataset.load(name='jaffe', dir=prepared, fold=fold)
    again = dataset.load(name='manifest', path=str(tmp_path / 'jaffe.csv'), dir=prepared, fold=fold)
    tested = [set(data.splits['test'].table['digest']) for data in (whole, again)]
    assert tested[0] == tested[1] and 'fold' not in again.splits['train'].table
  with pytest.raises(InputError, match='config.data.fold=1: no row is in this fold of manifest'):
    dataset.load(name='manifest', path=str(tmp_path / 'jaffe.csv'), dir=prepared, fold=1)


def test_folds_need_no_subjects(tmp_path):
  lines = ['path,split,label,fold']
  for number in range(4):
    draw(tmp_path / f'{number}.png', (60, 50, 5 + number), (120, 100))
    lines.append(f'{number}.png,train,fear,{number // 2}')
  (tmp_path / 'set.csv').write_text('\n'.join(lines) + '\n')
  rows = sets.load(f'manifest:{tmp_path / "set.csv"}', dir=str(tmp_path / 'prepared'))
  sets.write(rows, tmp_path / 'copy.csv')
  assert [row['fold'] for row in rows_of(tmp_path / 'copy.csv')] == ['0', '0', '1', '1']


def test_the_command(labelled, detector_command, tmp_path, monkeypatch, capsys):
  folder = tmp_path / 'own'
  draw(folder / 'one.png', *PICTURES[0][4:])
  (folder / 'set.csv').write_text('path,split,label\none.png,train,awe\n')
  spec = f'--data=manifest:{folder / "set.csv"}'
  monkeypatch.setattr(detector, 'worker', lambda python, model: detector_command)
  monkeypatch.chdir(tmp_path)
  flags = [spec, f'--dir={tmp_path / "prepared"}', f'--python={sys.executable}', '--workers=1']
  main([*flags, '--classes=awe,fear'])
  shown = capsys.readouterr().out
  assert '1 rows, 1 with a face' in shown and '''--config.data.classes="('awe', 'fear')"''' in shown
  assert (tmp_path / 'set_faces' / 'manifest.csv').is_file()
  for wrong, message in (
    ([], 'give a folder of pictures, or a data set'),
    (['--data='], 'give a folder of pictures, or a data set'),
    ([str(folder), spec], 'give a folder of pictures, or a data set'),
    ([str(folder), '--drop_without_face'], '--drop_without_face is for a data set'),
    ([spec, '--faces=all'], 'only the largest face'),
    ([spec, f'--out={folder}'], 'holds .*set.csv, which is read'),
    ([spec, '--most=-1'], '--most=-1'),
    ([spec, '--size=9'], '--size=9'),
    (['--data=raf_bd'], "--data names 'raf_bd', which is not a data set.* Did you mean 'raf_db'"),
    ([spec, '--option=x'], 'give KEY=VALUE'),
  ):
    with pytest.raises(InputError, match=message):
      main(wrong)
