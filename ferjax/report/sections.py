"""The tables and pictures of an evaluation as HTML, from the folder of a run or one of `eval/`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ferjax.report import page
from ferjax.report.page import Cell, share
from ferjax.report.pictures import Picture
from ferjax.report.words import MEASURES, is_share, numbers, split_name
from ferjax.runs import folder as run_folder


class Kind(NamedTuple):
  """A kind of picture in a run's folder.

  Attributes:
    stem: The beginning of its file's name; the rest is the name of the split.
    section: The section of the page.
    caption: What it shows.
    alt: A description for readers who cannot see it.
  """

  stem: str
  section: str
  caption: str
  alt: str


KINDS = (
  Kind('confusion_pose', 'Poses', 'Confusion matrix of the pose (yaw)', 'a table of shares'),
  Kind('confusion', 'Classes', 'Confusion matrix', 'a table of shares'),
  Kind('expression_by_pose', 'Poses', 'Accuracy by expression and pose', 'a table of shares'),
  Kind(
    'mistakes',
    'Mistakes',
    'Most confident mistakes',
    'faces with the given class, the predicted one, and its probability',
  ),
  Kind(
    'cross_entropy',
    'Labels',
    'Cross-entropy of the given labels, right and wrong ones',
    'two histograms of training rows',
  ),
  Kind('importance', 'Labels', 'Importance of training rows', 'two histograms of training rows'),
  Kind('uncertainty', 'Labels', 'Uncertainty of training rows', 'two histograms of training rows'),
  Kind(
    'label_distributions',
    'Labels',
    'Label distributions next to pictures, training rows',
    'faces, each with a bar for every class',
  ),
  Kind(
    'predicted',
    'Labels',
    'Predicted distributions next to pictures',
    'faces, each with a bar for every class',
  ),
  Kind(
    'mislabels',
    'Labels',
    'Suspected mislabels',
    'for every class the faces farthest from its mean, with the class predicted for them',
  ),
  Kind(
    'auxiliary_spaces',
    'Labels',
    'Auxiliary label spaces',
    'points of training rows in the plane, coloured by class',
  ),
  Kind(
    'tsne',
    'Embeddings',
    't-SNE',
    'points of rows in the plane, coloured by expression, pose or subject',
  ),
  Kind('identities', 'Embeddings', 't-SNE of one expression', 'points coloured by subject'),
  Kind('retrieval', 'Embeddings', 'Search by number of results', 'curves'),
  Kind(
    'search',
    'Embeddings',
    'Search',
    'in each line a face and the five nearest to it, with their classes',
  ),
  Kind(
    'subclasses',
    'Embeddings',
    'Sub-classes',
    'in each line the faces nearest to the medoid of a sub-class',
  ),
  Kind('response', 'Where the network looks', 'Feature response', 'faces, each next to its map'),
  Kind(
    'grad_cam',
    'Where the network looks',
    'Grad-CAM of the predicted class',
    'faces, each next to its map',
  ),
)
REST = 'Other pictures'
SECTIONS = ('Classes', 'Poses', 'Mistakes', 'Labels', 'Embeddings', 'Where the network looks', REST)


def shown(folder: Path) -> list[Path]:
  """The pictures of a folder, without those that the page shows as tables."""
  replaced = {f'confusion_{path.stem}.png' for path in (folder / 'predictions').glob('*.csv')}
  replaced |= {f'{path.stem}.png' for path in (folder / 'report').glob('expression_by_pose_*.csv')}
  return [p for p in sorted((folder / 'report').glob('*.png')) if p.name not in replaced]


def sections(
  folder: Path,
  classes: Sequence[str],
  splits: Sequence[str],
  pictures: dict[Path, Picture],
  *,
  level: int,
) -> dict[str, str]:
  """The tables of the CSV files in a folder, and its pictures.

  Args:
    folder: The run's or the evaluation's.
    classes: Class names of the model.
    splits: Those that may have been evaluated, in the order to show.
    pictures: By file; those of the folder are removed from it.
    level: Of the headings.

  Returns:
    {section: HTML} of all `SECTIONS`; '' for those without content.

  Raises:
    InputError: a file is damaged.
  """
  found = dict.fromkeys(SECTIONS, '')
  names = {name.replace('/', '_'): name for name in splits}
  for path in _in_order((folder / 'predictions').glob('*.csv'), names):
    split = names.get(path.stem, path.stem)
    counts = run_folder.confusion(path, classes)
    total = counts.sum()
    found['Classes'] += page.heading(split_name(split), level) + confusion(
      counts,
      classes,
      f'Confusion matrix, {split_name(split)}',
      corner='given',
      above='predicted',
      note=f'{100 * np.trace(counts) / total:.1f} % of {total} right. ' if total else '',
    )
    table = folder / 'report' / f'classes_{path.stem}.csv'
    if table.is_file():
      found['Classes'] += _per_class(table, split_name(split))
  for path in _in_order((folder / 'report').glob('expression_by_pose_*.csv'), names):
    stem = path.stem.removeprefix('expression_by_pose_')
    found['Poses'] += _by_pose(path, split_name(names.get(stem, stem)))
  for kind in KINDS:
    own = [path for path in pictures if path.parent == folder / 'report']
    own = [p for p in own if p.stem == kind.stem or p.stem.startswith(f'{kind.stem}_')]
    for path in _in_order(own, names, kind.stem):
      of = path.stem.removeprefix(kind.stem).lstrip('_')
      caption = f'{kind.caption}, {_of(of, names)}' if of else kind.caption
      found[kind.section] += page.picture(caption, f'{caption}: {kind.alt}', *pictures.pop(path))
  for path in [path for path in pictures if path.parent == folder / 'report']:
    found[REST] += page.picture(path.stem, f'the picture {path.name}', *pictures.pop(path))
  return found


def _of(stem, names):
  """The split, or the split and the class, in the rest of a file's name."""
  if stem in names:
    return split_name(names[stem])
  split = max((name for name in names if stem.startswith(f'{name}_')), key=len, default='')
  rest = stem.removeprefix(f'{split}_') if split else stem
  return f'{split_name(names[split])}, {rest}' if split else split_name(rest)


