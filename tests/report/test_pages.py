import contextlib
import html
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

from ferjax import config as configs
from ferjax import files
from ferjax.assembly.evaluations import Evaluations
from ferjax.cli import report
from ferjax.data import dataset, noise
from ferjax.errors import InputError
from ferjax.evaluation import finish
from ferjax.metrics.predictions import Predictions
from ferjax.ops.cells import PIXELS
from ferjax.report import comparison, page, single
from ferjax.report.figures import heatmaps, plots, tables
from ferjax.runs import history
from ferjax.runs import record as records
from ferjax.runs.folder import read

CLASSES = ('neutral', '<script>alert(1)</script>', 'fear & "joy"')
VOID = {'meta', 'img', 'wbr', 'br', 'link', 'path', 'use'}
SHEETS = ('mistakes_test', 'mislabels_test', 'search_val', 'tsne_test', 'grad_cam', 'response')
SHEETS += ('label_distributions', 'predicted_test', 'cross_entropy', 'subclasses_test_neutral')
SHEETS += ('confusion_pose_test', 'something_new')
CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser')


class Page(HTMLParser):
  """Text, elements and references of a page; fails if tags are not nested correctly."""

  def __init__(self, path):
    super().__init__()
    self.source = path.read_text(encoding='utf-8')
    self.open, self.elements, self.texts = [], [], []
    self.feed(self.source)
    self.close()
    assert not self.open
    self.text = ' '.join(' '.join(self.texts).split())

  def handle_starttag(self, tag, attributes):
    self.elements.append((tag, dict(attributes)))
    if tag not in VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attributes):
    self.elements.append((tag, dict(attributes)))

  def handle_endtag(self, tag):
    if tag not in VOID:
      assert self.open.pop() == tag

  def handle_data(self, data):
    if self.open[-1:] != ['style']:
      self.texts.append(data)

  def all(self, tag):
    return [attributes for name, attributes in self.elements if name == tag]


def check_page(path):
  """Checks any page: complete, without script or network, with unique ids and table headers."""
  found = Page(path)
  assert found.source.startswith('<!DOCTYPE html>')
  (policy,) = [one['content'] for one in found.all('meta') if one.get('http-equiv')]
  assert "default-src 'none'" in policy and 'script' not in policy
  assert not found.all('script') and not found.all('link') and not found.all('iframe')
  ids = [attributes['id'] for _, attributes in found.elements if 'id' in attributes]
  assert len(ids) == len(set(ids))
  for tag, attributes in found.elements:
    assert not [name for name in attributes if name.startswith('on')]
    for name in ('src', 'href', 'xlink:href', 'srcset', 'action', 'data', 'poster'):
      reference = attributes.get(name, '#')
      assert reference.startswith(('#', 'data:image/png;', 'data:image/jpeg;'))
      if reference.startswith('#') and len(reference) > 1:
        assert reference[1:] in ids
    for target in re.findall(r'url\((.*?)\)', attributes.get('clip-path', '')):
      assert target[1:] in ids
    if tag == 'th':
      assert attributes['scope'] in ('row', 'col', 'rowgroup', 'colgroup')
    if tag == 'img':
      assert attributes['alt'] and attributes['width'] and attributes['height']
  assert '://' not in found.source and '@import' not in found.source
  return found


def write_record(folder, **changes):
  """A `config.json` with `changes` {'noise.rate': 0.3}."""
  config = configs.base()
  config.method = {'name': 'softmax'}
  for key, value in changes.items():
    *sections, last = key.split('.')
    place = config
    for section in sections:
      place = place[section]
    place[last] = value
  facts = {'data': 'set <b>one</b>', 'fingerprint': 'f' * 64, 'labels_sha256': 'a' * 64}
  facts |= {'classes': list(CLASSES), 'poses': [-30, 0], 'rows': {'train': 9}, 'duplicates': {}}
  records.write(folder, records.make(config, facts | {'steps': 4}))


def evaluation(step, split, acc, **others):
  recalls = {f'recall/{name}': acc / (1 + i) for i, name in enumerate(CLASSES)}
  values = {'loss': 2 - acc, 'acc': acc, 'mean_class_acc': acc, 'f1_macro': acc / 2}
  return {'step': step, 'split': split, **values, **recalls, **others}


