"""Complete runs: their files, their continuation bit for bit, and how they stop."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time

import chex
import cv2
import jax
import numpy as np
import pytest
from drawn_faces import write_manifest
from shipped_configs import CONFIGS, lines_of, smoke

from ferjax import files, main
from ferjax.assembly import restore
from ferjax.errors import InputError
from ferjax.evaluation import evaluate
from ferjax.report import single
from ferjax.runs import history
from ferjax.training import logs, loop, setup


@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.stem)
def test_every_shipped_config_runs(path, manifest, data_dir, tmp_path):
  summary = loop.train(smoke(path, manifest, data_dir), tmp_path)
  assert summary['step'] == 10 and len(summary['state_sha256']) == 64
  assert summary['last']['step'] == 10 and summary['best_by_val']['val']['acc'] >= 0
  assert json.loads((tmp_path / 'summary.json').read_text()) == summary
  lines = history.read_lines(tmp_path / 'metrics.jsonl')
  assert [line['step'] for line in lines if line['split'] == 'train'] == list(range(1, 11))
  train_keys = {'loss', 'lr', 'images_per_s', 'l2_grads', 'l2_params', 'l2_updates'}
  assert train_keys <= set(lines[0])
  test_lines = [line for line in lines if line['split'] == 'test']
  assert [line['step'] for line in test_lines] == [5, 10]
  assert {'loss', 'acc', 'mean_class_acc', 'f1_macro', 'recall/fear'} <= set(test_lines[0])
  with (tmp_path / 'predictions' / 'test.csv').open() as file:
    rows = list(csv.DictReader(file))
  assert len(rows) == 28 and rows[0]['name'] == 'test_000.png' and rows[0]['label'] == 'neutral'
  assert sum(float(rows[0][f'p_{name}']) for name in ('neutral', 'fear')) < 1
  names = ('confusion_test', 'mistakes_test', 'confusion_val', 'learning_curves')
  names += ('tsne_test', 'identities_test', 'retrieval_test', 'expression_by_pose_val')
  for name in (*names, 'response', 'grad_cam'):
    assert cv2.imread(str(tmp_path / 'report' / f'{name}.png')).std() > 5
  record = json.loads((tmp_path / 'config.json').read_text())
  seen = summary['embeddings']['test']
  assert 0 <= seen['knn/acc'] <= 1 and {'recall@1', 'nmi', 'silhouette/expression'} <= set(seen)
  for name in ('classes_test', 'expression_by_pose_test'):
    with (tmp_path / 'report' / f'{name}.csv').open() as file:
      rows = list(csv.reader(file))
    assert [row[0] for row in rows[1:]] == [*record['classes'], 'mean']
  assert record['config']['steps'] == 10 and record['device_count'] == 8
  assert record['rows'] == {'train': 84, 'val': 21, 'test': 28} and record['versions']['jax']
  assert {p.name for p in (tmp_path / 'checkpoints').iterdir()} >= {'9', '10'}


def test_a_second_process_on_one_folder_is_refused(small_config, tmp_path):
  with files.locked(tmp_path / 'train.lock', 'taken'):
    with pytest.raises(InputError, match='another process trains in .*give another --workdir'):
      loop.train(small_config, tmp_path)
  assert [path.name for path in tmp_path.iterdir()] == ['train.lock']


@pytest.mark.parametrize('method', [{'name': 'softmax'}, {'name': 'scn', 'relabel_from': 2}])
def test_a_run_traces_its_step_once(method, small_config, tmp_path, monkeypatch):
  """Over epochs, evaluations, and a state that is refreshed on the host."""
  make = setup.make_train_step

  def counted(*args):
    chex.clear_trace_counter()
    return chex.assert_max_traces(make(*args), n=1)

  monkeypatch.setattr(setup, 'make_train_step', counted)
  small_config.method = method
  assert loop.train(small_config, tmp_path)['step'] == 10


def test_killed_three_times_and_the_same_to_the_bit(small_config, tmp_path):
  """SIGKILL at random moments; every restart continues from the last checkpoint."""
  small_config.steps = 24
  small_config.parallel.devices = 2
  small_config.noise.update(kind='symmetric', rate=0.3)
  small_config.sampler.name = 'progressively_balanced'
  whole = loop.train(small_config, tmp_path / 'whole')
  text = json.dumps(small_config.to_dict())
  program = (
    'import json, sys; from ferjax import config; from ferjax.training import loop; '
    'c = config.base(); c.update(config.with_tuples(json.loads(sys.argv[1]))); '
    'loop.train(c, sys.argv[2])'
  )
  workdir = tmp_path / 'killed'
  chance, kills = random.Random(0), 0
  targets = sorted(chance.sample(range(2, 23), 3))
  cache = {'JAX_COMPILATION_CACHE_DIR': jax.config.jax_compilation_cache_dir}
  while kills < 3:
    with subprocess.Popen(
      [sys.executable, '-c', program, text, str(workdir)], env=os.environ | cache
    ) as run:
      while run.poll() is None:
        lines = history.read_lines(workdir / 'metrics.jsonl')
        if lines and lines[-1]['step'] >= targets[kills]:
          run.send_signal(signal.SIGKILL)
          break
        time.sleep(0.005)
      kills += 1
  subprocess.run(
    [sys.executable, '-c', program, text, str(workdir)], env=os.environ | cache, check=True
  )
  summary = json.loads((workdir / 'summary.json').read_text())
  assert summary['state_sha256'] == whole['state_sha256']
  assert lines_of(workdir) == lines_of(tmp_path / 'whole')
  noise = [(tmp_path / w / 'noise.csv').read_text() for w in ('whole', 'killed')]
  assert noise[0] == noise[1]


def test_lengthened_runs_go_on_and_other_configs_are_refused(small_config, tmp_path):
  loop.train(small_config, tmp_path)
  small_config.steps = 8
  with pytest.raises(InputError, match='config.steps: 10 in the run, 8 now'):
    loop.train(small_config, tmp_path)
  small_config.steps = 12
  small_config.profile.update(start=2, stop=11)
  assert list((tmp_path / 'profile').rglob('*.pb')) == []
  assert loop.train(small_config, tmp_path)['step'] == 12
  assert not list((tmp_path / 'report').glob('mistakes*'))
  assert (tmp_path / 'report' / 'confusion_test.png').is_file()
  assert list((tmp_path / 'profile').rglob('*.pb'))
  small_config.optimizer.lr = 0.5
  with pytest.raises(InputError, match='config.optimizer.lr: 0.001 in the run, 0.5 now'):
    loop.train(small_config, tmp_path)


def test_a_diverging_run_stops_and_keeps_its_last_good_checkpoint(small_config, tmp_path):
  small_config.optimizer.update(name='sgd', lr=1e18, warmup_epochs=0.8, schedule='constant')
  small_config.log_every = 50
  with pytest.raises(logs.NonFiniteError, match=r'step \d+: .*=(nan|inf)'):
    loop.train(small_config, tmp_path)
  saved = [int(p.name) for p in (tmp_path / 'checkpoints').iterdir()]
  for step in saved:
    model = restore.load(tmp_path, str(step))
    assert all(np.isfinite(leaf).all() for leaf in model.state.params['Dense_0'].values())


def test_a_trained_model_is_evaluated_on_another_manifest(small_config, tmp_path, caplog):
  small_config.ema = 0.99
  small_config.noise.update(kind='symmetric', rate=0.5)
  small_config.eval.embeddings = True
  loop.train(small_config, tmp_path / 'run')
  own = evaluate.evaluate_run(tmp_path / 'run', 'last')
  summary = json.loads((tmp_path / 'run' / 'summary.json').read_text())
  assert own['test'] == summary['last']['test'] and own['train']['acc'] >= 0
  assert own['embeddings'] == summary['embeddings']  # by the labels that training was given
  other = small_config.copy_and_resolve_references()
  path = write_manifest(tmp_path / 'other', {'train': 8, 'test': 10}, seed=3)
  text = path.read_text().replace(',surprise,test0,30', ',Scream,test0,-45')
  path.write_text(text.replace(',fear,', ',disgust,'))
  other.data.update(path=str(path), image_size=99, val_fraction=0.0)
  other.data.class_map = (('scream', 'anger'), ('surprise', 'anger'))
  other.eval.update(tsne=100, embeddings=True)
  result = evaluate.evaluate_run(tmp_path / 'run', 'best', other)
  assert set(result) >= {'train', 'test', 'step', 'embeddings'} and 'val' not in result
  assert result['test']['recall/fear'] is None
  assert result['classes_without_rows'] == ['surprise', 'fear']
  assert 'manifest has no row of surprise, fear: means are over the other classes' in caplog.text
  assert {'acc/pose_-45', 'acc/pose_30'} <= set(result['test'])
  assert 'knn/acc' in result['embeddings']['test']
  folders = sorted((tmp_path / 'run' / 'eval').iterdir(), key=os.path.getmtime)
  assert len(folders) == 2 and (folders[1] / 'predictions' / 'test.csv').is_file()
  assert (folders[1] / 'report' / 'tsne_test.png').is_file()
  with (folders[1] / 'report' / 'classes_test.csv').open() as file:
    rows = {row['class']: row['rows'] for row in csv.DictReader(file)}
  assert rows['anger'] == '3' and rows['surprise'] == rows['fear'] == '0' and rows['mean'] == '10'
  with (folders[1] / 'report' / 'expression_by_pose_test.csv').open() as file:
    header, *lines = csv.reader(file)
  assert header == ['expression', '-45', '0', '30', 'mean'] and lines[2] == ['surprise', *[''] * 4]


def test_a_run_on_all_rows_has_no_best_by_validation(small_config, tmp_path, capsys):
  path = write_manifest(tmp_path / 'faces', {'train': 35, 'test': 14}, seed=3)
  small_config.data.update(path=str(path), val_fraction=0.0)
  tmp_path = tmp_path / 'run'
  summary = loop.train(small_config, tmp_path)
  assert summary['best_by_val'] is None and 'val' not in summary['mean_last_5']
  main.print_summary(summary)
  assert 'best_by_val   none: there are no validation rows' in capsys.readouterr().out
  single.write([tmp_path], tmp_path / 'report.html')
  assert 'There are no validation rows' in (tmp_path / 'report.html').read_text()


def test_other_kinds_of_numbers(small_config, tmp_path):
  small_config.steps = 2
  small_config.precision = 'bfloat16'
  summary = loop.train(small_config, tmp_path / 'bfloat16')
  assert np.isfinite(summary['last']['test']['loss'])
  small_config.precision = 'float64'
  loop.train(small_config, tmp_path / 'float64')
  with jax.enable_x64(True):
    kernel = restore.load(tmp_path / 'float64').state.params['Dense_0']['kernel']
  assert kernel.dtype == np.float64


def test_a_mistake_before_anything_was_saved_leaves_the_folder_usable(small_config, tmp_path):
  small_config.steps = 2
  small_config.weights = {'cross_entropi': 2.0}
  with pytest.raises(InputError, match="Did you mean 'cross_entropy'"):
    loop.train(small_config, tmp_path)
  small_config.weights = {'cross_entropy': 2.0}
  assert loop.train(small_config, tmp_path)['step'] == 2
  (tmp_path / 'file').write_text('')
  with pytest.raises(InputError, match='cannot write in .*: File exists'):
    loop.train(small_config, tmp_path / 'file')


def test_batches_that_do_not_divide_are_refused_before_anything_is_written(small_config, tmp_path):
  small_config.batch = 20
  with pytest.raises(InputError, match='16 and 24'):
    loop.train(small_config, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()
