"""The launchers: watch.py with small processes, scripts with stand-ins for tools of clusters."""

import json
import os
import re
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / 'launch'
sys.path.insert(0, str(LAUNCH))
import watch as watcher  # noqa: E402

SCRIPTS = sorted([*LAUNCH.glob('*.sh'), *LAUNCH.glob('*.sbatch')])
UNFINISHED = 75

# Runs for a minute; as with ferjax.main, SIGTERM and SIGUSR1 make it save and end.
TRAINER = """
import pathlib, signal, sys, time
flags = dict(part.lstrip('-').split('=', 1) for part in sys.argv[1:] if '=' in part)
workdir = pathlib.Path(flags['workdir'])
workdir.mkdir(parents=True, exist_ok=True)
number = flags.get('process_id', '0')
def save(signum, frame):
  (workdir / f'saved-{number}').write_text(signal.Signals(signum).name)
  sys.exit(0)
signal.signal(signal.SIGTERM, save)
signal.signal(signal.SIGUSR1, save)
print('started', number, 'of', flags.get('num_processes'), flush=True)
(workdir / f'started-{number}').write_text(flags.get('coordinator_address', ''))
print('reading', number, file=sys.stderr, flush=True)
if 'seconds' in flags or (workdir / 'again').exists():
  time.sleep(float(flags.get('seconds', 0)))
  (workdir / 'summary.json').write_text('{}')
  sys.exit(int(flags.get('code', 0)))
time.sleep(60)
"""


@pytest.fixture
def trainer(tmp_path):
  path = tmp_path / 'trainer.py'
  path.write_text(TRAINER)
  return path


def wait_for(*paths, seconds=120):
  end = time.monotonic() + seconds
  while not all(path.exists() for path in paths):
    assert time.monotonic() < end, f'none of {paths}'
    time.sleep(0.02)


def watch(*flags, **options):
  command = [sys.executable, LAUNCH / 'watch.py', *flags]
  pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
  signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it would be ignored in both processes
  return subprocess.Popen([str(part) for part in command], **pipes, **options)


def pid_of(workdir, number):
  """The pid of a process of a run, found by its flags."""
  wanted = {f'--process_id={number}', f'--workdir={workdir}', 'trainer'}
  for path in Path('/proc').glob('[0-9]*/cmdline'):
    try:
      parts = path.read_bytes().decode().split('\0')
    except OSError:
      continue
    parts = ['trainer' if part.endswith('trainer.py') else part for part in parts]
    if wanted <= set(parts) and '--' not in parts:
      return int(path.parent.name)
  raise AssertionError(f'no process {number} of {workdir}')


def test_a_killed_process_is_named_and_the_others_are_stopped(tmp_path, trainer):
  workdir = tmp_path / 'run'
  flags = ('--processes=3', '--grace=5', '--', sys.executable, trainer, f'--workdir={workdir}')
  with watch(*flags) as run:
    wait_for(*(workdir / f'started-{number}' for number in range(3)))
    began, pids = time.monotonic(), [pid_of(workdir, number) for number in range(3)]
    os.kill(pids[1], signal.SIGKILL)
    out, errors = run.communicate(timeout=20)
  assert time.monotonic() - began < 5 and run.returncode == 128 + signal.SIGKILL
  assert f'watch: process 1 of 3 (pid {pids[1]}) was killed by SIGKILL' in errors
  assert 'watch:   reading 1' in errors and 'watch: processes 0, 2 are stopped' in errors
  assert f'--workdir={workdir}' in errors.splitlines()[-1]  # the command that continues the run
  assert sorted(out.splitlines()) == [f'[{n}] started {n} of 3' for n in range(3)]
  assert '[2] reading 2' in errors
  addresses = {(workdir / f'started-{number}').read_text() for number in range(3)}
  assert len(addresses) == 1 and re.fullmatch(r'127\.0\.0\.1:\d+', addresses.pop())
  assert not any(Path(f'/proc/{pid}').exists() for pid in pids)


