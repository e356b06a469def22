"""Contact sheets of a split by its embeddings: search, suspected mislabels, sub-classes.

The sheets are those of the SGM paper (Marrero-Fernandez et al., 2022), figures 4, 6, 7 and 8.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ferjax.data import dataset
from ferjax.metrics import mixtures
from ferjax.metrics.predictions import Predictions
from ferjax.report.figures import heatmaps, plots

FOUND = 5  # pictures that a search shows
FARTHEST = 8  # suspected mislabels of a class
NEAREST = 16  # pictures of a sub-class
SIDE, GAP, TEXT = 96, 4, 18  # pixels: of a picture, between pictures, between lines with text


def write(
  folder: Path,
  split: dataset.Split,
  predictions: Predictions,
  classes: Sequence[str],
  name: str,
) -> None:
  """Writes `search_<name>.png`, `mislabels_<name>.png`, and for a method with sub-classes
  `subclasses_<name>_<class>.png`; no files for a method without embeddings.

  Args:
    folder: Of the report.
    split: The rows.
    predictions: Of all rows, or of the first ones.
    classes: Class names.
    name: Name of the split.
  """
  if 'embedding' not in predictions.outputs or len(predictions.label) < 2:
    return
  stem = name.replace('/', '_')
  search(folder / f'search_{stem}.png', split, predictions, classes, name)
  mislabels(folder / f'mislabels_{stem}.png', split, predictions, classes, name)
  if 'subclass_log_posterior' in predictions.outputs:
    for label, title in enumerate(classes):
      path = folder / f'subclasses_{stem}_{title.replace("/", "_")}.png'
      subclasses(path, split, predictions, label, f'{name}, {title}', len(classes))


def search(
  path: Path,
  split: dataset.Split,
  predictions: Predictions,
  classes: Sequence[str],
  name: str,
  queries: int = 10,
) -> None:
  """PNG of rows of every class and the five other rows of the split nearest to each (figure 4)."""
  z, label = _embedding(predictions), predictions.label
  lines = []
  for row in heatmaps.some_of_each_class(label, queries):
    distance = _distances(z, z[row])
    distance[row] = np.inf
    nearest = np.argsort(distance, kind='stable')[: min(FOUND, len(z) - 1)]
    found = [(i, classes[label[i]], label[i] == label[row]) for i in nearest]
    lines.append([(row, classes[label[row]], True), *found])
  title = f'{name}: a picture and the {FOUND} others nearest to it; red: of another class'
  draw(path, split, lines, title)


def farthest_from_own_class(
  embedding: np.ndarray, label: np.ndarray, count: int
) -> dict[int, np.ndarray]:
  """{class: its rows farthest from its mean, farthest first}, at most `count`, for embeddings
  f[n, d] and labels int[n]."""
  found = {}
  for name in np.unique(label):
    rows = np.flatnonzero(label == name)
    distance = _distances(embedding[rows], embedding[rows].mean(0))
    found[int(name)] = rows[np.argsort(-distance, kind='stable')[:count]]
  return found


def mislabels(
  path: Path,
  split: dataset.Split,
  predictions: Predictions,
  classes: Sequence[str],
  name: str,
) -> None:
  """PNG of each class's rows that lie farthest from its mean, with the class predicted for them
  (figure 6)."""
  predicted = predictions.outputs['logits'].argmax(-1)
  farthest = farthest_from_own_class(_embedding(predictions), predictions.label, FARTHEST)
  lines = [
    [(row, f'predicted: {classes[predicted[row]]}', predicted[row] == label) for row in rows]
    for label, rows in farthest.items()
  ]
  title = f'{name}: suspected mislabels, farthest from the mean of the class of their label'
  draw(path, split, lines, title, [classes[label] for label in farthest])


def subclasses(
  path: Path,
  split: dataset.Split,
  predictions: Predictions,
  label: int,
  title: str,
  num_classes: int,
) -> None:
  """PNG of the sub-classes of a class, largest first: the medoid and the rows nearest to it
  (figure 8). A row belongs to the most likely sub-class of the class of its label."""
  rows = np.flatnonzero(predictions.label == label)
  if not len(rows):
    return
  posterior = predictions.outputs['subclass_log_posterior'][rows]
  group = mixtures.likeliest_subclass(posterior, predictions.label[rows], num_classes)
  z = _embedding(predictions)[rows]
  lines, names = [], []
  for name, medoid in mixtures.medoids(z, group).items():
    members = np.flatnonzero(group == name)
    nearest = members[np.argsort(_distances(z[members], z[medoid]), kind='stable')][:NEAREST]
    lines.append([(rows[i], '', True) for i in nearest])
    names.append(f'sub-class {name}\n{len(members)} pictures')
  draw(path, split, lines, f'{title}: nearest to the medoid of each sub-class', names)


def _embedding(predictions):
  return predictions.outputs['embedding'].astype(np.float64)


def _distances(z, place):
  return np.square(z - place).sum(1)


def draw(
  path: Path,
  split: dataset.Split,
  lines: Sequence[Sequence[tuple[int, str, bool]]],
  title: str,
  names: Sequence[str] = (),
) -> None:
  """PNG of lines of pictures.

  Args:
    path: The file.
    split: The rows.
    lines: For each picture its row, a text above it, and whether it is right; the text of others is
      red.
    title: Of the sheet.
    names: Of the lines.
  """
  columns, words = max(map(len, lines)), any(text for line in lines for _, text, _ in line)
  high, wide = SIDE + (TEXT if words else GAP), SIDE + GAP
  canvas = np.full((high * len(lines), wide * columns, 3), 255, np.uint8)
  figure = Figure(figsize=(canvas.shape[1] / SIDE, canvas.shape[0] / SIDE))
  axes = figure.add_axes((0, 0, 1, 1))
  for number, line in enumerate(lines):
    bottom = (number + 1) * high
    for place, (row, text, right) in enumerate(line):
      left = place * wide
      canvas[bottom - SIDE : bottom, left : left + SIDE] = dataset.picture(split, row, SIDE)
      colour = 'black' if right else 'tab:red'
      axes.text(left, bottom - SIDE - 3, text, fontsize=8, color=colour)
    if len(names):
      axes.text(-8, bottom - SIDE / 2, names[number], fontsize=9, ha='right', va='center')
  axes.imshow(canvas, interpolation='none')
  axes.axis('off')
  axes.set_title(title, fontsize=10, loc='left')
  plots.save(path, figure)
