import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ferjax.data import checks, dataset, pipeline, samplers
from ferjax.data.splits import take
from ferjax.errors import InputError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope='module')
def data(manifest, data_dir):
  return dataset.load(name='manifest', path=str(manifest), dir=data_dir, image_size=16)


def test_batches_follow_the_plan_and_resume_exactly(data):
  split = data.splits['train']
  plan = samplers.natural()(0, 1, 0, split.table, 16)
  plan['role'] = np.arange(80).reshape(5, 16)
  whole = list(pipeline.batches(split, plan, ('label', 'landmarks'), 16))
  assert len(whole) == 5
  np.testing.assert_array_equal(whole[2]['index'], plan['index'][2])
  np.testing.assert_array_equal(whole[2]['role'], plan['role'][2])
  np.testing.assert_array_equal(whole[2]['position'], np.arange(16))
  np.testing.assert_array_equal(whole[2]['label'], split.table['label'][plan['index'][2]])
  row = plan['index'][2, 3]
  np.testing.assert_array_equal(whole[2]['image'][3], dataset.picture(split, row, 16))
  rest = list(pipeline.batches(split, plan, ('label', 'landmarks'), 16, start=3, threads=1))
  assert len(rest) == 2
  for batch, again in zip(whole[3:], rest, strict=True):
    for name in batch:
      np.testing.assert_array_equal(batch[name], again[name])


def test_a_plan_with_neighbours_adds_their_pictures(data):
  split = data.splits['train']
  plan = samplers.natural()(0, 1, 0, split.table, 16)
  plan['neighbours'] = (plan['index'][..., None] + [1, 5]) % 84
  plan['affinity'] = np.linspace(0, 1, 160).reshape(5, 16, 2)
  batch = next(pipeline.batches(split, plan, ('label',), 16, start=2))
  assert batch['neighbour_image'].shape == (16, 2, 16, 16, 3)
  row = plan['neighbours'][2, 3, 1]
  np.testing.assert_array_equal(batch['neighbour_image'][3, 1], dataset.picture(split, row, 16))
  np.testing.assert_allclose(batch['affinity'], plan['affinity'][2], rtol=1e-6)
  assert batch['affinity'].dtype == np.float32 and batch['neighbours'].dtype == np.int32


def test_worker_processes_read_the_same_and_survive_signals(data):
  split = data.splits['test']
  plan = pipeline.in_order(28, 1)
  here = pipeline.batches(split, plan, ('label',), 16)
  there = pipeline.batches(split, plan, ('label',), 16, workers=2)
  for step, (one, other) in enumerate(zip(here, there, strict=True)):
    np.testing.assert_array_equal(one['image'], other['image'])
    if step == 5:  # both are up by then
      workers = multiprocessing.active_children()
      assert len(workers) == 2
      for worker in workers:
        os.kill(worker.pid, signal.SIGTERM)
        os.kill(worker.pid, signal.SIGUSR1)


def test_worker_processes_end_with_their_run_and_others_do_not(manifest, data_dir):
  program = (
    'import atexit, multiprocessing, sys\n'
    'def late(ends):\n'
    '  ends.wait(100)\n'
    '  print("not killed", flush=True)\n'
    'if __name__ == "__main__":\n'
    '  fork = multiprocessing.get_context("fork")\n'
    '  ends = fork.Event()\n'
    '  fork.Process(target=late, args=(ends,)).start()\n'
    '  atexit.register(ends.set)\n'  # after that of the pipeline, which is registered later
    '  from absl import flags\n'
    '  from ferjax.data import dataset, pipeline\n'
    '  flags.FLAGS.mark_as_parsed()\n'
    '  data = dataset.load(name="manifest", path=sys.argv[1], dir=sys.argv[2], image_size=16)\n'
    '  plan = pipeline.in_order(28, 2)\n'
    '  batches = pipeline.batches(data.splits["test"], plan, ("label",), 16, workers=1)\n'
    '  print(next(batches)["label"].shape, flush=True)\n'
  )
  command = [sys.executable, '-c', program, str(manifest), data_dir]
  result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
  assert result.returncode == 0 and result.stdout == '(2,)\nnot killed\n'


def test_in_order_visits_every_row_once_and_marks_padding():
  plan = pipeline.in_order(10, 4)
  assert plan['index'].shape == (3, 4) and plan['mask'].sum() == 10
  np.testing.assert_array_equal(plan['index'][plan['mask'] == 1], np.arange(10))


def test_what_training_needs_is_checked(data):
  with pytest.raises(InputError, match="needs 'valence'"):
    checks.check_trainable(data, frozenset({'valence'}), 16)
  with pytest.raises(InputError, match='larger than the training set'):
    checks.check_trainable(data, frozenset(), 85)
  test_only = data._replace(splits={'test': data.splits['test']})
  with pytest.raises(InputError, match='--mode=eval'):
    checks.check_trainable(test_only, frozenset(), 16)
  train = data.splits['train']
  rows = np.flatnonzero(train.table['label'] != 4)
  without_anger = data._replace(splits={'train': take(train, rows)})
  with pytest.raises(InputError, match="'anger' has no training row"):
    checks.check_trainable(without_anger, frozenset(), 16)
  table = {k: v for k, v in train.table.items() if k != 'landmarks'}
  no_landmarks = data._replace(splits={'train': train._replace(table=table)})
  with pytest.raises(InputError, match="'landmarks'.*x_0"):
    checks.check_trainable(no_landmarks, frozenset({'landmarks'}), 16)
