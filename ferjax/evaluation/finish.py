"""Writes the results of a run or an evaluation: predictions, tables, pictures, `summary.json`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ferjax import files
from ferjax.assembly.evaluations import Evaluations
from ferjax.data import dataset
from ferjax.losses.cross_entropy import cross_entropy
from ferjax.losses.divergence import jensen_shannon
from ferjax.metrics import suspects
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
  score_histogram,
)


class TrainingRows(NamedTuple):
  """The labels that a run was trained on, and estimates of them.

  Attributes:
    split: The training rows; `label` includes the label noise.
    predictions: Predictions of the final state, for all rows or, with `config.eval.limit`, the
      first ones.
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
  facts: Mapping[str, Any],
  predictions: Mapping[str, Predictions],
  tested: Mapping[str, Predictions],
  *,
  looks: heatmaps.Looks | None = None,
  stored: Predictions | None = None,
  training: TrainingRows | None = None,
  lines: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
  """Writes the results at the end of a run or of `--mode=eval`.

  These are predictions, the tables and pictures of the report, and `summary.json`.

  Args:
    folder: The folder of the run or of the evaluation.
    evaluations: The evaluations.
    facts: Further entries of `summary.json`.
    predictions: Predictions of the final state, with the names of `evaluations.splits`.
    tested: Predictions of the final state, with the names of `evaluations.tests`.
    looks: What some test pictures look like to the network.
    stored: Predictions for the training rows, among which neighbours of embeddings are searched.
    training: The labels of the training rows, if more than the labels is known.
    lines: Lines of `metrics.jsonl`, from which curves are drawn.

  Returns:
    The content of `summary.json`.
  """
  data, report = evaluations.data, folder / 'report'
  for name, predicted in predictions.items():
    rows = data.splits.get(name) if evaluations.sheets else None
    split(folder, rows, predicted, data.classes, name, data.poses)
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
  """Writes `predictions/<name>.csv` of a split, and its tables and pictures in `report/`.

  Args:
    folder: The folder of the run or of the evaluation.
    rows: The split; None if no rows shall be shown, or the pictures were distorted.
    predictions: Predictions for the split.
    classes: Class names.
    name: The name of the split.
    poses: Yaw of the model's poses, degrees; the poses of the split when empty.
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
  """Writes the files of `split` for each of several data sets, as `test/<set>`, and `sets.csv`.

  Args:
    folder: The folder of the run or of the evaluation.
    predictions: Predictions with the names of `evaluations.tests`.
    evaluations: The evaluations.

  Returns:
    `sets`: {set: its metrics, the number of `rows`, and `classes_without_rows`, which means over
    classes leave out}; and `averages` of the metrics by group. {} if there are no tests.
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
  """Draws the training labels, and compares them with the true labels.

  `label_distributions.png` shows distributions next to pictures. `cross_entropy.png`, drawn if
  there is label noise, is the histogram of the final model's cross-entropy on the given labels
  (LA-Net, figure 4). With noise there are also histograms of the importance or uncertainty of the
  rows, where the method has one.

  Args:
    folder: The folder for the pictures.
    training: The labels.
    classes: Class names.
    pictures: Whether to draw `label_distributions.png`.

  Returns:
    Metrics of the `given` label as a one-hot distribution, of the `predicted` and, if the method
    has them, of the `estimated` distributions: `acc`, the share of rows whose most probable class
    is the label before the noise; if true distributions or crowd votes are known,
    `jensen_shannon`, the mean divergence from them (nats; LA-Net, table 6); and with label noise
    `auc`, how well the distribution finds the wrong labels (`suspects.area_under_roc`). The last
    one also of the method's `importance` or `uncertainty`, with their means of rows with a `right`
    and a `wrong` label.
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
    outputs = training.predictions.outputs
    losses = np.asarray(cross_entropy(outputs['logits'].astype(np.float32), table['label']))
    cross_entropy_histogram(folder / 'cross_entropy.png', losses, wrong)
    for name in ('predicted', 'estimated'):
      if name in found:
        doubt = suspects.suspicion(found[name], table['label'])
        measured[name]['auc'] = suspects.area_under_roc(doubt, wrong)
    for name, score in suspects.row_scores(outputs).items():
      score_histogram(folder / f'{name}.png', outputs[name], wrong, name)
      measured[name] = {
        'auc': suspects.area_under_roc(score, wrong),
        'right': float(outputs[name][~wrong].mean()) if not wrong.all() else None,
        'wrong': float(outputs[name][wrong].mean()),
      }
  if pictures:
    what = 'estimated' if 'estimated' in found else 'predicted'
    path = folder / 'label_distributions.png'
    title = f'training: {what}'
    label_distributions(path, training.split, found[what], classes, title, clean)
  return measured
