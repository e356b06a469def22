"""Near duplicates of different splits, by made-up hashes."""

import csv

import numpy as np
import pytest
from absl.testing import flagsaver
from drawn_faces import write_manifest

from ferjax.assembly import sources
from ferjax.cli import prepare
from ferjax.config import base
from ferjax.data import dataset, near_duplicates
from ferjax.data.splits import Split
from ferjax.errors import InputError
from ferjax.images.perceptual_hash import BITS, mirrored_hashes


def make(hashes, name='x', label=0):
  rows = len(hashes)
  table = {
    'hash': np.ascontiguousarray(hashes).view('V32')[:, 0],
    'digest': np.array([row.tobytes().hex() for row in hashes]),
    'name': np.array([f'{name}{row}' for row in range(rows)]),
    'label': np.full(rows, label, np.int32),
  }
  return Split(None, np.arange(rows), table)


def random_hashes(rows, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (rows, BITS // 8), np.uint8)


def changed(row, bits):
  """The hash with its first bits inverted."""
  return row ^ np.packbits(np.arange(BITS) < bits)


def test_the_nearest_are_those_of_a_slow_loop(monkeypatch):
  monkeypatch.setattr(near_duplicates, 'BLOCK', 7)
  own, others = random_hashes(30), random_hashes(40, seed=1)
  own[[3, 8]] = changed(others[5], 11), mirrored_hashes(changed(others[6], 2))
  for mirrored in (False, True):
    found = near_duplicates.find(make(own), make(others), 100, mirrored)
    expected = []
    for row, own_hash in enumerate(own):
      bits = [(np.bitwise_count(own_hash ^ h).sum(), 0, i) for i, h in enumerate(others)]
      if mirrored:
        flipped = mirrored_hashes(own_hash)
        bits += [(np.bitwise_count(flipped ^ h).sum(), 1, i) for i, h in enumerate(others)]
      best = min(bits)
      if best[0] <= 100:
        expected.append((row, best[2], best[0], best[1]))
    assert (3, 5, 11, 0) in expected and ((8, 6, 2, 1) in expected) == mirrored
    for ours, theirs in zip(zip(*found, strict=True), expected, strict=True):
      assert (ours[0], ours[2], ours[3]) == (theirs[0], theirs[2], theirs[3])


def test_the_distance_is_included():
  others = random_hashes(3)
  own = make(np.stack([changed(others[1], 9)]))
  assert near_duplicates.find(own, make(others), 9).distance.tolist() == [9]
  assert not len(near_duplicates.find(own, make(others), 8).row)


@pytest.fixture
def leaking():
  """A data set whose hashes are random, but for copies of test and validation rows."""
  train, val, test = random_hashes(20), random_hashes(8, seed=1), random_hashes(8, seed=2)
  train[[2, 4]] = test[1], changed(test[5], 6)
  train[7] = changed(val[3], 3)
  train[9] = mirrored_hashes(test[7])
  val[6] = changed(test[0], 1)
  train[11] = changed(val[6], 4)
  return dataset.Dataset(
    name='made_up',
    classes=('neutral', 'fear'),
    splits={'train': make(train, 'a'), 'val': make(val, 'b', 1), 'test': make(test, 'c')},
    landmark_indices=None,
    fingerprint='',
  )


def test_copies_are_dropped_from_train_and_then_from_val(leaking, caplog):
  with caplog.at_level('INFO'):
    kept = near_duplicates.drop(leaking)
  names = {split: set(one.table['name']) for split, one in kept.splits.items()}
  assert names['train'] == {f'a{row}' for row in range(20)} - {'a2', 'a4', 'a7', 'a11'}
  assert names['val'] == {f'b{row}' for row in range(8)} - {'b6'} and len(names['test']) == 8
  assert kept.dropped == {'val': 1, 'train': 4}
  assert 'made_up: pictures left out' in caplog.text and 'val 1, train 4' in caplog.text
  assert near_duplicates.drop(leaking, distance=3).dropped == {'val': 1, 'train': 3}
  assert near_duplicates.drop(leaking, mirrored=True).dropped == {'val': 1, 'train': 5}
  further = make(leaking.splits['train'].table['hash'][15:].view(np.uint8).reshape(5, -1))
  assert near_duplicates.drop(leaking, [further]).dropped == {'val': 1, 'train': 9}


def test_training_rows_remain_or_it_is_an_error(leaking):
  splits = {'train': leaking.splits['val'], 'test': leaking.splits['val']}
  with pytest.raises(InputError, match='every training picture of made_up.*duplicate_distance=5'):
    near_duplicates.drop(leaking._replace(splits=splits), distance=5)
  whole = near_duplicates.drop(leaking._replace(splits={'train': leaking.splits['train']}))
  assert whole.dropped == {'train': 0} and len(whole.splits['train'].rows) == 20
  splits = {'train': make(random_hashes(4, seed=9)), 'val': leaking.splits['test']}
  splits['test'] = leaking.splits['test']
  assert set(near_duplicates.drop(leaking._replace(splits=splits)).splits) == {'train', 'test'}


def test_pairs_are_counted_and_listed(leaking, tmp_path):
  lines = near_duplicates.describe(leaking.splits, leaking.classes, out=tmp_path / 'pairs.csv')
  assert lines == [
    'nearly the same picture in train/val: 2 (0 byte for byte; 2 with another label)',
    'nearly the same picture in train/test: 3 (1 byte for byte; 0 with another label)',
    'nearly the same picture in val/test: 1 (0 byte for byte; 1 with another label)',
  ]
  with (tmp_path / 'pairs.csv').open(newline='') as file:
    rows = list(csv.reader(file))
  assert rows[0][-2:] == ['distance', 'mirrored'] and len(rows) == 7
  assert rows[1] == ['test', 'c1', 'neutral', 'train', 'a2', 'neutral', '0', 'False']
  assert [int(row[6]) for row in rows[1:]] == [0, 1, 3, 3, 4, 6]
  lines = near_duplicates.describe(leaking.splits, leaking.classes, mirrored=True)
  assert '/test: 4, 1 of them mirrored (1 byte' in lines[1]
  with pytest.raises(InputError, match='cannot write .*: File name too long'):
    near_duplicates.describe(leaking.splits, leaking.classes, out=tmp_path / ('x' * 255))


@pytest.mark.parametrize('distance', [-1, BITS])
def test_an_impossible_distance_is_refused(distance):
  with pytest.raises(InputError, match=f'--distance={distance}: give a number of bits from 0 to'):
    near_duplicates.check_distance(distance, '--distance')


def test_a_run_and_the_command_see_a_planted_copy(tmp_path, data_dir, capsys):
  path = write_manifest(tmp_path, {'train': 28, 'val': 7, 'test': 14})
  (tmp_path / 'test_003.png').write_bytes((tmp_path / 'train_005.png').read_bytes())
  config = base()
  config.data.update(name='manifest', path=str(path), dir=data_dir, duplicate_distance=0)
  assert len(sources.load(config).data.splits['train'].rows) == 28
  config.data.drop_duplicates = True
  data = sources.load(config).data
  assert data.dropped == {'val': 0, 'train': 1}
  assert 'train_005.png' not in data.splits['train'].table['name']

  out = tmp_path / 'pairs.csv'
  given = {'name': 'manifest', 'path': str(path), 'dir': data_dir, 'distance': 0}
  with flagsaver.flagsaver(**given, out=str(out)):
    prepare.TARGETS['duplicates']()
  printed = capsys.readouterr().out
  assert printed == (
    'nearly the same picture in train/test: 1 (1 byte for byte; 1 with another label)\n'
  )
  assert len(out.read_text().splitlines()) == 2
  for flags, message in (
    ({'out': str(tmp_path / 'no' / 'pairs.csv')}, 'there is no folder'),
    ({'distance': 256}, '--distance=256'),
    ({'name': ''}, 'give --name'),
  ):
    with flagsaver.flagsaver(**given | flags), pytest.raises(InputError, match=message):
      prepare.TARGETS['duplicates']()
  one = write_manifest(tmp_path / 'one', {'test': 7})
  with flagsaver.flagsaver(**given | {'path': str(one)}):
    with pytest.raises(InputError, match='has one split only, test'):
      prepare.TARGETS['duplicates']()
