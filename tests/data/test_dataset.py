import csv
import re

import numpy as np
import pytest
from drawn_faces import write_manifest

from ferjax.data import dataset
from ferjax.data.splits import carve_validation, duplicates
from ferjax.errors import InputError
from ferjax.images import files


def load(manifest, data_dir, **options):
  return dataset.load(name='manifest', path=str(manifest), dir=data_dir, **options)


def test_columns_and_pictures_of_every_split(manifest, data_dir):
  data = load(manifest, data_dir, image_size=20)
  assert {k: len(s.rows) for k, s in data.splits.items()} == {'train': 84, 'val': 21, 'test': 28}
  table = data.splits['test'].table
  assert table['landmarks'].shape == (28, 68, 2) and table['landmarks'].dtype == np.float32
  assert table['label'].dtype == np.int32 and table['distribution'].shape == (28, 7)
  full = load(manifest, data_dir, image_size=40).splits['test'].table['landmarks']
  np.testing.assert_allclose(table['landmarks'], (full + 0.5) / 2 - 0.5, atol=1e-4)
  shown = dataset.picture(data.splits['test'], 3, 20)
  assert shown.shape == (20, 20, 3) and shown.dtype == np.uint8
  assert data.landmark_indices == tuple(range(68)) and len(dataset.flip_order(data)) == 68


def test_the_fingerprint_depends_on_the_content(manifest, data_dir, tmp_path):
  first = load(manifest, data_dir).fingerprint
  copy = write_manifest(tmp_path / 'copy', {'train': 84, 'val': 21, 'test': 28})
  assert load(copy, data_dir).fingerprint == first
  other = write_manifest(tmp_path / 'other', {'train': 84, 'val': 21, 'test': 28}, seed=1)
  assert load(other, data_dir).fingerprint != first


def test_later_starts_read_the_table_and_not_the_records(manifest, tmp_path, monkeypatch):
  first = load(manifest, str(tmp_path))
  with monkeypatch.context() as patch:
    patch.setattr(dataset, '_read_table', lambda *arguments: pytest.fail('it reads records'))
    second = load(manifest, str(tmp_path))
  assert second.fingerprint == first.fingerprint
  for name, split in first.splits.items():
    for column, values in split.table.items():
      np.testing.assert_array_equal(second.splits[name].table[column], values)
  for path in tmp_path.rglob('table-test-*/label.npy'):
    path.write_bytes(path.read_bytes()[:100])
  assert load(manifest, str(tmp_path)).fingerprint == first.fingerprint
  (info,) = tmp_path.rglob('dataset_info.json')
  info.write_text(info.read_text().replace('"', ' "', 1))
  monkeypatch.setattr(dataset, '_read_table', lambda *arguments: pytest.fail('it reads records'))
  with pytest.raises(pytest.fail.Exception):
    load(manifest, str(tmp_path))


def test_a_folder_that_cannot_be_written_is_read_every_time(manifest, tmp_path, monkeypatch):
  first = load(manifest, str(tmp_path))
  for path in tmp_path.rglob('table-*.json'):
    path.unlink()

  def refuse(path, *arguments, **options):
    raise OSError(30, 'Read-only file system', str(path))

  monkeypatch.setattr(dataset.Path, 'mkdir', refuse)
  assert load(manifest, str(tmp_path)).fingerprint == first.fingerprint
  assert not list(tmp_path.rglob('table-*.json'))


def test_validation_is_carved_by_subject(data_dir, tmp_path):
  path = write_manifest(tmp_path, {'train': 84, 'test': 28})
  data = load(path, data_dir, val_fraction=0.25)
  train, val = (set(data.splits[name].table['subject']) for name in ('train', 'val'))
  assert not train & val and len(val) == 1
  assert len(data.splits['train'].rows) + len(data.splits['val'].rows) == 84
  assert 'val' not in load(path, data_dir, val_fraction=0.0).splits


def test_validation_leaves_large_subjects_and_last_rows_of_classes_in_train():
  subject = np.repeat([0, 1, 2, 3], [80, 8, 8, 4])
  label = np.where(subject == 3, 1, 0)
  table = {'label': label, 'subject': subject, 'name': np.arange(100).astype(str)}
  for seed in range(6):
    splits = {'train': dataset.Split(None, np.arange(100), table)}
    carved = carve_validation(splits, 0.1, seed)
    assert len(carved['val'].rows) == 8 and set(carved['train'].table['label']) == {0, 1}


def test_validation_without_subjects_is_carved_by_class():
  table = {'label': np.repeat([0, 1], [60, 40]), 'name': np.arange(100).astype(str)}
  splits = {'train': dataset.Split(None, np.arange(100), table)}
  carved = carve_validation(splits, 0.1, 0)
  np.testing.assert_array_equal(np.bincount(carved['val'].table['label']), [6, 4])
  assert not set(carved['val'].rows) & set(carved['train'].rows)


