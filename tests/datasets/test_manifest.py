import csv
import functools
import math
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from ferjax.data import dataset
from ferjax.datasets import listing
from ferjax.datasets.catalogue import Source
from ferjax.datasets.manifest import known, manifest_dataset_builder, parser
from ferjax.errors import InputError
from ferjax.images import files


def write(folder, rows, header=('path', 'split', 'label')):
  path = folder / 'manifest.csv'
  with path.open('w', newline='') as file:
    csv.writer(file).writerows([header, *rows])
  return path


def picture(folder, name, mode='RGB', size=(6, 4)):
  (folder / name).parent.mkdir(parents=True, exist_ok=True)
  Image.new(mode, size, 7 if mode in ('L', 'I;16') else None).save(folder / name)
  return name


@pytest.fixture
def folder(tmp_path):
  picture(tmp_path, 'a.png')
  return tmp_path


def test_every_format_below_the_manifest(folder, tmp_path_factory):
  names = [
    picture(folder, name, mode)
    for name, mode in {
      'deep/er/a.jpg': 'RGB',
      'B.JPEG': 'L',
      'c.png': 'RGBA',
      'd.bmp': 'RGB',
      'e.tiff': 'L',
      'f.png': 'I;16',
      'g.tif': 'RGB',
      'h.png': 'P',
      'i.jpg': 'CMYK',
    }.items()
  ]
  path = write(folder, [(name, 'Training', 'Happy') for name in names])
  out = str(tmp_path_factory.mktemp('out'))
  split = dataset.load(name='manifest', path=str(path), dir=out, val_fraction=0.0).splits['train']
  assert list(split.table['name']) == names and set(split.table['label']) == {1}
  assert set(split.table['height']) == {4} and set(split.table['width']) == {6}
  for row in range(9):
    assert dataset.picture(split, row, 5).shape == (5, 5, 3)


def test_values_become_features(manifest):
  parsed = parser.parse(manifest)
  assert parsed.action_units == ('AU01', 'AU12') and not parsed.problems
  row = parsed.rows[1]
  assert len(row['landmarks']) == 68
  assert row['yaw'] == pytest.approx(math.degrees(0.5)) and row['yaw_bin'] == 30
  assert row['au'] == [1.5, 2.5] and row['line'] == 3
  assert sum(row['distribution']) == pytest.approx(1) and np.argmax(row['distribution']) == 1


def test_votes_are_normalised_and_openface_names_are_trimmed(folder):
  header = ('path', 'split', 'label', 'votes_happy', ' votes_contempt', ' AU01_r', 'p_0', 'p_rx')
  path = write(folder, [('a.png', 'test', 'contempt', 1, 3, 0.5, 9, 9)], header)
  parsed = parser.parse(path)
  assert parsed.classes[-1] == 'contempt' and parsed.action_units == ('AU01',)
  assert parsed.rows[0]['distribution'] == [0, 0.25, 0, 0, 0, 0, 0, 0.75]


