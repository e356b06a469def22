"""The tables beside a prepared data set: kept, refused when they do not fit, written at once."""

import json
import shutil

import numpy as np
import pytest

from ferjax.data import tables

TABLE = {
  'label': np.arange(5, dtype=np.int32),
  'name': np.array(['a', 'bé', 'ccc', 'd', 'e']),
  'landmarks': np.arange(20, dtype=np.float32).reshape(5, 2, 2),
  'hash': np.arange(160, dtype=np.uint8).view('V32'),
}


def stored(folder, stamp='one'):
  return tables.read(folder, 'train', stamp, 5)


def columns_folder(folder):
  (place,) = (path for path in folder.iterdir() if path.is_dir())
  return place


def change_index(place, **changes):
  path = place / 'table-train.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def folder(tmp_path):
  assert tables.write(tmp_path, 'train', 'one', TABLE)
  return tmp_path


def test_columns_return_from_memory_mapped_files(folder):
  found = stored(folder)
  assert list(found) == list(TABLE)
  for name, column in TABLE.items():
    assert found[name].dtype == column.dtype and found[name].tobytes() == column.tobytes()
    assert isinstance(found[name].base, np.memmap) and not found[name].flags.writeable
  assert tables.read(folder, 'test', 'one', 5) is None


def test_a_table_of_other_records_is_replaced(folder):
  assert stored(folder, 'two') is None
  assert tables.read(folder, 'train', 'one', 6) is None
  assert tables.write(folder, 'train', 'two', TABLE)
  assert stored(folder, 'two') and stored(folder) is None
  assert sorted(path.name for path in folder.iterdir()) == [
    columns_folder(folder).name,
    'table-train.json',
  ]


def test_the_first_complete_table_stays(folder):
  before = columns_folder(folder)
  assert tables.write(folder, 'train', 'one', TABLE)
  assert columns_folder(folder) == before and stored(folder)


def flip_a_byte(folder):
  path = columns_folder(folder) / 'name.npy'
  content = bytearray(path.read_bytes())
  content[-3] ^= 1
  path.write_bytes(content)


def cut(folder):
  path = columns_folder(folder) / 'label.npy'
  path.write_bytes(path.read_bytes()[:-4])


@pytest.mark.parametrize(
  'damage',
  [
    flip_a_byte,
    cut,
    lambda folder: (columns_folder(folder) / 'label.npy').write_bytes(b''),
    lambda folder: (columns_folder(folder) / 'label.npy').unlink(),
    lambda folder: shutil.rmtree(columns_folder(folder)),
    lambda folder: (folder / 'table-train.json').write_text('{"version": 2, "st'),
    lambda folder: (folder / 'table-train.json').write_text('[]'),
    lambda folder: change_index(folder, version=1),
    lambda folder: change_index(folder, columns={}),
    lambda folder: change_index(folder, columns={'label': 'x'}),
    lambda folder: change_index(folder, folder=3),
  ],
)
def test_a_damaged_table_counts_as_missing_and_is_replaced(folder, damage):
  damage(folder)
  assert stored(folder) is None
  assert tables.write(folder, 'train', 'one', TABLE)
  assert stored(folder)


def test_an_index_names_nothing_outside_its_folder(tmp_path):
  outside = tmp_path / 'outside'
  folder = tmp_path / 'set'
  for place in (outside, folder):
    place.mkdir()
    assert tables.write(place, 'train', 'one', TABLE)
  theirs = columns_folder(outside)
  change_index(folder, folder=f'../outside/{theirs.name}')
  assert stored(folder) is None
  assert tables.write(folder, 'train', 'one', TABLE) and stored(outside)
  own = json.loads((folder / 'table-train.json').read_text())
  sums = {f'../../outside/{theirs.name}/label': own['columns']['label']}
  change_index(folder, columns=sums)
  assert stored(folder) is None


def test_no_pickle_is_read_or_written(folder):
  place = columns_folder(folder)
  np.save(place / 'label.npy', np.array([{}] * 5), allow_pickle=True)
  sums = json.loads((folder / 'table-train.json').read_text())['columns']
  change_index(folder, columns=sums | {'label': tables._checksum(place / 'label.npy')})
  assert stored(folder) is None
  with pytest.raises(ValueError, match='Object arrays cannot be saved'):
    tables.write(folder, 'train', 'two', {'label': np.array([{}])})
  assert columns_folder(folder) == place  # nothing of the failed attempt is left


def test_a_folder_that_cannot_be_written_keeps_no_table(tmp_path, caplog, monkeypatch):
  def refuse(*arguments, **options):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(np, 'save', refuse)
  assert not tables.write(tmp_path, 'train', 'one', TABLE)
  assert f'cannot be kept in {tmp_path} (No space left on device)' in caplog.text
  assert not list(tmp_path.iterdir())


def test_the_stamp_depends_on_the_records_and_not_on_their_place(tmp_path):
  def make(name, records=b'abc', info='{}'):
    place = tmp_path / name
    place.mkdir()
    (place / 'dataset_info.json').write_text(info)
    (place / 'train-0').write_bytes(records)
    return tables.stamp(place, [place / 'train-0'])

  assert make('a') == make('copy')
  assert len({make('b'), make('c', b'abd'), make('d', b'ab'), make('e', info='{"a": 1}')}) == 4
