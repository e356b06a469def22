"""Eight fake CPU devices, quick compilation, and a small manifest of drawn faces."""

import os
import signal
import sys
from pathlib import Path

import jax
import pytest
from absl import flags
from compilation import QUICK
from detector_stub import detector_command  # noqa: F401, a fixture of two packages
from drawn_faces import write_manifest
from user_losses import MINE

from ferjax.config import base
from ferjax.files import cache_folder
from ferjax.training import loop

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
# A shell ignores interrupts in what it starts in the background; processes of tests inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
  signal.signal(signal.SIGINT, signal.default_int_handler)
flags.FLAGS.mark_as_parsed()  # grain reads absl flags in its worker processes
if not jax.config.jax_compilation_cache_dir:
  jax.config.update('jax_compilation_cache_dir', str(cache_folder() / 'xla'))
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)


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
  """Two steps of HRL, whose graph of 50 of the landmarks is made on the host; in float64, where
  rounding does not decide which landmark is nearest to a cell of a feature map."""
  workdir = tmp_path_factory.mktemp('runs') / 'hrl'
  config = small(manifest, data_dir)
  config.steps = 2
  config.eval.every = 2
  config.precision = 'float64'
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


@pytest.fixture
def my_losses(tmp_path, monkeypatch):
  """The path of a module of losses, importable as a user's own."""
  path = tmp_path / 'my_losses.py'
  path.write_text(MINE)
  monkeypatch.syspath_prepend(tmp_path)
  yield path
  sys.modules.pop('my_losses', None)
