"""The parsers of `ferjax.datasets`: what each one reads and leaves out."""

from pathlib import Path

import numpy as np
import pytest
import trees
from PIL import Image
from trees import load

from ferjax.cli import prepare
from ferjax.datasets import listing
from ferjax.datasets.affectnet import parser as affectnet
from ferjax.datasets.cfee import parser as cfee
from ferjax.datasets.ck_plus import parser as ck_plus
from ferjax.datasets.expw import parser as expw
from ferjax.datasets.fer2013 import parser as fer2013
from ferjax.datasets.fer_plus import parser as fer_plus
from ferjax.datasets.folder import parser as folder
from ferjax.datasets.jaffe import parser as jaffe
from ferjax.datasets.kdef import parser as kdef
from ferjax.datasets.mmi import parser as mmi
from ferjax.datasets.multi_pie import parser as multi_pie
from ferjax.datasets.oulu_casia import parser as oulu_casia
from ferjax.datasets.raf_db import parser as raf_db
from ferjax.datasets.sfew import parser as sfew
from ferjax.errors import InputError
from ferjax.images import files
from ferjax.labels import CLASSES, CLASSES_8


def test_raf_db_names_labels_and_skipped_pictures(tmp_path):
  trees.raf_db(tmp_path)
  found = raf_db.parse(tmp_path / 'raf_db')
  rows = {row['name']: row for row in found.rows}
  assert rows['train_00002.jpg']['label'] == 'fear' and rows['test_0007.jpg']['label'] == 'neutral'
  assert rows['train_00002.jpg']['path'].endswith('00002_aligned.JPG')
  assert [problem.detail for problem in found.skipped] == ['train_99999_aligned.jpg']
  assert listing.differences(found)[0] == 'train 21 instead of 12271'
  total = sum(count for key, (count,) in found.known.items() if '/' in key)
  assert total == 12271 + 3068


def test_raf_db_bad_lines(tmp_path):
  trees.raf_db(tmp_path)
  path = tmp_path / 'raf_db' / 'basic' / 'EmoLabel' / 'list_patition_label.txt'
  lines = ['train_00001.jpg 5', 'train_00002.jpg 8', '../train_00003.jpg 1', 'train_77777.jpg 1']
  path.write_text('\n'.join([*lines, 'train_00001.jpg 5', 'train_00003.jpg']))
  found = raf_db.parse(tmp_path / 'raf_db')
  assert len(found.rows) == 1
  assert [(problem.line, problem.kind) for problem in found.problems] == [
    (2, 'label is not 1 to 7'),
    (3, "line is not 'train_00001.jpg 5'"),
    (4, 'missing file'),
    (5, 'repeated picture'),
    (6, "line is not 'train_00001.jpg 5'"),
  ]
  with pytest.raises(InputError, match='missing file: 1 row, line 4'):
    load(tmp_path, 'raf_db')
  with path.open('w') as file:
    file.write(lines[0])
  load(tmp_path, 'raf_db')
  path.write_text('\n'.join([*lines, 'train_00001.jpg 5', 'train_00003.jpg']))
  with pytest.raises(InputError, match='missing file: 1 row, line 4'):
    prepare.data(name='raf_db', manual_dir=str(tmp_path), dir=str(tmp_path / 'out'))
  assert not list((tmp_path / 'out').rglob('*.array_record*'))
  assert not list((tmp_path / 'out').rglob('dataset_info.json'))
  assert len(load(tmp_path, 'raf_db', skip_bad=True).splits['train'].rows) == 1


@pytest.mark.parametrize('damage', ['nan', 'locked', 'cut'])
def test_raf_db_bad_landmarks_leave_out_their_row_alone(tmp_path, damage, monkeypatch):
  trees.raf_db(tmp_path)
  path = tmp_path / 'raf_db/basic/Annotation/auto/train_00002_auto_attri.txt'
  text = path.read_text()
  path.write_text({'nan': f'nan{text[3:]}', 'locked': text, 'cut': text[:99]}[damage])
  read_text = Path.read_text

  def refuse(self, *args, **options):
    if self == path and damage == 'locked':
      raise PermissionError(13, 'Permission denied', str(self))
    return read_text(self, *args, **options)

  monkeypatch.setattr(Path, 'read_text', refuse)
  found = raf_db.parse(tmp_path / 'raf_db', images='original')
  assert [(p.line, p.kind) for p in found.problems] == [(2, 'landmarks are not 37 lines "x y"')]
  assert len(found.rows) == 34 and all('landmarks' in row for row in found.rows)
  assert not found.skipped


