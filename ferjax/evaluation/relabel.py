"""Ranks the training rows of a run by how sure the run is that their label is wrong."""

import csv
from pathlib import Path
from typing import Any, NamedTuple

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
    columns: {name: n values}: `name`, the `given` and the `proposed` class, `suspicion` and the
      probability of the given class, `p_given`, and what of `suspects.SIGNS` the method has.
    wrong: bool[n], whether the given label is wrong; None unless the run added label noise.
    by: `estimated` or `predicted`: the distributions.
  """

  columns: dict[str, Any]
  wrong: np.ndarray | None
  by: str


def rank(workdir: Path, which: str = 'last', by: str = 'auto') -> Suspects:
  """Ranks the training rows of a run; see `suspects.ranking`.

  Args:
    workdir: The run's folder.
    which: The checkpoint; see `restore.load`.
    by: The distributions: `estimated`, those that the method has estimated in training;
      `predicted`, those of the model; or `auto`, the estimated ones if there are some.

  Raises:
    InputError: there is no such run or checkpoint, its method estimates no distributions, or its
      training rows are no longer the same.
  """
  choose('--by', by, BY)
  config, found = restore.config_of(workdir), record.read(workdir)
  with jax.enable_x64(config.precision == 'float64'):
    model = restore.load(workdir, which)
    estimates = model.method.estimates
    if by == 'estimated' and estimates is None:
      raise InputError(
        f'{workdir}: {config.method.name} estimates no label distributions; give --by=predicted'
      )
    data = sources.load(config, model.classes).data
    given = sources.derive(model.method, sources.corrupt_labels(config, data))
    clean, split = data.splits['train'].table['label'], given.splits['train']
    _check_rows(workdir, found, given, split.table['label'])
    predictions = model.predict(model.state, split, limit=0)
    label, predicted = split.table['label'], probabilities(predictions)
    estimated = None
    if by != 'predicted' and estimates is not None:
      estimated = np.asarray(estimates(parallel.host(model.state.extra), label))
  distribution = predicted if estimated is None else estimated
  order = suspects.ranking(distribution, predicted, label)
  classes = np.array(model.classes)
  columns = {
    'name': split.table['name'],
    'given': classes[label],
    'proposed': classes[distribution.argmax(1)],
    'suspicion': suspects.suspicion(distribution, label),
    'p_given': distribution[np.arange(len(label)), label],
  }
  columns |= {k: predictions.outputs[k] for k in suspects.row_scores(predictions.outputs)}
  return Suspects(
    {name: np.asarray(values)[order] for name, values in columns.items()},
    (label != clean)[order] if config.noise.kind != 'none' else None,
    'predicted' if estimated is None else 'estimated',
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
