import csv
import shutil

import numpy as np
import pytest

from ferjax.cli import relabel as command
from ferjax.errors import InputError
from ferjax.evaluation import relabel
from ferjax.metrics import suspects
from ferjax.runs import history
from ferjax.training import loop


def test_the_suspicion_by_hand():
  shares = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.2, 0.5, 0.3]])
  np.testing.assert_allclose(suspects.suspicion(shares, np.array([0, 0, 1, 0])), [0, 1, 1, 0.3])


def test_the_area_under_the_roc_curve_by_counting_pairs():
  score, wrong = np.array([0.9, 0.4, 0.4, 0.1]), np.array([True, True, False, False])
  assert suspects.area_under_roc(score, wrong) == (1 + 1 + 0.5 + 1) / 4
  assert suspects.area_under_roc(score, np.zeros(4, bool)) is None


@pytest.fixture
def noisy(small_config):
  small_config.noise.update(kind='symmetric', rate=0.4)
  small_config.steps = 5
  return small_config


def rows_of(path):
  with path.open() as file:
    return list(csv.DictReader(file))


@pytest.mark.parametrize(
  'name, score', [('scn', 'importance'), ('rul', 'uncertainty'), ('softmax', None)]
)
def test_the_table_of_a_run(noisy, name, score, tmp_path, capsys):
  noisy.method = {'name': name} | (
    {'relabel_from': 1, 'relabel_margin': 0.02, 'relabel_group': 'any'} if name == 'scn' else {}
  )
  summary = loop.train(noisy, tmp_path / 'run')
  command.main([f'--workdir={tmp_path / "run"}', f'--out={tmp_path / "suspects.csv"}'])
  rows = rows_of(tmp_path / 'suspects.csv')
  truth = {row['name']: row for row in rows_of(tmp_path / 'run' / 'noise.csv')}
  assert {row['name'] for row in rows} == set(truth) and len(rows) == 84
  for row in rows:
    assert row['given'] == truth[row['name']]['label']
    wrong = truth[row['name']]['label'] != truth[row['name']]['clean_label']
    assert row['wrong'] == str(int(wrong))
    assert (float(row['suspicion']) > 0) == (row['given'] != row['proposed'])
    assert row['proposed'] in (row['predicted'], row.get('estimated'))
    assert 0 <= float(row['predicted_given']) <= 1
    assert score is None or float(row[score]) > 0
  doubts = [float(row['suspicion']) for row in rows]
  assert doubts == sorted(doubts, reverse=True)
  out = capsys.readouterr().out
  count = sum(row['wrong'] == '1' for row in rows)
  first = np.mean([row['wrong'] == '1' for row in rows[:count]])
  assert f'of the first {count} rows, {100 * first:.1f} % have a wrong label' in out
  assert ('(predicted and estimated)' in out) == (name == 'scn')
  if name == 'scn':  # rows with a new label come first
    changed = [row['estimated'] != row['given'] for row in rows]
    assert any(changed) and changed == sorted(changed, reverse=True)
    for row in rows:
      agrees = row['estimated'] == row['given']
      doubt = float(row['suspicion']) * 2 - (0 if agrees else 1)
      assert 0 <= doubt <= 1 and float(row['estimated_given']) == agrees
  measured = summary['training_labels']
  assert 0 <= measured['predicted']['auc'] <= 1
  if score:
    assert 0 <= measured[score]['auc'] <= 1 and measured[score]['right'] > 0
    assert (tmp_path / 'run' / 'report' / f'{score}.png').is_file()


def test_what_cannot_be_ranked_is_refused(noisy, tmp_path):
  loop.train(noisy, tmp_path / 'run')
  with pytest.raises(InputError, match='softmax estimates no label distributions; give --by=pred'):
    relabel.rank(tmp_path / 'run', by='estimated')
  with pytest.raises(InputError, match="Did you mean 'estimated'"):
    relabel.rank(tmp_path / 'run', by='estimate')
  with pytest.raises(InputError, match='its name must end in .csv'):
    command.main([f'--workdir={tmp_path / "run"}', f'--out={tmp_path / "suspects"}'])
  with pytest.raises(InputError, match='give the folder of a run'):
    relabel.rank(tmp_path / 'none')
  path = tmp_path / 'run' / 'config.json'
  path.write_text(path.read_text().replace('"labels_sha256": "', '"labels_sha256": "0'))
  with pytest.raises(InputError, match='are not those of the run any more'):
    relabel.rank(tmp_path / 'run')
  assert not (tmp_path / 'suspects').exists()


def test_a_noise_file_that_was_moved_and_a_run_without_noise(small_config, tmp_path):
  small_config.steps = 2
  loop.train(small_config, tmp_path / 'clean')
  found = relabel.rank(tmp_path / 'clean')
  assert found.wrong is None and found.by == ('predicted',)
  relabel.write(tmp_path / 'clean.csv', found)
  assert 'wrong' not in rows_of(tmp_path / 'clean.csv')[0]
  small_config.noise.update(kind='symmetric', rate=0.4)
  loop.train(small_config, tmp_path / 'noisy')
  shutil.copy(tmp_path / 'noisy' / 'noise.csv', tmp_path / 'labels.csv')
  small_config.noise.update(kind='file', file=str(tmp_path / 'labels.csv'))
  loop.train(small_config, tmp_path / 'run')
  before = relabel.rank(tmp_path / 'run')
  (tmp_path / 'labels.csv').unlink()
  after = relabel.rank(tmp_path / 'run')
  assert before.wrong.any() and (before.wrong == after.wrong).all()


def test_an_evaluation_that_was_lost_has_no_mean():
  lines = [{'step': s, 'split': 'val', 'acc': 0.5} for s in (1, 2)]
  lines.append({'step': 2, 'split': 'test', 'acc': 0.5})
  found = history.summarise(lines)
  assert set(found['mean_last_5']) == {'step', 'evaluations', 'val'}
  assert found['best_by_test']['step'] == 2


def test_the_mean_of_the_last_five_evaluations():
  accuracies = [0.9, 0.1, 0.2, 0.3, 0.4, 0.5]
  lines = []
  for step, acc in enumerate(accuracies, 1):
    for split, value in (('val', acc), ('test', acc / 2)):
      mean = history.mean_last_5(lines, split, value)
      recall = None if step == 6 else 1.0
      found = {'acc': value, 'recall/fear': recall, 'mean_last_5': mean}
      lines.append({'step': step, 'split': split, **found})
    lines.append({'step': step, 'split': 'train', 'loss': 1.0, 'acc': 0.0})
  assert lines[-3]['mean_last_5'] == pytest.approx(0.3) and lines[0]['mean_last_5'] == 0.9
  found = history.summarise(lines)
  assert found['mean_last_5']['val'] == {'acc': pytest.approx(0.3)}
  assert found['mean_last_5']['test']['acc'] == pytest.approx(0.15)
  assert found['mean_last_5']['step'] == 6 and found['mean_last_5']['evaluations'] == 5
  assert found['last']['val'] == {'acc': 0.5, 'recall/fear': None}
  assert history.summarise([])['mean_last_5'] is None