def test_fer2013_variants(tmp_path):
  rows = [
    (trees.pixels(0), 0, 'PublicTest'),
    ('1 2 3', 1, 'Training'),
    ('-1 ' * 2304, 1, 'Training'),
  ]
  header = ('emotion', ' Usage', ' pixels')
  rows = [(emotion, usage, pixels) for pixels, emotion, usage in rows]
  trees.write_csv(
    tmp_path / 'a' / 'icml_face_data.csv', [header, *rows, (9, 'Training', rows[0][2])]
  )
  found = fer2013.parse(tmp_path / 'a')
  assert [row['label'] for row in found.rows] == ['anger'] and found.rows[0]['split'] == 'val'
  assert [problem.line for problem in found.problems] == [3, 4, 5]
  stored = files.decode(found.rows[0]['image'])
  np.testing.assert_array_equal(stored[..., 0].ravel(), np.array(rows[0][2].split(), int))

  trees.write_csv(tmp_path / 'b' / 'train.csv', [('emotion', 'pixels'), (3, trees.pixels(1))])
  found = fer2013.parse(tmp_path / 'b')
  assert found.rows[0]['label'] == 'happiness' and 'no labels' in found.skipped[0].kind

  trees.picture(tmp_path / 'c' / 'train' / 'angry' / 'Training_1.jpg', 1)
  trees.picture(tmp_path / 'c' / 'test' / 'sad' / 'PrivateTest_1.JPG', 1)
  found = fer2013.parse(tmp_path / 'c')
  assert [(row['split'], row['label']) for row in found.rows] == [
    ('test', 'sadness'),
    ('train', 'anger'),
  ]


def test_fer_plus_rules():
  assert fer_plus.label_of([4, 4, 0, 0, 0, 0, 1, 1, 0, 0], 'argmax') == (
    'neutral',
    [0.4, 0.4, 0, 0, 0, 0, 0.1, 0.1],
  )
  assert fer_plus.label_of([4, 4, 0, 0, 0, 0, 1, 1, 0, 0], 'majority') == ('no majority', [])
  assert fer_plus.label_of([5, 3, 0, 0, 0, 0, 1, 1, 0, 0], 'majority') == (
    'neutral',
    [0.625, 0.375, 0, 0, 0, 0, 0, 0],
  )
  assert fer_plus.label_of([3, 0, 0, 0, 0, 0, 0, 0, 7, 0], 'argmax') == ('voted unknown', [])
  assert fer_plus.label_of([1] * 10, 'majority') == ('no majority', [])


def test_fer_plus_counts_what_it_leaves_out_and_joins_by_row(tmp_path):
  trees.fer_plus(tmp_path)
  found = fer_plus.parse(tmp_path / 'fer_plus')
  assert [problem.kind for problem in found.skipped] == [
    'no image name: not a face',
    'voted unknown',
  ]
  assert found.rows[0]['name'] == 'fer0000002.png' and found.rows[0]['label'] == 'surprise'
  first = fer2013.parse(tmp_path / 'fer2013').rows[2]['image']
  assert found.rows[0]['image'] == first
  trees.write_csv(
    tmp_path / 'fer2013' / 'fer2013.csv', [('emotion', 'pixels'), (3, trees.pixels(1))]
  )
  with pytest.raises(InputError, match='28 rows and .* has 1: they cannot be joined'):
    fer_plus.parse(tmp_path / 'fer_plus')


