"""Summarises a folder of faces by the medoids of a mixture of Gaussians over embeddings."""

import csv
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from ferjax import files
from ferjax.assembly import restore
from ferjax.data import dataset
from ferjax.datasets import listing
from ferjax.errors import InputError
from ferjax.images.files import encoded_picture
from ferjax.metrics import mixtures
from ferjax.report.figures import sheets
from ferjax.runs import record

LOGGER = logging.getLogger(__name__)

COLUMNS = 8  # of the sheet
SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff')


class Pictures(Sequence):
  """The encoded pictures of files."""

  def __init__(self, paths: Sequence[Path]):
    self.paths = paths

  def __len__(self) -> int:
    return len(self.paths)

  def __getitem__(self, number: int) -> bytes:
    return encoded_picture(self.paths[number])


def read(folder: Path) -> dataset.Split:
  """The pictures in a folder and its sub-folders, in the order of their names.

  Pictures that cannot be read are left out with a warning. The column `label` is 0 in all rows,
  because it is unknown.

  Raises:
    InputError: there is no such folder.
  """
  if not folder.is_dir():
    raise InputError(f'{folder} is not a folder')
  paths = sorted(p for p in folder.rglob('*') if p.suffix.lower() in SUFFIXES)
  troubles = {
    path: listing.picture_trouble(folder, {'path': path.relative_to(folder)}) for path in paths
  }
  paths = [path for path in paths if not troubles[path]]
  name = np.array([path.relative_to(folder).as_posix() for path in paths])
  for path, trouble in troubles.items():
    if trouble:
      LOGGER.warning('left out, cannot be read: %s (%s)', path.relative_to(folder), trouble)
  table = {'label': np.zeros(len(paths), np.int32), 'name': name}
  return dataset.Split(Pictures(paths), np.arange(len(paths)), table)


def summarise(
  folder: Path, workdir: Path, n: int, out: Path, *, which: str = 'last', seed: int = 0
) -> list[int]:
  """Summarises a folder of pictures by n medoids.

  It writes `sheet.png`, the medoids with the sizes of their groups, largest first, and `album.csv`
  with the columns `picture,group,size,medoid,distance,prediction`. The file lists every picture,
  sorted by group and then by the distance from the mean of the group.

  Args:
    folder: The folder of pictures.
    workdir: The run whose model embeds them.
    n: Number of groups.
    out: The folder to write.
    which: The checkpoint; see `restore.load`.
    seed: Seed of the mixture.

  Returns:
    The rows of the medoids.

  Raises:
    InputError: there is no such folder or run, `out` is in the folder, there are fewer pictures
      than n, a number is out of range, or the model has no embeddings or needs more than pictures.
  """
  if n < 1:
    raise InputError(f'--n={n}: it must be at least 1')
  if not 0 <= seed < 2**32:
    raise InputError(f'--seed={seed}: it must be within 0 and {2**32 - 1}')
  if folder.resolve() in (out.resolve(), *out.resolve().parents):
    raise InputError(
      f'--out={out} is in {folder}, whose next sheet would show this one: give another folder'
    )
  split = read(folder)
  if len(split.rows) < n:
    raise InputError(
      f'{folder} holds {len(split.rows)} pictures that can be read, fewer than --n={n}: give a '
      'smaller --n'
    )
  precision = record.read(workdir)['config']['precision']
  with jax.enable_x64(precision == 'float64'):
    model = restore.load(workdir, which)
    if model.method.predict_needs:
      needs = ', '.join(sorted(model.method.predict_needs))
      raise InputError(f'the model of {workdir} needs {needs} besides pictures: use another run')
    outputs = model.predict(model.state, split, limit=0).outputs
  if 'embedding' not in outputs:
    raise InputError(f'the model of {workdir} has no embeddings: use another run')
  group = mixtures.gaussian_mixture(outputs['embedding'], n, seed)
  medoids = mixtures.medoids(outputs['embedding'], group)
  if len(medoids) < n:
    LOGGER.warning('%d of %d groups are empty: some pictures are too similar', n - len(medoids), n)
  predicted = [model.classes[i] for i in outputs['logits'].argmax(-1)]
  out.mkdir(parents=True, exist_ok=True)
  _write_csv(
    out / 'album.csv', split.table['name'], outputs['embedding'], group, medoids, predicted
  )
  chosen = [(row, f'1 of {(group == name).sum()}', True) for name, row in medoids.items()]
  lines = [chosen[start : start + COLUMNS] for start in range(0, n, COLUMNS)]
  title = f'{folder.resolve().name}: {len(group)} pictures in {len(medoids)}'
  sheets.draw(out / 'sheet.png', split, [line for line in lines if line], title)
  return list(medoids.values())


def _write_csv(
  path: Path,
  names: np.ndarray,
  embedding: np.ndarray,
  group: np.ndarray,
  medoids: Mapping[int, int],
  predicted: Sequence[str],
) -> None:
  with files.replacing(path) as file:
    lines = csv.writer(file)
    lines.writerow(('picture', 'group', 'size', 'medoid', 'distance', 'prediction'))
    for number, (name, medoid) in enumerate(medoids.items()):
      rows = np.flatnonzero(group == name)
      z = embedding[rows].astype(np.float64)
      distance = np.sqrt(np.square(z - z.mean(0)).sum(1))
      for i in np.argsort(distance, kind='stable'):
        row = rows[i]
        medoid_here = int(row == medoid)
        lines.writerow(
          (names[row], number, len(rows), medoid_here, f'{distance[i]:.6g}', predicted[row])
        )