def write_lines(folder, accuracies, steps=(2, 4)):
  """Writes a `metrics.jsonl`. Evaluations improve up to the given accuracies of the last one."""
  lines = []
  for step in range(1, steps[-1] + 1):
    values = {'loss': 2 / step, 'acc': 0.1 * step, 'cross_entropy': 1 / step, 'pull': 0.5}
    values |= {'l2_grads': 1.0, 'weight/pull': 0.1 * step, 'weight/cross_entropy': 1.0}
    lines.append({'step': step, 'split': 'train', **values, 'lr': 0.1, 'images_per_s': 10.0})
    if step in steps:
      for split, acc in accuracies.items():
        lines.append(evaluation(step, split, acc - 0.01 * (steps[-1] - step)))
  text = ''.join(json.dumps(line) + '\n' for line in lines)
  (folder / 'metrics.jsonl').write_text(text, encoding='utf-8')
  return lines


def write_summary(folder, lines, **others):
  values = {'step': 4, 'stopped_early': False, 'data': 'x', 'state_sha256': 'c0ffee' * 10}
  files.write_json(folder / 'summary.json', history.summarise(lines) | values | others)


def predictions():
  """Nine rows at two poses; six of them are predicted correctly."""
  label = np.repeat(np.arange(3), 3)
  predicted = np.array([0, 0, 1, 1, 1, 1, 2, 0, 0])
  logits = 2.0 * np.eye(3, dtype=np.float32)[predicted]
  table = {'label': label, 'name': np.array([f'{i}.png' for i in range(9)])}
  table['yaw_bin'] = np.array([-30, 0, 0] * 3)
  return Predictions({'logits': logits}, table)


