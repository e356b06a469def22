"""Figures of embeddings and of auxiliary label spaces: where faces lie in the plane, by t-SNE.

References: t-SNE, van der Maaten and Hinton, "Visualizing Data using t-SNE", 2008. The figures of
embeddings are those of DML-Net (figures 10 to 14), their numbers those of the structured Gaussian
manifold loss (tables 1 and 2, figures 2, 3 and 5); the figure of the auxiliary spaces is that of
LDL-ALSG (Chen et al., CVPR 2020), figures 3 and 4.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from ferjax.data import graphs
from ferjax.metrics import mixtures, retrieval
from ferjax.metrics.embeddings import drawn, embedding_of, measure, silhouettes
from ferjax.metrics.predictions import Predictions
from ferjax.report.figures import plots
from ferjax.report.figures.plots import COLOURS

MARKERS = 'os^DvP*X'  # one for each of COLOURS
SPACES = {'au': 'action units', 'landmarks': 'landmarks'}


def write(
  folder: Path,
  evaluated: Mapping[str, Predictions],
  training: Predictions | None,
  classes: Sequence[str],
  *,
  numbers: bool,
  tsne: int,
) -> dict[str, dict[str, Any]]:
  """Writes the figures of the embeddings of the test split, or of the last split if there is no
  test split.

  Args:
    folder: Of the report.
    evaluated: Predictions by split, with the output `embedding` f[n, d].
    training: Predictions for the training rows, where they are known.
    classes: Class names.
    numbers: Whether to measure the embeddings, and to write `retrieval_<split>.png`.
    tsne: How many random rows to show in `tsne_<split>.png` and, of the most frequent expression,
      in `identities_<split>.png`; 0 for neither.

  Returns:
    The numbers by split: `silhouettes`, and with `numbers` those of `measure`; empty for a method
    without embeddings.
  """
  name = 'test' if 'test' in evaluated else list(evaluated)[-1] if evaluated else ''
  if not (numbers or tsne) or not name or 'embedding' not in evaluated[name].outputs:
    return {}
  predictions = evaluated[name]
  embedding, table = embedding_of(predictions), predictions.table
  values = silhouettes(embedding, table)
  if numbers:
    values |= measure(predictions, training if name != 'train' else None, len(classes))
    curves(folder / f'retrieval_{name}.png', values, name)
  if tsne:
    if 'subclass_log_posterior' in predictions.outputs:
      posterior = predictions.outputs['subclass_log_posterior']
      part = mixtures.likeliest_subclass(posterior, table['label'], len(classes))
      table = {**table, 'subclass': part}
    sheet(folder / f'tsne_{name}.png', embedding, table, classes, values, name, tsne)
    identities(folder / f'identities_{name}.png', embedding, table, classes, values, name, tsne)
  return {name: values}


def plane(embedding: np.ndarray) -> np.ndarray:
  """f[n, 2]: t-SNE of embeddings f[n, d] with a fixed seed; at least 4 rows."""
  embedding = embedding.astype(np.float64)
  spread = embedding.shape[1] > 1 and embedding.std(0).any()
  method = TSNE(
    perplexity=min(30, (len(embedding) - 1) / 3), init='pca' if spread else 'random', random_state=0
  )
  with threadpool_limits(1):  # threads wait for each other much longer than they work
    return method.fit_transform(embedding)


def sheet(
  path: Path,
  embedding: np.ndarray,
  table: Mapping[str, np.ndarray],
  classes: Sequence[str],
  values: Mapping[str, float],
  name: str,
  count: int,
) -> None:
  """PNG of `plane`, coloured by expression, and by sub-class, pose and subject where there are
  several of them; no file for fewer than 4 rows.

  Args:
    path: The file.
    embedding: f[n, d].
    table: The columns of the same rows; `subclass`, within the row's class, may be among them.
    classes: Class names.
    values: The `silhouettes`.
    name: The split's.
    count: Rows to show.
  """
  rows = drawn(len(embedding), count)
  if len(rows) < 4:
    return
  places = plane(embedding[rows])
  shown = {key: column[rows] for key, column in table.items()}
  panels = {'expression': _by_class(shown['label'], classes)}
  if len(np.unique(shown.get('subclass', 0))) > 1:
    panels['sub-class'] = _by_subclass(shown['label'], shown['subclass'], classes)
  if len(np.unique(shown.get('yaw_bin', 0))) > 1:
    panels['pose'] = _by_yaw(shown['yaw_bin'])
  if len(np.unique(shown.get('subject', 0))) > 1:
    panels['subject'] = _by_subject(shown['subject'])
  figure = Figure(figsize=(5.4 * len(panels), 6.2))
  figure.suptitle(f'{name}: t-SNE of the embeddings of {_of(rows, embedding)}')
  for number, (what, groups) in enumerate(panels.items()):
    axes = figure.add_subplot(1, len(panels), number + 1)
    _scatter(axes, places, groups)
    key, within = f'silhouette/{what}', ''
    if what == 'subject':
      key, within = f'{key}_in_expression', ' within an expression'
    title = f'by {what}'
    if key in values:
      title += f' (silhouette {values[key]:.2f}{within})'
    axes.set_title(title, fontsize=10)
  figure.tight_layout()
  plots.save(path, figure)


def identities(
  path: Path,
  embedding: np.ndarray,
  table: Mapping[str, np.ndarray],
  classes: Sequence[str],
  values: Mapping[str, float],
  name: str,
  count: int,
) -> None:
  """PNG of `plane` of the rows of the most frequent expression, coloured by subject, with the
  silhouette of the subjects (DML-Net, figure 14); arguments as in `sheet`. No file for fewer than
  two subjects or 4 rows."""
  label = np.bincount(table['label']).argmax()
  of_label = np.flatnonzero(table['label'] == label)
  rows = of_label[drawn(len(of_label), count)]
  subject = table.get('subject', np.zeros(len(embedding), int))[rows]
  if len(rows) < 4 or len(np.unique(subject)) < 2:
    return
  here = retrieval.silhouette(embedding[rows], subject)
  lines = [f'{name}, {classes[label]}: t-SNE of the embeddings of {_of(rows, of_label)} by subject']
  if here is not None:
    everywhere = values.get('silhouette/subject_in_expression', np.nan)
    lines.append(
      f'silhouette of subjects: {here:.2f} here, {everywhere:.2f} in the mean over expressions'
    )
  if 'silhouette/expression' in values:
    lines.append(f'silhouette of expressions: {values["silhouette/expression"]:.2f}')
  figure = Figure(figsize=(6.2, 6.8))
  axes = figure.add_subplot()
  _scatter(axes, plane(embedding[rows]), _by_subject(subject))
  axes.set_title('\n'.join(lines), fontsize=10)
  plots.save(path, figure)


def _of(rows, every):
  whole = len(rows) == len(every)
  return f'all {len(rows)} rows' if whole else f'{len(rows)} of {len(every)} rows'


def _by_class(label, classes):
  """[(name, rows bool[n], colour, marker)]; so do the three functions below."""
  return [
    (name, label == i, COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)])
    for i, name in enumerate(classes)
    if (label == i).any()
  ]


def _by_subclass(label, part, classes):
  return [
    (f'{name} {number}', rows, colour, MARKERS[number % len(MARKERS)])
    for name, of_class, colour, _ in _by_class(label, classes)
    for number in np.unique(part[of_class])
    for rows in [of_class & (part == number)]
  ]


def _by_yaw(yaw):
  degrees = np.unique(yaw)
  colours = colormaps['viridis'](np.linspace(0, 0.95, len(degrees)))
  return [
    (f'{angle}°', yaw == angle, colour, MARKERS[i % len(MARKERS)])
    for i, (angle, colour) in enumerate(zip(degrees, colours, strict=True))
  ]


def _by_subject(subject):
  names, counts = np.unique(subject, return_counts=True)
  most = names[np.argsort(-counts, kind='stable')][: len(COLOURS)]
  others = ~np.isin(subject, most)
  groups = [(f'{len(names) - len(most)} others', others, 'lightgrey', '.')] if others.any() else []
  for place, name in enumerate(most):
    groups.append((f'subject {name}', subject == name, COLOURS[place], MARKERS[place]))
  return groups


def _scatter(axes, places, groups):
  for name, rows, colour, marker in groups:
    axes.scatter(
      *places[rows].T,
      s=16,
      color=[colour],
      marker=marker,
      edgecolors='black',
      linewidths=0.2,
      label=f'{name} ({rows.sum()})',
    )
  axes.set_aspect('equal', adjustable='datalim')
  _frame(axes)


def _frame(axes):
  """No ticks, as places in the plane have no unit; the legend below."""
  axes.set_xticks(())
  axes.set_yticks(())
  axes.legend(loc='upper center', bbox_to_anchor=(0.5, -0.01), ncols=3, fontsize=8, frameon=False)


def auxiliary_spaces(
  path: Path,
  table: Mapping[str, np.ndarray],
  label: np.ndarray,
  classes: Sequence[str],
  image_size: int,
  count: int = 1000,
) -> None:
  """PNG of `plane` of each auxiliary label space that a table has, coloured by class.

  Args:
    path: The file.
    table: Columns of n rows.
    label: i32[n], the classes to colour them by.
    classes: Class names.
    image_size: See `graphs.coordinates`.
    count: How many rows to show at most; they are drawn at random with a fixed seed.
  """
  rows = drawn(len(label), count)
  spaces = [space for space in graphs.SPACES if space in table]
  figure = Figure(figsize=(5.4 * len(spaces), 6))
  figure.suptitle(f't-SNE of the auxiliary label spaces: {len(rows)} of {len(label)} training rows')
  for number, space in enumerate(spaces):
    places = plane(graphs.coordinates(table, space, image_size)[rows])
    axes = figure.add_subplot(1, len(spaces), number + 1)
    for place, name in enumerate(classes):
      of_class = places[label[rows] == place]
      axes.scatter(*of_class.T, s=9, color=f'C{place}', label=f'{name} ({len(of_class)})')
    axes.set_title(SPACES[space], fontsize=10)
    _frame(axes)
  figure.tight_layout()
  plots.save(path, figure)


def curves(path: Path, values: Mapping[str, Any], name: str) -> None:
  """PNG of the numbers of `measure`: Recall@K and Acc@K by K, macro F1 by number of neighbours."""
  panels = []
  found = [
    (label, {int(k.split('@')[1]): v for k, v in values.items() if k.startswith(f'{key}@')})
    for key, label in (
      ('recall', 'Recall@K: one of the K is of the same class'),
      ('acc', 'Acc@K: share of the same class'),
    )
  ]
  if found[0][1]:
    panels.append((f'{name}: search among the other rows of the split', 'K', 'share', found))
  if 'f1_by_neighbours' in values:
    by_count = {int(k): v for k, v in values['f1_by_neighbours'].items()}
    title = f'{name}: classified by the nearest training rows'
    panels.append((title, 'neighbours', 'macro F1', [('', by_count)]))
  if not panels:
    return
  figure = Figure(figsize=(5.4 * len(panels), 4))
  for number, (title, x_label, y_label, lines) in enumerate(panels):
    axes = figure.add_subplot(1, len(panels), number + 1)
    for place, (label, points) in enumerate(lines):
      marker, colour = MARKERS[place], COLOURS[place]
      axes.plot(list(points), list(points.values()), color=colour, marker=marker, label=label)
    axes.set_xscale('log', base=2)
    axes.set_xticks(list(points), [str(k) for k in points])
    axes.minorticks_off()
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    if len(lines) > 1:
      axes.legend(fontsize=8)
  figure.tight_layout()
  plots.save(path, figure)
