"""Reading: from files to batches of uint8 pictures, beside PyTorch's DataLoader with Pillow.

Both sides read the same JPEG files in shuffled order: ours from the record files of a prepared
manifest, by threads of this process; PyTorch's one by one, by a process a core.
"""

import csv
import itertools
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from ferjax.benchmark import measure
from ferjax.data import dataset, labels, pipeline, samplers

PICTURES = 2000
QUALITY = 90


class Case(NamedTuple):
  """Pictures of `stored` pixels a side, read at `size`."""

  stored: int
  size: int = 112
  batch: int = 32

  @property
  def name(self) -> str:
    return f'{self.stored} px JPEG at {self.size} px'


CASES = (Case(112), Case(224))


def run(bench: measure.Bench, cases: tuple[Case, ...] = CASES) -> list[dict[str, Any]]:
  """A row for each case: the sides `ferjax` and `torch`, and `faster_than_torch`.

  A side has the time of a batch as in `measure.interleave` and `images_per_s`; `bytes` is the mean
  size of a file.
  """
  return [_row(case, bench) for case in cases if bench.only in case.name]


def _row(case, bench):
  with tempfile.TemporaryDirectory() as folder:
    measure.progress(f'reading: {case.name}: writes {PICTURES} files')
    manifest = write(Path(folder), case.stored, PICTURES)
    data = dataset.load(
      name='manifest', path=str(manifest), dir=f'{folder}/prepared', image_size=case.size
    )
    cores = measure.cores()
    sides = {'ferjax': measure.jax_turn(_reader(data.splits['train'], case, 2 * cores))}
    if bench.torch:
      bench.torch.ask(do='reading', case=case._asdict() | {'folder': folder, 'workers': cores})
      sides['torch'] = bench.torch.turn
    measure.progress(f'reading: {case.name}: reads')
    timed = measure.interleave(sides, bench)
    size = np.mean([path.stat().st_size for path in Path(folder).glob('*.jpg')])
  for side in timed.values():
    side['images_per_s'] = case.batch / (side['median_ms'] / 1000)
  return {
    'case': case.name,
    'cores': cores,
    'bytes': float(size),
    **timed,
    'faster_than_torch': measure.ratio(timed, 'torch'),
  }


def write(folder: Path, size: int, pictures: int) -> Path:
  """Writes JPEG files of smooth shapes with some grain, and a manifest of them."""
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


def table(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
  """Columns for a reader."""

  def speed(side):
    return [row[side]['images_per_s'] if side in row else None for row in rows]

  return {
    'files': [row['case'] for row in rows],
    'KiB': [row['bytes'] / 1024 for row in rows],
    'cores': [row['cores'] for row in rows],
    'ferjax, images/s': speed('ferjax'),
    'PyTorch, images/s': speed('torch'),
    'faster than PyTorch': [row['faster_than_torch'] for row in rows],
  }
