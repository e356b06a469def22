"""Every data set of `ferjax.datasets` with small files in its layout; see `fixtures/trees.py`."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import trees
from PIL import Image
from trees import load

from ferjax.cli import prepare
from ferjax.data import checks, dataset, pipeline
from ferjax.datasets import builder, catalogue, folders
from ferjax.errors import InputError
from ferjax.images import files

ROOT = Path(__file__).parents[2]
SETS = (
  'raf_db fer2013 fer_plus affectnet ck_plus sfew kdef bu3dfe multi_pie jaffe mmi oulu_casia cfee '
  'expw folder'
).split()
RENDERED = functools.partial(trees.bu3dfe, rendered=True)


POSED = 'subject yaw_bin pose'


@pytest.mark.parametrize(
  'tree, name, protocol, options, counts, columns',
  [
    (trees.raf_db, 'raf_db', '', {}, {'train': [3] * 7, 'test': [2] * 7}, ''),
    (
      trees.raf_db,
      'raf_db',
      'basic',
      {'images': 'original'},
      {'train': [3] * 7, 'test': [2] * 7},
      'landmarks',
    ),
    (trees.fer2013, 'fer2013', '', {}, {'train': [2] * 7, 'val': [1] * 7, 'test': [1] * 7}, ''),
    (
      trees.fer_plus,
      'fer_plus',
      '',
      {},
      {
        'train': [1, 1, 2, 2, 2, 2, 1, 1],
        'val': [1, 1, 1, 1, 1, 0, 1, 1],
        'test': [1, 1, 1, 1, 0, 1, 1, 1],
      },
      'distribution',
    ),
    (
      trees.fer_plus_folders,
      'fer_plus',
      '',
      {'rule': 'majority'},
      {'train': [1] * 8, 'val': [1] * 8, 'test': [1] * 8},
      'distribution',
    ),
    (trees.affectnet, 'affectnet', '', {}, {'train': [3] * 8, 'test': [1] * 8}, 'landmarks'),
    (
      trees.affectnet_old,
      'affectnet',
      'seven',
      {},
      {'train': [2] * 7, 'test': [1] * 7},
      'landmarks',
    ),
    (
      trees.ck_plus,
      'ck_plus',
      'last_three',
      {},
      {'train': [63, 27, 27, 27, 27, 27, 27, 27], 'test': [6, 3, 0, 3, 3, 3, 3, 3]},
      'au landmarks subject',
    ),
    (
      trees.ck_plus,
      'ck_plus',
      'ldl_alsg',
      {},
      {'test': [69, 10, 9, 10, 10, 10, 10]},
      'au landmarks subject',
    ),
    (trees.sfew, 'sfew', '', {}, {'train': [2] * 7, 'test': [1] * 7}, ''),
    (
      trees.sfew,
      'sfew',
      '',
      {'images': 'original'},
      {'train': [3] * 7, 'test': [2] * 7},
      '',
    ),
    (trees.kdef, 'kdef', '', {}, {'train': [20] * 7, 'test': [10] * 7}, POSED),
    (trees.bu3dfe, 'bu3dfe', '', {}, {'train': [9] * 7, 'test': [1] * 7}, 'subject'),
    (RENDERED, 'bu3dfe', 'dml_net', {}, {'train': [28] * 6, 'test': [12] * 6}, POSED),
    (trees.multi_pie, 'multi_pie', '', {}, {'train': [21] * 6, 'test': [3] * 6}, POSED),
    (
      trees.multi_pie,
      'multi_pie',
      'all_cameras',
      {'illuminations': (7, 12)},
      {'train': [35] * 6, 'test': [5] * 6},
      POSED,
    ),
    (trees.jaffe, 'jaffe', '', {}, {'train': [9] * 7, 'test': [1] * 7}, 'subject'),
    (
      trees.mmi,
      'mmi',
      '',
      {},
      {'train': [9, 6, 3, 3, 3, 6, 6], 'test': [1, 0, 0, 0, 3, 0, 0]},
      'subject',
    ),
    (trees.mmi, 'mmi', 'ldl_alsg', {}, {'test': [20, 8, 4, 4, 8, 8, 8]}, 'subject'),
    (trees.oulu_casia, 'oulu_casia', '', {}, {'train': [27] * 6, 'test': [3] * 6}, 'subject'),
    (
      trees.oulu_casia,
      'oulu_casia',
      'ldl_alsg',
      {},
      {'test': [120] + [40] * 6},
      'subject',
    ),
    (trees.cfee, 'cfee', '', {}, {'test': [10] * 7}, 'subject'),
    (trees.cfee, 'cfee', 'ten_fold', {}, {'train': [9] * 7, 'test': [1] * 7}, 'subject'),
    (
      trees.expw,
      'expw',
      '',
      {},
      {
        'train': [12, 14, 12, 14, 12, 10, 14],
        'val': [2, 4, 2, 0, 4, 4, 0],
        'test': [2, 0, 2, 2, 2, 4, 4],
      },
      '',
    ),
    (trees.folder, 'folder', '', {}, {'train': [4] * 4, 'test': [2] * 4}, ''),
  ],
)
def test_every_protocol(tmp_path, tree, name, protocol, options, counts, columns):
  tree(tmp_path)
  data = load(tmp_path, name, protocol=protocol, options=options, image_size=12)
  found = {
    split: np.bincount(rows.table['label'], minlength=len(data.classes)).tolist()
    for split, rows in data.splits.items()
  }
  assert found == counts
  split = next(iter(data.splits.values()))
  known = set(split.table) - {'label', 'name', 'digest', 'hash', 'height', 'width'}
  assert known == set(columns.split())
  plan = {'index': np.array([[0, len(split.rows) - 1]])}
  batch = next(pipeline.batches(split, plan, ('label', *sorted(known)), 12, threads=1))
  assert batch['image'].shape == (2, 12, 12, 3) and batch['image'].std() > 5
  people = [set(rows.table['subject']) for rows in data.splits.values() if 'subject' in columns]
  assert sum(map(len, people)) == len(set().union(*people))


def test_folds_test_every_person_once(tmp_path):
  trees.kdef(tmp_path)
  tested = []
  for fold in range(5):
    test = load(tmp_path, 'kdef', fold=fold).splits['test']
    tested += np.unique(test.table['subject']).tolist()
  assert sorted(tested) == list(range(6))
  with pytest.raises(InputError, match='it must be 0 to 4'):
    load(tmp_path, 'kdef', fold=5)


@pytest.mark.parametrize('name', SETS)
def test_wrong_folders_name_the_path_and_the_layout(tmp_path, name):
  with pytest.raises(InputError, match='(?s)there is no folder.*manual_dir.*Terms: '):
    load(tmp_path / 'nowhere', name)
  trees.text(tmp_path / name / 'notes' / 'readme.txt', 'nothing')
  with pytest.raises(InputError, match=f'(?s){tmp_path / name}.* Expected:\n.*/') as error:
    load(tmp_path, name)
  assert 'Traceback' not in str(error.value) and not (tmp_path / 'out').exists()
  if name != 'folder':
    with pytest.raises(InputError, match="config.data.protocol is 'bogus'. There are: "):
      load(tmp_path, name, protocol='bogus')


def test_a_set_without_protocols():
  with pytest.raises(InputError, match='manifest has no protocols'):
    dataset.load(name='manifest', path='x.csv', protocol='official')


@pytest.mark.parametrize('what', ['cut', 'empty', 'text'])
def test_broken_pictures_are_named_and_nothing_half_written_is_left(tmp_path, what):
  trees.jaffe(tmp_path)
  path = tmp_path / 'jaffe' / 'KA.AN1.39.tiff'
  content = path.read_bytes()
  path.write_bytes({'cut': content[: len(content) // 2], 'empty': b'', 'text': b'hello'}[what])
  with pytest.raises(InputError, match='broken picture: 1\n.*KA.AN1.39.tiff'):
    load(tmp_path, 'jaffe')
  assert not list((tmp_path / 'out').rglob('*.array_record*'))
  path.write_bytes(content)
  assert len(load(tmp_path, 'jaffe').splits['train'].rows) == 63


@pytest.mark.parametrize('damage', ['cut', 'flipped', 'too wide'])
def test_png_that_only_pillow_decodes_is_broken(tmp_path, damage):
  for name in ('sad', 'happy'):
    trees.picture(tmp_path / 'folder' / name / 'a.png', 1)
  path = tmp_path / 'folder' / 'sad' / 'a.png'
  content = path.read_bytes()
  if damage == 'too wide':
    Image.new('1', (1_200_000, 2)).save(path)
  else:
    flipped = content[:-13] + bytes([content[-13] ^ 1]) + content[-12:]  # IDAT's checksum
    path.write_bytes({'cut': content[:-8], 'flipped': flipped}[damage])
  with Image.open(path) as picture:
    picture.load()
  with pytest.raises(InputError, match='broken picture: 1\n.*sad/a.png: '):
    load(tmp_path, 'folder')
  assert not list((tmp_path / 'out').rglob('dataset_info.json'))
  assert len(load(tmp_path, 'folder', skip_bad=True).splits['train'].rows) == 1


def test_a_stored_picture_that_cannot_be_decoded_is_named(tmp_path, monkeypatch):
  trees.jaffe(tmp_path)
  monkeypatch.setattr(dataset, 'decode', lambda encoded: None)
  with pytest.raises(InputError, match='picture KA.AN1.39.tiff cannot be decoded: remove'):
    load(tmp_path, 'jaffe')


def test_names_that_are_not_utf_8(tmp_path):
  for name in ('sad', 'happy'):
    trees.picture(tmp_path / 'folder' / name / 'a.png', 1)
  odd = tmp_path / 'folder' / 'sad' / os.fsdecode(b'\xff.png')
  odd.write_bytes((tmp_path / 'folder' / 'sad' / 'a.png').read_bytes())
  odd.with_suffix('.txt').write_text('')
  with pytest.raises(InputError, match=r'broken picture: 1\n.*sad/\\udcff.png: its name is not'):
    load(tmp_path, 'folder')
  assert len(load(tmp_path, 'folder', skip_bad=True).splits['train'].rows) == 2
  odd.parent.rename(odd.parent.with_name(os.fsdecode(b'\xfe')))
  with pytest.raises(InputError, match=r"the class name '\\udcfe' is not UTF-8"):
    load(tmp_path, 'folder')


def test_folders_with_links_to_themselves(tmp_path):
  trees.folder(tmp_path)
  before = folders.files(tmp_path)
  (tmp_path / 'folder' / 'train' / 'loop').symlink_to(tmp_path)
  assert folders.files(tmp_path) == before
  with pytest.raises(InputError, match='cannot read .*nowhere: No such file'):
    folders.files(tmp_path / 'nowhere')


def test_folders_that_may_not_be_read(tmp_path, monkeypatch):
  trees.jaffe(tmp_path)
  (tmp_path / 'jaffe' / 'locked').mkdir()
  scandir = os.scandir

  def refuse(path):
    if str(path).endswith('locked'):
      raise PermissionError(13, 'Permission denied', str(path))
    return scandir(path)

  monkeypatch.setattr(os, 'scandir', refuse)
  with pytest.raises(InputError, match='cannot read .*locked: Permission denied'):
    load(tmp_path, 'jaffe')


def test_what_is_prepared_needs_no_pictures_and_is_renewed_on_demand(tmp_path):
  trees.jaffe(tmp_path)
  first = load(tmp_path, 'jaffe')
  names = first.splits['test'].table['name'].tolist()
  assert names == [f'KA.{e}1.{39 + i}.tiff' for i, e in enumerate('AN DI FE HA NE SA SU'.split())]
  trees.picture(tmp_path / 'jaffe' / 'KA.AN2.60.tiff', 7, mode='L')
  assert load(tmp_path, 'jaffe').fingerprint == first.fingerprint
  text = prepare.data(name='jaffe', manual_dir=str(tmp_path), dir=str(tmp_path / 'out'))
  assert 'subjects         9        1' in text and 'train 71 instead of 213' in text
  trees.picture(tmp_path / 'jaffe' / 'nobody.tiff', 7, mode='L')
  text = prepare.data(name='jaffe', manual_dir=str(tmp_path), dir=str(tmp_path / 'out'))
  assert 'name outside the grammar: 1\n    nobody.tiff' in text
  (tmp_path / 'jaffe').rename(tmp_path / 'gone')
  assert len(load(tmp_path, 'jaffe').splits['test'].rows) == 8


def test_places_that_cannot_be_written(tmp_path):
  trees.jaffe(tmp_path)
  trees.text(tmp_path / 'file', '')
  for place in (tmp_path / 'file', Path('/proc/none')):
    with pytest.raises(InputError, match=f'cannot prepare jaffe in {place}/jaffe/.*Errno'):
      prepare.data(name='jaffe', manual_dir=str(tmp_path), dir=str(place))


def test_missing_labels_are_an_error_before_training(tmp_path):
  trees.jaffe(tmp_path)
  data = load(tmp_path, 'jaffe')
  checks.check_trainable(data, frozenset({'subject'}), 8)
  with pytest.raises(InputError, match="needs 'landmarks', which jaffe"):
    checks.check_trainable(data, frozenset({'landmarks'}), 8)


def test_shards_keep_the_order(tmp_path, monkeypatch):
  trees.folder(tmp_path)
  monkeypatch.setattr(builder, 'SHARD_BYTES', 3000)
  split = load(tmp_path, 'folder').splits['train']
  assert len(list((tmp_path / 'out').rglob('*train.array_record*'))) > 2
  assert split.table['name'].tolist() == sorted(split.table['name']) and len(split.rows) == 16
  whole = [dataset.picture(split, row, 16) for row in range(16)]
  for image, name in zip(whole, split.table['name'], strict=True):
    expected = files.decode((tmp_path / 'folder' / name).read_bytes())
    np.testing.assert_array_equal(image, expected)


def test_names():
  assert set(SETS) < set(catalogue.names())


def test_the_command_and_that_nothing_imports_tensorflow(tmp_path):
  trees.folder(tmp_path)
  source = tmp_path / 'folder' / 'train' / 'sad' / 'deep' / '0.jpg'
  (tmp_path / 'folder' / 'test' / 'Happy' / 'copy.jpg').write_bytes(source.read_bytes())
  code = (
    'import atexit, importlib, runpy, sys; from ferjax.datasets import catalogue\n'
    'for n in catalogue.names():\n'
    "  importlib.import_module(f'ferjax.datasets.{n}.{n}_dataset_builder')\n"
    "atexit.register(lambda: print('tensorflow' in sys.modules))\n"
    "runpy.run_module('ferjax', run_name='__main__', alter_sys=True)"
  )
  flags = ['--name=folder', f'--manual_dir={tmp_path}', f'--dir={tmp_path / "out"}']
  command = [sys.executable, '-c', code, 'prepare', 'data', *flags]
  result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert result.returncode == 0, result.stderr
  assert 'happiness        4        3' in result.stdout
  assert '(1 byte for byte' in result.stdout
  assert 'no picture: 1\n    train/notes.txt' in result.stdout
  assert result.stdout.splitlines()[-1] == 'False'


def test_unknown_names_and_options_are_refused(tmp_path):
  with pytest.raises(InputError, match="Did you mean 'jaffe'"):
    prepare.data(name='jafe', manual_dir=str(tmp_path))
  with pytest.raises(InputError, match="Did you mean 'images'"):
    prepare.data(name='raf_db', manual_dir=str(tmp_path), options={'imags': 'original'})
  with pytest.raises(InputError, match='There are: aligned, original'):
    trees.text(tmp_path / 'raf_db' / 'x', '')
    prepare.data(name='raf_db', manual_dir=str(tmp_path), options={'images': 'cropped'})
