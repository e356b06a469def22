"""Learning curves of a run."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ferjax import core
from ferjax.images import distort
from ferjax.report.figures import plots

COLOURS = {'train': 'tab:blue', 'val': 'tab:orange', 'test': 'tab:green'}
COLOURS |= {f'test/{name}': f'C{number}' for number, name in enumerate(distort.DISTORTIONS, 3)}


def learning_curves(path: Path, lines: Iterable[Mapping], title: str) -> None:
  """PNG of loss and accuracy by step for every split, from the lines of `metrics.jsonl`."""
  by_split = {}
  for line in lines:
    by_split.setdefault(line['split'], []).append(line)
  figure = Figure(figsize=(11, 3.8), layout='constrained')
  figure.suptitle(title)
  for number, (key, label) in enumerate((('loss', 'loss (nats)'), ('acc', 'accuracy'))):
    axes = figure.add_subplot(1, 2, number + 1)
    for split, found in by_split.items():
      points = [(line['step'], line[key]) for line in found if line.get(key) is not None]
      if not points:
        continue
      steps, values = np.array(points, float).T
      if split == 'train':
        colour = COLOURS[split]
        axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
        axes.plot(steps, plots.running_mean(values), color=colour, label='train (running mean)')
      else:
        axes.plot(steps, values, color=COLOURS[split], marker='.', label=split)
    axes.set_xlabel('step')
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
  names = dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
  figure.legend(names.values(), names, loc='outside right center', fontsize=8)
  plots.save(path, figure)


def terms(path: Path, lines: Iterable[Mapping], title: str) -> None:
  """PNG of every term of the training loss by step, unweighted, and of the terms' weights where
  they move (`weight/<term>`; DML-Net, figure 15); none when there is only one term."""
  found = [line for line in lines if line['split'] == 'train']
  names = [name for name in (found[0] if found else ()) if name not in core.NO_TERMS]
  weights = [name for name in names if name.startswith('weight/')]
  names = [name for name in names if '/' not in name and any(line[name] for line in found)]
  if len(names) < 2:
    return
  steps = np.array([line['step'] for line in found])
  panels = len(names) + bool(weights)
  figure = Figure(figsize=(3.6 * panels, 3.2))
  figure.suptitle(f'{title}: terms of the training loss, unweighted')
  for number, name in enumerate(names):
    values = np.array([line[name] for line in found], float)
    axes = figure.add_subplot(1, panels, number + 1)
    axes.plot(steps, values, color=COLOURS['train'], alpha=0.25, linewidth=0.8)
    axes.plot(steps, plots.running_mean(values), color=COLOURS['train'])
    axes.set_title(name, fontsize=10)
    axes.set_xlabel('step')
    axes.grid(alpha=0.3)
  if weights:
    axes = figure.add_subplot(1, panels, panels)
    for number, name in enumerate(weights):
      values = [line[name] for line in found]
      axes.plot(steps, values, color=f'C{number}', label=name.removeprefix('weight/'))
    axes.set_title('weights of the terms', fontsize=10)
    axes.set_xlabel('step')
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
  figure.tight_layout()
  plots.save(path, figure)