def test_fer_plus_votes_that_are_missing_or_not_numbers(tmp_path):
  trees.fer_plus_folders(tmp_path)
  path = tmp_path / 'fer_plus' / 'FER2013Valid' / 'label.csv'
  lines = path.read_text().splitlines()
  path.write_text('\n'.join([lines[0].rpartition(',')[0] + ',inf', *lines[1:]]))
  (problem,) = fer_plus.parse(tmp_path / 'fer_plus').problems
  assert (problem.line, problem.kind) == (1, 'row is not name, box and ten votes')
  path.write_text('')
  with pytest.raises(InputError, match='label.csv is empty'):
    fer_plus.parse(tmp_path / 'fer_plus')
  with pytest.raises(InputError, match="rule is '1'. There are: argmax, majority"):
    fer_plus.parse(tmp_path / 'fer_plus', rule=1)
  trees.fer_plus(tmp_path)
  (tmp_path / 'fer_plus' / 'fer2013new.csv').write_text('')
  with pytest.raises(InputError, match=r'its columns are \[\]'):
    fer_plus.parse(tmp_path / 'fer_plus')


def test_seven_of_eight_classes_are_chosen_when_loading(tmp_path):
  trees.fer_plus_folders(tmp_path)
  data = load(tmp_path, 'fer_plus', classes=CLASSES)
  shares = data.splits['train'].table['distribution']
  assert len(data.splits['train'].rows) == 7
  np.testing.assert_allclose(shares.sum(1), 1, atol=1e-6)
  np.testing.assert_allclose(shares[6, [6, 0]], [6 / 7, 1 / 7], atol=1e-6)


def test_affectnet_annotations(tmp_path):
  trees.affectnet(tmp_path)
  found = affectnet.parse(tmp_path / 'affectnet')
  rows = {row['path']: row for row in found.rows}
  assert rows['train_set/images/1.JPG']['label'] == 'happiness'
  np.testing.assert_allclose(rows['train_set/images/0.jpg']['landmarks'], trees.points(), atol=1e-6)
  notes = tmp_path / 'affectnet' / 'train_set' / 'annotations'
  np.save(notes / '0_exp.npy', np.array({'exp': 1}, object), allow_pickle=True)
  np.save(notes / '2_exp.npy', np.array('none'))
  np.save(notes / '3_exp.npy', np.array(11))
  np.save(notes / '4_exp.npy', np.array(8.0))
  np.save(notes / '5_lnd.npy', np.zeros(10))
  (notes / '6_exp.npy').unlink()
  found = affectnet.parse(tmp_path / 'affectnet')
  kinds = {problem.detail.split(':')[0].split('/')[-1]: problem for problem in found.problems}
  assert kinds.keys() == {'0.jpg', '2.jpg', '3.jpg', '5.jpg', '6_exp.npy'}
  assert (
    'is not an array of numbers' in kinds['0.jpg'].detail and '10 landmark' in kinds['5.jpg'].detail
  )
  assert [problem.kind for problem in found.skipped] == ['expression 8: none']


