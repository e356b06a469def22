"""The comparison of runs: those that differ only in their seeds are one line, with their spread."""

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ferjax.report import page
from ferjax.report.figures import plots
from ferjax.report.page import Cell, Section
from ferjax.report.words import HONEST, is_share, split_name, words
from ferjax.runs.folder import Run

SEEDS = ('seed', 'noise.seed', 'data.seed')

# Keys without effect on the result: the place of a run, its speed, its figures.
SAME_RESULT = ('data.dir', 'data.manual_dir', 'parallel.', 'reading.', 'profile.', 'log_every')
SAME_RESULT += ('checkpoint.', 'eval.sheets', 'eval.heatmaps', 'eval.tsne', 'eval.embeddings')
FEW, MANY = 3, 8  # config keys at most in the table of results, and in a table of their own
PERCENT = '\N{NO-BREAK SPACE}%'


class Group(NamedTuple):
  """Runs that differ only in their seeds.

  Attributes:
    name: Of the line.
    runs: All of them.
    counted: Those whose numbers count: the finished ones, or all if none is finished.
    config: {key: value} without the keys that may differ between the runs.
  """

  name: str
  runs: tuple[Run, ...]
  counted: tuple[Run, ...]
  config: dict[str, Any]


class Spread(NamedTuple):
  """Mean and sample standard deviation (None for one value) of `count` values."""

  mean: float
  deviation: float | None
  count: int


def spread(values: Iterable[float | None]) -> Spread | None:
  """The spread of the values that are not None; None if all are."""
  known = [value for value in values if value is not None]
  if not known:
    return None
  deviation = float(np.std(known, ddof=1)) if len(known) > 1 else None
  return Spread(float(np.mean(known)), deviation, len(known))


def groups(runs: Sequence[Run]) -> list[Group]:
  """The lines of a comparison, in the order of their first runs."""
  found: dict[str, list[Run]] = {}
  for run in runs:
    same = sorted(_fixed(run).items()), run.record['classes'], run.record['fingerprint']
    found.setdefault(repr(same), []).append(run)
  lines = []
  for number, members in enumerate(found.values()):
    counted = [run for run in members if run.finished] or members
    name = f'{_letter(number)}\N{NO-BREAK SPACE}{_common_name(members)}'.strip()
    lines.append(Group(name, tuple(members), tuple(counted), _fixed(members[0])))
  return lines


def _fixed(run):
  return {
    key: value
    for key, value in run.record['config'].items()
    if key not in SEEDS and not key.startswith(SAME_RESULT)
  }


def _letter(number):
  letters = ''
  number += 1
  while number:
    number, rest = divmod(number - 1, 26)
    letters = chr(ord('A') + rest) + letters
  return letters


def _common_name(runs):
  return os.path.commonprefix([run.name for run in runs]).rstrip('_-. ')


def differing_keys(lines: Sequence[Group]) -> list[str]:
  """The config keys that differ between the lines, sorted. Keys that only some lines have are among
  them."""
  keys = sorted(set().union(*(line.config for line in lines)))
  missing = object()
  return [
    key
    for key in keys
    if any(line.config.get(key, missing) != lines[0].config.get(key, missing) for line in lines)
  ]


def page_of(runs: Sequence[Run]) -> str:
  """The page that compares runs."""
  lines = groups(runs)
  sections = [
    Section('Lines and results', _results(lines)),
    Section('Learning', _curves(lines)),
    Section('Classes', _recalls(lines)),
    Section('Poses', _poses(lines)),
    Section('Robustness', _conditions(lines)),
    Section('Data sets', _sets(lines)),
    Section('Labels', _labels(lines)),
    Section('Embeddings', _embeddings(lines)),
    Section('Runs', _runs(lines)),
  ]
  counts = f'{_count(len(runs), "run")} in {_count(len(lines), "line")}'
  lead = page.paragraph(
    f'{counts}. Runs that differ only in their seeds ({", ".join(SEEDS)}) are one line: mean ± '
    'sample standard deviation over its n runs; with n = 1 there is no spread to show. Unless '
    'stated otherwise, numbers are those of the last evaluation.',
    'lead',
  )
  notes = _notes(lines)
  if notes:
    lead += page.notice(notes)
  return page.page(f'Comparison of {counts}', lead, sections)


def _count(number, name):
  return f'{number} {name}' + ('' if number == 1 else 's')


def _notes(lines):
  notes = []
  for line in lines:
    for run in line.runs:
      if run.finished:
        continue
      counts = 'counts nevertheless' if run in line.counted else 'is left out of the means'
      what = f'step {run.step} of {run.record["steps"]}'
      if not run.results['last']:
        what += ', nothing was evaluated yet'
      notes.append(f'{run.workdir} ({line.name}) is not finished: {what}; it {counts}.')
    seeds = [tuple(run.record['config'][key] for key in SEEDS) for run in line.counted]
    if len(set(seeds)) < len(seeds):
      notes.append(f'{line.name}: two of its runs have the same seeds, so n counts them twice.')
  prints = {run.record['fingerprint'] for line in lines for run in line.runs}
  if len(prints) > 1:
    notes.append(
      f'The data of the runs have {len(prints)} different fingerprints: their test pictures may '
      'differ, and then their numbers cannot be compared. See the table of runs.'
    )
  if len({tuple(run.record['classes']) for line in lines for run in line.runs}) > 1:
    notes.append('The runs do not have the same classes.')
  return notes


