"""Several data sets: their names, how they are joined, complete runs on them."""

import csv
import json
import pickle

import numpy as np
import pytest
import trees
from drawn_faces import strip_landmarks, write_manifest

from ferjax import config as configs
from ferjax.assembly import sources
from ferjax.data import checks, dataset, sets
from ferjax.errors import InputError
from ferjax.evaluation import evaluate
from ferjax.metrics import predictions
from ferjax.report.figures import tables
from ferjax.training import loop

CLASSES = ('neutral', 'happiness', 'surprise', 'sadness', 'anger', 'disgust', 'fear')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Three manifests. `b` has other pictures than `a`, without landmarks, with contempt, and without
  validation rows. `c` has training rows only, and one of its pictures is a copy from `a`."""
  folder = tmp_path_factory.mktemp('sets')
  write_manifest(folder / 'a', {'train': 28, 'val': 14, 'test': 14}, seed=1)
  whole = write_manifest(folder / 'b', {'train': 42, 'test': 21}, seed=2)
  whole.write_text(whole.read_text().replace(',fear,train0,', ',contempt,train0,'))
  strip_landmarks(whole, folder / 'b' / 'b.csv')
  write_manifest(folder / 'c', {'train': 10}, seed=3)
  copied = (folder / 'a' / 'train_003.png').read_bytes()
  (folder / 'c' / 'train_001.png').write_bytes(copied)
  return folder


def spec(folder, name):
  return f'manifest:{folder / name / ("b.csv" if name == "b" else "manifest.csv")}'


def config_of(folder, data_dir, *names, tested=(), **data):
  config = configs.base()
  config.data.update(dir=data_dir, image_size=32, **data)
  config.data.sets = tuple(spec(folder, name) for name in names)
  config.eval.sets = tuple(spec(folder, name) for name in tested)
  return config


def alone(folder, data_dir, name, **options):
  path = spec(folder, name).partition(':')[2]
  return dataset.load(name='manifest', path=path, dir=data_dir, image_size=32, **options)


def test_names_are_short_and_distinct():
  specs = ('raf_db', 'manifest:x/a/manifest.csv', 'manifest:y/a/manifest.csv', 'manifest:b c.csv')
  found = sets.names((*specs, 'manifest:rotation.csv'), ('rotation',))
  assert list(found.values()) == ['raf_db', 'a', 'a-2', 'b_c', 'rotation-2']
  assert list(found)[:4] == list(specs)


def test_one_joined_set_equals_the_set_alone(folder, data_dir):
  joined = sources.load(config_of(folder, data_dir, 'a')).data
  plain = alone(folder, data_dir, 'a')
  assert joined.classes == plain.classes and joined.poses == plain.poses
  assert joined.landmark_indices == plain.landmark_indices and joined.sets == ('a',)
  assert list(joined.splits) == list(plain.splits)
  for key, split in plain.splits.items():
    table = joined.splits[key].table
    assert set(table) == {*split.table, 'set'} and not table['set'].any()
    for column in split.table:
      np.testing.assert_array_equal(table[column], split.table[column])
    shown = [dataset.picture(s, 5, 32) for s in (split, joined.splits[key])]
    np.testing.assert_array_equal(*shown)


def test_two_sets_are_joined_row_by_row(folder, data_dir, caplog):
  data = sources.load(config_of(folder, data_dir, 'a', 'b')).data
  found = {'a': alone(folder, data_dir, 'a'), 'b': alone(folder, data_dir, 'b')}
  assert len(found['b'].classes) == 8 and data.classes == CLASSES and data.name == 'a+b'
  assert "has them (config.data.classes keeps them): {'b': ['contempt']}" in caplog.text
  assert 'landmarks (b has none)' in caplog.text
  assert data.landmark_indices is None and 'au' in data.splits['train'].table
  subjects = {}
  for key, split in data.splits.items():
    table = split.table
    assert 'landmarks' not in table and table['distribution'].shape[1] == 7
    np.testing.assert_allclose(table['distribution'].sum(1), 1, atol=1e-5)
    for number, (name, one) in enumerate(found.items()):
      own = one.splits[key]
      kept = np.flatnonzero(own.table['label'] < 7)
      rows = np.flatnonzero(table['set'] == number)
      for column in ('label', 'digest', 'yaw_bin', 'pose', 'au', 'yaw'):
        np.testing.assert_array_equal(table[column][rows], own.table[column][kept])
      names = np.char.add(f'{name}/', own.table['name'][kept])
      np.testing.assert_array_equal(table['name'][rows], names)
      for row, place in zip(rows[::5], kept[::5], strict=True):
        picture = dataset.picture(split, row, 32)
        np.testing.assert_array_equal(picture, dataset.picture(own, place, 32))
      pairs = set(zip(own.table['subject'][kept], table['subject'][rows], strict=True))
      subjects.setdefault(name, set()).update(pairs)
  for pairs in subjects.values():  # one to one
    assert len({a for a, _ in pairs}) == len({b for _, b in pairs}) == len(pairs)
  ids = [b for pairs in subjects.values() for _, b in pairs]
  assert len(ids) == len(set(ids))
  head = data.splits['train'].table['set'][:10]  # in proportion, not one set after the other
  assert 2 <= head.sum() <= 8
  again = sources.load(config_of(folder, data_dir, 'a', 'b')).data
  other = sources.load(config_of(folder, data_dir, 'b', 'a')).data
  assert again.fingerprint == data.fingerprint != other.fingerprint


def test_random_joins_keep_every_row_and_its_record():
  """Compared with a plain loop, for splits of random lengths over random subsets of records."""
  rng = np.random.default_rng(0)
  for _ in range(20):
    parts = []
    for number in range(rng.integers(1, 5)):
      records = [f'{number}-{i}' for i in range(rng.integers(1, 9))]
      rows = rng.permutation(len(records))[: rng.integers(1, len(records) + 1)]
      table = {
        'label': rng.integers(0, 9, len(rows)),
        'source': np.array([records[r] for r in rows]),
      }
      parts.append(dataset.Split(records, rows, table))
    joined = sets.concatenate(parts)
    read = [joined.records[int(row)] for row in joined.rows]
    assert read == joined.table['source'].tolist()
    expected = [t for part in parts for t in part.table['source'].tolist()]
    assert sorted(expected) == sorted(read) and len(joined.records) == sum(len(p[0]) for p in parts)
    for part in parts:  # within a set the order stays
      places = [read.index(t) for t in part.table['source'].tolist()]
      assert places == sorted(places)


def test_joined_records_can_be_sent_to_worker_processes(folder, data_dir):
  data = sources.load(config_of(folder, data_dir, 'a', 'b')).data
  split = data.splits['test']
  restored = pickle.loads(pickle.dumps(split))
  np.testing.assert_array_equal(dataset.picture(restored, 9, 32), dataset.picture(split, 9, 32))


def test_chosen_classes_need_not_be_in_every_set(folder, data_dir):
  classes = ('contempt', 'anger')
  data = sources.load(config_of(folder, data_dir, 'a', 'b', classes=classes)).data
  table = data.splits['train'].table
  assert data.classes == classes and set(table['set'][table['label'] == 0]) == {1}
  assert set(table['set'][table['label'] == 1]) == {0, 1}


def test_landmarks_that_are_not_the_same_points_are_left_out(folder, data_dir, caplog):
  one = alone(folder, data_dir, 'a')
  few = {
    k: s._replace(table=s.table | {'landmarks': s.table['landmarks'][:, :5]})
    for k, s in one.splits.items()
  }
  joined = sets.join(
    {'a': one, 'b': one._replace(splits=few, landmark_indices=None, landmark_scheme='')}
  )
  assert 'a: ibug68 (68 points), b: unknown scheme (5 points)' in caplog.text
  assert 'landmarks' not in joined.splits['train'].table and joined.landmark_indices is None
  unknown = one._replace(landmark_indices=None, landmark_scheme='')
  assert 'landmarks' not in sets.join({'a': one, 'b': unknown}).splits['test'].table
  assert 'a: ibug68 (68 points), b: unknown scheme (68 points)' in caplog.text
  assert "same picture in two sets (train): {'a/b': 28}" in caplog.text
  tested = sets.tested_on(one._replace(splits=few), one)
  assert list(tested.splits) == ['test'] and 'landmarks' not in tested.splits['test'].table
  assert 'landmarks' in sets.tested_on(one, one).splits['test'].table


def test_a_config_chooses_among_the_points_in_common(folder, data_dir):
  """Also for a set that is only tested, whatever its scheme."""
  lines = [line.split(',') for line in (folder / 'a' / 'manifest.csv').read_text().splitlines()]
  jaw = {f'{axis}_{i}' for axis in 'xy' for i in range(17)}
  kept = [i for i, name in enumerate(lines[0]) if name not in jaw]
  header = [n if n[1] != '_' or n[0] == 'p' else f'{n[:2]}{int(n[2:]) - 17}' for n in lines[0]]
  rows = [','.join(line[i] for i in kept) for line in (header, *lines[1:])]
  (folder / 'a' / 'inner.csv').write_text('\n'.join(rows) + '\n')
  inner = f'manifest:{folder / "a" / "inner.csv"}'
  config = config_of(folder, data_dir, 'c', tested=('a',), landmarks=(3, 50))
  config.data.sets = (*config.data.sets, inner)
  found = sources.load(config)
  expected = alone(folder, data_dir, 'a').splits['test'].table['landmarks'][:, [20, 67]]
  for data in (found.data, found.tests['a']):
    assert (data.landmark_scheme, data.landmark_indices) == ('ibug51', (3, 50))
  np.testing.assert_array_equal(found.tests['a'].splits['test'].table['landmarks'], expected)
  np.testing.assert_array_equal(found.data.splits['test'].table['landmarks'], expected)
  config.data.landmarks = (60,)
  with pytest.raises(InputError, match='config.data.landmarks asks for point 60'):
    sources.load(config)


def test_poses_are_those_of_all_sets(folder, data_dir):
  one = alone(folder, data_dir, 'a')
  turned = {
    k: s._replace(table=s.table | {'yaw_bin': s.table['yaw_bin'] * 2})
    for k, s in one.splits.items()
  }
  other = dataset.with_poses(one._replace(splits=turned), (-60, 0, 60))
  joined = sets.join({'a': one, 'b': other})
  assert joined.poses == (-60, -30, 0, 30, 60)
  table = joined.splits['train'].table
  np.testing.assert_array_equal(np.array(joined.poses)[table['pose']], table['yaw_bin'])


def test_the_rows_that_are_tested(folder, data_dir, caplog):
  """The test split of sets that are trained on; all rows of another set without a test split."""
  config = config_of(folder, data_dir, 'a', 'b', tested=('c', 'b'))
  config.eval.groups = (('lab', ('c', spec(folder, 'a'))),)
  data, tests, groups = sources.load(config)
  assert list(tests) == ['a', 'b', 'c']
  assert groups == {'all': ('c', 'b'), 'lab': ('c', 'a')}
  assert {k: len(t.splits['test'].rows) for k, t in tests.items()} == {'a': 14, 'b': 21, 'c': 10}
  assert all(t.classes == CLASSES and list(t.splits) == ['test'] for t in tests.values())
  names = tests['b'].splits['test'].table['name']
  assert list(names) == [f'b/test_{i:03}.png' for i in range(21)]
  data, tests, groups = sources.load(config_of(folder, data_dir, 'a', 'b'))
  assert groups == {'all': ('a', 'b')}
  config = config_of(folder, data_dir, tested=('b', 'a'))
  config.data.update(name='manifest', path=spec(folder, 'a').partition(':')[2])
  data, tests, groups = sources.load(config)
  assert list(tests) == ['a', 'b'] and groups['all'] == ('b', 'a') and not data.sets
  assert len(tests['b'].splits['test'].rows) == 21 and tests['b'].classes == CLASSES


def test_mapped_names_must_exist_in_at_least_one_set(folder, data_dir, tmp_path):
  path = tmp_path / 'd' / 'manifest.csv'
  write_manifest(tmp_path / 'd', {'test': 7})
  path.write_text(path.read_text().replace(',fear,', ',scream,'))
  config = config_of(folder, data_dir)
  config.data.class_map = (('scream', 'fear'),)
  config.data.options.synthetic_faces.update(num=20, size=32)
  config.eval.sets = (f'manifest:{path}',)
  data, tests, _ = sources.load(config)
  assert data.name == 'synthetic_faces' and list(tests) == ['synthetic_faces', 'd']
  np.testing.assert_array_equal(tests['d'].splits['test'].table['label'], np.arange(7))
  config.data.sets, config.eval.sets = ('synthetic_faces',), ()
  with pytest.raises(InputError, match="'scream', which is not a class of any set"):
    sources.load(config)


@pytest.mark.parametrize(
  'change, message',
  [
    ({'data.sets': ('manifst',)}, "data.sets names 'manifst'.* Did you mean 'manifest'"),
    ({'data.sets': ('manifest',)}, "name the manifest, such as 'manifest:faces/manifest.csv'"),
    ({'data.sets': ('synthetic_faces:x',)}, 'only a manifest has a file'),
    (
      {'data.sets': ('manifest:no/x.csv',)},
      "data.sets names 'manifest:no/x.csv': there is no such file",
    ),
    (
      {'eval.sets': ('manifest:no/x.csv',)},
      "eval.sets names 'manifest:no/x.csv': there is no such file",
    ),
    ({'eval.sets': ('kdf',)}, "config.eval.sets names 'kdf', which is not a data set"),
    ({'data.sets': ('A', 'A')}, "config.data.sets names 'manifest:.*' twice"),
    ({'data.sets': ('A',), 'data.path': 'x.csv'}, 'give one of them'),
    ({'data.sets': ('A',), 'data.name': 'manifest'}, 'give one of them'),
    ({'data.sets': ('C',), 'eval.sets': ('C',)}, 'is trained on and has no test rows'),
    ({'data.sets': ('A', 'C'), 'eval.groups': (('lab', ('c',)),)}, "'c' of 'lab' has no test rows"),
    ({'data.sets': ('A',), 'eval.groups': (('lab', ('aa',)),)}, "'aa' of 'lab'.* mean 'a'"),
    ({'eval.groups': ('lab', ('a',))}, 'give pairs'),
    ({'data.sets': ('A',), 'eval.groups': (('lab', 'a'),)}, 'give pairs'),
  ],
)
def test_mistakes_are_errors(change, message, folder, data_dir):
  config = config_of(folder, data_dir)
  for key, value in change.items():
    if isinstance(value, tuple):
      value = tuple(spec(folder, v.lower()) if v in ('A', 'C') else v for v in value)
    config.update_from_flattened_dict({key: value})
  with pytest.raises(InputError, match=message):
    sources.load(config)


def test_sets_without_a_common_class_or_training_rows(folder, data_dir):
  data = alone(folder, data_dir, 'a')
  others = dataset.with_classes(data, ('anger', 'fear'))
  with pytest.raises(InputError, match=r'no class is common(.|\n)*b: anger, fear'):
    sets.shared_classes({'a': dataset.with_classes(data, ('neutral',)), 'b': others})
  assert sets.shared_classes({'a': data, 'b': others}) == ('anger', 'fear')
  tested = data._replace(splits={'test': data.splits['test']})
  joined = sets.join({'a': data, 'b': tested})
  with pytest.raises(InputError, match='b has no training row of a class in use'):
    checks.check_trainable(joined, frozenset(), 4)


def test_averages_count_every_set_once(tmp_path):
  numbers = ((0.5, 0.25, 0.125), (1.0, 0.75, 0.5), (0.0, 0.5, 0.25))
  measured = {
    name: dict(zip(predictions.AVERAGED, values, strict=True)) | {'rows': 10**place}
    for place, (name, values) in enumerate(zip('abc', numbers, strict=True))
  }
  means = predictions.averages(measured, {'all': ('a', 'b', 'c'), 'lab': ('a', 'b')})
  assert means['lab'] == {'acc': 0.75, 'mean_class_acc': 0.5, 'f1_macro': 0.3125, 'sets': 2}
  assert means['all']['acc'] == 0.5 and means['all']['sets'] == 3
  tables.sets(tmp_path / 'sets.csv', measured, means)
  with (tmp_path / 'sets.csv').open() as file:
    rows = list(csv.reader(file))
  assert rows[2] == ['b', '10', '1', '0.75', '0.5']
  assert rows[-1] == ['mean of lab', '', '0.75', '0.5', '0.3125']


def test_a_run_on_two_sets_is_tested_on_three(folder, data_dir, small_config, tmp_path):
  """With noisy labels. The run is started again after its end, and evaluated again and on another
  set."""
  config = small_config
  config.data.update(name='synthetic_faces', path='')
  config.data.sets = (spec(folder, 'a'), spec(folder, 'b'))
  config.eval.sets = (spec(folder, 'a'), spec(folder, 'c'))
  config.eval.groups = (('lab', ('b',)),)
  config.steps = 6
  config.noise.update(kind='symmetric', rate=0.3)
  summary = loop.train(config, tmp_path)
  record = json.loads((tmp_path / 'config.json').read_text())
  assert record['data'] == 'a+b' and record['classes'] == list(CLASSES)
  rows = {'train': 61, 'val': 21, 'test': 35, 'test/a': 14, 'test/b': 21, 'test/c': 10}
  assert record['rows'] == rows
  assert record['duplicates'] == {'train/test/c': 1}
  found = summary['sets']
  assert list(found) == ['a', 'b', 'c'] and found['c']['rows'] == 10
  with (tmp_path / 'predictions' / 'test_b.csv').open() as file:
    written = list(csv.DictReader(file))
  assert len(written) == 21 and written[0]['name'] == 'b/test_000.png'
  right = np.mean([row['label'] == row['prediction'] for row in written])
  assert abs(found['b']['acc'] - right) < 1e-9
  both = (14 * found['a']['acc'] + 21 * found['b']['acc']) / 35
  assert abs(summary['last']['test']['acc'] - both) < 1e-6
  mean = (found['a']['f1_macro'] + found['c']['f1_macro']) / 2
  assert abs(summary['averages']['all']['f1_macro'] - mean) < 1e-9
  assert summary['averages']['lab']['acc'] == found['b']['acc']
  for name in ('sets.csv', 'confusion_test_a.png', 'confusion_test.png'):
    assert (tmp_path / 'report' / name).is_file()
  assert loop.train(config, tmp_path) == summary
  own = evaluate.evaluate_run(tmp_path)
  assert own['sets'] == found and own['averages'] == summary['averages']
  assert own['test'] == summary['last']['test'] and own['data'] == 'a+b'
  other = configs.base()
  other.data.update(name='manifest', path=spec(folder, 'c').partition(':')[2], dir=data_dir)
  other.eval.update(batch=16, heatmaps=0, tsne=0, embeddings=False)
  other.eval.sets = (spec(folder, 'b'),)
  result = evaluate.evaluate_run(tmp_path, 'last', other)
  assert list(result['sets']) == ['b'] and result['sets']['b']['acc'] == found['b']['acc']
  assert list((tmp_path / 'eval').rglob('mistakes_test_b.png'))
  config.eval.sets = (spec(folder, 'c'),)
  with pytest.raises(InputError, match='config.eval.sets'):
    loop.train(config, tmp_path)


def test_a_set_uses_its_own_protocol_and_all_of_its_folds_are_tested(tmp_path, data_dir):
  root = tmp_path / 'manual'
  trees.raf_db(root / 'raf_db')
  trees.ck_plus(root / 'ck_plus')
  config = configs.base()
  config.data.update(name='raf_db', manual_dir=str(root), dir=data_dir, protocol='basic')
  config.eval.sets = ('ck_plus',)
  tested = sources.load(config).tests['ck_plus'].splits['test']
  folds = [
    dataset.load(
      name='ck_plus', dir=data_dir, manual_dir=str(root), fold=fold, classes=CLASSES
    ).splits['test']
    for fold in (0, 9)
  ]
  whole = set(tested.table['name'])
  assert all(set(fold.table['name']) < whole for fold in folds)
  config.eval.sets = ('ck_plus@ldl_alsg', 'raf_db')
  config.eval.groups = (('wild', ('raf_db',)), ('lab', ('ck_plus@ldl_alsg',)))
  found = sources.load(config)
  assert list(found.tests) == ['raf_db', 'ck_plus'] and found.groups['lab'] == ('ck_plus',)
  assert whole != set(found.tests['ck_plus'].splits['test'].table['name'])
  config.eval.sets = ('raf_db@other',)
  with pytest.raises(InputError, match="trains on 'raf_db@basic'"):
    sources.load(config)
  config.data.update(name='synthetic_faces')
  config.data.sets, config.eval.sets = ('raf_db', 'ck_plus'), ()
  with pytest.raises(InputError, match="config.data.sets=.'raf_db@basic'"):
    sources.load(config)


def test_another_spelling_of_a_path_is_the_same_set(folder, data_dir):
  config = config_of(folder, data_dir, 'c')
  config.eval.sets = (f'manifest:{folder / "a" / ".." / "c" / "manifest.csv"}',)
  with pytest.raises(InputError, match='is trained on and has no test rows'):
    sources.load(config)
  config.data.sets = (*config.data.sets, *config.eval.sets)
  with pytest.raises(InputError, match='twice'):
    sources.load(config)


def test_other_action_units_are_left_out(folder, data_dir, caplog):
  text = (folder / 'a' / 'manifest.csv').read_text()
  (folder / 'a' / 'other.csv').write_text(text.replace('AU12_r', 'AU15_r', 1))
  config = config_of(folder, data_dir, 'a', 'c')
  assert sources.load(config).data.action_units == ('AU01', 'AU12')
  config.data.sets = (spec(folder, 'c'), f'manifest:{folder / "a" / "other.csv"}')
  joined = sources.load(config).data
  assert 'au' not in joined.splits['train'].table and not joined.action_units
  assert 'au (not the same units: c: AU01 AU12; other: AU01 AU15)' in caplog.text