def test_affectnet_incomplete_copy(tmp_path):
  trees.affectnet(tmp_path)
  base = tmp_path / 'affectnet' / 'train_set'
  notes = base / 'annotations'
  whole = (notes / '0_lnd.npy').read_bytes()
  (notes / '0_exp.npy').write_bytes(b'')
  (notes / '2_lnd.npy').write_bytes(b'')
  np.savez(notes / '3.npz', np.zeros(136))
  archive = (notes / '3.npz').read_bytes()
  (notes / '3_lnd.npy').write_bytes(archive)
  (notes / '4_lnd.npy').write_bytes(archive[: len(archive) // 2])
  (notes / '5_lnd.npy').write_bytes(whole[:-8])
  (notes / '6_lnd.npy').write_bytes(whole.replace(b'(136,)', b'(%d,)' % 10**15))
  (notes / '7_lnd.npy').write_bytes(whole.replace(b'(136,)', b'(%d,)' % 10**30))
  for number, text in enumerate(('inf', 'nan', '3.7', '1e400'), 8):
    np.save(notes / f'{number}_exp.npy', np.array(text))
  np.save(notes / '12_lnd.npy', np.full(136, np.nan))
  (base / 'images' / '13.jpg').unlink()
  found = affectnet.parse(tmp_path / 'affectnet')
  kinds = [problem.kind for problem in found.problems]
  assert kinds == ['annotation cannot be used'] * 12 + ['missing file']
  assert found.problems[-1].detail.endswith('train_set/images/13.jpg')
  assert len(found.rows) == 32 - 13


def test_affectnet_old_lists(tmp_path):
  trees.affectnet_old(tmp_path)
  path = tmp_path / 'affectnet' / 'Manually_Annotated_file_lists' / 'training.csv'
  with path.open('a') as file:
    file.write('../../secret.jpg,1,1,1,1,1;2,0,0,0\n/etc/x.jpg,1,1,1,1,1;2,0,0,0\nnone.jpg,1\n')
    file.write('0/training0.jpg,inf,1,1,1,1;2,0,0,0\n1/training1.jpg,1,1,9,9,1;2,0,0,0\n')
  found = affectnet.parse(tmp_path / 'affectnet')
  assert [(problem.line, problem.kind) for problem in found.problems] == [
    (24, 'path is not below its folder'),
    (25, 'path is not below its folder'),
    (26, 'missing file'),
    (27, 'face box, landmarks or expression are not numbers'),
    (28, 'there are not 136 landmark coordinates'),
  ]
  row = found.rows[2]
  assert row['path'].endswith('2/training2.JPG') and row['box'] == (10, 5, 34, 25)
  cut = listing.example(found.folder, row)
  assert Image.open(cut['image']).size == (24, 20)
  np.testing.assert_allclose(cut['landmarks'], trees.points() + [0, 5], atol=1e-5)
  assert sum('uncertain' in problem.kind for problem in found.skipped) == 3


def test_ck_plus_sequences(tmp_path):
  trees.ck_plus(tmp_path, subjects=2)
  found = ck_plus.parse(tmp_path / 'ck_plus')
  assert found.classes == CLASSES_8 and found.action_units == ('AU04', 'AU12')
  first, *peak = found.rows[:4]
  assert first['label'] == 'neutral' and first['au'] == [0, 0]
  assert [row['path'][-12:] for row in peak] == [f'0000000{i}.png' for i in (3, 4, 5)]
  assert all(row['label'] == 'anger' and row['au'] == [1, 3] for row in peak)
  assert [(p.kind, p.detail) for p in found.skipped] == [('sequence without a label', 'S005/007')]

  base = tmp_path / 'ck_plus'
  (base / 'emotion/S006/001/S006_001_00000005_emotion.txt').write_text('   8.0000000e+00\n')
  for path in base.rglob('S006_002_*.png'):
    path.unlink()
  next(base.rglob('S006_003_00000005_landmarks.txt')).unlink()
  found = ck_plus.parse(base)
  assert [(p.kind, p.detail[-28:]) for p in found.problems] == [
    ('label is not 1 to 7', 'S006_001_00000005_emotion.txt'[-28:]),
    ('sequence has fewer than 4 pictures', 'S006/002'),
  ]
  whole = next(base.rglob('S005_001_00000005_landmarks.txt'))
  points = whole.read_text()
  whole.write_text(points.replace(points.split()[0], 'nan', 1))
  next(base.rglob('S005_001_00000005_facs.txt')).write_text('nan 3\n')
  rows = ck_plus.parse(base).rows
  assert [('landmarks' in row, 'au' in row) for row in rows[:5]] == [
    *[(True, False)] * 3,
    (False, False),
    (True, True),
  ]
  whole.write_text(points)
  text = prepare.data(
    name='ck_plus', manual_dir=str(base), dir=str(tmp_path), protocol='ldl_alsg', skip_bad=True
  )
  assert 'landmarks left out of all rows, because 1 of 21 lack it' in text
  assert 'test 21 instead of 636' in text and 'sequence without a label: 1' in text


def test_sfew_without_val(tmp_path):
  trees.picture(tmp_path / 'Train' / 'Angry' / 'A_012701000_00000070.png', 1)
  with pytest.raises(InputError, match='no picture of Val'):
    sfew.parse(tmp_path)


@pytest.mark.parametrize('images', sfew.IMAGES)
def test_sfew_of_one_kind(tmp_path, images):
  for split in ('Train', 'Val'):
    trees.picture(tmp_path / split / 'Angry' / 'A_012701000_00000070.png', 1)
  assert len(sfew.parse(tmp_path, images=images).rows) == 2


def test_kdef_codes_by_position(tmp_path):
  trees.kdef(tmp_path)
  found = kdef.parse(tmp_path / 'kdef')
  rows = {Path(row['path']).stem: row for row in found.rows}
  assert rows['AF01ANFL']['label'] == 'anger' and rows['AF01AFHR']['label'] == 'fear'
  assert rows['AM02SUS']['yaw_bin'] == 0 and rows['AM02SUFL']['yaw_bin'] == -90
  assert rows['AF01ANFL']['subject'] == 'F01' and rows['AM02SUS']['subject'] == 'M02'
  assert sorted(Path(p.detail).name for p in found.skipped) == ['AF01ANF.JPG', 'MNES.JPG']


@pytest.mark.parametrize(
  'tree, parser, path',
  [
    (trees.kdef, kdef, 'KDEF_and_AKDEF/KDEF/AF01/AF01ANFL.JPG'),
    (trees.oulu_casia, oulu_casia, 'B_OriginalImg/OriginalImg/VL/Strong/P001/Anger/009.jpeg'),
  ],
)
def test_second_copies_are_skipped(tmp_path, tree, parser, path):
  tree(tmp_path)
  base = next(tmp_path.iterdir())
  before = parser.parse(base)
  copy = base / 'Z_copy' / path.replace('/OriginalImg/', '/')
  copy.parent.mkdir(parents=True)
  copy.write_bytes((base / path).read_bytes())
  found = parser.parse(base)
  assert found.rows == before.rows
  (problem,) = set(found.skipped) - set(before.skipped)
  assert problem == (0, 'second copy', copy.relative_to(base).as_posix())


def test_jaffe_codes_by_position(tmp_path):
  trees.jaffe(tmp_path)
  rows = {Path(row['path']).stem: row for row in jaffe.parse(tmp_path / 'jaffe').rows}
  assert rows['NA.HA1.42']['label'] == 'happiness' and rows['KA.AN1.39']['label'] == 'anger'


def test_multi_pie_yaws_of_all_cameras(tmp_path):
  cameras = '110 120 090 080 130 140 051 050 041 190 200 010 240'.split()
  yaws = dict(zip(cameras, range(-90, 91, 15), strict=True))
  for camera in yaws:
    trees.picture(tmp_path / f'001_01_01_{camera}_07.png', 1)
  rows = multi_pie.parse(tmp_path, protocol='all_cameras').rows
  assert {row['path'].split('_')[3]: row['yaw_bin'] for row in rows} == yaws
  with pytest.raises(InputError, match='illuminations is 7: .* such as .7,.'):
    multi_pie.parse(tmp_path, illuminations=7)


def test_cfee_codes(tmp_path):
  trees.cfee(tmp_path)
  found = {(Path(row['path']).name[:2], row['label']) for row in cfee.parse(tmp_path).rows}
  names = 'neutral happiness sadness fear anger surprise disgust'.split()
  assert found == {(f'{number:02}', name) for number, name in enumerate(names, 1)}


def test_multi_pie_cameras(tmp_path):
  trees.multi_pie(tmp_path)
  found = multi_pie.parse(tmp_path / 'multi_pie', protocol='all_cameras')
  assert {row['yaw_bin'] for row in found.rows} == {0, -30, 30, 90}
  kinds = [problem.kind for problem in found.skipped]
  assert kinds.count('overhead camera') == 48 and kinds.count('other illumination') == 48
  row = next(row for row in found.rows if '346_04_03' in row['path'])
  assert (row['subject'], row['label']) == ('346', 'scream')


def test_mmi_sequences(tmp_path):
  trees.mmi(tmp_path)
  found = mmi.parse(tmp_path / 'mmi')
  assert [Path(row['path']).name for row in found.rows[:4]] == ['1.png', '6.png', '7.png', '8.png']
  assert sorted(problem.kind for problem in found.skipped) == [
    'sequence without a basic emotion',
    'view is not frontal',
  ]
  mirror = '<Session><track filename="S002-002.avi" view="2"/></Session>'
  (tmp_path / 'mmi' / 'Sessions' / '2' / 'session.xml').write_text(mirror)
  skipped = [p for p in mmi.parse(tmp_path / 'mmi').skipped if p.kind == 'view is not frontal']
  assert [Path(p.detail).name for p in skipped] == ['S012-012.xml', 'S002-002.xml']
  for path in (tmp_path / 'mmi' / 'Sessions' / '1' / 'S001-001').iterdir():
    path.unlink()
  (tmp_path / 'mmi' / 'Sessions' / '2' / 'S002-002.xml').write_text('<Clip>')
  for number, encoding in ((3, 'no-such'), (4, 'gb2312')):
    text = f'<?xml version="1.0" encoding="{encoding}"?><Clip/>'
    (tmp_path / f'mmi/Sessions/{number}/S00{number}-00{number}.xml').write_text(text)
  kinds = [problem.kind for problem in mmi.parse(tmp_path / 'mmi').problems]
  assert kinds == ['fewer than 4 frames extracted', *['XML cannot be read'] * 3]


def test_expw_boxes_and_bad_lines(tmp_path):
  trees.expw(tmp_path)
  found = expw.parse(tmp_path / 'expw')
  row = found.rows[1]
  assert (row['name'], row['box']) == ('angry face_0.jpg#1', (30, 4, 48, 34))
  whole = np.asarray(Image.open(tmp_path / 'expw' / 'image' / 'origin' / 'angry face_0.jpg'))
  cut = np.asarray(Image.open(listing.example(found.folder, row)['image']))
  np.testing.assert_array_equal(cut, whole[4:34, 30:48])
  splits = {}
  for row in found.rows:
    assert splits.setdefault(row['path'], row['split']) == row['split']
  assert [problem.line for problem in found.skipped] == [121]
  with (tmp_path / 'expw' / 'label' / 'label.lst').open('a') as file:
    file.write('a.jpg 0 1 2 3 4 5 0\nangry face_1.jpg 0 4 10 28 34 50.5 7\n../a 0 1 1 2 2 5 1\n')
    file.write('angry face_1.jpg 7 4 70 88 34 50.5 1\nangry face_0.jpg 0 4 10 28 34 50.5 6\n')
    file.write('angry face_1.jpg inf 4 10 28 34 50.5 1\n')
  kinds = {problem.line: problem.kind for problem in expw.parse(tmp_path / 'expw').problems}
  assert kinds == {
    122: 'missing file',
    123: 'line is not as expected',
    124: 'path is not below its folder',
    126: 'face with two entries',
    127: 'line is not as expected',
  }
  with pytest.raises(InputError, match='the face box .* is outside the picture'):
    load(tmp_path, 'expw')


def test_folder_with_more_than_its_splits(tmp_path):
  trees.folder(tmp_path)
  trees.text(tmp_path / 'folder' / 'labels' / 'readme.txt', 'nothing')
  found = folder.parse(tmp_path / 'folder')
  assert {row['split'] for row in found.rows} == {'train', 'test'} and len(found.classes) == 4
  trees.picture(tmp_path / 'folder' / 'more' / 'sad' / 'a.png', 1)
  with pytest.raises(InputError, match='more is next to test, train, but is not a split'):
    folder.parse(tmp_path / 'folder')


def test_folder_without_splits_and_with_new_classes(tmp_path):
  for name in ('Happy', 'pride', 'awe', 'ANGER'):
    trees.picture(tmp_path / name / 'a.png', 1)
  trees.picture(tmp_path / 'a.png', 1)
  found = folder.parse(tmp_path)
  assert found.classes == ('happiness', 'anger', 'awe', 'pride')
  assert {row['split'] for row in found.rows} == {'train'}
  assert [problem.kind for problem in found.skipped] == ['picture in no class']
