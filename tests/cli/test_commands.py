"""`ferjax COMMAND` as a user runs it."""

import importlib
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ferjax import __main__ as commands

ROOT = Path(__file__).parents[2]
WITH_ABSL = ('train', 'eval', 'prepare')


def call(*arguments, command=('-m', 'ferjax')):
  return subprocess.run(
    [sys.executable, *command, *arguments], cwd=ROOT, capture_output=True, text=True
  )


@pytest.mark.parametrize('arguments', [[], ['--help'], ['-h'], ['help']])
def test_the_commands_are_listed(arguments, monkeypatch, capsys):
  monkeypatch.setattr(sys, 'argv', ['ferjax', *arguments])
  commands.main()
  printed = capsys.readouterr().out
  assert printed.startswith('usage: ferjax COMMAND [FLAGS]')
  for name, what in commands.COMMANDS.items():
    assert f'  {name:10}  {what}\n' in printed


def test_the_list_is_quick_and_needs_no_library():
  program = """
import sys, time
from ferjax.__main__ import main
sys.argv = ['ferjax', '--help']
main()
assert not {'jax', 'numpy', 'absl', 'tensorflow_datasets'} & set(sys.modules)
assert time.process_time() < 0.5
"""
  result = call('-c', program, command=())
  assert result.returncode == 0 and not result.stderr
  assert result.stdout == commands.usage() + '\n'


def test_a_wrong_command_names_the_nearest(monkeypatch):
  monkeypatch.setattr(sys, 'argv', ['ferjax', 'predikt'])
  with pytest.raises(SystemExit) as raised:
    commands.main()
  message = "ferjax: there is no command 'predikt'. Did you mean 'predict'?\n\nusage: "
  assert raised.value.code.startswith(message)


@pytest.mark.parametrize('name', sorted(set(commands.COMMANDS) - set(WITH_ABSL)))
def test_a_command_has_its_help(name, capsys):
  module = importlib.import_module(f'ferjax.cli.{name.replace("-", "_")}')
  assert callable(module.run)
  with pytest.raises(SystemExit) as raised:
    module.parse(['--help'])
  assert raised.value.code in (0, None)
  assert capsys.readouterr().out.startswith(f'usage: ferjax {name} ')


@pytest.mark.parametrize('name', WITH_ABSL)
def test_a_command_shows_its_own_flags_only(name):
  result = call(name, '--help')
  assert result.returncode == 0 and not result.stderr
  assert result.stdout.startswith(f'usage: ferjax {name} [FLAGS]\n')
  assert '  --config  The config: configs/NAME.py' in result.stdout
  assert ('--manual_dir' if name == 'prepare' else '--workdir') in result.stdout
  assert 'absl' not in result.stdout and len(result.stdout.splitlines()) < 60


def test_train_and_eval(manifest, tmp_path):
  run = f'--workdir={tmp_path / "run"}'
  data = ['--config.data.name=manifest', f'--config.data.path={manifest}']
  small = ['--config.model.name=resnet10', '--config.model.width=4', '--config.data.image_size=32']
  short = ['--config.steps=2', '--config.eval.sheets=False', '--config.eval.tsne=0']
  flags = [*data, f'--config.data.dir={tmp_path / "data"}', *small, *short]
  trained = call('train', '--config=configs/softmax.py:smoke', run, *flags)
  assert trained.returncode == 0, trained.stderr
  assert f'workdir: {tmp_path / "run"}' in trained.stdout
  evaluated = call('eval', run)
  assert evaluated.returncode == 0, evaluated.stderr
  assert 'written to' in evaluated.stderr and 'test                  accuracy ' in evaluated.stdout
  assert list((tmp_path / 'run' / 'eval').glob('*/summary.json'))


@pytest.mark.parametrize(
  'arguments, message',
  [
    (['eval'], 'ferjax: give --workdir=RUN'),
    (['train'], 'ferjax: give a config, such as --config=configs/softmax.py'),
    (['prepare'], 'ferjax: name what to prepare, one of data, duplicates, graphs'),
    (['report', '--workdir=no/run'], 'ferjax: '),
  ],
)
def test_mistakes_are_one_line(arguments, message):
  result = call(*arguments)
  assert result.returncode == 1
  assert result.stderr.startswith(message) and 'Traceback' not in result.stderr


def test_an_interruption_is_one_line(tmp_path):
  command = [sys.executable, '-m', 'ferjax', 'train', '--config=configs/softmax.py:smoke']
  flags = [f'--workdir={tmp_path / "run"}', f'--config.data.dir={tmp_path / "data"}']
  with subprocess.Popen(
    [*command, *flags], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
  ) as run:
    assert run.stdout.readline().startswith('workdir: ')
    run.send_signal(signal.SIGINT)
    errors = run.stderr.read()
  assert run.returncode == 130
  assert errors.endswith('ferjax: interrupted\n') and 'Traceback' not in errors


def test_a_reader_that_closes_the_pipe_is_no_error():
  program = 'sleep 1; exec "$0" -m ferjax train --help'
  with subprocess.Popen(
    ['sh', '-c', program, sys.executable],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  ) as run:
    run.stdout.close()
    errors = run.stderr.read()
  assert run.returncode == 0 and not errors
