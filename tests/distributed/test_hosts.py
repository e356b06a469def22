"""Runs of several processes on this machine, and signals: the results of a run do not change.

Every method with both back ends (takes some minutes):

  FERJAX_EVERY_METHOD=1 python -m pytest tests/distributed/test_hosts.py -k every_method
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import zlib
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest
from compilation import QUICK
from jax.experimental import multihost_utils
from shipped_configs import CONFIGS, lines_of, smoke

from ferjax.data import pipeline
from ferjax.data.splits import Split
from ferjax.distributed import hosts, preemption
from ferjax.errors import InputError
from ferjax.runs import checkpoint, history
from ferjax.training import logs, loop

ROOT = Path(__file__).parents[2]
LIMIT = 600  # seconds
ALARM = f'import signal; signal.alarm({LIMIT})'  # ends the program if pytest itself was killed
COMMAND_LINE = f'{ALARM}; from ferjax import main; main.run()'
PROGRAM = f"""{ALARM}
import json, sys
from ferjax import config
from ferjax.cli import console
from ferjax.distributed import hosts
from ferjax.training import loop

address, process, jobs = sys.argv[1:]
console.show_messages()
hosts.connect(
  coordinator_address=address, num_processes=2, process_id=int(process), heartbeat_timeout=10
)
for values, workdir in json.loads(jobs):
  given = config.base()
  given.update(config.with_tuples(values))
  loop.train(given, workdir)
