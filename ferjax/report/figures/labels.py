"""Figures of labels: confident mistakes, label distributions, cross-entropy, importance."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ferjax.data import dataset
from ferjax.metrics.predictions import Predictions, probabilities
from ferjax.report.figures import plots


def confident_mistakes(
  path: Path,
  split: dataset.Split,
  predictions: Predictions,
  classes: Sequence[str],
  title: str,
  count: int = 24,
) -> None:
  """PNG of the wrong predictions with the highest probability, with the given and the predicted
  class."""
  shares = probabilities(predictions)
  prediction = shares.argmax(1)
  wrong = np.flatnonzero(prediction != predictions.label)
  worst = wrong[np.argsort(-shares[wrong, prediction[wrong]], kind='stable')][:count]
  columns = 8
  rows = max(1, math.ceil(len(worst) / columns))
  figure = Figure(figsize=(1.6 * columns, 2.15 * rows + 0.5))
  figure.suptitle(f'{title}: {len(wrong)} of {len(shares)} wrong, the most confident first')
  for place, row in enumerate(worst):
    axes = figure.add_subplot(rows, columns, place + 1)
    axes.imshow(dataset.picture(split, row, 112))
    axes.axis('off')
    axes.set_title(
      f'given: {classes[predictions.label[row]]}\n'
      f'predicted: {classes[prediction[row]]} {100 * shares[row, prediction[row]]:.0f} %',
      fontsize=7,
      loc='left',
    )
  figure.tight_layout()
  plots.save(path, figure)


def cross_entropy_histogram(path: Path, losses: np.ndarray, wrong: np.ndarray) -> None:
  """PNG of two histograms of cross-entropies f[n] (nats): of rows whose label is right, and of rows
  whose label is wrong, bool[n] (LA-Net, figure 4)."""
  edges = np.linspace(0, max(float(np.quantile(losses, 0.995)), 1e-3), 41)
  what = 'cross-entropy of the given label (nats); the last bar holds all larger values'
  _two_histograms(path, np.clip(losses, 0, edges[-1]), wrong, edges, what)


def score_histogram(path: Path, score: np.ndarray, wrong: np.ndarray, what: str) -> None:
  """PNG of two histograms of a method's score f[n], such as the importance: of rows whose label is
  right, and of rows whose label is wrong, bool[n]."""
  low, high = np.quantile(score, (0.0025, 0.9975))
  edges = np.linspace(low, max(high, low + 1e-3), 41)
  label = f'{what}; the first and the last bar hold all values beyond'
  _two_histograms(path, np.clip(score, edges[0], edges[-1]), wrong, edges, label)


def _two_histograms(path, values, wrong, edges, what):
  figure = Figure(figsize=(6.4, 3.8))
  axes = figure.add_subplot()
  for part, colour, name in ((~wrong, 'tab:blue', 'right'), (wrong, 'tab:red', 'wrong')):
    if not part.any():
      continue
    label = f'{name} label: {part.sum()} rows, median {np.median(values[part]):.2f}'
    axes.hist(values[part], edges, color=colour, alpha=0.55, label=label)
  axes.set_xlabel(what)
  axes.set_ylabel('training rows')
  axes.legend(loc='lower center', bbox_to_anchor=(0.5, 1), ncols=2, fontsize=8)
  axes.grid(alpha=0.3)
  plots.save(path, figure)


def label_distributions(
  path: Path,
  rows: dataset.Split,
  distribution: np.ndarray,
  classes: Sequence[str],
  title: str,
  clean: np.ndarray | None = None,
  count: int = 16,
) -> None:
  """PNG of label distributions next to their pictures (LDL-ALSG, figure 1), and of the true or
  voted distributions where these are known.

  Args:
    path: The file.
    rows: The split.
    distribution: f[n, C], of its first n rows.
    classes: Class names.
    title: Which distributions these are.
    clean: i32[n], the labels before the noise; half of the rows shown are then rows with a wrong
      label.
    count: How many rows to show; they are drawn at random with a fixed seed.
  """
  rng, given = np.random.default_rng(0), rows.table['label']
  truth = rows.table.get('distribution')
  wrong = np.zeros(len(distribution), bool)
  if clean is not None:
    wrong = given[: len(clean)] != clean
  order = rng.permutation(len(distribution))
  chosen = [*order[wrong[order]][: count // 2]]
  chosen += [*order[~wrong[order]][: count - len(chosen)]]
  columns = 4
  figure = Figure(figsize=(16, 1.8 * math.ceil(len(chosen) / columns) + 0.8))
  title = f'{title} label distributions of random rows'
  if truth is not None:
    title += ' (blue), true or voted distributions (grey)'
  figure.suptitle(title)
  lines = math.ceil(len(chosen) / columns)
  ratios = (1, 1, 0.5) * columns  # picture, bars, room for the names of the classes
  grid = figure.add_gridspec(lines, 3 * columns, wspace=0.1, hspace=0.5, width_ratios=ratios)
  for place, row in enumerate(chosen):
    line, column = divmod(place, columns)
    axes = figure.add_subplot(grid[line, 3 * column])
    axes.imshow(dataset.picture(rows, row, 112))
    axes.axis('off')
    named = classes[given[row]]
    if wrong[row]:
      named += f' (was {classes[clean[row]]})'
    axes.set_title(named, fontsize=8, loc='left', color='tab:red' if wrong[row] else 'black')
    axes = figure.add_subplot(grid[line, 3 * column + 1])
    places = np.arange(len(classes))
    if truth is not None:
      axes.barh(places, truth[row], 0.8, color='lightgrey')
    axes.barh(places, distribution[row], 0.4, color='tab:blue')
    axes.set_xlim(0, 1)
    axes.set_ylim(len(classes) - 0.5, -0.5)
    axes.set_yticks(places, classes, fontsize=6)
    axes.set_xticks((0, 0.5, 1), ('0', '', '1'), fontsize=6)
    axes.yaxis.tick_right()
  plots.save(path, figure)
