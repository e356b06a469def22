"""Eight fake CPU devices, quick compilation, and a small manifest of drawn faces."""

import csv
import importlib.util
import os
import sys
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest
from absl import flags

from ferjax import labels
from ferjax.cli.console import cache_folder
from ferjax.config import base
from ferjax.training import loop

QUICK = ['--xla_backend_optimization_level=0']
if jax.__version_info__ < (0, 11, 1):  # later ones end a process that gives it
  QUICK.append('--xla_cpu_use_fusion_emitters=false')  # half the time of a compilation
# Once each, also in the worker processes that inherit them: the compilation cache is by their text.
os.environ['XLA_FLAGS'] = ' '.join(
  dict.fromkeys(
    [
      *os.environ.get('XLA_FLAGS', '').split(),
      '--xla_force_host_platform_device_count=8',
      *QUICK,
    ]
  )
)
flags.FLAGS.mark_as_parsed()  # grain reads absl flags in its worker processes
if not jax.config.jax_compilation_cache_dir:
  jax.config.update('jax_compilation_cache_dir', str(cache_folder() / 'xla'))
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)


def draw_face(rng: np.random.Generator, label: int, size: int = 40):
  """u8[size, size, 3] BGR and landmarks f32[68, 2]: a disc whose mouth tells the class."""
  image = rng.integers(0, 60, (size, size, 3)).astype(np.uint8)
  cv2.circle(image, (size // 2, size // 2), size // 3, (120, 150, 200), -1)
  angle = 360 * label // 7
  centre = (size // 2, int(size * 0.65))
  cv2.ellipse(image, centre, (size // 6, size // 12), 0, angle, angle + 150, (20, 20, 160), 2)
  turn = 2 * np.pi * np.arange(68) / 68
  points = size / 2 + size / 3 * np.stack([np.cos(turn), np.sin(turn)], -1)
  return image, points.astype(np.float32)


def write_manifest(folder: Path, rows_by_split: dict[str, int], seed: int = 0) -> Path:
  """Draws pictures of every class, two subjects to a class and split, and lists them in a CSV."""
  rng = np.random.default_rng(seed)
  folder.mkdir(parents=True, exist_ok=True)
  header = ['path', 'split', 'label', 'subject', 'yaw_bin', 'pose_Rx', 'pose_Ry', 'pose_Rz']
  header += [f'p_{name}' for name in labels.CLASSES] + ['AU01_r', 'AU12_r']
  header += [f'x_{i}' for i in range(68)] + [f'y_{i}' for i in range(68)]
  rows = []
  for split, count in rows_by_split.items():
    for number in range(count):
      label = number % 7
      image, points = draw_face(rng, label)
      path = f'{split}_{number:03}.png'
      cv2.imwrite(str(folder / path), image)
      shares = np.full(7, 0.05)
      shares[label] = 0.7
      subject = f'{split}{number // 7 % 4}'
      pose = [(30, 0, -30)[number // 7 % 3], 0.1, 0.5, -0.1]
      rows.append(
        [path, split, labels.CLASSES[label], subject, *pose, *shares, 1.5, 2.5]
        + [*points[:, 0], *points[:, 1]]
      )
  path = folder / 'manifest.csv'
  with path.open('w', newline='') as file:
    csv.writer(file).writerows([header, *rows])
  return path


def strip_landmarks(path: Path, stripped: Path) -> Path:
  """Writes a manifest again, without the columns of its landmarks."""
  with path.open(newline='') as file:
    rows = list(csv.reader(file))
  kept = [i for i, name in enumerate(rows[0]) if name[:2] not in ('x_', 'y_')]
  with stripped.open('w', newline='') as file:
    csv.writer(file).writerows([[row[i] for i in kept] for row in rows])
  return stripped


@pytest.fixture(scope='module', autouse=True)
def programs_are_freed():
  """Each compiled program holds memory maps, of which Linux allows a process 65,530."""
  yield
  jax.clear_caches()


@pytest.fixture(scope='session')
def manifest(tmp_path_factory) -> Path:
  """A manifest of 84 training, 21 validation and 28 test pictures with every label."""
  folder = tmp_path_factory.mktemp('faces')
  return write_manifest(folder, {'train': 84, 'val': 21, 'test': 28})


@pytest.fixture(scope='session')
def data_dir(tmp_path_factory) -> str:
  """Where the tests' data sets are prepared."""
  return str(tmp_path_factory.mktemp('prepared'))


@pytest.fixture(scope='session')
def trained_run(manifest, data_dir, tmp_path_factory) -> Path:
  """A run of four steps with label noise and distorted test pictures."""
  workdir = tmp_path_factory.mktemp('runs') / 'softmax'
  config = small(manifest, data_dir)
  config.steps = 4
  config.eval.every = 4
  config.eval.distortions = ('rotation',)
  config.noise.update(kind='symmetric', rate=0.3)
  loop.train(config, workdir)
  return workdir


@pytest.fixture(scope='session')
def landmark_run(manifest, data_dir, tmp_path_factory) -> Path:
  """Two steps of HRL, whose graph of 50 of the landmarks is made on the host."""
  workdir = tmp_path_factory.mktemp('runs') / 'hrl'
  config = small(manifest, data_dir)
  config.steps = 2
  config.eval.every = 2
  config.data.landmarks = (*range(17, 27), *range(28, 68))
  config.method = {
    'name': 'hrl',
    'graph': 'delaunay',
    'sifl': False,
    'widths': (8, 8),
  }
  loop.train(config, workdir)
  return workdir


@pytest.fixture
def small_config(manifest, data_dir):
  return small(manifest, data_dir)


def small(manifest: Path, data_dir: str):
  """Ten steps of a narrow ResNet-10 on the drawn faces."""
  config = base()
  config.steps = 10
  config.batch = 16
  config.log_every = 1
  config.model.update(name='resnet10', width=8)
  config.data.update(name='manifest', path=str(manifest), dir=data_dir, image_size=32)
  config.eval.update(every=5, batch=16, sheets=False, heatmaps=0, tsne=0, embeddings=False)
  config.checkpoint.every = 3
  return config


LOGITS = 2 * np.random.default_rng(0).normal(size=(6, 5))
LABEL = np.array([0, 4, 2, 2, 1, 3])
SOME = np.array([True, True, False, True, False, True])


def check_rows(loss, slow, **options):
  """A loss of logits against slow(p, y) of each row that counts, p being its probabilities in
  float64."""
  with jax.enable_x64(True):
    found = jax.jit(lambda *x: loss(*x[:2], where=x[2], **options))(LOGITS, LABEL, SOME)
  for row, value in enumerate(np.asarray(found)):
    p = np.exp(LOGITS[row]) / np.exp(LOGITS[row]).sum()
    expected = slow(p, LABEL[row]) if SOME[row] else 0
    np.testing.assert_allclose(value, expected, rtol=1e-11)


HAS_ONNX = all(importlib.util.find_spec(name) for name in ('onnx', 'onnxruntime'))
needs_onnx = pytest.mark.skipif(not HAS_ONNX, reason="pip install 'ferjax[onnx]'")


def run_onnx(content, inputs):
  import onnxruntime

  session = onnxruntime.InferenceSession(content, providers=['CPUExecutionProvider'])
  names = [output.name for output in session.get_outputs()]
  return dict(zip(names, session.run(None, inputs), strict=True))


MINE = '''
import jax.numpy as jnp
from ferjax.losses import StatefulLoss

def subjects(outputs, batch, width=1.0):
  """Embeddings of a person come together."""
  z, subject = outputs['embedding'], batch['subject']
  same = (subject[:, None] == subject[None]).astype(z.dtype)
  return width * ((z - same @ z / same.sum(1, keepdims=True)) ** 2).mean(1)

def running_mean(rate=0.5):
  return StatefulLoss(
    init=lambda rng, outputs, batch: (
      {'scale': jnp.ones((), outputs['embedding'].dtype)},
      jnp.zeros(outputs['embedding'].shape[-1], outputs['embedding'].dtype),
    ),
    apply=lambda params, state, outputs, batch: (
      params['scale'] * ((outputs['embedding'] - state) ** 2).mean(-1)
    ),
    update=lambda state, outputs, batch: (
      state + rate * (outputs['embedding'].mean(0) - state)
    ),
  )

def total(outputs, batch):
  return outputs['embedding'].sum()

def two_columns(outputs, batch):
  return outputs['embedding'][:, :2]

def right(outputs, batch):
  return outputs['logits'].argmax(-1) == batch['label']

def votes(outputs, batch):
  return -(batch['distribution'] * outputs['logits']).sum(1)

def misspelt(embeding, label):
  return embeding.sum(1)

def no_label(outputs, batch):
  return batch['embedding'].sum(1)

def no_output(outputs, batch):
  return outputs['embedding'].sum(1) * outputs['label']

def neither(rate=0.5):
  return rate

def broken(outputs, batch):
  return outputs['embedding'] @ outputs['logits']

def by_place(embedding, /, label):
  return embedding.sum(1)

def taken(embedding, weight=1.0):
  return weight * embedding.sum(1)

class Scaled:
  def __call__(self, embedding, by=1.0):
    return by * embedding.sum(1)

import functools
scaled = Scaled()
halves = functools.partial(scaled, by=0.5)
counted = StatefulLoss(
  init=lambda rng, outputs, batch: ({'scale': 1.0}, (0, 0.5)),
  apply=lambda params, state, outputs, batch: params['scale'] * outputs['embedding'].sum(1),
  update=lambda state, outputs, batch: (state[0] + 1, 0.25),
)
'''


@pytest.fixture
def my_losses(tmp_path, monkeypatch):
  """The path of a module of losses, importable as a user's own."""
  path = tmp_path / 'my_losses.py'
  path.write_text(MINE)
  monkeypatch.syspath_prepend(tmp_path)
  yield path
  sys.modules.pop('my_losses', None)