def write_picture(path, size=(60, 40), seed=0):
  path.parent.mkdir(parents=True, exist_ok=True)
  values = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3)).astype(np.uint8)
  cv2.imwrite(str(path), values)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A finished run with the files of `finish.finish`, and with an evaluation on other data."""
  folder = tmp_path_factory.mktemp('runs') / 'run <i>'
  write_record(folder, **{'noise.kind': 'symmetric', 'optimizer.lr': 0.5, 'data.path': '<u>.csv'})
  record = json.loads((folder / 'config.json').read_text())
  record['weights'] = {'file': 'start.pth', 'sha256': 'beef' * 16, 'used': 3, 'left_out': ['fc']}
  files.write_json(folder / 'config.json', record)
  accuracies = {'val': 0.5, 'test': 0.6, 'test/rotation': 0.45}
  lines = write_lines(folder, accuracies)
  embedded = {'silhouette/expression': 0.125, 'recall@1': 0.375, 'acc@1': 0.25, 'nmi': 0.0625}
  write_summary(
    folder,
    lines,
    embeddings={'test': embedded | {'f1_by_neighbours': {'1': 0.5}}},
    training_labels={'given': {'acc': 0.7}, 'predicted': {'acc': 0.8, 'jensen_shannon': 0.3}},
  )
  for split in ('test', 'val', 'test/rotation'):
    finish.split(folder, None, predictions(), CLASSES, split)
  label = np.repeat(np.arange(3), 3)
  noise.write(folder / 'noise.csv', list('abcdefghi'), np.roll(label, 1), label, CLASSES)
  values = {'rows': 9, 'acc': 0.8125, 'mean_class_acc': 0.5, 'f1_macro': 0.5}
  means = {'all': values | {'sets': 1}}
  tables.sets(folder / 'report' / 'sets.csv', {'lab <s>': values}, means)
  for name in SHEETS:
    write_picture(folder / 'report' / f'{name}.png')
  write_picture(folder / 'report' / 'learning_curves.png')
  other = folder / 'eval' / 'other-12345678-4'
  finish.split(other, None, predictions(), CLASSES, 'test')
  write_picture(other / 'report' / 'mistakes_test.png')
  summary = {'step': 4, 'data': 'other', 'fingerprint': 'x', 'test': evaluation(4, 'test', 0.1875)}
  files.write_json(other / 'summary.json', summary | {'without': ['landmarks']})
  return folder


@pytest.fixture(scope='module')
def written(folder):
  report.main([f'--workdir={folder}'])
  return folder / 'report' / 'report.html'


@pytest.fixture(scope='module')
def found(written):
  return check_page(written)


def test_all_tables_of_a_run_are_in_the_page(found):
  text = found.text.replace('\xa0', ' ')
  for expected in (
    'best by validation',
    'it is too good',
    'rotation 45.0 % -15.0',  # robustness: accuracy, and its difference from the plain one
    '66.7 % of 9 right',
    '33.33 % of 9 training labels are wrong',
    'lab <s> 9 81.2 % 50.0 % 50.0 %',
    'mean of all',
    'the predicted distributions 80.0 % 0.3',
    'Recall@K: one of the K is of the same class 37.5 %',
    'silhouette: expression 0.125',
    'optimizer. lr 0.5 0.001',  # a key, its value, the default
    'start.pth',
    'beef' * 16,
    'c0ffee' * 10,
    'f' * 64,
    'Evaluated on other',
    '18.8 %',
    'landmarks',
    'Term of the loss: pull',
    'Weights of the terms',
    'jax: ',
  ):
    assert expected in text, expected
  heads = [one['scope'] for one in found.all('th')]
  assert heads.count('row') > 50 and heads.count('col') > 20
  # the confusion matrix: two of three neutral rows are right
  assert re.search(r'class="number marked" style="[^"]*">67\s%<small>2</small>', found.source)


def test_all_pictures_of_a_run_are_in_the_page(folder, found):
  pictures = [one for one in found.all('img')]
  assert len(pictures) == len(SHEETS) + 1  # that of the other evaluation
  alts = ' '.join(one['alt'] for one in pictures)
  for words in ('Suspected mislabels, test', 'Grad-CAM', 'Search, validation', 'something_new.png'):
    assert words in alts
  assert 'Sub-classes, test, neutral' in found.text and 't-SNE, test' in found.text
  drawn = [one for one in found.all('svg') if 'swatch' not in one.get('class', '')]
  assert len(drawn) == 8  # loss, accuracy, two terms, their weights, rate, speed, gradient
  assert found.source.count('>step</text>') == 8
  assert (folder / 'report' / 'learning_curves.png').is_file()


def test_text_of_a_run_is_escaped(found):
  assert '<script' not in found.source and '<b>' not in found.source and '<u>' not in found.source
  assert CLASSES[1] in found.text and 'set <b>one</b>' in found.text and '<u>.csv' in found.text
  assert 'run <i>' in found.text
  hostile = page.table('<i>"', ['<i>', '"'], {'<b>': [['<u>', page.Cell('<s>', below='<s>')]]})
  hostile += page.picture('<i>"', '"onload="x', 'png', (1, 1), b'') + page.notice(['<i>'])
  line = plots.Line('<i>', [1, 2], [1, 2])
  hostile += page.curves([plots.Panel('"<i>', [line], 'x', 'y')], 'a')
  assert not re.search(r'<[biu]>|<s>|"onload', hostile)


def test_scripts_in_names_and_values_stay_text(tmp_path):
  """In a class, the name of a run and a config value, on the page of a run and of a comparison."""
  script = '<script>alert("config")</script>'
  changes = {'data.path': script, 'noise.file': "'><script>alert(2)</script>"}
  runs = [
    seeded(tmp_path, f'{name} <script>alert(3)', 0, 0.5, **values)
    for name, values in (('a', changes), ('b', {}))
  ]
  finish.split(runs[0], None, predictions(), CLASSES, 'test')
  single_page, compared = tmp_path / 'single.html', tmp_path / 'compared.html'
  report.main([f'--workdir={runs[0]}', f'--out={single_page}'])
  report.main([f'--workdir={runs[0]}', f'--workdir={runs[1]}', f'--out={compared}'])
  for path in (single_page, compared):
    found = check_page(path)
    assert '<script' not in found.source
    for text in (CLASSES[1], script, 'a <script>alert(3)'):
      assert text in found.text, (path.name, text)


def test_results_of_an_unfinished_run(tmp_path):
  folder = tmp_path / 'run'
  write_record(folder)
  (folder / 'metrics.jsonl').write_text('')
  report.main([f'--workdir={folder}'])
  text = check_page(folder / 'report' / 'report.html').text
  assert 'not finished: step 0 of 4' in text and 'no curves' in text
  lines = write_lines(folder, {}, steps=(2,))
  report.main([f'--workdir={folder}', f'--out={tmp_path}/a/b.html'])
  assert 'Nothing was evaluated yet' in check_page(tmp_path / 'a' / 'b.html').text
  lines = write_lines(folder, {'val': 0.5}, steps=(2,))
  with (folder / 'metrics.jsonl').open('a') as file:
    file.write('{"step": 3, "split"')
  report.main([f'--workdir={folder}'])
  text = check_page(folder / 'report' / 'report.html').text
  assert 'step 2 of 4' in text and '50.0' in text and 'There is no test split' in text
  write_summary(folder, lines, step=2)
  write_lines(folder, {'val': 0.5}, steps=(2, 3))
  report.main([f'--workdir={folder}'])
  text = check_page(folder / 'report' / 'report.html').text
  assert 'at step 3 of 4. Tables and pictures are those of step 2' in text


@pytest.mark.parametrize(
  'name, damage, message',
  [
    ('config.json', '{"config": []}', 'config.json is damaged'),
    ('config.json', '[1', 'config.json is damaged'),
    ('metrics.jsonl', '{"step": 1\n{"step": 2}\n', 'metrics.jsonl is damaged: line 1'),
    ('metrics.jsonl', '{"step": 1, "split": "val"}\n', 'metrics.jsonl is damaged: line 1'),
    ('metrics.jsonl', '{"step": 1, "split": "train", "acc": "<b>"}\n', 'line 1'),
    ('summary.json', '{"step": 4', 'summary.json is damaged'),
    ('summary.json', '{"step": 4, "embeddings": 3}', "'embeddings' is 3"),
    ('summary.json', b'\xff\xfe', 'summary.json cannot be read'),
    ('noise.csv', 'name,label\n', 'noise.csv is damaged: it lacks the column clean_label'),
    ('predictions/test.csv', 'name,label,prediction\na,neutral\n', 'line 2 has 2 columns'),
    ('predictions/test.csv', 'name,label,prediction\na,b,neutral\n', "'b' is not a class"),
    ('predictions/test.csv', '', 'test.csv is damaged'),
    ('report/classes_test.csv', 'class,rows\n', 'classes_test.csv is damaged'),
    ('report/expression_by_pose_val.csv', 'expression,0,mean\nfear,x,1\n', "'x' is not a number"),
    ('report/sets.csv', 'set,"\n', 'sets.csv is damaged'),
    ('report/tsne_test.png', b'\x89PNG\r\n\x1a\nrest', 'tsne_test.png is damaged'),
    ('eval/other-12345678-4/summary.json', '{}', 'summary.json is damaged'),
  ],
)
def test_a_damaged_file_is_named(folder, tmp_path, name, damage, message):
  copy = tmp_path / 'run'
  shutil.copytree(folder, copy)
  path = copy / name
  path.write_bytes(damage if isinstance(damage, bytes) else damage.encode())
  with pytest.raises(InputError, match=re.escape(message)):
    report.main([f'--workdir={copy}', f'--out={tmp_path}/out.html'])
  assert not (tmp_path / 'out.html').exists()


def test_random_damage_is_reported_or_shown(folder, tmp_path, monkeypatch):
  """Bytes are changed, removed or doubled at random places in random files."""
  monkeypatch.setattr(plots, 'svg', lambda lines, **_: '<svg></svg>')
  rng = np.random.default_rng(0)
  copy = tmp_path / 'run'
  shutil.copytree(folder, copy)
  paths = sorted(p for p in copy.rglob('*') if p.suffix in ('.json', '.jsonl', '.csv', '.png'))
  refused = 0
  for number in range(60):
    path = paths[rng.integers(len(paths))]
    whole = path.read_bytes()
    place = int(rng.integers(len(whole)))
    damaged = (
      whole[:place],
      whole[:place] + bytes([rng.integers(256)]) + whole[place + 1 :],
      whole[:place] + whole[place // 2 :],
    )[number % 3]
    path.write_bytes(damaged)
    try:
      report.main([f'--workdir={copy}', f'--out={tmp_path}/out.html'])
      check_page(tmp_path / 'out.html')
    except InputError as error:
      assert path.name in str(error)
      refused += 1
    path.write_bytes(whole)
  assert 15 < refused < 60


def test_a_truncated_picture_is_reported(folder, tmp_path):
  copy = tmp_path / 'run'
  shutil.copytree(folder, copy)
  path = copy / 'report' / 'grad_cam.png'
  path.write_bytes(path.read_bytes()[:-2000])
  with pytest.raises(InputError, match='grad_cam.png is damaged'):
    report.main([f'--workdir={copy}'])


def test_large_pictures_become_jpeg(folder, tmp_path, monkeypatch):
  copy = tmp_path / 'run'
  shutil.copytree(folder, copy)
  write_picture(copy / 'report' / 'search_test.png', (300, 300))
  monkeypatch.setattr(single, 'LIMIT', 300_000)
  report.main([f'--workdir={copy}'])
  found = check_page(copy / 'report' / 'report.html')
  assert found.source.count('data:image/jpeg') == 1 and '1 of its pictures are JPEG' in found.text


def seeded(tmp_path, name, seed, acc, **changes):
  folder = tmp_path / name
  write_record(folder, seed=seed, **changes)
  lines = write_lines(folder, {'val': acc, 'test': acc, 'test/rotation': acc / 2})
  write_summary(folder, lines, training_labels={'given': {'acc': acc}})
  return folder


def test_mean_and_deviation_over_seeds(tmp_path):
  accuracies = (0.40, 0.43, 0.49)
  runs = [seeded(tmp_path, f'a_{i}', i, acc) for i, acc in enumerate(accuracies)]
  runs.append(seeded(tmp_path, 'b', 0, 0.25, **{'optimizer.lr': 0.5, 'reading.threads': 2}))
  out = tmp_path / 'out.html'
  report.main(
    [f'--workdir={runs[0]},{runs[1]}', f'--workdir={runs[2]}', f'--workdir={runs[3]}']
    + [f'--out={out}']
  )
  found = check_page(out)
  text = found.text.replace('\xa0', ' ')
  # mean 0.44; squares 0.0016 + 0.0001 + 0.0025 = 0.0042, over 2: 0.0021, root 0.0458
  assert 'A a 0.001 3 44.0 ± 4.6 % 44.0 ± 4.6 % 22.0 ± 2.3 %' in text
  assert 'B b 0.5 1 25.0 % 25.0 % 12.5 %' in text
  assert 'line optimizer. lr n' in text and 'reading' not in text
  assert 'with n = 1 there is no spread' in text
  assert 'A a 44.0 ± 4.6 % 22.0 ± 2.3 %' in text  # plain and rotated
  assert 'A a 44.0 ± 4.6 % 22.0 ± 2.3 % 14.7 ± 1.5 %' in text  # the recall of the classes
  assert 'training batches: accuracy' in text and 'A a (n = 3)' in text
  assert len([one for one in found.all('svg') if 'swatch' not in one.get('class', '')]) == 6


def test_runs_of_other_data_or_classes_are_other_lines(tmp_path):
  runs = [seeded(tmp_path, f'a_{i}', i, 0.5) for i in range(3)]
  for run, change in zip(
    runs, ({}, {'fingerprint': 'other'}, {'classes': ['b', 'a']}), strict=True
  ):
    record = json.loads((run / 'config.json').read_text())
    (run / 'config.json').write_text(json.dumps(record | change))
  assert len(comparison.groups([read(run) for run in runs])) == 3


def test_a_mean_over_fewer_runs_is_marked():
  assert comparison._value([0.25, None], 'acc').text.replace('\xa0', ' ') == '25.0 % (n = 1)'
  assert 'n =' not in comparison._value([0.25, 0.5], 'acc').text


def test_the_band_of_curves(tmp_path):
  runs = [read(seeded(tmp_path, f'a_{i}', i, acc)) for i, acc in enumerate((0.4, 0.6))]
  (line,) = comparison.groups(runs)
  curve = comparison._curve(line, 'test', 'acc')
  assert curve.x == [2, 4]
  np.testing.assert_allclose(curve.y, [0.48, 0.5])
  np.testing.assert_allclose(curve.high - curve.y, [0.02**0.5] * 2)  # sqrt(2 * 0.1 ** 2 / 1)
  assert comparison.spread([0.5, None]) == (0.5, None, 1) and comparison.spread([None]) is None


def test_a_comparison_describes_its_runs(tmp_path):
  keys = {'optimizer.lr': 0.5, 'epochs': 3, 'batch': 64, 'model.width': 8}
  runs = [seeded(tmp_path, 'a', 0, 0.5), seeded(tmp_path, 'b', 0, 0.5, **keys)]
  going_on, new = tmp_path / 'b2', tmp_path / 'c'
  write_record(going_on, seed=1, **keys)
  write_lines(going_on, {'test': 0.1}, steps=(2,))
  write_record(new, **{'noise.rate': 0.5})
  twin = seeded(tmp_path, 'twin', 0, 0.5)
  out = tmp_path / 'out.html'
  given = [f'--workdir={run}' for run in (*runs, going_on, new, twin)]
  report.main([*given, f'--out={out}'])
  text = check_page(out).text.replace('\xa0', ' ')
  assert 'Comparison of 5 runs in 3 lines' in text
  assert re.search(r'b2 \(B b\) is not finished: step 2 of 4; it is left out of the means', text)
  assert 'nothing was evaluated yet; it counts nevertheless' in text
  assert 'two of its runs have the same seeds' in text
  assert 'Config keys that differ line batch epochs model. width noise. rate optimizer. lr' in text
  assert 'B b 1 50.0 %' in text
  assert 'continued' not in text
  names = ('rotation', 'brightness', 'contrast', 'saturation', 'erasing')
  many = {f'augment.{key}': 0.5 for key in names}
  runs.append(seeded(tmp_path, 'd', 0, 0.5, **keys, **many))
  report.main([*(f'--workdir={run}' for run in runs), f'--out={out}'])
  text = check_page(out).text
  # nine keys: the first eight are in one table, the last in another
  assert 'Config keys that differ, continued line optimizer. lr A' in text.replace('\xa0', ' ')


def test_invalid_arguments_are_errors(folder, tmp_path):
  with pytest.raises(InputError, match='needs --out=FILE.html'):
    report.main([f'--workdir={folder},{tmp_path}'])
  with pytest.raises(InputError, match='is given twice'):
    report.main([f'--workdir={folder}', f'--workdir={folder}/.'])
  with pytest.raises(InputError, match='is not a run'):
    report.main([f'--workdir={tmp_path}'])
  with pytest.raises(InputError, match='--workdir is empty'):
    report.main(['--workdir='])
  (tmp_path / 'file').write_text('')
  with pytest.raises(InputError, match='cannot write to'):
    report.main([f'--workdir={folder}', f'--out={tmp_path}/file/out.html'])
  with pytest.raises(InputError, match='must end in .html or .htm'):
    report.main([f'--workdir={folder}', f'--out={folder}/config.json'])
  (tmp_path / 'a,b').mkdir()
  assert report.folders([f'{tmp_path}/a,b']) == [tmp_path / 'a,b']


def test_the_command(tmp_path):
  code = (
    'import runpy, sys; '
    "sys.argv = ['ferjax', 'report', '--workdir=nowhere']; "
    "absent = ('sklearn', 'ferjax.training.loop', 'ferjax.assembly.build'); "
    'sys.modules.update(dict.fromkeys(absent)); '
    "runpy.run_module('ferjax', run_name='__main__')"
  )
  done = subprocess.run(
    (sys.executable, '-c', code), capture_output=True, text=True, env=os.environ, timeout=120
  )
  assert done.returncode == 1
  assert done.stderr.strip() == 'ferjax: there is no folder nowhere: give the folder of a run'


def test_all_results_of_a_run_are_on_the_page(tmp_path):
  folder = tmp_path / 'run'
  write_record(folder)
  write_lines(folder, {'val': 0.5, 'test': 0.6})
  classes = ('neutral', 'fear', 'joy')
  image = np.random.default_rng(0).integers(0, 255, (12, 12, 3)).astype(np.uint8)
  encoded = cv2.imencode('.png', image)[1].tobytes()
  table = predictions().table | {'distribution': np.full((9, 3), 1 / 3)}
  table['subject'] = np.arange(9) % 2
  split = dataset.Split([encoded] * 9, np.arange(9), table)
  outputs = predictions().outputs | {
    'embedding': np.random.default_rng(1).normal(size=(9, 4)).astype(np.float32),
    'pose_logits': np.eye(2)[[0, 1, 1] * 3],
    'subclass_log_posterior': np.zeros((9, 6), np.float32),
  }
  table['pose'] = np.array([0, 1, 1] * 3)
  predicted = Predictions(outputs, table)
  data = dataset.Dataset('drawn', classes, {'test': split}, None, 'f', (-30, 0))
  clean = np.roll(table['label'], 1)
  training = finish.TrainingRows(split, predicted, clean, None)
  maps = {name: np.ones((1, 2, 3, 3)) for name in ('response', 'grad_cam')}
  views = np.zeros((1, 2, 12, 12, 3))
  label = np.zeros(2, int)
  looks = heatmaps.Looks(('',), views, maps, label[None], label, 'test', PIXELS)
  evaluated = {'test': predicted}
  requested = Evaluations(data, {}, {}, {}, None, None, True, True, 9)
  lines = history.read_lines(folder / 'metrics.jsonl')
  facts = history.summarise(lines) | {'step': 4, 'data': 'drawn'}
  finish.finish(
    folder,
    requested,
    facts,
    evaluated,
    {},
    looks=looks,
    stored=predicted,
    training=training,
    lines=lines,
  )
  record = json.loads((folder / 'config.json').read_text()) | {'classes': classes}
  files.write_json(folder / 'config.json', record)

  report.main([f'--workdir={folder}'])
  pictures = {path.stem for path in (folder / 'report').glob('*.png')}
  found = check_page(folder / 'report' / 'report.html')
  in_tables = {name for name in pictures if name.startswith(('confusion', 'expression_by_pose'))}
  in_tables = {name for name in in_tables if not name.startswith('confusion_pose')}
  expected = {'terms', 'grad_cam', 'tsne_test', 'search_test', 'mislabels_test', 'cross_entropy'}
  assert expected | {'subclasses_test_joy', 'confusion_pose_test', 'predicted_test'} <= pictures
  assert len(in_tables) == 2 and len(pictures) > 15
  assert len(found.all('img')) == len(pictures - in_tables - {'learning_curves', 'terms'})
  assert 'Other pictures' not in found.text and 'not finished' not in found.text
  assert 'Sub-classes, test, fear' in found.text


@pytest.mark.skipif(CHROMIUM is None, reason='no Chromium here: Debian has it as `chromium`')
def test_in_chromium(written, tmp_path):
  framed = tmp_path / 'framed.html'
  framed.write_text(
    '<!DOCTYPE html><meta charset="utf-8"><iframe width="390" height="844" style="border:0" '
    f'srcdoc="{html.escape(written.read_text(encoding="utf-8"))}"></iframe><pre></pre><script>'
    """
    onload = () => {
      const seen = document.querySelector('iframe').contentDocument
      const root = seen.documentElement
      const boxes = [...seen.querySelectorAll('.scroll')]
      document.querySelector('pre').textContent = JSON.stringify({
        width: [root.scrollWidth, seen.body.scrollWidth, root.clientWidth],
        decoded: [...seen.images].map(one => one.complete && one.naturalWidth),
        wide: boxes.filter(box => box.scrollWidth > box.clientWidth + 1).length,
        beyond: boxes.filter(box => box.getBoundingClientRect().right > 390).length,
        drawn: [...seen.querySelectorAll('.curves svg')].map(one => one.clientWidth),
      })
    }
    </script>""",
    encoding='utf-8',
  )
  dumped = chromium(tmp_path, '--dump-dom', '--window-size=800,1000', framed.as_uri())
  seen = json.loads(html.unescape(re.search('<pre>(.*?)</pre>', dumped)[1]))
  assert seen['width'] == [390, 390, 390]
  assert seen['decoded'] == [60] * (len(SHEETS) + 1)
  assert seen['wide'] > 0 and seen['beyond'] == 0
  assert min(seen['drawn']) > 20 and max(seen['drawn']) <= 390
  pdf = tmp_path / 'page.pdf'
  chromium(tmp_path, f'--print-to-pdf={pdf}', '--no-pdf-header-footer', written.as_uri())
  assert pdf.read_bytes().startswith(b'%PDF-') and pdf.stat().st_size > 20_000


def chromium(tmp_path, *arguments):
  """Runs Chromium and returns its standard output; ends its whole process group."""
  options = (
    '--headless',
    '--no-sandbox',
    '--disable-gpu',
    '--hide-scrollbars',
    '--virtual-time-budget=10000',
  )
  process = subprocess.Popen(
    (CHROMIUM, *options, f'--user-data-dir={tmp_path / "profile"}', *arguments),
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    text=True,
    start_new_session=True,
  )
  try:
    output, _ = process.communicate(timeout=90)
  finally:
    with contextlib.suppress(ProcessLookupError):
      os.killpg(process.pid, signal.SIGKILL)
    process.wait()
  assert process.returncode == 0
  return output
