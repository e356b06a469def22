"""Manifests from annotations, clusters and poses, and the commands that write them."""

import csv

import numpy as np
import pytest
from absl.testing import flagsaver
from PIL import Image

from ferjax.annotation import manifests
from ferjax.annotation.tools import Annotation, Annotations
from ferjax.cli import prepare
from ferjax.datasets.manifest import parser
from ferjax.errors import InputError


def write(path, *rows):
  with path.open('w', newline='') as file:
    csv.writer(file).writerows(rows)
  return path


def rows_of(path):
  with path.open(newline='') as file:
    return list(csv.DictReader(file))


@pytest.fixture
def pictures(tmp_path):
  """A folder of two classes, and a manifest above it."""
  paths = ['train/happy/a.jpg', 'train/happy/b.JPG', 'train/sad/a.jpg', 'test/sad/c.png']
  for path in paths:
    (tmp_path / 'set' / path).parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (4, 4)).save(tmp_path / 'set' / path)
  header = ('path', 'split', 'label', 'AU01_r', 'note')
  rows = [(f'set/{p}', p.split('/')[0], p.split('/')[1], 9, i) for i, p in enumerate(paths)]
  return write(tmp_path / 'old.csv', header, *rows)


def annotated(*names, values=None):
  values = values or {'AU02_r': 1.23456789, 'AU04_r': 1e-9}
  return Annotations([Annotation(name, 'f.csv', 'line 2', 1.0, values) for name in names])


def test_a_folder_becomes_a_manifest_that_parses(pictures):
  out = pictures.parent / 'new.csv'
  text = manifests.annotate(pictures.parent / 'set', out, annotated('happy/a', 'b', 'z'))
  parsed = parser.parse(out)
  assert not parsed.problems and parsed.action_units == ('AU02', 'AU04')
  assert [(r['path'], r['split'], r['label'], r['au']) for r in parsed.rows] == [
    ('set/train/happy/a.jpg', 'train', 'happiness', [1.23457, 0.0]),
    ('set/train/happy/b.JPG', 'train', 'happiness', [1.23457, 0.0]),
  ]
  assert '2 of 4 pictures, with action units (2 action units)' in text
  assert 'picture without an annotation, left out: 2' in text and 'test/sad/c.png' in text
  assert 'annotation without a picture: 1' in text and 'z (f.csv)' in text


def test_a_manifest_keeps_its_columns_and_new_ones_replace_their_kind(pictures):
  out = pictures.parent / 'new.csv'
  text = manifests.annotate(pictures, out, annotated('c.png'))
  assert list(rows_of(out)[0]) == ['path', 'split', 'label', 'note', 'AU02_r', 'AU04_r']
  assert rows_of(out)[0]['note'] == '3' and 'replaced: 1 columns, AU01_r' in text
  five = {f'{axis}_{i}': 1.0 for axis in 'xy' for i in range(5)}
  both = pictures.parent / 'both.csv'
  manifests.annotate(out, both, annotated('c', values=five))
  assert list(rows_of(both)[0])[-12:] == ['AU02_r', 'AU04_r', *five]
  assert len(parser.parse(both).rows[0]['landmarks']) == 5


def test_annotations_that_cannot_be_joined(pictures):
  folder = pictures.parent
  with pytest.raises(InputError, match='no picture of .* is annotated'):
    manifests.annotate(pictures, folder / 'out.csv', annotated('other'))
  with pytest.raises(InputError, match='is not below the folder of the manifest'):
    (folder / 'elsewhere').mkdir()
    manifests.annotate(pictures, folder / 'elsewhere' / 'out.csv', annotated('c'))
  with pytest.raises(InputError, match='there is no folder'):
    manifests.annotate(pictures, folder / 'none' / 'out.csv', annotated('c'))
  with pytest.raises(InputError, match='no such manifest or folder'):
    manifests.annotate(folder / 'none', folder / 'out.csv', annotated('c'))
  write(pictures, ('path', 'split', 'label'), ('set/test/sad/c.png', 'test', 'sad'))
  with pictures.open('a') as file:
    file.write('set/test/sad/c.png,test,sad\n')
  with pytest.raises(InputError, match='is listed 2 times'):
    manifests.annotate(pictures, folder / 'out.csv', annotated('c'))
  assert not [path for path in folder.rglob('*') if 'out.csv' in path.name]


