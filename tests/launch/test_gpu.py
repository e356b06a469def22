"""launch/gpu.py in small, on the CPU."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import pytest

from ferjax import models
from ferjax.benchmark import measure, step
from ferjax.models import resnet

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / 'launch'))
import gpu  # noqa: E402


def three_blocks(*, width, output_stride=32, dtype=jnp.float32, param_dtype=jnp.float32):
  kinds = {'dtype': dtype, 'param_dtype': param_dtype}
  return resnet.ResNet(resnet.BasicBlock, (1, 1, 1), width, output_stride, **kinds)


def test_parts_in_small(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(models, 'resnet10', three_blocks)
  monkeypatch.setattr(step, 'without_caches', contextlib.nullcontext)
  monkeypatch.setitem(step.METHODS, 'hrl', {'name': 'hrl', 'widths': (8, 8), 'sifl': False})
  code = gpu.main([f'--out={tmp_path}', '--tiny', '--parts=predict,hrl,graphs'])
  assert code == 0, capsys.readouterr().err
  results = json.loads((tmp_path / 'results.json').read_text())
  assert len(results['predict']) == len(results['graphs']) == 2
  assert [row['method'] for row in results['hrl']] == ['softmax', 'hrl']
  for row in results['hrl']:
    done = row['ferjax']['operations']
    assert sum(part['share'] for part in done) == pytest.approx(1)
    assert 0 < sum(part['ms'] for part in done)
  text = (tmp_path / 'results.md').read_text()
  assert all(f'## {part}' in text for part in ('predict', 'hrl', 'graphs'))
  assert '| operations: resnet10, 16 px, batch 10, bfloat16, augmented, hrl ' in text


@pytest.mark.parametrize(
  'of_landmark_graphs, methods', [(False, ['softmax', 'lanet']), (True, ['hrl'])]
)
def test_steps_run_beside_pytorch_where_softmax_is_asked_for(
  monkeypatch, of_landmark_graphs, methods
):
  ran = []

  def run(bench, cases):
    ran.append((bench.torch, [case.method for case in cases]))
    return []

  monkeypatch.setattr(step, 'run', run)
  gpu.steps(measure.Bench(1, 0.0, '', 'PyTorch'), True, of_landmark_graphs)
  assert ran == [(None if of_landmark_graphs else 'PyTorch', methods)]


def test_the_large_cases_are_those_of_the_papers():
  (small, deep, hrl) = gpu.step_groups(tiny=False)
  names = [case.name for case in (*small, *deep, *hrl)]
  assert names == [
    'resnet18, 224 px, batch 256, bfloat16, augmented, softmax',
    'resnet18, 224 px, batch 256, bfloat16, augmented, lanet',
    'resnet50, 224 px, batch 256, bfloat16, augmented, softmax',
    'resnet50, 224 px, batch 64, bfloat16, augmented, hrl',
  ]


def test_without_a_gpu_it_says_so(tmp_path, capsys):
  assert gpu.main([f'--out={tmp_path}', '--parts=graphs']) == 1
  assert 'JAX sees no GPU' in capsys.readouterr().err and not [*tmp_path.iterdir()]


def test_a_part_that_fails_does_not_end_the_others(tmp_path, monkeypatch, capsys):
  def broken(bench, tiny):
    raise ValueError('out of memory')

  def works(bench, tiny):
    return {'rows': [{'case': 'a'}], 'tables': ['| a |']}

  monkeypatch.setattr(gpu, 'PARTS', {'broken': broken, 'works': works})
  assert gpu.main([f'--out={tmp_path}', '--tiny', '--parts=broken,works']) == 1
  assert json.loads((tmp_path / 'results.json').read_text())['works'] == [{'case': 'a'}]
  assert capsys.readouterr().err.endswith('\nbroken: out of memory\n')


def test_nothing_is_begun_without_time(tmp_path, monkeypatch, capsys):
  assert gpu.main([f'--out={tmp_path}', '--tiny', '--minutes=0.1']) == 1
  assert 'tests: no time left\nmeasurements: no time left\n' in capsys.readouterr().err
  ended = []
  monkeypatch.setattr(gpu.os, '_exit', ended.append)
  gpu.out_of_time(8, ['tests: failed'])
  assert ended == [1]
  wanted = 'tests: failed\nstopped after 8 minutes, in the middle of a part\n'
  assert capsys.readouterr().err == wanted


@pytest.mark.parametrize('end', [0, 1, 'time'])
def test_the_tests_run_in_a_process_of_their_own(tmp_path, monkeypatch, capsys, end):
  def run(command, stdout, timeout, env, **options):
    named = [ROOT / part.partition('::')[0] for part in command if part.startswith('tests/')]
    assert named and all(path.is_file() for path in named)
    assert env['JAX_PLATFORMS'] == 'cuda,cpu' and timeout == gpu.TESTS_AT_MOST
    stdout.write('3 passed\n')
    if end == 'time':
      raise subprocess.TimeoutExpired(command, timeout)
    return SimpleNamespace(returncode=end)

  monkeypatch.setattr(gpu.subprocess, 'run', run)
  assert gpu.main([f'--out={tmp_path}', '--parts=tests']) == (1 if end else 0)
  said = capsys.readouterr()
  assert (tmp_path / 'tests.txt').read_text() == '3 passed\n'
  assert {0: not said.err.count('failed'), 1: 'tests failed: see' in said.err}.get(end, True)
  assert end != 'time' or 'took longer than 120 s' in said.err


def test_an_unknown_part_is_refused(tmp_path, capsys):
  with pytest.raises(SystemExit):
    gpu.main([f'--out={tmp_path}', '--parts=steps'])
  assert "no part 'steps'; there are: tests, step, predict, hrl, graphs" in capsys.readouterr().err
