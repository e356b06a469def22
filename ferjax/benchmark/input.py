"""From files to batches of uint8 pictures, compared with PyTorch's DataLoader with Pillow.

Both sides read the same JPEG files in shuffled order. ferjax reads the record files of a prepared
manifest with threads of this process; PyTorch reads single files with one process for each core. A
case with a network also trains it on the batches, as the demo does, and measures the time in which
training waits for batches.
"""

import csv
import itertools
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from ferjax import config as configs
from ferjax import core, labels
from ferjax.assembly import build
from ferjax.benchmark import measure
from ferjax.config import base
from ferjax.data import dataset, pipeline, samplers
from ferjax.distributed import parallel
from ferjax.images import augment
from ferjax.optim import optimizers
from ferjax.training.step import make_train_step

PICTURES = 2000
QUALITY = 90
STEPS = 20  # steps in a turn; more than the number of batches that are read ahead


class Case(NamedTuple):
  """Pictures of `stored` pixels a side, read at `size` pixels; and a network to train, or none."""

  stored: int
  size: int = 112
  batch: int = 32
  model: str = ''
  width: int = 64

  @property
  def name(self) -> str:
    return f'{self.stored} px JPEG at {self.size} px' + (f', {self.model}' if self.model else '')


CASES = (Case(112), Case(224), Case(112, 64, model='resnet18'))


def run(bench: measure.Bench, cases: tuple[Case, ...] = CASES) -> list[dict[str, Any]]:
  """A row for each case: the sides `ferjax` and `torch`, and `faster_than_torch`.

  A side has the time of a batch as in `measure.interleave`, and `images_per_s`. `bytes` is the mean
  size of a file. With a network, there is also the side `step`, training steps that read their
  batches, and `waiting`, the share of their time in which they wait for batches.
  """
  return [_row(case, bench) for case in cases if bench.only in case.name]


def _row(case, bench):
  with tempfile.TemporaryDirectory() as folder:
    measure.progress(f'input: {case.name}: writing {PICTURES} files')
    manifest = write(Path(folder), case.stored, PICTURES)
    data = dataset.load(
      name='manifest', path=str(manifest), dir=f'{folder}/prepared', image_size=case.size
    )
    cores = measure.cores()
    read = _reader(data.splits['train'], case, 2 * cores)
    sides = {'ferjax': measure.jax_turn(read)}
    if bench.torch:
      bench.torch.ask(do='input', case=case._asdict() | {'folder': folder, 'workers': cores})
      sides['torch'] = bench.torch.turn
    measure.progress(f'input: {case.name}: reading')
    timed = measure.interleave(sides, bench)
    waiting = None
    if case.model:
      measure.progress(f'input: {case.name}: training')
      step, waiting = _trained(case, read, bench)
      timed['step'] = step
    size = np.mean([path.stat().st_size for path in Path(folder).glob('*.jpg')])
  for side in timed.values():
    side['images_per_s'] = case.batch / (side['median_ms'] / 1000)
  return {
    'case': case.name,
    'cores': cores,
    'bytes': float(size),
    **timed,
    'faster_than_torch': measure.ratio(timed, 'torch'),
    'waiting': waiting,
  }


def write(folder: Path, size: int, pictures: int) -> Path:
  """Writes JPEG files of smooth shapes with some noise, and a manifest of them."""
  rng = np.random.default_rng(0)
  manifest = folder / 'manifest.csv'
  with manifest.open('w', newline='') as file:
    lines = csv.writer(file)
    lines.writerow(['path', 'split', 'label'])
    for number in range(pictures):
      coarse = rng.integers(0, 256, (9, 9, 3)).astype(np.uint8)
      picture = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
      picture = np.clip(picture + rng.normal(0, 3, picture.shape), 0, 255).astype(np.uint8)
      cv2.imwrite(str(folder / f'{number}.jpg'), picture, (cv2.IMWRITE_JPEG_QUALITY, QUALITY))
      lines.writerow([f'{number}.jpg', 'train', labels.CLASSES[number % len(labels.CLASSES)]])
  return manifest


def _reader(split, case, threads):
  plan = samplers.natural()
  epochs = (plan(epoch, 10**6, 0, split.table, case.batch) for epoch in itertools.count())
  batches = itertools.chain.from_iterable(
    pipeline.batches(split, epoch, ('label',), case.size, threads=threads) for epoch in epochs
  )
  return lambda: next(batches)


def _trained(case, read, bench):
  """The time of a training step that reads its batch, and the share of it spent waiting."""
  config = base()
  config.model.update(name=case.model, width=case.width)
  devices = parallel.make(devices=1)
  method = build.make_method(config, len(labels.CLASSES))
  example = augment.evaluation({'image': jnp.asarray(read()['image'][:1])})
  params, extra = method.init(jax.random.key(0), example, {})
  tx, _ = configs.call(optimizers.make, 'optimizer', config.optimizer, params, 1, 1)
  augmentation = configs.call(augment.make, 'augment', config.augment)
  start = jnp.zeros((), jnp.int32)
  state = core.TrainState(start, params, tx.init(params), extra, jax.random.key(1))
  states, waits = [devices.replicate(state)], []
  step = devices.compile(make_train_step(method, tx, augmentation, {}), donate=0)

  def train():
    began = time.perf_counter()
    batch = read()
    waits.append(time.perf_counter() - began)
    state, metrics = step(states.pop(), devices.shard(batch))
    states.append(state)
    return metrics

  train()
  waits.clear()
  timed = measure.interleave({'step': measure.jax_turn(train)}, bench, calls=STEPS)['step']
  return timed, 1000 * sum(waits) / len(waits) / timed['median_ms']


def table(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
  """Columns for printing. The quartiles are of the time, in % of its median."""

  def speed(side):
    return measure.column(rows, side, 'images_per_s')

  return {
    'files': [row['case'] for row in rows],
    'KiB': [row['bytes'] / 1024 for row in rows],
    'cores': [row['cores'] for row in rows],
    'ferjax, images/s': speed('ferjax'),
    'a core': [row['ferjax']['images_per_s'] / row['cores'] for row in rows],
    'PyTorch, images/s': speed('torch'),
    'faster than PyTorch': [row['faster_than_torch'] for row in rows],
    'quartiles, ferjax': measure.spread(rows, 'ferjax'),
    'quartiles, PyTorch': measure.spread(rows, 'torch'),
    'training, images/s': speed('step'),
    'waits, % of its time': [row['waiting'] and 100 * row['waiting'] for row in rows],
  }