def test_a_process_that_does_not_end_is_killed_after_the_grace(tmp_path):
  program = (
    'import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); '
    'time.sleep(0.5 if sys.argv[-1] == "--process_id=0" else 60); sys.exit(3)'
  )
  command = (sys.executable, '-c', program, f'--workdir={tmp_path}')
  began = time.monotonic()
  with watch('--processes=2', '--grace=1', '--', *command) as run:
    errors = run.communicate(timeout=20)[1]
  assert 1 < time.monotonic() - began < 15 and run.returncode == 3
  assert re.search(r'process 0 of 2 \(pid \d+\) ended with exit code 3;', errors)


def test_a_restart_goes_on_and_finishes(tmp_path, trainer):
  workdir = tmp_path / 'run'
  flags = ('--processes=2', '--restarts=1', '--grace=5', '--', sys.executable, trainer)
  with watch(*flags, f'--workdir={workdir}') as run:
    wait_for(workdir / 'started-0', workdir / 'started-1')
    (workdir / 'again').touch()
    os.kill(pid_of(workdir, 0), signal.SIGABRT)
    errors = run.communicate(timeout=20)[1]
  assert run.returncode == 0
  assert 'was killed by SIGABRT: JAX ends a process in this way when another process' in errors
  assert 'starting again from the last checkpoint; restarts left after this one: 0' in errors


@pytest.mark.parametrize(
  'number, sent',
  [
    (signal.SIGTERM, 'SIGTERM'),
    (signal.SIGUSR1, 'SIGUSR1'),
    (signal.SIGHUP, 'SIGTERM'),  # the terminal was closed
  ],
)
def test_a_preemption_reaches_all_and_asks_to_be_started_again(tmp_path, trainer, number, sent):
  workdir = tmp_path / 'run'
  flags = ('--processes=2', '--restarts=3', '--resume=sbatch it', '--', sys.executable, trainer)
  with watch(*flags, f'--workdir={workdir}') as run:
    wait_for(workdir / 'started-0', workdir / 'started-1')
    run.send_signal(number)
    errors = run.communicate(timeout=20)[1]
  assert run.returncode == UNFINISHED
  assert [(workdir / f'saved-{n}').read_text() for n in range(2)] == [sent] * 2
  assert 'stopped before its end; this command continues it:\nwatch:   sbatch it' in errors


def test_a_process_that_is_killed_while_it_saves_can_continue(tmp_path):
  """A scheduler sends SIGKILL when the time is over; without a signal before, it is a failure."""
  program = (
    'import os, pathlib, signal, sys, time\n'
    'signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))\n'
    'pathlib.Path(sys.argv[1]).touch()\n'
    'time.sleep(60)\n'
  )
  with watch('--', sys.executable, '-c', program, tmp_path / 'started') as run:
    wait_for(tmp_path / 'started')
    run.send_signal(signal.SIGTERM)
    errors = run.communicate(timeout=20)[1]
  assert run.returncode == UNFINISHED
  assert 'it may not have saved: it was killed by SIGKILL' in errors


def test_a_run_goes_on_when_nobody_reads_its_output(tmp_path):
  """Such as after `| head`, or if a signal ended `| tee` too."""
  program = (
    'import pathlib, sys\n'
    'for _ in range(2000):\n'
    '  print("x" * 99, file=sys.stderr, flush=True)\n'  # more than a pipe holds
    'pathlib.Path(sys.argv[1].partition("=")[2], "summary.json").touch()\n'
  )
  with watch('--', sys.executable, '-c', program, f'--workdir={tmp_path}') as run:
    run.stderr.close()
    try:
      assert run.wait(timeout=20) == 0
    finally:
      run.terminate()  # it passes that on to one that waits for a reader