"""


@contextlib.contextmanager
def two_processes(folder, *arguments, program=PROGRAM, flags=False):
  """Runs a program, or with `flags` the command line, as two processes of two devices each.

  Both end with the block. Their output is in `<folder>/0` and `<folder>/1`.
  """
  with socket.socket() as free:
    free.bind(('localhost', 0))
    address = f'localhost:{free.getsockname()[1]}'
  inherited = {k: v for k, v in os.environ.items() if not k.startswith(('XLA_', 'JAX_'))}
  environment = inherited | {
    'XLA_FLAGS': ' '.join(['--xla_force_host_platform_device_count=2', *QUICK]),
    'JAX_PLATFORMS': 'cpu',
    'JAX_COMPILATION_CACHE_DIR': jax.config.jax_compilation_cache_dir,
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.5',
    'PYTHONPATH': f'{ROOT}:{ROOT / "tests" / "fixtures"}',
  }
  folder.mkdir(exist_ok=True)
  with contextlib.ExitStack() as stack:
    started = []
    for process in ('0', '1'):
      command = [sys.executable, '-c', program, address, process, *arguments]
      if flags:
        several = [f'--coordinator_address={address}', '--num_processes=2', '--process_id', process]
        several += ['--heartbeat_timeout=10']
        command = [sys.executable, '-c', COMMAND_LINE, *several, *arguments]
      out = stack.enter_context((folder / process).open('w'))
      one = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=out, stderr=out, start_new_session=True
      )
      started.append(stack.enter_context(one))
      stack.callback(one.kill)
    yield started


def finish(started, folder):
  """Waits for both processes.

  Returns:
    Their exit statuses, and their outputs.
  """
  deadline = time.monotonic() + LIMIT
  statuses = [one.wait(max(1, deadline - time.monotonic())) for one in started]
  return statuses, [(folder / process).read_text() for process in ('0', '1')]


def wait_for_step(workdir, step, started):
  deadline = time.monotonic() + LIMIT
  while time.monotonic() < deadline and all(one.poll() is None for one in started):
    lines = history.read_lines(workdir / 'metrics.jsonl')
    if lines and lines[-1]['step'] >= step:
      return
    time.sleep(0.01)
  raise AssertionError(f'step {step} was not reached')


def check_same_run(ours, theirs):
  """Metrics, predictions and parameters of two runs agree to 1e-8."""
  found = [lines_of(workdir) for workdir in (ours, theirs)]
  assert [line['step'] for line in found[0]] == [line['step'] for line in found[1]]
  for a, b in zip(*found, strict=True):
    assert a.keys() == b.keys() and a['split'] == b['split']
    for name in a.keys() - {'split'}:
      if a[name] is None:
        assert b[name] is None
      else:
        np.testing.assert_allclose(a[name], b[name], rtol=1e-8, atol=1e-8, err_msg=name)
  rows = [(workdir / 'predictions' / 'test.csv').read_text() for workdir in (ours, theirs)]
  assert rows[0] == rows[1] and len(rows[0].splitlines()) == 29
  states = [checkpoint.restore(workdir, 'last') for workdir in (ours, theirs)]
  for key in ('params', 'extra'):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-8), *(s[key] for s in states)
    )


def as_job(config, workdir):
  return config.to_dict(), str(workdir)


@pytest.fixture
def exact_config(small_config):
  small_config.precision = 'float64'
  small_config.model.name = 'alexnet'  # it compiles fastest
  small_config.noise.update(kind='symmetric', rate=0.3)
  small_config.parallel.devices = 4
  return small_config


@contextlib.contextmanager
def two_processes_beside_one(config, folder, *further):
  """Runs one process to its end. Then, during the block, two processes run each back end and the
  workdirs of `further`. Afterwards, it checks that all ended without error and that the runs in the
  folders `pmap`, `shard_map` and `one` are the same."""
  loop.train(config, folder / 'one')
  jobs = []
  for backend in ('pmap', 'shard_map'):
    config.parallel.backend = backend
    jobs.append(as_job(config, folder / backend))
  jobs += [as_job(config, workdir) for workdir in further]
  with two_processes(folder / 'out', json.dumps(jobs)) as started:
    yield started
    statuses, out = finish(started, folder / 'out')
  assert statuses == [0, 0], out
  for backend in ('pmap', 'shard_map'):
    check_same_run(folder / backend, folder / 'one')


def test_two_processes_do_as_one_and_survive_signals_and_deaths(exact_config, tmp_path):
  """Compares two processes of two devices with one of four; the same after SIGUSR1 to one process,
  after SIGKILL of the other, and from the command line."""
  workdir = tmp_path / 'disturbed'
  with two_processes_beside_one(exact_config, tmp_path, workdir) as started:
    wait_for_step(workdir, 1, started)
    started[1].send_signal(signal.SIGUSR1)
  out = [(tmp_path / 'out' / process).read_text() for process in ('0', '1')]
  for backend in ('pmap', 'shard_map'):
    record = json.loads((tmp_path / backend / 'config.json').read_text())
    assert record['process_count'] == 2 and record['device_count'] == 4
    assert not list((tmp_path / backend).rglob('*.partial'))
  assert 'step 10/10' in out[0] and 'step 10/10' not in out[1]
  left = int(checkpoint.restore(workdir, 'last')['step'])
  assert 1 < left < 10 and f'stopped at step {left} of 10, saved' in out[0]
  assert 'SIGUSR1: saving a checkpoint at the next step' in out[1]
  assert not (workdir / 'summary.json').exists()
  jobs = json.dumps([as_job(exact_config, workdir)])
  with two_processes(tmp_path / 'out', jobs) as started:
    wait_for_step(workdir, left + 1, started)
    started[1].kill()
    statuses, out = finish(started, tmp_path / 'out')
  assert statuses[1] == -signal.SIGKILL and statuses[0] not in (0, None), out
  with two_processes(tmp_path / 'out', jobs) as started:
    statuses, out = finish(started, tmp_path / 'out')
  assert statuses == [0, 0], out
  assert lines_of(workdir) == lines_of(tmp_path / 'shard_map')
  digests = [
    json.loads((tmp_path / name / 'summary.json').read_text())['state_sha256']
    for name in ('disturbed', 'shard_map')
  ]
  assert digests[0] == digests[1]

  flags = ('--mode=eval', f'--workdir={workdir}')
  with two_processes(tmp_path / 'out', *flags, flags=True) as started:
    statuses, out = finish(started, tmp_path / 'out')
  assert statuses == [0, 0], out
  (folder,) = (workdir / 'eval').iterdir()
  summary = json.loads((workdir / 'summary.json').read_text())
  found = json.loads((folder / 'summary.json').read_text())
  assert found['test']['acc'] == summary['last']['test']['acc']
  rows = (folder / 'predictions' / 'test.csv').read_text()
  assert rows == (workdir / 'predictions' / 'test.csv').read_text()


@pytest.mark.skipif('FERJAX_EVERY_METHOD' not in os.environ, reason='slow: see above')
@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.stem)
def test_every_method_on_two_processes(path, manifest, data_dir, tmp_path):
  config = smoke(path, manifest, data_dir)
  config.precision = 'float64'
  config.parallel.devices = 4
  config.eval.update(sheets=False, heatmaps=0, tsne=0, embeddings=False)
  with two_processes_beside_one(config, tmp_path):
    pass


@pytest.fixture
def stop_at(monkeypatch):
  """(step, signal): sends the signal to this process when it logs the step."""
  wanted = {}
  write = logs.Logs.write

  def write_and_stop(self, step, split, values):
    write(self, step, split, values)
    if step in wanted:
      os.kill(os.getpid(), wanted.pop(step))

  monkeypatch.setattr(logs.Logs, 'write', write_and_stop)
  return wanted


def test_stopped_runs_go_on_with_other_devices(
  exact_config, stop_at, tmp_path, monkeypatch, capfd, caplog
):
  """Four devices, four, two and one, with SIGTERM or SIGUSR1 in between, give the results of four
  devices throughout; to the bit while the number stays. The first signal comes before the first
  step."""
  exact_config.checkpoint.every = 0
  exact_config.eval.every = 4
  loop.train(exact_config, tmp_path / 'whole')
  before = signal.getsignal(signal.SIGTERM)
  with caplog.at_level('INFO', 'ferjax'), monkeypatch.context() as patch:
    restore = loop.restore
    patch.setattr(
      loop, 'restore', lambda *given: os.kill(os.getpid(), signal.SIGUSR1) or restore(*given)
    )
    assert loop.train(exact_config, tmp_path / 'moved') == {}
  assert 'stopped at step 0 of 10, where it started, because of SIGUSR1' in caplog.text
  assert not checkpoint.exist(tmp_path / 'moved')
  # The last signal comes too late to stop the run.
  stop_at.update({2: signal.SIGTERM, 5: signal.SIGUSR1, 8: signal.SIGTERM, 10: signal.SIGTERM})
  for devices, step in ((4, 2), (4, 5), (2, 8), (1, 10)):
    exact_config.parallel.devices = devices
    summary = loop.train(exact_config, tmp_path / 'moved')
    assert int(checkpoint.restore(tmp_path / 'moved', 'last')['step']) == step
    assert bool(summary) == (step == 10) == (tmp_path / 'moved' / 'summary.json').exists()
    if step == 5:
      lines = [line for line in lines_of(tmp_path / 'whole') if line['step'] <= step]
      assert lines_of(tmp_path / 'moved') == lines
  check_same_run(tmp_path / 'moved', tmp_path / 'whole')
  assert signal.getsignal(signal.SIGTERM) == before and not stop_at
  assert 'SIGTERM: saving a checkpoint at the next step' in capfd.readouterr().err


def test_only_a_later_signal_ends_a_process_at_once():
  """Signals just after the first one count as the same request."""
  program = (
    'import os, signal, time; from ferjax.distributed import preemption\n'
    'preemption.SAME = 0.3\n'
    'with preemption.noticed() as signalled:\n'
    '  os.kill(os.getpid(), signal.SIGTERM)\n'
    '  os.kill(os.getpid(), signal.SIGTERM)\n'
    '  os.kill(os.getpid(), signal.SIGUSR1)\n'
    '  print(signalled(), flush=True)\n'
    '  time.sleep(0.4)\n'
    '  os.kill(os.getpid(), signal.SIGUSR1)\n'
    '  print("still here")\n'
  )
  result = subprocess.run([sys.executable, '-c', program], cwd=ROOT, capture_output=True, text=True)
  assert result.returncode == -signal.SIGUSR1 and result.stdout == 'SIGTERM\n'


def test_a_signal_is_noted_where_nobody_reads_stderr():
  """Such as after the same signal went to `| tee`."""
  program = (
    'import os, signal; from ferjax.distributed import preemption\n'
    'with preemption.noticed() as signalled:\n'
    '  os.kill(os.getpid(), signal.SIGTERM)\n'
    '  print(signalled())\n'
  )
  pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
  with subprocess.Popen([sys.executable, '-c', program], cwd=ROOT, **pipes) as run:
    run.stderr.close()
    assert run.stdout.read() == 'SIGTERM\n'
  assert run.returncode == 0


def test_signals_are_as_usual_afterwards():
  with preemption.noticed() as signalled:
    assert signalled() == ''
    os.kill(os.getpid(), signal.SIGUSR1)
    assert signalled() == 'SIGUSR1'
  assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL


def test_every_process_reads_its_share_of_a_batch():
  table = {'label': np.arange(12, dtype=np.int32)}
  pictures = [cv2.imencode('.png', np.full((8, 8, 3), i, np.uint8))[1].tobytes() for i in range(12)]
  split = Split(pictures, np.arange(12), table)
  plan = {'index': np.arange(12)[::-1].reshape(3, 4), 'role': np.arange(12).reshape(3, 4)}
  shares = (slice(None), slice(0, 2), slice(2, 4))
  whole, *parts = (
    next(pipeline.batches(split, plan, ('label',), 8, share=share)) for share in shares
  )
  for name, values in whole.items():
    np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), values)
  assert parts[1]['position'].tolist() == [2, 3]


SLURM = {'SLURM_JOB_ID': '7', 'SLURM_STEP_NODELIST': 'n[1-4]', 'SLURM_NTASKS': '4'}
SLURM |= {'SLURM_PROCID': '1', 'SLURM_LOCALID': '0'}
WHOLE_NODE = {'local_device_ids': []}


@pytest.mark.parametrize(
  'variables, expected',
  [
    ({}, None),
    (SLURM, None),  # the batch script itself
    (SLURM | {'SLURM_STEP_NUM_TASKS': '1', 'SLURM_STEP_NUM_NODES': '1'}, None),  # a shell
    (
      SLURM | {'SLURM_STEP_NUM_TASKS': '4', 'SLURM_STEP_NUM_NODES': '4'},
      {'num_processes': 4} | WHOLE_NODE,
    ),
    (SLURM | {'SLURM_STEP_NUM_TASKS': '4', 'SLURM_STEP_NUM_NODES': '1'}, {'num_processes': 4}),
    ({'SLURM_JOB_ID': '7', 'SLURM_STEP_NUM_TASKS': '4'}, None),
    (
      {
        'OMPI_MCA_orte_hnp_uri': '4096.0;tcp://10.0.0.1:1',
        'OMPI_COMM_WORLD_SIZE': '2',
        'OMPI_COMM_WORLD_LOCAL_SIZE': '1',
      },
      {'num_processes': 2} | WHOLE_NODE,
    ),
    (SLURM | {'OMPI_MCA_orte_hnp_uri': '', 'OMPI_COMM_WORLD_SIZE': '1'}, None),
    ({'KUBERNETES_SERVICE_HOST': '10.0.0.1'}, None),
  ],
)
def test_only_several_processes_are_joined(variables, expected):
  assert hosts.environment(variables) == expected


POD = {'KUBERNETES_SERVICE_HOST': '10.0.0.1', 'JOB_COMPLETION_INDEX': '1'}


@pytest.mark.parametrize(
  'variables, message',
  [
    ({'OMPI_COMM_WORLD_SIZE': '2', 'PMIX_RANK': '1'}, r'Open MPI \(5 or newer\).*--process_id=I'),
    (POD, r"pip install 'ferjax\[k8s\]', or give --coordinator_address"),
  ],
)
def test_processes_that_jax_cannot_join_do_not_run_alone(monkeypatch, variables, message):
  monkeypatch.setattr(hosts.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(InputError, match=message):
    hosts.environment(variables)


def test_pods_are_joined_by_their_cluster(monkeypatch):
  monkeypatch.setattr(hosts.importlib.util, 'find_spec', lambda name: name == 'kubernetes')
  assert hosts.environment(POD) == {}


@pytest.mark.parametrize(
  'error', [ValueError('unsupported endpoints'), ConnectionError('no answer'), RuntimeError('403')]
)
def test_errors_of_the_cluster_are_reported(monkeypatch, error):
  def initialize(**options):
    raise error

  monkeypatch.setattr(hosts, 'environment', lambda variables: {})
  monkeypatch.setattr(jax.distributed, 'initialize', initialize)
  with pytest.raises(InputError, match=f'cannot join .*or give --coordinator_address.*{error}'):
    hosts.connect()
  error = ValueError('coordinator_address should be defined.')  # JAX: no cluster
  hosts.connect()


def test_a_process_whose_devices_fail_reports_the_error_and_exits():
  with socket.socket() as free:
    free.bind(('localhost', 0))
    address = f'localhost:{free.getsockname()[1]}'
  program = (
    'import jax; from ferjax.distributed import hosts\n'
    f'jax.distributed.initialize({address!r}, 1, 0, local_device_ids=[])\n'
    'hosts.GRACE = 0\n'
    'try:\n'
    '  jax.devices()\n'
    'except RuntimeError as error:\n'
    '  hosts.abandon(f"ferjax: {error}")\n'
  )
  result = subprocess.run(
    [sys.executable, '-c', program],
    cwd=ROOT,
    env=os.environ | {'JAX_PLATFORMS': 'nothing'},
    capture_output=True,
    text=True,
  )
  assert result.returncode == 1 and 'Traceback' not in result.stderr
  assert "ferjax: Unable to initialize backend 'nothing'" in result.stderr


def test_no_two_processes_of_a_host_make_the_same_at_a_time(monkeypatch):
  names = ['n0', 'n0', 'n1', 'n1', 'n2']
  found = [np.uint32(zlib.crc32(name.encode())) for name in names]
  monkeypatch.setattr(multihost_utils, 'process_allgather', lambda _: np.stack(found)[:, None])
  turns = []
  for process, name in enumerate(names):
    monkeypatch.setattr(jax, 'process_index', lambda process=process: process)
    monkeypatch.setattr(socket, 'gethostname', lambda name=name: name)
    monkeypatch.setattr(hosts, 'wait', lambda place: turns[-1].append(place[-1]))
    turns.append([])
    hosts.first_then_others('data', lambda: turns[-1].append('made'))
  assert [turn.index('made') for turn in turns] == [0, 2, 1, 2, 1]
  assert all([at for at in turn if at != 'made'] == ['0', '1', '2'] for turn in turns)


RESTORE = f"""{ALARM}
import sys
from pathlib import Path
import jax.numpy as jnp
from ferjax.cli import console
from ferjax.distributed import hosts, parallel
from ferjax.runs import checkpoint
from ferjax.errors import InputError
from checkpoints import damage, make_state

