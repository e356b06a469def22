"""A run, an export and prepared data sets of a version of ferjax before its packages."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds

import ferjax
from ferjax import config as configs
from ferjax.data import dataset
from ferjax.evaluation import evaluate
from ferjax.report import single
from ferjax.training import loop

BEFORE = Path(__file__).parents[1] / 'fixtures' / 'before'
FACES = {'name': 'synthetic_faces', 'options': {'synthetic_faces': {'num': 40}}}
# What that version gave for three pictures of random pixels
PROBABILITIES = [
  [0.0461967, 0.0098214, 0.4835600, 0.2375710, 0.0352692, 0.0901665, 0.0974152],
  [0.1034826, 0.0373800, 0.1480088, 0.4125247, 0.0791067, 0.1041280, 0.1153693],
  [0.0736734, 0.0198938, 0.2302597, 0.3621157, 0.0467440, 0.1003151, 0.1669982],
]


@pytest.fixture(scope='module')
def faces(data_dir) -> dataset.Dataset:
  """Faces prepared again; tests are skipped if OpenCV writes other JPEG files than that version."""
  return dataset.load(**FACES, dir=data_dir, val_fraction=0.0)


@pytest.fixture
def run(tmp_path, data_dir, faces) -> Path:
  """A copy of the run, on these faces."""
  folder = tmp_path / 'run'
  shutil.copytree(BEFORE / 'run', folder)
  path = folder / 'config.json'
  record = json.loads(path.read_text())
  if faces.fingerprint != record['fingerprint']:
    pytest.skip('the faces are drawn with other bytes here')
  record['config']['data']['dir'] = data_dir
  path.write_text(json.dumps(record))
  return folder


@pytest.mark.parametrize('kind', ['run', 'export'])
def test_a_model_predicts_what_it_did(kind):
  model = ferjax.load(BEFORE / kind)
  pictures = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3)).astype(np.uint8)
  assert model.classes[:2] == ('neutral', 'happiness') and len(model.classes) == 7
  # GPUs round the factors of the exported program's products to 10 bits.
  tolerance = 1e-5 if jax.default_backend() == 'cpu' else 2e-3
  np.testing.assert_allclose(model(pictures), PROBABILITIES, atol=tolerance)


def test_a_run_has_its_report(tmp_path):
  shutil.copytree(BEFORE / 'run', tmp_path / 'run')
  single.write([tmp_path / 'run'], tmp_path / 'report.html')
  assert 'synthetic_faces' in (tmp_path / 'report.html').read_text(encoding='utf-8')


def test_a_run_is_evaluated_as_it_was(run):
  then = json.loads((run / 'summary.json').read_text())['last']
  now = evaluate.evaluate_run(run)
  for split in ('val', 'test'):
    assert now[split]['acc'] == then[split]['acc']
    np.testing.assert_allclose(now[split]['loss'], then[split]['loss'], rtol=1e-5)


def test_a_run_goes_on(run):
  config = configs.base()
  record = json.loads((run / 'config.json').read_text())
  config.update(configs.with_tuples(record['config']))
  config.steps = 4
  loop.train(config, run)
  lines = [json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()]
  before = (BEFORE / 'run' / 'metrics.jsonl').read_text().splitlines()
  assert lines[: len(before)] == [json.loads(line) for line in before]
  assert [line['step'] for line in lines if line['split'] == 'train'] == [1, 2, 3, 4]


@pytest.mark.parametrize('name', ['synthetic_faces', 'manifest'])
def test_prepared_data_sets_are_found(name, manifest, tmp_path, monkeypatch):
  """Their builders were modules of `ferjax.data`."""
  options = FACES if name == 'synthetic_faces' else {'name': name, 'path': str(manifest)}
  first = dataset.load(**options, dir=str(tmp_path))
  (info,) = tmp_path.glob(f'{name}/*/*/dataset_info.json')
  written = json.loads(info.read_text())
  assert written['moduleName'] == f'ferjax.datasets.{name}.{name}_dataset_builder'
  written['moduleName'] = f'ferjax.data.{name}.{name}_dataset_builder'
  info.write_text(json.dumps(written))

  def prepare(self, *args, **kwargs):
    raise AssertionError('prepared again')

  for kind in (tfds.core.GeneratorBasedBuilder, tfds.core.ShardBasedBuilder):
    monkeypatch.setattr(kind, '_download_and_prepare', prepare)
  again = dataset.load(**options, dir=str(tmp_path))
  assert again.fingerprint == first.fingerprint