def test_gpus_are_shared_out(tmp_path, monkeypatch):
  monkeypatch.delenv('JAX_PLATFORMS', raising=False)
  monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
  program(
    tmp_path / 'nvidia-smi', 'for i in 0 1 2 3; do echo "GPU $i: NVIDIA (UUID: GPU-$i)"; done'
  )
  monkeypatch.setenv('PATH', f'{tmp_path}:{os.environ["PATH"]}')
  flags = ('--', sys.executable, '-c', 'import os; print(os.environ["CUDA_VISIBLE_DEVICES"])')
  with watch('--processes=2', *flags, f'--workdir={tmp_path}') as run:
    out = run.communicate(timeout=20)[0]
  assert sorted(out.splitlines()) == ['[0] 0,1', '[1] 2,3']
  with watch('--processes=3', *flags, f'--workdir={tmp_path}') as run:
    errors = run.communicate(timeout=20)[1]
  assert run.returncode == 2 and '--processes=3: 4 GPUs cannot be shared evenly' in errors
  monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '5,GPU-7,6')
  assert watcher.shares(3) == [{'CUDA_VISIBLE_DEVICES': name} for name in ('5', 'GPU-7', '6')]
  assert watcher.shares(None) == [{}]
  monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '-1')  # CUDA's value for no GPU
  assert watcher.shares(2) == [{}, {}]
  monkeypatch.setenv('JAX_PLATFORMS', 'cpu')
  assert watcher.shares(2) == [{}, {}]


def test_one_process_without_a_prefix(tmp_path, trainer):
  workdir = tmp_path / 'run'
  command = (sys.executable, trainer, '--workdir', 'elsewhere', f'--workdir={workdir}')
  with watch('--', *command, '--seconds=0') as run:
    out, errors = run.communicate(timeout=20)
  assert (run.returncode, out, errors) == (0, 'started 0 of None\n', 'reading 0\n')
  with watch('--', *command, '--seconds=0', '--code=4') as run:
    assert 'ended with exit code 4;' in run.communicate(timeout=20)[1]
  assert run.returncode == 4


@pytest.mark.parametrize(
  'flags, code, message',
  [
    ([], 2, 'give a command after --'),
    (['--processes=0', '--', 'x', '--workdir=y'], 2, 'at least 1'),
    (['--processes=2', '--', 'x'], 2, 'the command needs a --workdir'),
    (['--', '/no/such/program'], 127, 'cannot start /no/such/program: No such file'),
  ],
)
def test_mistakes_of_watch_are_reported(flags, code, message):
  with watch(*flags) as run:
    errors = run.communicate(timeout=20)[1]
  assert run.returncode == code and message in errors and 'Traceback' not in errors


@pytest.mark.parametrize('path', SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_bash(path):
  subprocess.run(['bash', '-n', path], check=True)
  shellcheck = Path(sysconfig.get_path('scripts'), 'shellcheck')
  flags = ['--severity=warning', '--external-sources', '--source-path=SCRIPTDIR']
  subprocess.run([shellcheck, *flags, path], check=True)


def program(path, text):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(f'#!/usr/bin/env bash\n{text}')
  path.chmod(0o755)


def test_the_header_of_the_slurm_job():
  lines = (LAUNCH / 'slurm.sbatch').read_text().splitlines()
  assert lines[0] == '#!/usr/bin/env bash'
  body = next(n for n, line in enumerate(lines) if line and not line.startswith('#'))
  assert not any(line.startswith('#SBATCH') for line in lines[body:])  # SLURM stops reading there
  options = [line.removeprefix('#SBATCH --') for line in lines if line.startswith('#SBATCH')]
  header = dict(option.partition('=')[::2] for option in options)
  assert header['ntasks-per-node'] == '1' and int(header['gpus-per-node']) > 1
  assert header['signal'] == 'B:USR1@120' and header['requeue'] == ''
  assert header['open-mode'] == 'append' and int(header['nodes']) >= 1


@pytest.fixture
def slurm(tmp_path, trainer):
  """Runs slurm.sbatch in a folder with stand-ins for srun, squeue, scontrol and the trainer."""
  (tmp_path / 'launch').symlink_to(LAUNCH)
  tools = tmp_path / 'tools'
  program(tools / 'srun', 'while [[ $1 == --* ]]; do shift; done\nexec "$@"\n')
  program(tools / 'squeue', 'echo "$STATE"\n')
  program(tools / 'scontrol', 'echo "scontrol $*"\n')
  program(
    tmp_path / '.venv' / 'bin' / 'python',
    'if [ "$1" != -m ]; then exec ' + sys.executable + ' "$@"; fi\nshift 2\n'
    f'exec {sys.executable} {trainer} "$@"\n',
  )
  variables = {'SLURM_SUBMIT_DIR': tmp_path, 'SLURM_JOB_ID': 7, 'SLURM_JOB_NUM_NODES': 2}
  variables |= {'PATH': f'{tools}:{os.environ["PATH"]}'}

  def start(*flags, **more):
    environment = os.environ | {key: str(value) for key, value in (variables | more).items()}
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.STDOUT, 'text': True}
    return subprocess.Popen(['bash', LAUNCH / 'slurm.sbatch', *flags], env=environment, **pipes)

  return start