def test_nearest_pose_by_a_loop():
  yaw = np.array([-90, -46, -37.6, -37.4, -7.5, -7.4, 7.5, 0, 22.4, 22.6, 180.0])
  poses = (30, -45, 0, -30, 15, -15, 45)
  slow = [min(sorted(poses, key=abs), key=lambda p: abs(p - y)) for y in yaw]
  np.testing.assert_array_equal(manifests.nearest_pose(yaw, poses), slow)
  assert slow == [-45, -45, -45, -30, 0, 0, 0, 0, 15, 30, 45]


def test_poses_are_binned_by_yaw_in_radians(pictures):
  out, rows = pictures.parent / 'new.csv', rows_of(pictures)
  yaws = ['0.2', '-0.6', '', '1.6']
  lines = [(r['path'], r['split'], r['label'], yaw) for r, yaw in zip(rows, yaws, strict=True)]
  write(pictures, ('path', 'split', 'label', 'pose_Ry'), *lines)
  text = manifests.add_poses(pictures, out, (30, -30, 0))
  assert [row['yaw_bin'] for row in rows_of(out)] == ['0', '-30', '30']
  assert '0 (-15 to 15): 1 rows, yaws 11.5 to 11.5' in text and 'without a yaw: 1' in text
  assert parser.parse(out).rows[1]['yaw_bin'] == -30
  assert [row['yaw_bin'] for row in rows_of(_poses(pictures, out))] == ['15', '-30', '45']


def _poses(manifest, out):
  manifests.add_poses(manifest, out)
  return out


def test_poses_that_cannot_be_binned(pictures):
  out = pictures.parent / 'new.csv'
  with pytest.raises(InputError, match="no column 'pose_Ry'"):
    manifests.add_poses(pictures, out)
  write(pictures, ('path', 'split', 'label', 'pose_Ry'), ('a.jpg', 'test', 'sad', 30))
  with pytest.raises(InputError, match='a.jpg is 30, .* radians'):
    manifests.add_poses(pictures, out)
  with pytest.raises(InputError, match='at least two'):
    manifests.add_poses(pictures, out, (0, 0))
  assert not out.exists()


def people(rng, sizes, width=16, spread=0.1):
  """Embeddings around one direction for each person, and the person of each."""
  person = np.repeat(np.arange(len(sizes)), sizes)
  centres = np.eye(width)[person]
  return centres + spread * rng.normal(size=(len(person), width)) / np.sqrt(width), person


@pytest.mark.parametrize('how', [{'people': 3}, {'threshold': 0.5}])
def test_clusters_do_not_depend_on_order_and_length(how):
  embedding, person = people(np.random.default_rng(0), (2, 5, 3))
  order = np.random.default_rng(1).permutation(10)
  scaled = (embedding * np.linspace(0.1, 9, 10)[:, None])[order].astype(np.float32)
  found = manifests.cluster(scaled, **how)
  np.testing.assert_array_equal(found, np.array([2, 0, 1])[person[order]])
  assert manifests.cluster(scaled[:1], **how).tolist() == [0]


def test_average_linkage_by_hand():
  """Directions at 0, 40 and 90 degrees have cosine distances 0.234, 0.357 and 1. So the first two
  are joined at 0.234, and the third at the mean 0.679."""
  turn = np.radians([0, 40, 90])
  z = np.stack([np.cos(turn), np.sin(turn)], 1)
  assert manifests.cluster(z, threshold=0.23).tolist() == [0, 1, 2]
  assert manifests.cluster(z, threshold=0.6).tolist() == [0, 0, 1]
  assert manifests.cluster(z, threshold=0.7).tolist() == [0, 0, 0]