def test_shared_subjects_are_refused_unless_accepted(data_dir, tmp_path):
  path = write_manifest(tmp_path, {'train': 28, 'test': 14})
  path.write_text(path.read_text().replace(',test0,', ',train0,'))
  with pytest.raises(InputError, match='1 subjects are in both test and train'):
    load(path, data_dir)
  load(path, data_dir, allow_shared_subjects=True)


def test_copies_across_splits_are_counted(data_dir, tmp_path):
  path = write_manifest(tmp_path, {'train': 28, 'test': 14})
  (tmp_path / 'test_003.png').write_bytes((tmp_path / 'train_005.png').read_bytes())
  data = load(path, data_dir, val_fraction=0.0)
  assert duplicates(data.splits) == {'train/test': 1}


def test_classes_are_chosen_and_ordered_by_name(manifest, data_dir):
  classes = ('fear', 'neutral')
  data = load(manifest, data_dir, classes=('Fear', 'neutral'))
  assert data.classes == classes and len(data.splits['train'].rows) == 24
  names = data.splits['train'].table['name']
  np.testing.assert_array_equal(data.splits['train'].table['label'], [1, 0] * 12)
  assert names[0] == 'train_000.png' and names[1] == 'train_006.png'


def test_a_class_named_twice_is_refused(manifest, data_dir):
  with pytest.raises(InputError, match='twice'):
    load(manifest, data_dir, classes=('happy', 'happiness'))


def test_other_names_become_classes(manifest, data_dir, tmp_path, caplog):
  """Two classes of the manifest become one, and their shares are added; one class is left out."""
  text = manifest.read_text().replace(',fear,', ',Scream,').replace('p_fear', 'p_scream')
  text = text.replace(',disgust,', ',squint,').replace('p_disgust', 'p_squint')
  path = manifest.with_name('renamed.csv')
  path.write_text(text)
  pairs = (('scream', 'fear'), ('surprised', 'fear'), ('squint', ''))
  classes = ('fear', 'anger', 'neutral', 'contempt')
  options = {'classes': classes, 'class_map': pairs}
  with pytest.raises(InputError, match="'squint': use class names, or map it"):
    load(path, data_dir, classes=('fear', 'anger'))
  data = load(path, data_dir, **options)
  table = data.splits['test'].table
  assert data.classes == classes and dataset.classes_without_rows(data) == ['contempt']
  names = [f'test_{i:03}.png' for i in range(28) if i % 7 in (0, 2, 4, 6)]
  assert list(table['name']) == names
  np.testing.assert_array_equal(table['label'], [2, 0, 1, 0] * 4)
  shares = np.array([[0.1, 0.05, 0.7, 0], [0.75, 0.05, 0.05, 0], [0.1, 0.7, 0.05, 0]])
  shares /= shares.sum(1, keepdims=True)
  np.testing.assert_allclose(table['distribution'][:3], shares, rtol=1e-5)
  for _ in range(2):
    counts = "{'happiness': 19, 'sadness': 19, 'squint': 19}"
    assert caplog.text.count(f'rows of classes not in use: {counts}') == 1
    caplog.clear()
    load(path, data_dir, **options)
  own = load(path, data_dir, class_map=pairs)
  assert own.classes == ('neutral', 'happiness', 'sadness', 'anger', 'disgust', 'fear')


@pytest.mark.parametrize(
  'options, message',
  [
    ({'class_map': (('neutral', 'feer'),)}, "maps 'neutral' to 'feer'.* Did you mean 'fear'"),
    ({'class_map': ('neutral', 'fear')}, 'give pairs'),
    (
      {'class_map': (('neutral', 'fear'), ('neutral', 'anger'))},
      "'neutral' to two classes, 'fear' and 'anger'",
    ),
    ({'class_map': (('fear', ''),), 'classes': ('fear', 'anger')}, "leaves out 'fear'"),
  ],
)
def test_an_invalid_class_map_is_refused(options, message, manifest, data_dir):
  with pytest.raises(InputError, match=message):
    load(manifest, data_dir, **options)


def test_classes_that_a_data_set_lacks(tmp_path, caplog):
  options = {'name': 'synthetic_faces', 'dir': str(tmp_path), 'classes': ('fear', 'contempt')}
  options['options'] = {'synthetic_faces': {'num': 30, 'size': 32}}
  with pytest.raises(InputError, match="synthetic_faces has no class 'contempt'"):
    dataset.load(**options)
  data = dataset.load(**options, needs_every_class=False)
  assert dataset.classes_without_rows(data) == ['contempt']
  merged = dataset.load(
    **options, class_map=(('neutral', 'fear'), ('anger', 'fear')), needs_every_class=False
  )
  assert merged.fingerprint != data.fingerprint
  rows, more = (sum(len(split.rows) for split in d.splits.values()) for d in (data, merged))
  assert rows < more < 30
  with pytest.raises(InputError, match="not a class of synthetic_faces. Did you mean 'neutral'"):
    dataset.load(**options, class_map=(('neutrl', 'fear'),), needs_every_class=False)
  options['classes'] = ('contempt',)
  with pytest.raises(InputError, match='no row of synthetic_faces is of a class in use: contempt'):
    dataset.load(**options, needs_every_class=False)