@pytest.mark.parametrize('state, requeued', [('RUNNING', True), ('COMPLETING', False)])
def test_a_slurm_job_that_is_not_finished_is_queued_again(slurm, tmp_path, state, requeued):
  with slurm('--config=a b.py', STATE=state) as job:
    wait_for(tmp_path / 'runs/slurm-7/started-0')
    job.send_signal(signal.SIGUSR1)
    out = job.communicate(timeout=20)[0]
  assert (tmp_path / 'runs/slurm-7/saved-0').read_text() == 'SIGUSR1'
  assert ('scontrol requeue 7\n' in out) == requeued
  assert 'sbatch --nodes=2 launch/slurm.sbatch --config=a\\ b.py --workdir=runs/slurm-7\n' in out
  assert job.returncode == (0 if requeued else UNFINISHED)


def test_a_slurm_job_that_ends_is_not_queued_again(slurm, tmp_path):
  for code in (0, 1):
    with slurm('--workdir=runs/own', '--seconds=0', f'--code={code}', STATE='RUNNING') as job:
      out = job.communicate(timeout=20)[0]
    assert job.returncode == code and 'requeue' not in out
  assert (tmp_path / 'runs/own/summary.json').exists() and not (tmp_path / 'runs/slurm-7').exists()
  (tmp_path / '.venv/bin/python').unlink()
  with slurm('--workdir=runs/own') as job:
    assert 'run launch/local.sh there once' in job.communicate(timeout=20)[0]
  assert job.returncode == 1


def test_a_slurm_array_is_a_sweep(slurm, tmp_path):
  flags = ('--out=runs/sweep', '--config=c.py', '--seeds=3,4')
  flags += (f'--command={tmp_path}/.venv/bin/python -m ferjax.main', '--', '--seconds=0')
  with slurm(*flags, SLURM_ARRAY_TASK_ID=1, STATE='RUNNING') as job:
    out = job.communicate(timeout=20)[0]
  assert job.returncode == 0 and 'c_seed=4 is finished' in out and 'c_seed=3' not in out


def tpu(*flags, path=os.environ['PATH'], **options):
  command = ['bash', LAUNCH / 'tpu_pod.sh', *flags]
  environment = os.environ | {'PATH': str(path)}
  return subprocess.run(command, capture_output=True, text=True, env=environment, **options)


POD = ('--name=faces', '--zone=us-west4-a', '--type=v5litepod-16', '--project=lab')
TRAIN = ('--', '--config=configs/lanet.py', "--config.data.classes=('fear','anger')")


def commands(text):
  """The step of each gcloud command: `tpu-vm create`, or the command that runs on the hosts."""
  found = []
  for line in text.splitlines():
    if line.startswith('gcloud '):
      remote = re.search(r"--command=cd ferjax && (.*)'$", line)
      found.append(remote[1] if remote else ' '.join(line.split()[4:6]))
  return found