def _value(values: Sequence[float | None], key: str) -> Cell:
  """Mean ± standard deviation of a measure; with the number of runs if some do not have it."""
  found = spread(values)
  if found is None:
    return Cell('')
  if is_share(key):
    text = f'{100 * found.mean:.1f}'
    text += PERCENT if found.deviation is None else f' ± {100 * found.deviation:.1f}{PERCENT}'
  else:
    text = f'{found.mean:.3f}' + ('' if found.deviation is None else f' ± {found.deviation:.3f}')
  if found.count < len(values):
    text += f' (n = {found.count})'
  return Cell(text.replace(' ', '\N{NO-BREAK SPACE}'))


def _of(line: Group, result: str, split: str, key: str) -> list[float | None]:
  found = []
  for run in line.counted:
    values = (run.results[result] or {}).get(split) or {}
    found.append(values.get(key))
  return found


def _results(lines):
  columns = [
    ('test: accuracy', 'last', 'test', 'acc'),
    ('test: mean recall of the classes', 'last', 'test', 'mean_class_acc'),
    ('test: macro F1', 'last', 'test', 'f1_macro'),
    ('test: accuracy, mean of the last five', 'mean_last_5', 'test', 'acc'),
    ('test: accuracy, best by validation', 'best_by_val', 'test', 'acc'),
    ('test: accuracy, best by test', 'best_by_test', 'test', 'acc'),
    ('validation: accuracy', 'last', 'val', 'acc'),
  ]
  columns = [one for one in columns if any(_has(_of(line, *one[1:])) for line in lines)]
  keys = differing_keys(lines)
  settings = [
    [words(line.config[key]) if key in line.config else '' for key in keys] for line in lines
  ]
  results = [
    [Cell(str(len(line.counted))), *(_value(_of(line, *one[1:]), one[3]) for one in columns)]
    for line in lines
  ]
  names = [line.name for line in lines]
  measures = ['n', *(name for name, *_ in columns)]
  html = '' if columns else page.paragraph('Nothing was evaluated yet.')
  same = '' if keys else 'All runs have the same config, except for the seeds.'
  if len(keys) <= FEW:
    rows = [[n, *a, *b] for n, a, b in zip(names, settings, results, strict=True)]
    html += page.table('Results', ['line', *keys, *measures], rows, note=same)
  else:
    rows = [[n, *b] for n, b in zip(names, results, strict=True)]
    html += page.table('Results', ['line', *measures], rows, note=same)
    for start in range(0, len(keys), MANY):
      some = slice(start, start + MANY)
      rows = [[n, *a[some]] for n, a in zip(names, settings, strict=True)]
      caption = f'Config keys that differ{", continued" if start else ""}'
      html += page.table(caption, ['line', *keys[some]], rows)
    html += page.paragraph('An empty cell: the line has no such key.', 'note')
  if any(result == 'best_by_test' for _, result, *_ in columns):
    html += page.paragraph(HONEST, 'note')
  return html


def _has(values):
  return any(value is not None for value in values)


def _curves(lines):
  drawings = [
    (f'{name}: {measure}', [_curve(line, split, key) for line in lines], label)
    for split, name in (('test', 'test'), ('val', 'validation'), ('train', 'training batches'))
    for key, measure, label in (
      ('acc', 'accuracy', 'accuracy (share of 1)'),
      ('loss', 'loss', 'loss (nats)'),
    )
  ]
  shown = [
    plots.Panel(caption, found, 'step', label)
    for caption, found, label in drawings
    if any(len(line.x) > 1 for line in found)  # a single point is in the tables
  ]
  if not shown:
    return ''
  return page.curves(shown, 'compared') + page.paragraph(
    'Means over the runs of a line at the steps that they have in common, with a band of ± one '
    'sample standard deviation; training batches: running mean.',
    'note',
  )


def _curve(line, split, key):
  by_run = [
    {
      one['step']: one[key]
      for one in run.lines
      if one['split'] == split and one.get(key) is not None
    }
    for run in line.counted
  ]
  by_run = [found for found in by_run if found]
  steps = sorted(set.intersection(*map(set, by_run))) if by_run else []
  name = f'{line.name} (n = {len(by_run)})'
  if not steps:
    return plots.Line(name, [], [])
  values = np.array([[found[step] for step in steps] for found in by_run])
  if split == 'train':
    values = np.array([plots.running_mean(one) for one in values])
  mean, points = values.mean(0), split != 'train'
  if len(values) < 2:
    return plots.Line(name, steps, mean, points=points)
  deviation = values.std(0, ddof=1)
  return plots.Line(name, steps, mean, mean - deviation, mean + deviation, points=points)


