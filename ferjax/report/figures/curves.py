"""The curves of a training run, from the lines of its `metrics.jsonl`.

The report draws them as SVG; the run's folder holds `learning_curves.png` and `terms.png`.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ferjax.core import NO_TERMS
from ferjax.report.figures import plots
from ferjax.report.figures.plots import Panel

Lines = Sequence[Mapping]


def learning_panels(lines: Lines, name: Callable[[str], str] = str) -> list[Panel]:
  """Loss and accuracy by step of the training batches and of every split: tests first.

  Args:
    lines: Of `metrics.jsonl`.
    name: What a split is called in the legend.
  """
  by_split = {}
  for line in lines:
    by_split.setdefault(line['split'], []).append(line)
  order = sorted(by_split, key=lambda split: (split != 'train', not split.startswith('test')))
  return [
    _panel(caption, {name(split): curve(by_split[split], key) for split in order}, label)
    for key, caption, label in (
      ('loss', 'Loss', 'loss (nats)'),
      ('acc', 'Accuracy', 'accuracy (share of 1)'),
    )
  ]


def term_panels(lines: Lines) -> list[Panel]:
  """Each term of the training loss by step, unweighted, where there are several; and the weights of
  the terms where they change (`weight/<term>`; DML-Net, figure 15)."""
  lines, names = _training(lines)
  parts = [name for name in names if name not in NO_TERMS and '/' not in name]
  parts = [name for name in parts if any(line.get(name) for line in lines)]
  panels = [
    _panel(f'Term of the loss: {name}', {'': curve(lines, name)}, 'unweighted')
    for name in (parts if len(parts) > 1 else ())
  ]
  weights = {
    name.removeprefix('weight/'): curve(lines, name, smooth=False)
    for name in names
    if name.startswith('weight/')
  }
  return [*panels, _panel('Weights of the terms', weights, 'weight')] if weights else panels


def course_panels(lines: Lines) -> list[Panel]:
  """Learning rate, speed, norm of the gradient, and what a method measures in its batches."""
  lines, names = _training(lines)
  others = [name for name in names if '/' in name and not name.startswith('weight/')]
  return [
    _panel('Learning rate', {'': curve(lines, 'lr', smooth=False)}, 'learning rate'),
    _panel('Speed', {'': curve(lines, 'images_per_s')}, 'pictures per second'),
    _panel('Norm of the gradient', {'': curve(lines, 'l2_grads')}, 'L2 norm'),
    *(_panel(name, {'': curve(lines, name)}, 'mean of the batch') for name in others),
  ]


def curve(lines: Lines, key: str, *, smooth: bool = True) -> plots.Line | None:
  """The curve of a key over the lines of one split; None where it was never measured.

  Args:
    lines: Of one split.
    key: Of the lines.
    smooth: Whether to draw the running mean of training batches.
  """
  points = [(line['step'], line[key]) for line in lines if line.get(key) is not None]
  if not points:
    return None
  steps, values = np.array(points, float).T
  if lines[0]['split'] != 'train':
    return plots.Line('', steps, values, points=True)
  if not smooth:
    return plots.Line('', steps, values)
  return plots.Line('', steps, plots.running_mean(values), raw=values)


def learning_curves(path: Path, lines: Lines, title: str) -> None:
  """PNG of the `learning_panels`."""
  names = {'train': 'train (running mean)'}
  plots.save_panels(path, learning_panels(lines, lambda split: names.get(split, split)), title)


def terms(path: Path, lines: Lines, title: str) -> None:
  """PNG of the `term_panels`; no file where there is only one term."""
  panels = term_panels(lines)
  if len(panels) > 1:
    plots.save_panels(path, panels, f'{title}: terms of the training loss')


def _training(lines):
  """The lines of training batches, and the keys that they have."""
  lines = [line for line in lines if line['split'] == 'train']
  return lines, list(dict.fromkeys(key for line in lines for key in line))


def _panel(caption, by_name, label):
  lines = [line._replace(name=name) for name, line in by_name.items() if line]
  return Panel(caption, lines, 'step', label)