def test_the_dry_run_of_a_tpu_pod_prints_every_command(tmp_path):
  tools = tmp_path / 'tools'
  program(tools / 'gcloud', 'touch "$(dirname "$0")/called"\n')
  path = f'{tools}:{os.environ["PATH"]}'
  result = tpu(*POD, '--dry-run', '--setup=mount it', *TRAIN, path=path)
  assert result.returncode == 0 and not (tools / 'called').exists(), result.stderr
  create, copy, unpack, install, setup, train, collect, delete = commands(result.stdout)
  assert (create, copy, unpack) == ('tpu-vm create', 'tpu-vm scp', 'tpu-vm ssh')
  assert install == '. launch/setup.sh && FERJAX_EXTRA=tpu install_ferjax'
  assert setup == 'mount it' and (collect, delete) == ('tpu-vm scp', 'tpu-vm delete')
  assert train.startswith('.venv/bin/python launch/watch.py -- .venv/bin/python -m ferjax.main')
  assert train.endswith('--workdir=runs/faces --config.parallel.backend=shard_map')
  assert f'mkdir -p {Path.cwd()}/runs\n' in result.stdout
  lines = [line for line in result.stdout.splitlines() if line.startswith('gcloud')]
  assert all('--zone=us-west4-a --project=lab' in line for line in lines)
  assert all('--worker=all' in line for line in lines[1:-2]) and '--worker=0' in lines[-2]
  assert '--accelerator-type=v5litepod-16 --version=v2-alpha-tpuv5-lite' in lines[0]

  result = tpu(*POD, '--dry-run', '--queued', '--spot', '--keep', *TRAIN)
  steps = commands(result.stdout)
  assert steps[:2] == ['queued-resources create', 'queued-resources describe']
  assert '--node-id=faces' in result.stdout and '--spot' in result.stdout
  assert not any('delete' in step for step in steps) and 'costs money' in result.stderr
  result = tpu(*POD, '--dry-run', '--queued', '--out=here', *TRAIN, cwd=tmp_path)
  assert commands(result.stdout)[-1] == 'queued-resources delete'
  assert f'mkdir -p {tmp_path}/here\n' in result.stdout
  result = tpu(*POD, '--dry-run', *TRAIN, '--config.parallel.backend=pmap')
  assert 'shard_map' not in result.stdout


def test_a_tpu_pod_is_deleted_after_a_failure(tmp_path):
  tools = tmp_path / 'tools'
  program(tools / 'gcloud', 'case "$*" in *ferjax.main*) exit 9 ;; esac\n')
  flags = (*POD, f'--out={tmp_path / "out"}', *TRAIN)
  result = tpu(*flags, path=f'{tools}:{os.environ["PATH"]}')
  steps = commands(result.stdout)
  assert result.returncode == 9 and len(steps) == 7
  assert steps[-2:] == ['tpu-vm scp', 'tpu-vm delete']


def test_a_tpu_pod_is_deleted_also_after_several_interrupts(tmp_path):
  """Ctrl-C reaches the script and its children, during training and again during deletion."""
  tools = tmp_path / 'tools'
  program(
    tools / 'gcloud',
    f'case "$*" in *ferjax.main*) touch {tmp_path}/train; sleep 60 ;;\n'
    f'*delete*) touch {tmp_path}/delete; sleep 1; touch {tmp_path}/deleted ;; esac\n',
  )
  command = ['bash', LAUNCH / 'tpu_pod.sh', *POD, f'--out={tmp_path / "out"}', *TRAIN]
  environment = os.environ | {'PATH': f'{tools}:{os.environ["PATH"]}'}
  pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.STDOUT, 'text': True}
  with subprocess.Popen(command, env=environment, start_new_session=True, **pipes) as run:
    for name in ('train', 'delete'):
      wait_for(tmp_path / name)
      os.killpg(run.pid, signal.SIGINT)
    wait_for(tmp_path / 'deleted')
    run.communicate(timeout=120)
  assert run.returncode == 130


@pytest.mark.parametrize('queued', [(), ('--queued',)])
def test_a_tpu_pod_that_was_not_made_here_is_not_deleted(tmp_path, queued):
  """Such as a slice whose name is already in use."""
  tools = tmp_path / 'tools'
  program(tools / 'gcloud', 'case "$*" in *create*) exit 9 ;; esac\n')
  result = tpu(*POD, *queued, *TRAIN, path=f'{tools}:{os.environ["PATH"]}')
  assert result.returncode == 2 and 'not created; see which slices exist' in result.stderr
  assert len(commands(result.stdout)) == 1