def test_bad_rows_are_reported_with_their_lines_and_can_be_left_out(folder):
  (folder / 'broken.png').write_bytes(b'\x89PNG\r\n\x1a\n nothing')
  whole = (folder / picture(folder, 'whole.jpg', size=(64, 64))).read_bytes()
  (folder / 'cut.jpg').write_bytes(whole[: len(whole) // 2])
  header = ('path', 'split', 'label', 'x_0', 'y_0')
  rows = [
    ('a.png', 'train', 'fear', 1, 2),
    ('none.png', 'train', 'fear', 1, 2),
    ('nor.png', 'train', 'fear', 1, 2),
    ('broken.png', 'train', 'fear', 1, 2),
    ('cut.jpg', 'train', 'fear', 1, 2),
    ('whole.jpg', 'train', 'hapiness', 1, 2),
    ('a.png', 'train', 'fear', 1, 2),
    ('../outside.png', 'somewhere', '3', 'nan', ''),
  ]
  path = write(folder, rows, header)
  builder = manifest_dataset_builder.make(str(folder / 'out'), Source(str(path)))
  with pytest.raises(InputError) as error:
    builder.download_and_prepare(file_format='array_record')
  text = str(error.value)
  for part in (
    'missing file: 2 rows, lines 3-4',
    'broken picture: 2 rows, lines 5-6',
    "Did you mean 'happiness'?",
    'repeated picture: 1 row, line 8',
    'path is not below its folder: 1 row, line 9',
    'landmark is not a finite number: 1 row, line 9',
    "'somewhere': use train, val or test",
    'skip_bad=True',
  ):
    assert part in text, text
  assert not list((folder / 'out').rglob('*.array_record*'))
  kept = manifest_dataset_builder.make(str(folder / 'out'), Source(str(path), skip_bad=True))
  kept.download_and_prepare(file_format='array_record')
  assert len(kept.as_data_source('train')) == 1
  assert 'lines 3-4' in kept.info.metadata['bad_rows']


@pytest.mark.parametrize(
  'content, message',
  [
    (b'\xff\xd8\xff\xe0 binary \x80\x00', 'not a CSV'),
    (b'file,split,label\n', "no column 'path'"),
    (b'path,split,lable\n', "Did you mean 'lable'"),
    (b'path,split,label,x_0,x_2,y_0,y_2\n', 'no gaps'),
    (b'path,split,label,p_fear,votes_fear\n', 'keep one kind'),
    (b'path,path,split,label\n', 'occurs twice'),
    (b'', "no column 'path'"),
  ],
)
def test_files_that_are_not_manifests(tmp_path, content, message):
  (tmp_path / 'x.csv').write_bytes(content)
  with pytest.raises(InputError, match=message):
    parser.parse(tmp_path / 'x.csv')


def test_no_such_file(tmp_path):
  with pytest.raises(InputError, match='no such manifest'):
    parser.parse(tmp_path / 'x.csv')


def test_other_classes_are_counted_and_left_out(folder):
  picture(folder, 'b.png')
  path = write(folder, [('a.png', 'train', 'fear'), ('b.png', 'train', 'anger')])
  parsed = parser.parse(path, classes=('neutral', 'fear'))
  assert len(parsed.rows) == 1 and parsed.other_classes == {'anger': 1} and not parsed.problems


def test_deep_pixels_keep_their_brightness(folder):
  ramp = np.arange(256, dtype=np.uint16)[None].repeat(4, 0) * 257
  for byte_order in '<>':
    Image.fromarray(ramp.astype(f'{byte_order}u2')).save(folder / f'{ord(byte_order)}.tif')
  Image.fromarray(ramp.astype(np.float32)).save(folder / 'float.tif')
  rows = [(f'{ord(c)}.tif', 'train', 'fear') for c in '<>']
  path = write(folder, rows)
  split = dataset.load(name='manifest', path=str(path), dir=str(folder / 'out'), val_fraction=0.0)
  for row in range(2):
    picture = files.decode(split.splits['train'].records[row])
    np.testing.assert_array_equal(picture[0, :, 1], np.arange(256))
  path = write(folder, [('float.tif', 'train', 'fear')])
  with pytest.raises(InputError, match='32-bit'):
    dataset.load(name='manifest', path=str(path), dir=str(folder / 'out'))


def test_angles_are_radians(folder):
  header = ('path', 'split', 'label', *parser.POSE.values())
  angles = [(3.142, -3.142, 0), (0, 30, 0), (-3.2, 0, 0), (0, 0, 3.2)]
  rows = [(picture(folder, f'{i}.png'), 'train', 'fear', *a) for i, a in enumerate(angles)]
  parsed = parser.parse(write(folder, rows, header))
  assert [row['path'] for row in parsed.rows] == ['0.png']
  assert parsed.rows[0]['pitch'] == pytest.approx(180, abs=0.1)
  assert [(p.line, p.kind, p.detail) for p in parsed.problems] == [
    (line, 'angle beyond a half turn', f"{name} = '{value}': give radians, from -pi to pi")
    for line, name, value in ((3, 'pose_Ry', 30), (4, 'pose_Rx', -3.2), (5, 'pose_Rz', 3.2))
  ]


def test_odd_rows_and_columns(folder):
  header = ('path', 'split', 'label', 'p_id', 'p_fear', 'x_0', 'y_0', '')
  picture(folder, 'b.png')
  rows = [
    ('./a.png', 'train', 'fear', 'id7', 1, 0, 0),
    ('a.png', 'train', 'fear', 'id7', 1, 0, 0),
    ('b.png', 'train', 'fear', 'id7', 1, '1e39', 0),
    ('c' * 300, 'train', 'fear', 'id7', 1, 0, 0),
    ('b.png', 'train', 'fear', 'id7', 1, 0, 0, 'surplus', 'fields'),
  ]
  parsed = parser.parse(write(folder, rows, header))
  assert [row['path'] for row in parsed.rows] == ['a.png'] and 'distribution' in parsed.rows[0]
  kinds = {problem.line: problem.kind for problem in parsed.problems}
  assert kinds[3] == 'repeated picture' and 'landmark' in kinds[4] and kinds[5] == 'missing file'
  assert 'surplus,fields' in listing.report(parsed.problems)


def test_the_cache_key_follows_manifest_and_pictures(folder):
  path = write(folder, [('a.png', 'train', 'fear')])
  before = listing.fingerprint(parser.parse(path))
  assert before == listing.fingerprint(parser.parse(path))
  picture(folder, 'a.png', size=(9, 9))
  assert before != listing.fingerprint(parser.parse(path))


def test_folds_are_of_training_rows(folder, data_dir):
  for name in ('b.png', 'c.png', 'd.png'):
    picture(folder, name)
  header = ('path', 'split', 'label', 'fold')
  rows = [('a.png', 'train', 'fear', '1'), ('b.png', 'train', 'fear', '0')]
  path = write(
    folder, [*rows, ('c.png', 'train', 'fear', '1'), ('d.png', 'train', 'sad', 0)], header
  )
  assert parser.parse(path).folds == 2
  names = []
  for fold in (0, 1):
    data = dataset.load(name='manifest', path=str(path), dir=data_dir, fold=fold, val_fraction=0.0)
    names.append({k: data.splits[k].table['name'].tolist() for k in ('train', 'test')})
  assert names == [
    {'train': ['a.png', 'c.png'], 'test': ['b.png', 'd.png']},
    {'train': ['b.png', 'd.png'], 'test': ['a.png', 'c.png']},
  ]
  with pytest.raises(InputError, match='config.data.fold=2: .* must be 0 to 1'):
    dataset.load(name='manifest', path=str(path), dir=data_dir, fold=2)
  wrong = [('c.png', 'test', 'fear', '1'), ('d.png', 'train', 'sad', '-1')]
  kinds = [p.kind for p in parser.parse(write(folder, [*rows, *wrong], header)).problems]
  assert kinds == ['fold outside of train', 'fold is not 0, 1, ...']
  alone = write(folder, [(*row[:3], '0') for row in rows], header)
  with pytest.raises(InputError, match='config.data.fold=0: every row is in this fold'):
    dataset.load(name='manifest', path=str(alone), dir=data_dir)


def test_a_manifest_that_was_prepared_is_not_parsed_again(manifest, tmp_path, monkeypatch):
  folder = shutil.copytree(manifest.parent, tmp_path / 'faces')
  path, source = folder / manifest.name, Source(str(folder / manifest.name))
  make = functools.partial(manifest_dataset_builder.make, str(tmp_path / 'out'))
  first = make(source)
  assert not known.find(tmp_path / 'out', path, ())
  first.download_and_prepare(file_format='array_record')
  parsed = []
  parse = parser.parse
  monkeypatch.setattr(parser, 'parse', lambda *given: parsed.append(1) or parse(*given))
  second = make(source)
  assert not parsed and second.data_path == first.data_path
  assert second.info.splits['train'].num_examples == first.info.splits['train'].num_examples
  (kept,) = (tmp_path / 'out' / 'manifest').glob('known-*.json')
  for damaged in ('', '[]', '{"name": "../x", "paths": [], "pictures": ""}'):
    kept.write_text(damaged)
    assert make(source).data_path == first.data_path and parsed.pop() and not parsed
  os.utime(folder / 'train_000.png', (1, 1))
  assert make(source).data_path != first.data_path and parsed.pop()
  path.write_text(path.read_text() + '\n')
  make(source)
  assert parsed.pop()
  make(source._replace(skip_bad=True))
  assert parsed
