import shutil

import pytest

from ferjax.errors import InputError
from ferjax.runs import history
from ferjax.training import early_stop, loop


def evaluations(*values, name='loss', split='val'):
  return [{'step': 4 * (i + 1), 'split': split, name: v} for i, v in enumerate(values)]


@pytest.mark.parametrize(
  'options, values, stop',
  [
    ({}, (3, 2, 1), None),
    ({}, (3, 2, 2.5, 2), 4),
    ({}, (3, 2, 2.5, 1.9, 2, 2), 6),
    ({'min_delta': 0.2}, (3, 2, 1.9, 1.81), 4),
    ({'min_delta': 0.2}, (3, 2, 1.9, 1.79), None),
    ({'metric': 'val/acc', 'mode': 'max'}, (0.1, 0.5, 0.4, 0.5), 4),
    ({'patience': 0}, (1, 2, 3, 4, 5), None),
    ({'patience': 1}, (1, 1), 2),
  ],
)
def test_stops_when_evaluations_have_not_improved(options, values, stop):
  stops = early_stop.make(4, **({'patience': 2} | options))
  lines = evaluations(*values, name=options.get('metric', 'val/loss').partition('/')[2])
  found = [n for n in range(1, len(lines) + 1) if stops(lines[:n])]
  assert (found or [None])[0] == stop


def test_training_is_averaged_between_evaluations():
  """Means of 3, 2, 2.5 and 2 over four steps each."""
  loss = [4, 2, 3, 3, 2, 2, 1, 3, 2, 3, 2, 3, 0, 4, 2, 2]
  lines = [{'step': i + 1, 'split': 'train', 'loss': value} for i, value in enumerate(loss)]
  stops = early_stop.make(4, metric='train/loss', patience=2)
  assert [stops(lines[:n]) for n in (4, 8, 12, 16)] == [False, False, False, True]


@pytest.mark.parametrize(
  'options, message',
  [
    ({'mode': 'least'}, 'min or max'),
    ({'metric': 'loss'}, 'SPLIT/NAME'),
    ({'patience': -1}, 'patience=-1'),
  ],
)
def test_impossible_settings_are_refused(options, message):
  with pytest.raises(InputError, match=message):
    early_stop.make(4, **options)
  with pytest.raises(InputError, match='no such number'):
    early_stop.make(4, metric='val/los', patience=1)(evaluations(1.0))


def test_a_run_and_an_interrupted_run_stop_at_the_same_step(small_config, tmp_path):
  """Accuracy cannot rise by more than 1, so the second evaluation is not better."""
  small_config.eval.every = 3
  small_config.checkpoint.keep = 100
  small_config.early_stop.update(metric='val/acc', mode='max', patience=1, min_delta=1.0)
  whole = loop.train(small_config, tmp_path / 'whole')
  assert whole['step'] == whole['last']['step'] == 6 and whole['stopped_early'] is True
  lines = history.read_lines(tmp_path / 'whole' / 'metrics.jsonl')
  assert lines[-1]['step'] == 6 and lines[-1]['split'] == 'test'
  shutil.copytree(tmp_path / 'whole', tmp_path / 'cut')
  shutil.rmtree(tmp_path / 'cut' / 'checkpoints' / '6')
  for _ in range(2):  # continues from step 3, then is already at the end
    again = loop.train(small_config, tmp_path / 'cut')
    assert again['step'] == 6 and again['state_sha256'] == whole['state_sha256']
    assert again['stopped_early'] is True
