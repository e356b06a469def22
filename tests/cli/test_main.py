"""The command line as a user runs it."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def call(*flags):
  command = [sys.executable, '-m', 'ferjax.main', *flags]
  return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize(
  'flags, message',
  [
    (['--config=configs/softmx.py'], 'configs/softmx.py'),
    (['--config=configs/softmax.py', '--config.optimizer.lrr=1'], 'Did you mean "lr"'),
    (
      [
        '--config=configs/softmax.py',
        '--config.data.name=manifest',
        '--config.data.path=no/such.csv',
        '--workdir=/nonexistent/run',
      ],
      'no such manifest: no/such.csv',
    ),
    (['--config=configs/softmax.py', '--config.dat.name=x'], 'the config has no key'),
    (['--config=configs/softmax.py', '--config.batch=abc'], 'batch'),
    (['--config=configs/softmax.py', '--bogus=1'], "Unknown command line flag 'bogus'"),
    (['--config=configs/softmax.py:bogus'], 'use demo, paper or smoke'),
    (['--config=configs/none.py'], '--config=configs/none.py: there is no such file'),
    (['configs/softmax.py'], "unexpected argument 'configs/softmax.py': flags begin with --"),
    (['--mode=eval', '--workdir=no/run'], 'there is no folder no/run'),
  ],
)
def test_mistakes_are_reported_without_a_traceback(flags, message):
  result = call(*flags)
  assert result.returncode == 1
  assert message in result.stderr and 'Traceback' not in result.stderr
