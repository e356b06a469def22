import json

import jax.numpy as jnp
import pytest

from ferjax.errors import InputError
from ferjax.runs import history
from ferjax.training import logs


def test_lines_after_the_checkpoint_are_cut(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  lines = [{'step': s, 'split': 'train', 'loss': 0.1 * s} for s in range(1, 6)]
  path.write_text(''.join(json.dumps(line) + '\n' for line in lines) + '{"step": 6, "spl')
  history.cut_back(path, 3)
  assert history.read_lines(path) == lines[:3]


def test_damaged_lines_do_not_stop_a_run_that_continues(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  good = [{'step': s, 'split': 'train', 'loss': 0.5} for s in (1, 2, 3)]
  texts = [json.dumps(line) for line in good]
  path.write_text('\n'.join([texts[0], '{"step": 1, "sp', texts[1], '{"step": 2}', texts[2], '']))
  with pytest.raises(InputError, match='metrics.jsonl is damaged: line 2'):
    history.read_lines(path)
  with logs.Logs(tmp_path, 2, 10, 4, True) as log:
    assert log.lines == good[:2]
  assert history.read_lines(path) == good[:2]


def test_floats_keep_full_precision(tmp_path):
  with logs.Logs(tmp_path, 0, 10, 4, True) as log:
    log.write(1, 'train', {'loss': 1 / 3, 'recall/fear': None})
  assert history.read_lines(tmp_path / 'metrics.jsonl') == [
    {'step': 1, 'split': 'train', 'loss': 1 / 3, 'recall/fear': None}
  ]
  assert list((tmp_path / 'events').iterdir())


def test_the_first_step_that_is_not_finite_is_named():
  good = {'loss': jnp.float32(1), 'triplet': jnp.float32(0)}
  bad = {'loss': jnp.float32(jnp.nan), 'triplet': jnp.float32(jnp.inf)}
  assert logs.check_finite([(1, good)]) == [(1, {'loss': 1.0, 'triplet': 0.0})]
  with pytest.raises(logs.NonFiniteError, match='step 2: loss=nan, triplet=inf'):
    logs.check_finite([(1, good), (2, bad), (3, bad)])


def test_only_the_first_process_writes(tmp_path):
  with logs.Logs(tmp_path, 0, 10, 4, False) as log:
    log.write(1, 'train', {'loss': 1.0})
  assert not list(tmp_path.iterdir())


def test_only_the_first_of_several_processes_profiles(tmp_path):
  with logs.profiler(tmp_path, False, start=0, stop=2) as before_step:
    before_step(0)
    before_step(1)
  assert not list(tmp_path.iterdir())