address, process, workdir = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
console.show_messages()
hosts.connect(coordinator_address=address, num_processes=2, process_id=process)
devices = parallel.make()

def state(step):
  return devices.replicate(make_state(step, placed=False))

with checkpoint.open_checkpoints(workdir, 3) as checkpoints:
  for step in (1, 2, 3):
    checkpoint.save(checkpoints, devices.joined(state(step)), None)
if process == 0:
  damage(workdir, 3)
else:
  checkpoint._saved = lambda _: [1]  # as a network's file system may still have it
hosts.wait('damaged')
print('restored', int(checkpoint.restore_latest(workdir, state(0)).step))
load = checkpoint._load_placed

def fail(*arguments):
  load(*arguments)
  raise OSError('stale file handle')

if process == 1:
  checkpoint._load_placed = fail
try:
  checkpoint.restore_latest(workdir, state(0))
except InputError as error:
  print(error)
with checkpoint.open_checkpoints(workdir, 3) as checkpoints:
  checkpoint.save(checkpoints, devices.joined(state(4)), None)
hosts.wait('end')
"""


def test_processes_restore_the_same_checkpoint_or_none(tmp_path):
  workdir = tmp_path / 'run'
  with two_processes(tmp_path / 'out', str(workdir), program=RESTORE) as started:
    statuses, out = finish(started, tmp_path / 'out')
  assert statuses == [0, 0], out
  assert all('restored 2\n' in text for text in out)
  assert '2 can be read by 1 of 2 processes (it can be read here): make sure that all see' in out[0]
  assert '2 can be read by 1 of 2 processes (stale file handle): make sure that all see' in out[1]
  folders = ('checkpoints', 'checkpoints_unreadable')
  assert [sorted(path.name for path in (workdir / folder).iterdir()) for folder in folders] == [
    ['1', '2', '4'],
    ['3-0'],
  ]


@pytest.mark.parametrize(
  'flags, message',
  [
    ({'coordinator_address': 'n1:1234'}, 'together'),
    ({'num_processes': 2}, 'together'),
    ({'process_id': 0}, 'together'),
    ({'coordinator_address': 'n1:1234', 'num_processes': 1}, 'together'),
    ({'coordinator_address': 'n1:1234', 'num_processes': 2, 'process_id': 2}, '0..1'),
    ({'coordinator_address': 'n1', 'num_processes': 2, 'process_id': 0}, 'HOST:PORT'),
    ({'coordinator_address': 'n1:65536', 'num_processes': 2, 'process_id': 0}, 'HOST:PORT'),
    ({'num_processes': 0}, 'at least 1'),
    ({'heartbeat_timeout': 0}, 'at least 1 second'),
  ],
)
def test_wrong_flags_are_refused(flags, message):
  with pytest.raises(InputError, match=message):
    hosts.connect(**flags)


def test_a_process_alone_is_left_alone(monkeypatch):
  monkeypatch.setattr(os, 'environ', SLURM | {'SLURM_STEP_NUM_TASKS': '4'})
  hosts.connect(num_processes=1)
  assert not jax.distributed.is_initialized()
  hosts.abandon('not printed, and no exit')
  assert hosts.first_then_others('anything', lambda: 5) == 5
