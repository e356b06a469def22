"""Sweeps of a small stand-in for training: which runs start, what survives, the table by hand."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SWEEP = Path(__file__).parents[2] / 'launch' / 'sweep.py'
sys.path.insert(0, str(SWEEP.parent))
import sweep  # noqa: E402

# The accuracy is (rate + seed) / 100. `fail`, `hang` and `wait` are files named after runs.
TRAINER = """
import json, os, pathlib, sys, time
flags = dict(part.lstrip('-').split('=', 1) for part in sys.argv[1:])
workdir, here = pathlib.Path(flags['workdir']), pathlib.Path(__file__).parent
workdir.mkdir(parents=True, exist_ok=True)
with (here / 'started').open('a') as file:
  file.write(workdir.name + ' ' + os.environ.get('CUDA_VISIBLE_DEVICES', '-') + chr(10))
if flags['config.seed'] != flags['config.noise.seed'] or flags['num_processes'] != '1':
  sys.exit('seeds differ, or it may look for other processes')
if (here / 'fail' / workdir.name).exists():
  sys.exit('ferjax: no such manifest')
end = time.monotonic() + 60
while (here / 'wait' / workdir.name).exists() and time.monotonic() < end:
  time.sleep(0.02)
rate = float(flags.get('config.optimizer.lr', 0))
accuracy = (rate + int(flags['config.seed'])) / 100
found = {'step': 1, 'test': {'acc': accuracy, 'loss': 1.0}}
results = {'last': found, 'best_by_val': None, 'best_by_test': found}
(workdir / 'summary.json').write_text(json.dumps(results))
"""


@pytest.fixture
def trainer(tmp_path):
  """Writes the stand-in for training; returns the flag --command with it."""
  (tmp_path / 'trainer.py').write_text(TRAINER)
  for name in ('fail', 'wait'):
    (tmp_path / name).mkdir()
  return f'--command={sys.executable} {tmp_path / "trainer.py"}'


def start(folder, trainer, *flags, **variables):
  command = [sys.executable, SWEEP, f'--out={folder / "out"}', trainer, *flags]
  pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.STDOUT, 'text': True}
  return subprocess.Popen(command, env=os.environ | variables, **pipes)


def call(folder, trainer, *flags, **variables):
  with start(folder, trainer, *flags, **variables) as run:
    out = run.communicate(timeout=30)[0]
  return run.returncode, out


def started(folder):
  try:
    return [line.split()[0] for line in (folder / 'started').read_text().splitlines()]
  except FileNotFoundError:
    return []


def wait_until(condition, seconds=20):
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end
    time.sleep(0.02)


def test_values_are_split_outside_of_brackets():
  assert sweep.values('1e-3,3e-4') == ['1e-3', '3e-4']
  assert sweep.values("('au','landmarks'),('au',)") == ["('au','landmarks')", "('au',)"]
  assert sweep.values("{'a':1,'b':[2,3]},'x,y'") == ["{'a':1,'b':[2,3]}", "'x,y'"]


def test_a_grid_and_a_list():
  found = sweep.overrides(['config.batch=8,16', 'config.ema=0,0.9'], ['config.a=1 config.b=2', ''])
  assert len(found) == 8 and len(set(found)) == 8
  assert found[0] == ('config.batch=8', 'config.ema=0', 'config.a=1', 'config.b=2')
  assert found[-1] == ('config.batch=16', 'config.ema=0.9')
  entries = sweep.expand(['a.py', 'b.py:smoke'], [0, 1], found[:2], ['--config.epochs=1'])
  assert [entry.name for entry in entries[:2]] == [
    'a_batch=8_ema=0_a=1_b=2_seed=0',
    'a_batch=8_ema=0_a=1_b=2_seed=1',
  ]
  assert len({entry.name for entry in entries}) == 8 and entries[-1].row.startswith('b-smoke_')
  assert entries[1].flags[:2] == ('--config=a.py', '--config.epochs=1')
  assert entries[1].flags[-2:] == ('--config.seed=1', '--config.noise.seed=1')


def test_names_are_stable_and_fit_any_file_system():
  first = sweep.row_name('configs/x.py', ["config.sampler.graphs=('au','landmarks')"])
  other = sweep.row_name('configs/x.py', ["config.sampler.graphs=('au';'landmarks')"])
  assert re.fullmatch(r'x_sampler\.graphs=-au-landmarks--[0-9a-f]{6}', first) and first != other
  assert first == sweep.row_name('configs/x.py', ["config.sampler.graphs=('au','landmarks')"])
  assert len(sweep.row_name('x.py', ['config.a=' + 'b' * 300])) < 200


def test_the_table_by_hand(tmp_path, trainer):
  flags = ('--config=a.py', '--config=b.py', '--seeds=1,2,6', '--set', 'config.optimizer.lr=10,20')
  code, out = call(tmp_path, trainer, *flags, '--jobs=4')
  assert code == 0 and len(started(tmp_path)) == 12
  # 11, 12, 16: mean 13, squared deviations 4 + 1 + 9 = 14, over 2: 7, root 2.65
  assert re.search(r'^a_optimizer\.lr=10 +3 of 3 +13\.00 ± 2\.65 +13\.00 ± 2\.65$', out, re.M)
  assert re.search(r'^b_optimizer\.lr=20 +3 of 3 +23\.00 ± 2\.65 ', out, re.M)
  with (tmp_path / 'out' / 'table.csv').open() as file:
    rows = list(csv.DictReader(file))
  assert [row['run'] for row in rows] == [f'{c}_optimizer.lr={lr}' for c in 'ab' for lr in (10, 20)]
  assert rows[1]['last'] == '23.00' and rows[1]['last, deviation'] == '2.65'
  assert rows[1]['best by validation'] == ''
  table = (tmp_path / 'out' / 'table.md').read_text().splitlines()
  assert table[1] == '| --- | --- | --- | --- | --- | --- |'
  assert table[2] == '| a_optimizer.lr=10 | 3 of 3 | 13.00 ± 2.65 |  |  | 13.00 ± 2.65 |'
  code, out = call(tmp_path, trainer, *flags, '--table', '--metric=loss')
  assert code == 0 and '1.0000 ± 0.0000' in out and len(started(tmp_path)) == 12
  code, out = call(tmp_path, trainer, *flags)
  assert code == 0 and out.count('already finished') == 12 and len(started(tmp_path)) == 12
  call(tmp_path, trainer, *flags, '--index=0', '--', '--config.epochs=9')
  assert started(tmp_path)[12:] == ['a_optimizer.lr=10_seed=1']  # other flags: not the same run


def test_a_failed_run_is_named_and_the_others_go_on(tmp_path, trainer):
  (tmp_path / 'fail' / 'a_seed=1').touch()
  flags = ('--config=a.py', '--seeds=0,1,2')
  code, out = call(tmp_path, trainer, *flags)
  assert code == 1 and re.search(r'^a +2 of 3 +1\.00 ± 1\.41', out, re.M)
  why = 'it ended with exit code 1; its last line: ferjax: no such manifest'
  assert f'failed: a_seed=1: {why} ({tmp_path}/out/a_seed=1.log)' in out
  (tmp_path / 'fail' / 'a_seed=1').unlink()
  code, out = call(tmp_path, trainer, *flags)
  assert code == 0 and '3 of 3' in out
  assert started(tmp_path) == ['a_seed=0', 'a_seed=1', 'a_seed=2', 'a_seed=1']


def test_a_killed_sweep_continues_and_runs_nothing_twice(tmp_path, trainer):
  """The current run outlives its sweep; the next sweep waits for it and starts the others."""
  (tmp_path / 'wait' / 'a_seed=1').touch()
  flags = ('--config=a.py', '--seeds=0,1,2')
  with start(tmp_path, trainer, *flags) as run:
    wait_until(lambda: 'a_seed=1' in started(tmp_path))
    run.send_signal(signal.SIGKILL)
    run.communicate(timeout=20)
  with start(tmp_path, trainer, *flags) as run:
    wait_until(lambda: 'a_seed=2' in started(tmp_path))
    (tmp_path / 'wait' / 'a_seed=1').unlink()
    out = run.communicate(timeout=20)[0]
  assert run.returncode == 0 and started(tmp_path) == ['a_seed=0', 'a_seed=1', 'a_seed=2']
  assert 'a_seed=1 is running in another sweep: waiting for it' in out
  assert re.search(r'^a +3 of 3 +1\.00 ± 1\.00', out, re.M)


def test_a_run_that_died_with_its_sweep_is_started_again(tmp_path, trainer):
  (tmp_path / 'wait' / 'a_seed=0').touch()
  with start(tmp_path, trainer, '--config=a.py') as run:
    wait_until(lambda: started(tmp_path))
    children = Path(f'/proc/{run.pid}/task/{run.pid}/children').read_text().split()
    for pid in (run.pid, *map(int, children)):
      os.kill(pid, signal.SIGKILL)
    run.communicate(timeout=20)
  (tmp_path / 'wait' / 'a_seed=0').unlink()
  code, out = call(tmp_path, trainer, '--config=a.py')
  assert code == 0 and 'a_seed=0 continues' in out and started(tmp_path) == ['a_seed=0'] * 2


def test_two_sweeps_share_the_work(tmp_path, trainer):
  flags = ('--config=a.py', '--config=b.py', '--seeds=0,1,2', '--jobs=2')
  with start(tmp_path, trainer, *flags) as first, start(tmp_path, trainer, *flags) as second:
    outs = [run.communicate(timeout=30)[0] for run in (first, second)]
  assert first.returncode == second.returncode == 0
  assert sorted(started(tmp_path)) == [f'{c}_seed={n}' for c in 'ab' for n in range(3)]
  assert all(out.count('3 of 3') == 2 for out in outs)


def test_stopped_by_a_signal(tmp_path, trainer):
  (tmp_path / 'wait' / 'a_seed=0').touch()
  with start(tmp_path, trainer, '--config=a.py', '--seeds=0,1') as run:
    wait_until(lambda: started(tmp_path))
    run.send_signal(signal.SIGUSR1)
    out = run.communicate(timeout=20)[0]
  assert run.returncode == 75 and 'not finished: a_seed=0, a_seed=1\n' in out
  assert re.search(r'^a +0 of 2$', out, re.M)


def test_a_summary_of_other_flags_does_not_count_for_a_stopped_run(tmp_path, trainer):
  call(tmp_path, trainer, '--config=a.py')
  (tmp_path / 'wait' / 'a_seed=0').touch()
  flags = ('--config=a.py', '--', '--config.optimizer.lr=7')
  with start(tmp_path, trainer, *flags) as run:
    wait_until(lambda: len(started(tmp_path)) == 2)
    run.send_signal(signal.SIGTERM)
    out = run.communicate(timeout=20)[0]
  assert run.returncode == 75 and re.search(r'^a +0 of 1$', out, re.M)
  (tmp_path / 'wait' / 'a_seed=0').unlink()
  code, out = call(tmp_path, trainer, *flags)
  assert code == 0 and re.search(r'^a +1 of 1 +7\.00', out, re.M)


@pytest.mark.parametrize('variable', ['SLURM_ARRAY_TASK_ID', 'JOB_COMPLETION_INDEX'])
def test_one_run_by_the_index_of_a_cluster(tmp_path, trainer, variable):
  flags = ('--config=a.py', '--config=b.py', '--seeds=5,6')
  variables = {variable: '2', 'SLURM_STEP_NODELIST': 'node1'}
  code, out = call(tmp_path, trainer, *flags, **variables)
  assert code == 0 and started(tmp_path) == ['b_seed=5'] and '1 of 2' in out
  code, out = call(tmp_path, trainer, *flags, '--list')
  assert code == 0 and out.splitlines()[1:3] == ['   1 a_seed=6', '   2 b_seed=5 finished']
  code, out = call(tmp_path, trainer, *flags, **{variable: '4'})
  assert code == 2 and 'there is no run 4: the sweep has 4 runs, 0 to 3' in out


def test_each_gpu_has_one_run_at_a_time(tmp_path, trainer):
  code, _ = call(tmp_path, trainer, '--config=a.py', '--seeds=0,1,2,3', '--gpus=4,6')
  lines = (tmp_path / 'started').read_text().splitlines()
  assert code == 0 and {line.split()[1] for line in lines} == {'4', '6'}
  locks = sorted((tmp_path / 'out').glob('*.lock'))
  assert [json.loads(path.read_text())[-1] for path in locks] == [
    f'--config.noise.seed={seed}' for seed in range(4)
  ]


@pytest.mark.parametrize(
  'flags, message',
  [
    (['--set', 'config.batch'], "'config.batch=': give config.KEY=VALUE"),
    (['--set', 'batch=1,2'], "'batch=1': give config.KEY=VALUE"),
    (['--case=config.seed=3'], 'give --seeds, which sets config.seed and config.noise.seed'),
    (['--seeds=1,1'], 'two runs have the name a_seed=1'),
    (['--config=other/a.py'], 'two runs have the name a_seed=0'),
    (['--', '--workdir=x'], 'leave out --workdir: each run has its own'),
    (['--jobs=0'], '--jobs=0: give at least 1'),
    (
      ['--command=pyhton -m ferjax.main'],
      '--command=pyhton -m ferjax.main: this program does not exist',
    ),
    (['--seeds=a'], "--seeds='a': give whole numbers"),
  ],
)
def test_mistakes_are_reported_before_anything_runs(tmp_path, trainer, flags, message):
  code, out = call(tmp_path, trainer, '--config=a.py', *flags)
  assert code == 2 and message in out and 'Traceback' not in out
  assert not (tmp_path / 'out').exists()