def _in_order(paths, names, prefix=''):
  """Test splits first, then validation, then the rest."""
  order = list(names)

  def place(path):
    stem = path.stem.removeprefix(prefix).lstrip('_')
    split = max((n for n in order if (stem + '_').startswith(f'{n}_')), key=len, default='')
    return (order.index(split) if split else len(order), path.name)

  return sorted(paths, key=place)


def confusion(
  counts: np.ndarray, classes: Sequence[str], caption: str, *, corner: str, above: str, note: str
) -> str:
  """A confusion matrix int[C, C]: in each cell the count, and its share of the line, tinted.

  Args:
    counts: The matrix.
    classes: Class names.
    caption: What it shows.
    corner, above: Names of its lines and of its columns.
    note: Below it.
  """
  rows = []
  for i, name in enumerate(classes):
    total = counts[i].sum()
    cells = [
      share(count / total if total else None, heat=True, below=str(count), marked=i == j, digits=0)
      for j, count in enumerate(counts[i])
    ]
    rows.append((name, *cells, Cell(str(total))))
  head = [corner, *classes, 'rows']
  note = f'{note}Each cell shows the share of its line, and below it the number of rows.'
  return page.table(caption, head, rows, above=above, note=note, kind='heat')


def _per_class(path, split):
  head, rows = run_folder.table(path, 'class', (5,))
  cells = [
    (name, Cell(count), *(share(run_folder.value(path, cell)) for cell in values))
    for name, count, *values in rows
  ]
  return page.table(f'By class, {split}', ['class', *head[1:4], 'F1'], cells, kind='last-mean')


def _by_pose(path, split):
  head, rows = run_folder.table(path, 'expression')
  cells = [
    (name, *(share(run_folder.value(path, cell), heat=True) for cell in values))
    for name, *values in rows
  ]
  names = ['expression', *(f'{name}°' for name in head[1:-1]), 'mean']
  return page.table(
    f'Accuracy by expression and pose, {split}',
    names,
    cells,
    above='pose (yaw)',
    kind='heat last-mean',
  )


def sets(path: Path) -> str:
  """The table of a `sets.csv`."""
  head, rows = run_folder.table(path, 'set')
  cells = [
    (name, Cell(count), *(share(run_folder.value(path, cell)) for cell in values))
    for name, count, *values in rows
  ]
  names = ['data set', 'rows', *(MEASURES.get(key, key) for key in head[2:])]
  return page.table('Test on each data set, and means over sets', names, cells)


def embeddings(summary: Mapping[str, Any]) -> str:
  """The tables of the measures of embeddings in a `summary.json`."""
  html = ''
  for split, values in summary.get('embeddings', {}).items():
    values = numbers(values)
    counts = [key.partition('@')[2] for key in values if key.startswith('recall@')]
    if counts:
      rows = [
        (name, *(share(values.get(f'{key}@{k}')) for k in counts))
        for key, name in (
          ('recall', 'Recall@K: one of the K is of the same class'),
          ('acc', 'Acc@K: share of the same class'),
        )
      ]
      html += page.table(
        f'Search among the other rows, {split_name(split)}',
        ['K nearest', *counts],
        rows,
      )
    others = [
      (_embedding_name(key), number(value, key)) for key, value in values.items() if '@' not in key
    ]
    if others:
      html += page.table(f'Embeddings, {split_name(split)}', ['measure', 'value'], others)
  return html


def _embedding_name(key):
  names = {
    'nmi': 'normalised mutual information of clusters and classes',
    'pairwise_f1': 'F1 of “same cluster” for “same class”',
    'knn': '11 nearest training rows',
    'nearest_mean': 'nearest mean of a training class',
    'f1_of_means': 'F1 of the mean precision and recall',
    'subject_in_expression': 'subjects within an expression',
  }
  part, _, name = key.rpartition('/')
  name = names.get(name, MEASURES.get(name, name))
  return f'{names.get(part, part)}: {name}' if part else name


def measure(key: str) -> str:
  """The name of a measure such as `pose/acc` for readers."""
  part, _, name = key.rpartition('/')
  return f'{part}: {MEASURES.get(name, name)}' if part else MEASURES.get(name, name)


def number(value: float | None, key: str) -> Cell:
  """The value of a measure, in per cent if it is a share."""
  if is_share(key):
    return share(value)
  return Cell('' if value is None else f'{value:.4g}')
