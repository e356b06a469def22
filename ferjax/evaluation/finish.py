"""The end of a run and of an evaluation: predictions, tables, pictures, `summary.json`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ferjax import files
from ferjax.assembly.evaluations import Evaluations
from ferjax.core import TrainState
from ferjax.data import dataset
from ferjax.distributed import parallel
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
  confident_mistakes,
  cross_entropy_histogram,
  label_distributions,
)


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


def finish(
  folder: Path,
  evaluations: Evaluations,
  state: TrainState,
  facts: Mapping[str, Any],
  predictions: Mapping[str, Predictions],
  *,
  stored: Predictions | None = None,
  training: TrainingRows | None = None,
  lines: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
  """Writes what remains at the end of a run, and of `--mode=eval`: predictions, the report's tables
  and pictures, `summary.json`. Of several processes all predict, and the first one writes.

  Args:
    folder: The run's folder, or the evaluation's.
    evaluations: What is evaluated.
    state: The final state.
    facts: What `summary.json` says besides.
    predictions: Of the final state, by name as in `evaluations.splits`.
    stored: Predictions for the training rows, among which neighbours of embeddings are sought.
    training: What is known of the labels of the training rows, where there is more than the labels.
    lines: Of `metrics.jsonl`, of which curves are drawn.

  Returns:
    What `summary.json` holds; nothing in all processes but the first.
  """
  tested = evaluations.predict_tests(state)
  if not parallel.first_process():
    return {}
  data, report = evaluations.data, folder / 'report'
  for name, predicted in predictions.items():
    rows = data.splits.get(name) if evaluations.sheets else None
    split(folder, rows, predicted, data.classes, name, data.poses)
  looks = evaluations.look(state)
  if looks:
    heatmaps.write(report, looks, data.classes)
  if lines:
    learning_curves(report / 'learning_curves.png', lines, folder.name)
    terms(report / 'terms.png', lines, folder.name)
  summary = dict(facts)
  summary |= each_set(folder, tested, evaluations)
  measured = embeddings.write(
    report,
    predictions,
    stored,
    data.classes,
    numbers=evaluations.embeddings,
    tsne=evaluations.tsne,
  )
  if measured:
    summary['embeddings'] = measured
  if training:
    summary['training_labels'] = training_labels(
      report, training, data.classes, pictures=evaluations.sheets
    )
  files.write_json(folder / 'summary.json', summary)
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
  folder: Path, predictions: Mapping[str, Predictions], evaluations: Evaluations
) -> dict[str, Any]:
  """Writes what `split` writes for each of several data sets, as `test/<set>`, and `sets.csv`.

  Args:
    folder: The run's or the evaluation's.
    predictions: By name as in `evaluations.tests`.
    evaluations: What is evaluated.

  Returns:
    `sets`, by set the metrics, its `rows`, and `classes_without_rows` where means over classes are
    over the others; and `averages` of them by group. Nothing where there are no tests.
  """
  if not evaluations.tests:
    return {}
  measured = {}
  for name, data in evaluations.tests.items():
    found, rows = predictions[name], data.splits['test'] if evaluations.sheets else None
    split(folder, rows, found, data.classes, f'test/{name}', data.poses)
    measured[name] = {'rows': len(found.label), **measure(found, data.classes)}
    absent = dataset.classes_without_rows(data)
    if absent:
      measured[name]['classes_without_rows'] = absent
  means = averages(measured, evaluations.groups)
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
    cross_entropy_histogram(folder / 'cross_entropy.png', losses, wrong)
  if pictures:
    what = 'estimated' if 'estimated' in found else 'predicted'
    path = folder / 'label_distributions.png'
    title = f'training: {what}'
    label_distributions(path, training.split, found[what], classes, title, clean)
  return measured