def _table(
  lines: Sequence[Group],
  caption: str,
  columns: Mapping[str, tuple[str, Callable[[Run], float | None]]],
  kind: str,
  heat: bool = False,
) -> str:
  """A table of lines by columns {name: (key of the measure, function from a run to its value)}."""
  rows = []
  for line in lines:
    cells = []
    for key, value in columns.values():
      values = [value(run) for run in line.counted]
      cell, found = _value(values, key), spread(values)
      cells.append(cell._replace(heat=found.mean if heat and found else None))
    rows.append((line.name, *cells))
  if not any(cell.text for _, *cells in rows for cell in cells):
    return ''
  return page.table(caption, ['line', *columns], rows, kind=kind)


def _measured(split, key):
  """A column of `_table`: a measure of the last evaluation."""
  return key, lambda run: ((run.results['last'] or {}).get(split) or {}).get(key)


def _last_keys(lines, split):
  return dict.fromkeys(
    key
    for line in lines
    for run in line.counted
    for key in ((run.results['last'] or {}).get(split) or {})
  )


def _recalls(lines):
  html = ''
  classes = dict.fromkeys(name for line in lines for r in line.runs for name in r.record['classes'])
  for split in ('test', 'val'):
    columns = {name: _measured(split, f'recall/{name}') for name in classes}
    html += _table(lines, f'Recall by class, {split_name(split)}', columns, 'heat', heat=True)
  return html


def _poses(lines):
  html = ''
  for split in ('test', 'val'):
    keys = [key for key in _last_keys(lines, split) if re.fullmatch(r'acc/pose_-?\d+', key)]
    keys.sort(key=lambda key: int(key.removeprefix('acc/pose_')))
    columns = {f'{key.removeprefix("acc/pose_")}°': _measured(split, key) for key in keys}
    columns |= {
      name: _measured(split, key)
      for key, name in (('pose/acc', 'accuracy of the pose itself'),)
      if key in _last_keys(lines, split)
    }
    if columns:
      html += _table(lines, f'Accuracy by pose (yaw), {split_name(split)}', columns, '')
  return html


def _conditions(lines):
  conditions = dict.fromkeys(
    name
    for line in lines
    for run in line.counted
    for name in (run.results['last'] or {})
    if name.startswith('test/')
  )
  if not conditions:
    return ''
  columns = {'plain': _measured('test', 'acc')}
  columns |= {name.removeprefix('test/'): _measured(name, 'acc') for name in conditions}
  return _table(lines, 'Accuracy on distorted test pictures', columns, '')


def _summarised(part, name, key):
  """A column of `_table`: a number of `summary.json`."""

  def value(run):
    found = run.summary.get(part, {}).get(name, {}).get(key)
    return found if isinstance(found, int | float) else None

  return key, value


def _names(lines, part):
  return dict.fromkeys(
    name for line in lines for run in line.counted for name in run.summary.get(part, {})
  )


def _sets(lines):
  columns = {name: _summarised('sets', name, 'acc') for name in _names(lines, 'sets')}
  columns |= {
    f'mean of {name}': _summarised('averages', name, 'acc') for name in _names(lines, 'averages')
  }
  return _table(lines, 'Test accuracy on each data set', columns, '') if columns else ''


def _labels(lines):
  names = _names(lines, 'training_labels')
  html = ''
  for key, caption in (
    ('acc', 'Training rows whose most likely class is the label before the noise'),
    ('jensen_shannon', 'Training rows: divergence from the true or voted distributions (nats)'),
    ('auc', 'Training rows: how well wrong labels are found (AUC, 0.5 is chance)'),
  ):
    columns = {name: _summarised('training_labels', name, key) for name in names}
    columns = {
      name: column
      for name, column in columns.items()
      if _has(column[1](run) for line in lines for run in line.counted)
    }
    html += _table(lines, caption, columns, '') if columns else ''
  return html


def _embeddings(lines):
  html = ''
  wanted = ('recall@1', 'knn/f1_macro', 'nearest_mean/f1_macro', 'nmi', 'silhouette/expression')
  heads = (
    'Recall@1',
    '11 nearest training rows: macro F1',
    'nearest class mean: macro F1',
    'normalised mutual information',
    'silhouette of the classes',
  )
  for split in _names(lines, 'embeddings'):
    columns = {
      head: _summarised('embeddings', split, key) for key, head in zip(wanted, heads, strict=True)
    }
    html += _table(lines, f'Embeddings, {split_name(split)}', columns, '')
  return html


def _runs(lines):
  rows = []
  for line in lines:
    for run in line.runs:
      acc = ((run.results['last'] or {}).get('test') or {}).get('acc')
      rows.append(
        (
          line.name,
          str(run.workdir),
          *(words(run.record['config'][key]) for key in SEEDS),
          Cell(f'{run.step} of {run.record["steps"]}'),
          page.share(acc),
          run.record['fingerprint'][:12],
          str(run.summary.get('state_sha256', ''))[:12],
          str(run.record.get('git_revision') or '')[:12],
        )
      )
  head = ['line', 'folder', *SEEDS, 'step', 'test accuracy', 'data', 'state', 'git revision']
  note = 'Data (fingerprint), state (sha256) and git revision: the first twelve digits.'
  return page.table('All runs', head, rows, note=note)
