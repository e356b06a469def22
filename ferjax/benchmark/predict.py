"""Prediction from JPEG files and from pictures in memory, against the same network in PyTorch.

Both sides use ResNets with random weights. They take uint8 pictures, normalise them and return
probabilities as NumPy arrays. From files, ferjax does the work of `ferjax predict` without writing
results. PyTorch's DataLoader reads with Pillow, with one process for each core; its network runs in
inference mode with channels last.
"""

import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ferjax import config as configs
from ferjax import core, labels
from ferjax.assembly import build
from ferjax.benchmark import input as files
from ferjax.benchmark import measure
from ferjax.distributed import parallel
from ferjax.images import augment
from ferjax.methods import softmax
from ferjax.metrics import predictions
from ferjax.prediction import inputs, predict, predictor, reading


class Case(NamedTuple):
  """A network, its input, and the size of the files; 0 means pictures in memory."""

  size: int
  stored: int = 0
  model: str = 'resnet18'
  batch: int = 64
  pictures: int = 384
  width: int = 64
  num_classes: int = 7

  @property
  def name(self) -> str:
    source = f'{self.stored} px JPEG files' if self.stored else 'network alone'
    return f'{self.model}, {self.size} px, batch {self.batch}, {source}'


SIZES = (64, 112, 224)
CASES = (*(Case(size) for size in SIZES), *(Case(size, stored=224) for size in SIZES))


def run(bench: measure.Bench, cases: tuple[Case, ...] = CASES) -> list[dict[str, Any]]:
  """A row for each case: the sides `ferjax` and `torch` with `images_per_s`, and ratios."""
  return measure.each('predict', cases, _row, measure.on_cpu(bench))


def _row(case, bench):
  model, parameters = _model(case)
  with tempfile.TemporaryDirectory() as folder:
    if case.stored:
      files.write(Path(folder), case.stored, case.pictures)
      call, images = _from_files(model, folder), case.pictures
    else:
      call, images = _from_memory(model, case), case.batch
    sides = {'ferjax': measure.jax_turn(call)}
    if bench.torch:
      asked = case._asdict() | {'folder': folder, 'workers': measure.cores()}
      found = bench.torch.ask(do='predict', case=asked)['parameters']
      if found != parameters:
        raise AssertionError(f'{case.name}: PyTorch has {found} parameters, not {parameters}')
      sides['torch'] = bench.torch.turn
    timed = measure.interleave(sides, bench)
  for side in timed.values():
    side['images_per_s'] = images / (side['median_ms'] / 1000)
  return {
    'case': case.name,
    **case._asdict(),
    **timed,
    'faster_than_torch': measure.ratio(timed, 'torch'),
    'cpu_less_than_torch': measure.ratio(timed, 'torch', 'cpu_ms'),
  }


def _model(case) -> tuple[predictor.Predictor, int]:
  """A softmax method with random weights, and the number of its parameters."""
  devices = parallel.make(devices=1)
  config = configs.base()
  config.model.update(name=case.model, width=case.width)
  network = build.make_model(config)
  method = softmax.make(network, num_classes=case.num_classes)
  example = {'image': jnp.zeros((1, case.size, case.size, 3))}
  params, extra = method.init(jax.random.key(0), example, {})
  state = core.TrainState(jnp.zeros((), jnp.int32), params, (), extra, jax.random.key(1))
  state = devices.replicate(state)
  step = devices.compile(predictions.make_predict_step(method, augment.evaluation))
  record = {
    'config': {'data': {'image_size': case.size}},
    'classes': labels.CLASSES[: case.num_classes],
  }

  def call(batch):
    return parallel.host(step(state, devices.shard(batch)))

  made = predictor.make(record, call, needs=method.predict_needs)
  return made, sum(leaf.size for leaf in jax.tree.leaves(params))


def _from_memory(model, case) -> Callable[[], np.ndarray]:
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (case.batch, case.size, case.size, 3), np.uint8)
  return lambda: model(images)


def _from_files(model, folder) -> Callable[[], list]:
  def call():
    reader = reading.Reader(model.image_size, False, None, None, lambda: False)
    sources = inputs.find([folder])
    with ThreadPoolExecutor(measure.cores()) as pool:
      tasks = reading.tasks(sources, reader, 1, False, SimpleNamespace(total=0))
      items = reading.ahead(pool, tasks)
      parts = reading.batches(items, model.sizes[-1])
      return [found[0][0] for _, found in predict.predictions(model, parts)]

  return call


def table(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
  """Columns for printing. The quartiles are of the time, in % of its median."""
  return {
    'prediction': [row['case'] for row in rows],
    'ferjax, images/s': measure.column(rows, 'ferjax', 'images_per_s'),
    'PyTorch, images/s': measure.column(rows, 'torch', 'images_per_s'),
    'ferjax / PyTorch': [row['faster_than_torch'] for row in rows],
    'quartiles, ferjax': measure.spread(rows, 'ferjax'),
    'quartiles, PyTorch': measure.spread(rows, 'torch'),
  }
