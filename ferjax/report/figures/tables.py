"""Tables of a split: confusion matrices, measures by class, accuracy by expression and pose."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ferjax import files
from ferjax.metrics import classification
from ferjax.metrics.predictions import AVERAGED, Predictions, truth
from ferjax.report.figures import plots


def confusion(
  path: Path, label: np.ndarray, prediction: np.ndarray, classes: Sequence[str], title: str
) -> None:
  """PNG of the confusion matrix of labels and predictions int[n]: shares of each true class, with
  counts."""
  counts = classification.confusion_matrix(label, prediction, len(classes))
  shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
  side = 0.7 * max(len(classes), 7)
  figure = Figure(figsize=(side + 1.5, side + 0.7))
  axes = figure.add_subplot()
  drawn = axes.imshow(shares, cmap='Blues', vmin=0, vmax=1)
  for i in range(len(classes)):
    for j in range(len(classes)):
      colour = 'white' if shares[i, j] > 0.5 else 'black'
      text = f'{100 * shares[i, j]:.0f} %\n{counts[i, j]}'
      axes.text(j, i, text, ha='center', va='center', color=colour, fontsize=8)
  axes.set_xticks(range(len(classes)), classes, rotation=40, ha='right')
  axes.set_yticks(range(len(classes)), classes)
  axes.set_xlabel('predicted')
  axes.set_ylabel('given')
  axes.set_title(title)
  figure.colorbar(drawn, ax=axes, shrink=0.8, label='share of the given class')
  plots.save(path, figure)


def sets(
  path: Path,
  measured: Mapping[str, Mapping[str, float]],
  averages: Mapping[str, Mapping[str, float]],
) -> None:
  """CSV `set,rows,acc,mean_class_acc,f1_macro` of several data sets, then of their averages, as
  `mean of <group>`; see `predictions.averages`."""
  with files.replacing(path) as file:
    lines = csv.writer(file)
    lines.writerow(('set', 'rows', *AVERAGED))
    for name, values in measured.items():
      lines.writerow((name, values['rows'], *(f'{values[key]:.6g}' for key in AVERAGED)))
    for group, values in averages.items():
      lines.writerow((f'mean of {group}', '', *(f'{values[key]:.6g}' for key in AVERAGED)))


def pose_confusion(
  path: Path, predictions: Predictions, name: str, poses: Sequence[int] = ()
) -> None:
  """PNG of the confusion matrix of the output `pose_logits`, over rows whose pose is known; no
  file where there is no such output or row. `poses` are the yaws in degrees of the classes of pose;
  if empty, those of the rows."""
  label = truth(predictions.table, 'pose')
  known = label >= 0
  if 'pose_logits' not in predictions.outputs or not known.any():
    return
  logits = predictions.outputs['pose_logits'][known]
  label, yaw = label[known], predictions.table['yaw_bin'][known]
  degrees = dict(enumerate(poses)) or dict(zip(label.tolist(), yaw.tolist(), strict=True))
  names = [f'{degrees[i]}°' if i in degrees else f'pose {i}' for i in range(logits.shape[1])]
  prediction = logits.argmax(-1)
  acc = (prediction == label).mean()
  title = f'{name}: accuracy of the pose (yaw) {100 * acc:.1f} % of {len(label)}'
  confusion(path, label, prediction, names, title)


def per_class(path: Path, predictions: Predictions, classes: Sequence[str]) -> None:
  """CSV `class,rows,precision,recall,f1`, as shares of 1; a class without rows has empty cells,
  and the last line, `mean`, is the mean of the others (DML-Net, tables 4 and 9: recall)."""
  found = classification.per_class(predictions.label, predictions.prediction, len(classes))
  shares = np.stack([found[name] for name in ('precision', 'recall', 'f1')], 1)
  path.parent.mkdir(parents=True, exist_ok=True)
  with files.replacing(path) as file:
    rows = csv.writer(file)
    rows.writerow(('class', 'rows', 'precision', 'recall', 'f1'))
    for name, count, values in zip(classes, found['rows'], shares, strict=True):
      rows.writerow((name, count, *_cells(values)))
    rows.writerow(('mean', found['rows'].sum(), *_cells(np.nanmean(shares, 0))))


def expression_by_pose(
  folder: Path, stem: str, predictions: Predictions, classes: Sequence[str], name: str
) -> None:
  """CSV and PNG `<stem>` of a split: accuracy of every expression at every yaw (DML-Net, tables 3
  and 6).

  Means are over the cells with rows in a line or column, each with the same weight; the last one is
  over all cells. No files are written if the yaw is unknown.
  """
  if 'yaw_bin' not in predictions.table:
    return
  right = predictions.prediction == predictions.label
  yaw = predictions.table['yaw_bin']
  degrees, accuracy, rows = classification.accuracy_by_group(
    right, predictions.label, yaw, len(classes)
  )
  accuracy = _with_means(accuracy)
  folder.mkdir(parents=True, exist_ok=True)
  with files.replacing(folder / f'{stem}.csv') as file:
    lines = csv.writer(file)
    lines.writerow(('expression', *degrees, 'mean'))
    for expression, values in zip((*classes, 'mean'), accuracy, strict=True):
      lines.writerow((expression, *_cells(values)))
  _draw(folder / f'{stem}.png', accuracy, rows, degrees, classes, name)


def _cells(values):
  return ('' if np.isnan(value) else f'{value:.6g}' for value in values)


def _with_means(accuracy):
  """f[C, G] -> f[C + 1, G + 1]; NaN cells do not count."""
  cells = np.ma.masked_invalid(accuracy)
  right = np.append(cells.mean(1).filled(np.nan), cells.mean())
  return np.column_stack([np.vstack([accuracy, cells.mean(0).filled(np.nan)]), right])


def _draw(path, accuracy, rows, degrees, classes, name):
  lines, columns = accuracy.shape
  figure = Figure(figsize=(2.4 + 0.75 * max(columns, 4), 1.5 + 0.52 * lines))
  axes = figure.add_subplot()
  drawn = axes.imshow(accuracy, cmap='Blues', vmin=0, vmax=1, aspect='auto')
  axes.set_facecolor('lightgrey')
  for i in range(lines):
    for j in range(columns):
      if np.isnan(accuracy[i, j]):
        continue
      text = f'{100 * accuracy[i, j]:.1f} %'
      if i < len(classes) and j < len(degrees):
        text += f'\nof {rows[i, j]}'
      colour = 'white' if accuracy[i, j] > 0.5 else 'black'
      axes.text(j, i, text, ha='center', va='center', color=colour, fontsize=8)
  axes.axhline(lines - 1.5, color='black', linewidth=1.5)
  axes.axvline(columns - 1.5, color='black', linewidth=1.5)
  axes.set_xticks(range(columns), (*(f'{angle}°' for angle in degrees), 'mean'))
  axes.set_yticks(range(lines), (*classes, 'mean'))
  axes.set_xlabel('pose (yaw)')
  axes.set_ylabel('given expression')
  axes.set_title(f'{name}: accuracy by expression and pose')
  figure.colorbar(drawn, ax=axes, label='accuracy')
  plots.save(path, figure)
