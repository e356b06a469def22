"""What a run leaves behind: predictions, tables, pictures, `summary.json`."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from ferjax.runs import checkpoint
from ferjax.report.figures import embeddings, heatmaps, plots, sheets, tables
from ferjax.metrics.predictions import Predictions, averages, measure, probabilities, write_predictions
from ferjax.training import logs
from ferjax.core import TrainState
from ferjax.data import dataset
from ferjax.images import distort
from ferjax.losses.cross_entropy import cross_entropy
from ferjax.losses.divergence import jensen_shannon

COLOURS = {'train': 'tab:blue', 'val': 'tab:orange', 'test': 'tab:green'}
COLOURS |= {f'test/{name}': f'C{number}' for number, name in enumerate(distort.DISTORTIONS, 3)}


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
    predictions: By name as in `build.evaluations`, of the final state.
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
  lines = logs.read_lines(workdir / 'metrics.jsonl')
  for name, predicted in predictions.items():
    rows = data.splits.get(name) if pictures else None
    split(workdir, rows, predicted, data.classes, name, data.poses)
  if looks:
    heatmaps.write(workdir / 'report', looks, data.classes)
  learning_curves(workdir / 'report' / 'learning_curves.png', lines, workdir.name)
  terms(workdir / 'report' / 'terms.png', lines, workdir.name)
  summary = logs.summarise(lines) | {
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
  logs.write_json(workdir / 'summary.json', summary)
  return summary


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
  names = [name for name in (found[0] if found else ()) if name not in logs.NO_TERMS]
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


def confident_mistakes(
  path: Path,
  split: dataset.Split,
  predictions: Predictions,
  classes: Sequence[str],
  title: str,
  count: int = 24,
) -> None:
  """PNG of the wrong predictions that the model was surest of: given and predicted class, share."""
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
      f'said: {classes[prediction[row]]} {100 * shares[row, prediction[row]]:.0f} %',
      fontsize=7,
      loc='left',
    )
  figure.tight_layout()
  plots.save(path, figure)


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


def _cross_entropy_histogram(path, losses, wrong):
  figure = Figure(figsize=(6.4, 3.8))
  axes = figure.add_subplot()
  edges = np.linspace(0, max(float(np.quantile(losses, 0.995)), 1e-3), 41)
  for part, colour, name in ((~wrong, 'tab:blue', 'right'), (wrong, 'tab:red', 'wrong')):
    if not part.any():
      continue
    label = f'{name} label: {part.sum()} rows, median {np.median(losses[part]):.2f}'
    counts = np.clip(losses[part], 0, edges[-1])
    axes.hist(counts, edges, color=colour, alpha=0.55, label=label)
  axes.set_xlabel('cross-entropy of the given label (nats); the last bar holds all above')
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
  """PNG of label distributions beside their pictures (LDL-ALSG, figure 1), and beside the true or
  voted ones where these are known.

  Args:
    path: The file.
    rows: The split that they are of.
    distribution: f[n, C], of its first n rows.
    classes: Class names.
    title: What they are.
    clean: i32[n], the labels before the noise; half of the rows drawn are then wrong ones.
    count: Rows to show, drawn at random, always the same.
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
  title = f'{title} label distributions of rows drawn at random'
  figure.suptitle(title + (' (blue) and true or voted ones (grey)' if truth is not None else ''))
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
