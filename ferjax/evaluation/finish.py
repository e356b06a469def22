"""What a run leaves behind: predictions, tables, pictures, `summary.json`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ferjax import files
from ferjax.core import TrainState
from ferjax.data import dataset
from ferjax.losses.cross_entropy import cross_entropy
from ferjax.losses.divergence import jensen_shannon
from ferjax.metrics.predictions import (
  Predictions,
  averages,
  measure,
  probabilities,
  write_predictions,
)
from ferjax.report.figures import embeddings, heatmaps, sheets, tables
from ferjax.report.figures.curves import learning_curves, terms
from ferjax.report.figures.labels import (
  _cross_entropy_histogram,
  confident_mistakes,
  label_distributions,
)
from ferjax.runs import checkpoint, history


class TrainingRows(NamedTuple):
  """What is known of the labels that a run was trained on.

  Attributes:
    split: The training rows; their `label` has the label noise in it.
    predictions: Of the final state, for all of them or, with `config.eval.limit`, the first ones.
    clean: int[N], the labels before the noise.
    estimated: f32[N, C], the label distributions that the method estimated, or None.
  """

  split: dataset.Split
  predictions: Predictions
  clean: np.ndarray
  estimated: np.ndarray | None

  @property
  def tells_more(self) -> bool:
    """Whether more is known than the given labels."""
    table = self.split.table
    noisy = (table['label'] != self.clean).any()
    return bool(noisy) or self.estimated is not None or 'distribution' in table


def finish(
  workdir: Path,
  state: TrainState,
  data: dataset.Dataset,
  predictions: Mapping[str, Predictions],
  training: TrainingRows | None = None,
  looks: heatmaps.Looks | None = None,
  sets: Mapping[str, Any] | None = None,
  *,
  stopped_early: bool = False,
  pictures: bool = True,
  numbers: bool = False,
  tsne: int = 0,
) -> dict[str, Any]:
  """Writes what remains at the end of a run: predictions, the report's pictures, `summary.json`.

  Args:
    workdir: The run's folder.
    state: The final state.
    data: The data set.
    predictions: By name as in `assembly.evaluations.evaluated`, of the final state.
    training: Of the training rows, where they are asked for.
    looks: What test pictures look like to the final state.
    sets: What `each_set` returned, where there are several.
    stopped_early: Whether the run ended before its time.
    pictures: Whether to draw sheets of rows: mistakes, searches, label distributions.
    numbers, tsne: See `embeddings.write`.

  Returns:
    What `summary.json` holds: the metrics of the `last` evaluation, of the best one by validation
    accuracy, and of the best one by test accuracy (which only the literature's habit excuses).
  """
  lines = history.read_lines(workdir / 'metrics.jsonl')
  for name, predicted in predictions.items():
    rows = data.splits.get(name) if pictures else None
    split(workdir, rows, predicted, data.classes, name, data.poses)
  if looks:
    heatmaps.write(workdir / 'report', looks, data.classes)
  learning_curves(workdir / 'report' / 'learning_curves.png', lines, workdir.name)
  terms(workdir / 'report' / 'terms.png', lines, workdir.name)
  summary = history.summarise(lines) | {
    'step': int(state.step),
    'stopped_early': stopped_early,
    'data': data.name,
    'state_sha256': checkpoint.state_sha256(state),
  }
  summary |= sets or {}
  seen = embeddings.write(
    workdir / 'report',
    predictions,
    training and training.predictions,
    data.classes,
    numbers=numbers,
    tsne=tsne,
  )
  if seen:
    summary['embeddings'] = seen
  if training and training.tells_more:
    summary['training_labels'] = training_labels(
      workdir / 'report', training, data.classes, pictures=pictures
    )
  files.write_json(workdir / 'summary.json', summary)
  return summary


def split(
  folder: Path,
  rows: dataset.Split | None,
  predictions: Predictions,
  classes: Sequence[str],
  name: str,
  poses: Sequence[int] = (),
) -> None:
  """Writes one split's `predictions/<name>.csv` and its tables and pictures in `report/`.

  Args:
    folder: The run's or the evaluation's.
    rows: The split; without it (not asked for, or the pictures were distorted) no row is shown.
    predictions: Of the split.
    classes: Class names.
    name: The split's.
    poses: Yaw of the model's poses, degrees; those that the split has when empty.
  """
  stem = name.replace('/', '_')
  write_predictions(folder / 'predictions' / f'{stem}.csv', predictions, classes)
  acc = measure(predictions, classes)['acc']
  title = f'{name}: accuracy {100 * acc:.1f} % of {len(predictions.label)}'
  folder = folder / 'report'
  label, prediction = predictions.label, predictions.prediction
  tables.confusion(folder / f'confusion_{stem}.png', label, prediction, classes, title)
  tables.pose_confusion(folder / f'confusion_pose_{stem}.png', predictions, name, poses)
  tables.per_class(folder / f'classes_{stem}.csv', predictions, classes)
  tables.expression_by_pose(folder, f'expression_by_pose_{stem}', predictions, classes, name)
  if rows is not None:
    confident_mistakes(folder / f'mistakes_{stem}.png', rows, predictions, classes, name)
    sheets.write(folder, rows, predictions, classes, name)
  if rows is not None and name == 'test':
    path, shares = folder / 'predicted_test.png', probabilities(predictions)
    label_distributions(path, rows, shares, classes, 'test: predicted')


def each_set(
  folder: Path,
  tests: Mapping[str, dataset.Dataset],
  predictions: Mapping[str, Predictions],
  groups: Mapping[str, Sequence[str]],
  *,
  pictures: bool = True,
) -> dict[str, Any]:
  """Writes what `split` writes for each of several data sets, as `test/<set>`, and `sets.csv`.

  Args:
    folder: The run's or the evaluation's.
    tests: By set, what it is tested on; see `sources.Data`.
    predictions: Of the split `test` of each.
    groups: Which sets are averaged.
    pictures: See `finish`.

  Returns:
    `sets`, by set the metrics, its `rows`, and `classes_without_rows` where means over classes are
    over the others; and `averages` of them by group. Nothing where there are no tests.
  """
  if not tests:
    return {}
  measured = {}
  for name, data in tests.items():
    found, rows = predictions[name], data.splits['test'] if pictures else None
    split(folder, rows, found, data.classes, f'test/{name}', data.poses)
    measured[name] = {'rows': len(found.label), **measure(found, data.classes)}
    lacking = dataset.classes_without_rows(data)
    if lacking:
      measured[name]['classes_without_rows'] = lacking
  means = averages(measured, groups)
  tables.sets(folder / 'report' / 'sets.csv', measured, means)
  return {'sets': measured, 'averages': means}


def training_labels(
  folder: Path, training: TrainingRows, classes: Sequence[str], *, pictures: bool = True
) -> dict[str, dict[str, float]]:
  """Writes the pictures of the training labels and measures them against what is known.

  `label_distributions.png` shows distributions beside pictures. `cross_entropy.png`, with label
  noise, is the histogram of the final model's cross-entropy on the given labels (LA-Net, figure 4).

  Returns:
    For the `given` label as a one-hot distribution, the `predicted` and, where the method has
    them, the `estimated` distributions: `acc` (the share of rows whose likeliest class is the label
    before the noise) and, where true distributions or crowd votes are known, `jensen_shannon` (mean
    divergence from them, nats; LA-Net, table 6).
  """
  shares = probabilities(training.predictions)
  rows = len(shares)
  table = {name: column[:rows] for name, column in training.split.table.items()}
  found = {'given': np.eye(len(classes))[table['label']], 'predicted': shares}
  if training.estimated is not None:
    found['estimated'] = training.estimated[:rows].astype(np.float64)
  clean, truth = training.clean[:rows], table.get('distribution')
  measured = {}
  for name, distribution in found.items():
    measured[name] = {'acc': float(np.mean(distribution.argmax(1) == clean))}
    if truth is not None:
      divergence = jensen_shannon(distribution, truth.astype(np.float64))
      measured[name]['jensen_shannon'] = float(divergence.mean())
  wrong = table['label'] != clean
  if wrong.any():
    logits = training.predictions.outputs['logits'].astype(np.float32)
    losses = np.asarray(cross_entropy(logits, table['label']))
    _cross_entropy_histogram(folder / 'cross_entropy.png', losses, wrong)
  if pictures:
    what = 'estimated' if 'estimated' in found else 'predicted'
    path = folder / 'label_distributions.png'
    title = f'training: {what}'
    label_distributions(path, training.split, found[what], classes, title, clean)
  return measured