def test_subjects_by_order_and_by_path(pictures):
  folder, out = pictures.parent, pictures.parent / 'new.csv'
  z = np.float32([[0, 1], [1, 0], [0, 2], [1, 0.1]])
  np.save(folder / 'z.npy', z)
  text = manifests.add_subjects(pictures, out, folder / 'z.npy', threshold=0.5)
  assert [row['subject'] for row in rows_of(out)] == ['cluster0', 'cluster1'] * 2
  assert '4 rows of 2 people; rows of each: 2, 2' in text and 'several splits' in text
  paths = [row['path'] for row in rows_of(pictures)]
  np.savez(folder / 'z.npz', embedding=z[[3, 0, 2]], path=np.array(paths)[[3, 0, 2]])
  text = manifests.add_subjects(out, folder / 'again.csv', folder / 'z.npz', people=2)
  again = rows_of(folder / 'again.csv')
  assert [row['path'] for row in again] == [paths[0], paths[2], paths[3]]
  assert [row['subject'] for row in again] == ['cluster0', 'cluster0', 'cluster1']
  assert 'replaced: subject' in text and 'without an embedding: 1' in text
  assert {row['subject'] for row in parser.parse(folder / 'again.csv').rows} == {
    'cluster0',
    'cluster1',
  }


@pytest.mark.parametrize(
  'embedding, path, message',
  [
    (np.ones((3, 2)), None, '3 embeddings, but the manifest has 4 rows'),
    (np.ones(4), None, r'embedding f\[n, d\]'),
    (np.ones((4, 2), int), None, r'int64\[4, 2\]'),
    (np.array([[1, np.nan]] + [[1.0, 1]] * 3), None, '1 embeddings are zero or not finite'),
    (np.zeros((4, 2)), None, '4 embeddings are zero or not finite'),
    (np.array([{}, {}, {}, {}]), None, 'allow_pickle'),
    (np.ones((2, 2)), ['x.jpg', 'x.jpg'], '2 paths for 2 embeddings: .* each path once'),
    (np.ones((1, 2)), ['x.jpg'], 'none of its paths'),
  ],
)
def test_embeddings_that_do_not_fit(pictures, embedding, path, message):
  file = pictures.parent / ('z.npy' if path is None else 'z.npz')
  if path is None:
    np.save(file, embedding)
  else:
    np.savez(file, embedding=embedding, path=path)
  with pytest.raises(InputError, match=message):
    manifests.add_subjects(pictures, pictures.parent / 'new.csv', file, threshold=0.5)


def test_either_the_people_or_the_threshold_is_given(pictures):
  for how in ({}, {'people': 2, 'threshold': 0.5}):
    with pytest.raises(InputError, match='one of --people=N'):
      manifests.add_subjects(pictures, pictures, pictures, **how)
  with pytest.raises(InputError, match='above 0, at most 2'):
    manifests.add_subjects(pictures, pictures, pictures, threshold=3.0)
  np.save(pictures.parent / 'z.npy', np.eye(4))
  with pytest.raises(InputError, match='there are 4 rows'):
    manifests.add_subjects(pictures, pictures, pictures.parent / 'z.npy', people=5)


def call(capsys, target, **given):
  with flagsaver.flagsaver(**given):
    prepare.TARGETS[target]()
  return capsys.readouterr().out


def test_the_three_commands(pictures, capsys):
  folder = pictures.parent
  boxes = ' '.join(map(str, range(10)))
  (folder / 'list.txt').write_text(f'a.jpg {boxes}\nc.png {boxes}\nhappy/a.jpg {boxes}\n')
  given = {'format': 'points', 'points': 5, 'annotations': str(folder / 'list.txt'), 'origin': 1}
  out = {'out': str(folder / 'first.csv')}
  text = call(capsys, 'annotations', **given, **out, pictures=str(folder / 'set'))
  assert '2 of 4 pictures, with landmarks (5 points)' in text
  assert 'several pictures have this name: 1' in text
  first = rows_of(folder / 'first.csv')
  assert first[0]['x_0'] == '-1' and first[0]['y_4'] == '8'
  np.save(folder / 'z.npy', np.eye(2))
  there = {'manifest': str(folder / 'first.csv'), 'out': str(folder / 'second.csv')}
  text = call(capsys, 'subjects', **there, embeddings=str(folder / 'z.npy'), people=2)
  assert '2 rows of 2 people' in text
  posed = [('path', 'split', 'label', 'pose_Ry'), (first[0]['path'], 'train', 'sad', '-0.6')]
  write(folder / 'first.csv', *posed)
  assert '-60 (-180 to -30): 1 rows' in call(capsys, 'poses', **there, bins=['0', '-60'])
  with pytest.raises(InputError, match='whole degrees'):
    call(capsys, 'poses', **there, bins=['-30', 'zero'])
  with pytest.raises(InputError, match='give --pictures: a manifest'):
    call(capsys, 'annotations', annotations=str(folder))
