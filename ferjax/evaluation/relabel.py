"""Ranks the training rows of a run by how sure the run is that their label is wrong."""

import csv
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from ferjax import files
from ferjax.assembly import restore, sources
from ferjax.distributed import parallel
from ferjax.errors import InputError, choose
from ferjax.metrics import suspects
from ferjax.metrics.predictions import probabilities
from ferjax.runs import record

BY = ('auto', 'estimated', 'predicted')


class Suspects(NamedTuple):
  """The training rows of a run, the most suspicious first.

  Attributes:
    columns: {name: n values}: `name`; the `given` and the `proposed` class; the `suspicion`; the
      class that is `predicted` or `estimated` and the probability of the given class, `..._given`,
      of each kind of distribution in `by`; and what of `suspects.SIGNS` the method has.
    wrong: bool[n], whether the given label is wrong; None unless the run added label noise.
    by: `predicted`, `estimated` or both: the distributions.
  """

  columns: dict[str, np.ndarray]
  wrong: np.ndarray | None
  by: tuple[str, ...]


def rank(workdir: Path, which: str = 'last', by: str = 'auto') -> Suspects:
  """Ranks the training rows of a run by suspicion: the highest probability less that of the given
  class, the mean over the distributions. Equal rows stay in their order.

  Args:
    workdir: The run's folder.
    which: The checkpoint; see `restore.load`.
    by: The distributions: `estimated`, those that the method has estimated in training;
      `predicted`, those of the model; or `auto`, both if there are estimated ones. The proposed
      class is that of the distribution with the higher suspicion.

  Raises:
    InputError: there is no such run or checkpoint, its method estimates no distributions, or its
      training rows are no longer the same.
  """
  choose('--by', by, BY)
  config, found = restore.config_of(workdir), record.read(workdir)
  if config.noise.kind == 'file' and not Path(config.noise.file).is_file():
    config.noise.update(file=str(workdir / 'noise.csv'), label_order=(), first_label=0)
  with jax.enable_x64(config.precision == 'float64'):
    model = restore.load(workdir, which)
    estimates = model.method.estimates
    if by == 'estimated' and estimates is None:
      raise InputError(
        f'{workdir}: {config.method.name} estimates no label distributions; give --by=predicted'
      )
    data = sources.load(config, model.classes).data
    clean = data.splits['train'].table['label']
    split = sources.corrupt_labels(config, data).splits['train']
    label = split.table['label']
    _check_rows(workdir, found, data, label)
    predictions = model.predict(model.state, split, limit=0)
    distributions = {'predicted': probabilities(predictions)}
    if by != 'predicted' and estimates is not None:
      extra = parallel.host(model.state.extra)
      distributions['estimated'] = np.asarray(estimates(extra, label), np.float64)
  if by == 'estimated':
    del distributions['predicted']
  doubts = np.stack([suspects.suspicion(shares, label) for shares in distributions.values()])
  likeliest = np.stack([shares.argmax(1) for shares in distributions.values()])
  rows, classes = np.arange(len(label)), np.array(model.classes)
  columns = {
    'name': np.asarray(split.table['name']),
    'given': classes[label],
    'proposed': classes[likeliest[doubts.argmax(0), rows]],
    'suspicion': doubts.mean(0),
  }
  for (kind, shares), most in zip(distributions.items(), likeliest, strict=True):
    columns |= {kind: classes[most], f'{kind}_given': shares[rows, label]}
  columns |= {k: predictions.outputs[k] for k in suspects.row_scores(predictions.outputs)}
  order = np.argsort(-columns['suspicion'], kind='stable')
  return Suspects(
    {name: values[order] for name, values in columns.items()},
    (label != clean)[order] if config.noise.kind != 'none' else None,
    tuple(distributions),
  )


def _check_rows(workdir, found, data, label):
  same = found['fingerprint'] == data.fingerprint
  if not same or found['labels_sha256'] != record.labels_sha256(label):
    raise InputError(
      f'{workdir}: the training rows of {data.name} are not those of the run any more: their '
      'pictures, labels or label noise have changed'
    )


def write(path: Path, found: Suspects) -> None:
  """Writes a table with the columns of `found`, one line for each row, and whether the given label
  is `wrong` where that is known. The file appears when it is complete."""
  columns = dict(found.columns)
  if found.wrong is not None:
    columns['wrong'] = found.wrong.astype(int)
  path.parent.mkdir(parents=True, exist_ok=True)
  with files.replacing(path) as file:
    lines = csv.writer(file)
    lines.writerow(columns)
    for row in zip(*columns.values(), strict=True):
      lines.writerow(f'{value:.6g}' if isinstance(value, np.floating) else value for value in row)


def precision(wrong: np.ndarray, count: int) -> float:
  """The share of wrong labels among the first rows of a ranking, bool[n]."""
  return float(wrong[:count].mean())