def test_only_some_landmarks(manifest, data_dir):
  data = load(manifest, data_dir, landmarks=(36, 45))
  assert data.splits['train'].table['landmarks'].shape == (84, 2, 2)
  np.testing.assert_array_equal(dataset.flip_order(data), [1, 0])
  with pytest.raises(InputError, match='point 70'):
    load(manifest, data_dir, landmarks=(70,))


def test_an_unknown_data_set_names_the_nearest():
  with pytest.raises(InputError, match="Did you mean 'manifest'"):
    dataset.load(name='manifst')


def test_exif_orientation_is_applied(tmp_path):
  from PIL import Image

  picture = Image.new('RGB', (6, 4))
  exif = picture.getexif()
  exif[0x0112] = 6
  picture.save(tmp_path / 'a.jpg', exif=exif)
  assert files.decode((tmp_path / 'a.jpg').read_bytes()).shape == (6, 4, 3)


def test_manifest_without_landmarks(data_dir, tmp_path):
  path = write_manifest(tmp_path, {'test': 7})
  with path.open() as file:
    rows = [row[:3] for row in csv.reader(file)]
  with path.open('w', newline='') as file:
    csv.writer(file).writerows(rows)
  data = load(path, data_dir)
  assert set(data.splits) == {'test'} and 'landmarks' not in data.splits['test'].table


def test_poses_are_chosen_and_ordered_by_yaw(manifest, data_dir):
  whole = load(manifest, data_dir)
  assert whole.poses == (-30, 0, 30)
  table = whole.splits['train'].table
  np.testing.assert_array_equal(np.array(whole.poses)[table['pose']], table['yaw_bin'])
  assert table['pose'].dtype == np.int32
  np.testing.assert_array_equal(dataset.flip_poses(whole), [2, 1, 0])
  chosen = load(manifest, data_dir, poses=(30, 0))
  assert chosen.poses == (30, 0) and chosen.fingerprint == whole.fingerprint
  table = chosen.splits['train'].table
  np.testing.assert_array_equal(np.array([30, 0])[table['pose']], table['yaw_bin'])
  assert len(table['pose']) == 56
  with pytest.raises(InputError, match='the pose 30 but not -30.*flip=0'):
    dataset.flip_poses(chosen)
  theirs = dataset.with_poses(whole, (0, 45, -30))
  table = theirs.splits['test'].table
  expected = [{0: 0, -30: 2}.get(yaw, -1) for yaw in table['yaw_bin']]
  np.testing.assert_array_equal(table['pose'], expected)
  assert theirs.poses == (0, 45, -30) and set(expected) == {0, 2, -1}


def test_missing_poses_are_errors(manifest, data_dir, tmp_path):
  with pytest.raises(InputError, match=r'has no pose 45. It has \(-30, 0, 30\)'):
    load(manifest, data_dir, poses=(0, 45))
  with pytest.raises(InputError, match='twice'):
    load(manifest, data_dir, poses=(0, 0))
  path = write_manifest(tmp_path, {'train': 14, 'test': 7})
  path.write_text(path.read_text().replace('yaw_bin', 'something_else'))
  data = load(path, data_dir)
  assert data.poses == () and 'pose' not in data.splits['train'].table
  assert 'pose' not in dataset.with_poses(data, (0,)).splits['train'].table
  with pytest.raises(InputError, match='has no poses of its pictures'):
    load(path, data_dir, poses=(0,))


def test_flips_of_few_and_of_unknown_landmarks(tmp_path, data_dir, caplog):
  path = write_manifest(tmp_path / 'few', {'train': 28, 'test': 7})
  with path.open(newline='') as file:
    header, *rows = csv.reader(file)
  kept = [i for i, name in enumerate(header) if not re.fullmatch(r'[xy]_([5-9]|\d\d)', name)]
  with path.open('w', newline='') as file:
    csv.writer(file).writerows([row[i] for i in kept] for row in [header, *rows])
  data = load(path, data_dir)
  assert data.landmark_scheme == 'eyes_nose_mouth5' and data.landmark_indices == tuple(range(5))
  np.testing.assert_array_equal(dataset.flip_order(data), [1, 0, 2, 4, 3])
  assert dataset.flip_order(load(path, data_dir, landmarks=(4, 3))).tolist() == [1, 0]

  def with_points(points):
    train = data.splits['train']
    table = train.table | {'landmarks': np.float32([points] * len(train.rows))}
    return data._replace(
      landmark_scheme='', landmark_indices=None, splits={'train': train._replace(table=table)}
    )

  with caplog.at_level('INFO'):
    order = dataset.flip_order(with_points([[10, 9], [5, 20], [10, 20.1], [15, 20]]))
  assert order.tolist() == [0, 3, 2, 1] and 'by their mean: 1-3' in caplog.text
  with pytest.raises(InputError, match='left and right: set config.augment.flip=0'):
    dataset.flip_order(with_points([[10, 9], [5, 20], [6, 20], [19, 25]]))