@pytest.mark.parametrize(
  'flags, message',
  [
    (['--name=Faces', *POD[1:], *TRAIN], "--name='Faces'"),
    (['--name=faces', *TRAIN], "--zone=''"),
    ([*POD[:2], '--type=a100', *TRAIN], "--type='a100'"),
    ([*POD], 'including --config='),
    ([*POD, '--config=configs/lanet.py'], 'flags of ferjax.main go after --'),
    ([*POD, *TRAIN, '--workdir', 'runs/x'], 'as one argument'),
  ],
)
def test_mistakes_about_a_tpu_pod_are_reported_before_anything_is_created(flags, message):
  result = tpu('--dry-run', *flags)
  assert result.returncode == 2 and message in result.stderr and not result.stdout


def test_the_jobset_has_what_jax_and_restarts_need():
  with (LAUNCH / 'gke_jobset.yaml').open() as file:
    parts = {part['kind']: part for part in yaml.safe_load_all(file)}
  jobset = parts['JobSet']
  assert jobset['apiVersion'] == 'jobset.x-k8s.io/v1alpha2'
  assert len({part['metadata']['namespace'] for part in parts.values()}) == 1
  (replicated,) = jobset['spec']['replicatedJobs']
  job = replicated['template']['spec']
  # jax/_src/clusters/k8s_cluster.py: one job, indexed, as many processes as `parallelism`
  assert replicated['replicas'] == 1 and job['completionMode'] == 'Indexed'
  assert job['parallelism'] == job['completions'] > 1
  allowed = {
    (r, v) for rule in parts['Role']['rules'] for r in rule['resources'] for v in rule['verbs']
  }
  assert allowed == {('pods', 'list'), ('jobs', 'get')}
  account = parts['ServiceAccount']['metadata']['name']
  pod = job['template']['spec']
  assert pod['serviceAccountName'] == account == parts['RoleBinding']['subjects'][0]['name']
  assert parts['RoleBinding']['roleRef']['name'] == parts['Role']['metadata']['name']

  (container,) = pod['containers']
  assert pod['restartPolicy'] == 'Never' and job['backoffLimit'] == 0
  disrupted, stopped = job['podFailurePolicy']['rules']
  assert disrupted['onPodConditions'] == [{'type': 'DisruptionTarget', 'status': 'True'}]
  codes = {'containerName': container['name'], 'operator': 'In', 'values': [UNFINISHED]}
  assert stopped['onExitCodes'] == codes and stopped['action'] == disrupted['action'] == 'FailJob'
  (rule,) = jobset['spec']['failurePolicy']['rules']
  assert rule['onJobFailureReasons'] == ['PodFailurePolicy']

  place = container['args'].index('--')
  assert container['args'][0] == 'launch/watch.py'
  grace = int(container['args'][1].removeprefix('--grace='))
  assert place == 2 and grace < pod['terminationGracePeriodSeconds']
  assert container['args'][place + 1 : place + 4] == ['python', '-m', 'ferjax.main']
  mounts = {mount['name']: mount['mountPath'] for mount in container['volumeMounts']}
  volumes = {volume.pop('name'): volume for volume in pod['volumes']}
  workdir = next(a for a in container['args'] if a.startswith('--workdir='))
  assert workdir.startswith(f'--workdir={mounts["runs"]}/') and mounts['shm'] == '/dev/shm'
  claim = parts['PersistentVolumeClaim']
  assert volumes['runs']['persistentVolumeClaim']['claimName'] == claim['metadata']['name']
  assert claim['spec']['accessModes'] == ['ReadWriteMany']
  assert volumes['shm']['emptyDir']['medium'] == 'Memory'
  assert int(container['resources']['limits']['nvidia.com/gpu']) > 0
  variables = {one['name']: one['value'] for one in container['env']}
  assert variables == {'LD_LIBRARY_PATH': '/usr/local/nvidia/lib64', 'JAX_PLATFORMS': 'cuda'}
  assert json.dumps(container).count('PROJECT') == 1  # the user must edit the image
