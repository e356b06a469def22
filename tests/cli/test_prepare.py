"""`ferjax prepare` as a user runs it."""

import subprocess
import sys
from pathlib import Path

import pytest

from ferjax.data import graphs

ROOT = Path(__file__).parents[2]


def call(*flags):
  command = [sys.executable, '-m', 'ferjax', 'prepare', *flags]
  return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_graphs_are_built_ahead_and_a_set_becomes_a_manifest(manifest, tmp_path):
  flags = ['--config.data.name=manifest', f'--config.data.path={manifest}']
  flags += [f'--config.data.dir={tmp_path}', f'--dir={tmp_path}']
  flags += [f'--data=manifest:{manifest}', f'--out={tmp_path / "copy.csv"}']
  result = call('graphs', 'manifest', '--config=configs/ldl_alsg.py:smoke', *flags)
  assert result.returncode == 0, result.stderr
  names = sorted(path.name.split('-')[0] for path in graphs.folder(str(tmp_path)).iterdir())
  assert names == ['au', 'landmarks']
  assert 'graph by landmarks: recall 1.000' in result.stderr
  assert f'written to {tmp_path / "copy.csv"}' in result.stdout
  assert len(list((tmp_path / 'copy_pictures').rglob('*.png'))) == 133


@pytest.mark.parametrize(
  'flags, message',
  [
    (['graph', '--config=configs/ldl_alsg.py'], "Did you mean 'graphs'"),
    (['graphs', '--config=configs/softmax.py'], "is 'natural', which needs no graphs"),
    (['--config=configs/ldl_alsg.py'], 'name what to prepare'),
    (['manifest', '--data=raf_db'], 'give --out: the manifest to write'),
    (['duplicates', '--name=raf_db', '--out=tests'], '--out=tests is a folder: give a file'),
  ],
)
def test_mistakes_are_reported_without_a_traceback(flags, message):
  result = call(*flags)
  assert result.returncode == 1
  assert message in result.stderr and 'Traceback' not in result.stderr
