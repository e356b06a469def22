"""The model card of an export: what the model is, how good it is, and what it is not for."""

import importlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from tabulate import tabulate

from ferjax.metrics import classification as measures
from ferjax.runs import folder, history
from ferjax.runs import record as records

UNKNOWN = 'not stated: ask the owner of the data'
NOT_MEASURED = 'not measured'


def metrics(workdir: Path, step: int, classes: Sequence[str]) -> dict[str, Any]:
  """What a run's folder says about one of its checkpoints.

  Args:
    workdir: The run's folder.
    step: The checkpoint's.
    classes: Class names in label order.

  Returns:
    `evaluated` {split or split/distortion: metrics} at that step; `per_class` of the test split
    (or of the last one there is), `split`, where the run ended at that step; `last_step`,
    `best_step` (by validation accuracy), `noise`, `labels_right`, `duplicates`, each where known.
  """
  workdir = Path(workdir)
  record = records.read(workdir)
  found = {
    'evaluated': {
      line['split']: line
      for line in history.read_lines(workdir / 'metrics.jsonl')
      if line['step'] == step and line['split'] != 'train'
    },
    'noise': record['config'].get('noise', {}),
    'duplicates': record.get('duplicates', {}),
  }
  summary = folder.read_summary(workdir / 'summary.json')
  if not summary:
    return found
  found['last_step'] = summary['step']
  found['best_step'] = (summary.get('best_by_val') or {}).get('step')
  found['labels_right'] = summary.get('training_labels', {}).get('given', {}).get('acc')
  paths = [workdir / 'predictions' / f'{name}.csv' for name in ('test', 'val')]
  paths = [path for path in paths if path.is_file()]
  if summary['step'] == step and paths:
    label, prediction = folder.classes_of_rows(paths[0], classes)
    found['per_class'] = measures.per_class(label, prediction, len(classes))
    found['split'] = paths[0].stem
  return found


def write(
  description: Mapping[str, Any],
  known: Mapping[str, Any],
  measured: Mapping[str, Any],
  data_licence: str = '',
) -> str:
  """The card as Markdown, from the template `card.md`.

  Args:
    description: The content of `model.json` without its files.
    known: See `metrics`.
    measured: See `writer.by_group`; empty where nothing was measured.
    data_licence: Of the training data; '' for what their builders state.
  """
  if description['without']:
    known = _naive(known)
  templates = Environment(  # Markdown, not HTML: nothing to escape
    loader=PackageLoader('ferjax.export', ''),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  inputs = description['inputs']
  return templates.get_template('card.md').render(
    **description,
    **_what(description),
    **_data(description, known, data_licence),
    **_limits(description, known, measured),
    start=_start(description['run'].get('weights', {})),
    chosen=_chosen(description, known),
    measurements=_measurements(description, known, measured),
    derived=[name for name, part in inputs.items() if 'derived_from' in part],
    not_measured=NOT_MEASURED,
    table=_table,
  )


def _naive(known):
  """What is known about the model without the features that it predicts better with."""
  evaluated = {
    split: {k.removeprefix('naive/'): v for k, v in line.items() if k.startswith('naive/')}
    for split, line in known['evaluated'].items()
  }
  return {k: v for k, v in known.items() if k not in ('per_class', 'split')} | {
    'evaluated': {split: found for split, found in evaluated.items() if found}
  }


def _table(header, rows):
  return tabulate(rows, header, tablefmt='github', disable_numparse=True)


def _percent(share):
  return NOT_MEASURED if share is None else f'{100 * share:.2f} %'


def _what(description):
  """The method and the arrays."""
  document = importlib.import_module(f'ferjax.methods.{description["method"]}').__doc__
  paragraphs = [' '.join(part.split()) for part in document.strip().split('\n\n')]
  arrays = [
    (f'`{name}`', f'[{", ".join(map(str, part["shape"]))}]', part['dtype'], part['is'])
    for part_of in ('inputs', 'outputs')
    for name, part in description[part_of].items()
  ]
  return {
    'idea': paragraphs[0],
    'paper': next((p for p in paragraphs if p.startswith('Reference:')), ''),
    'precision': description['config']['precision'],
    'labels': list(enumerate(description['classes'])),
    'arrays': arrays,
  }


def _start(weights):
  """What training started from, if not from random weights."""
  if not weights:
    return ''
  source, licence = weights.get('source', {}), weights.get('licence')
  what = f'the weights `{weights["file"]}`'
  if source:
    run = f'`{weights["file"]}`, step {source["step"]}'
    what = f'a run of {source["method"]} on {source["data"]} ({run})'
  text = f' Training started from {what}, SHA-256 `{weights["sha256"][:16]}`.'
  text += f' Licence of the weights: {licence}.' if licence else ''
  if weights.get('provenance'):
    kind = 'That run started from published weights. ' if source else ''
    text += f' {kind}{weights["provenance"]}'
  return text


def data_terms(config: Mapping[str, Any]) -> str:
  """The terms of the data sets that a config trains on, as their builders state them."""
  specs = config['data'].get('sets') or [config['data']['name']]
  found = []
  for name in dict.fromkeys(spec.partition(':')[0] for spec in specs):
    if name == 'synthetic_faces':
      found.append('synthetic_faces: drawn by ferjax, no real person is in them, no terms')
      continue
    module = importlib.import_module(f'ferjax.datasets.{name}.{name}_dataset_builder')
    text = getattr(module.Builder, 'MANUAL_DOWNLOAD_INSTRUCTIONS', None) or ''
    terms = re.search(r'Terms: (.*)', ' '.join(text.split()))
    known = terms and terms[1] != 'yours.'
    found.append(f'{name}: {terms[1].rstrip(".")}' if known else UNKNOWN)
  return '; '.join(found)


def _data(description, known, data_licence):
  config, noise = description['config'], known['noise']
  names = config['data'].get('sets') or [config['data']['name']]
  if description['data'] == 'manifest' and config['data']['path']:
    names = [f'`{config["data"]["path"]}` (a list of pictures)']
  changed = copies = ''
  if noise.get('kind', 'none') != 'none':
    changed = f' Labels of training rows were changed on purpose: {noise["kind"]}'
    changed += f', rate {noise["rate"]}' if noise.get('rate') else ''
    right = known.get('labels_right')
    changed += f'; {_percent(right)} of them were right.' if right is not None else '.'
  if known['duplicates']:
    pairs = ', '.join(f'{k}: {v}' for k, v in known['duplicates'].items())
    copies = f' Byte for byte the same pictures are in two splits ({pairs}).'
  rows = description['run'].get('rows', {}).items()
  return {
    'names': names,
    'rows': ', '.join(f'{count} {split}' for split, count in rows),
    'changed_labels': changed,
    'copies': copies,
    'licence': data_licence or data_terms(config),
  }


def _chosen(description, known):
  """How the exported step was chosen."""
  step, text = description['step'], ''
  if known.get('last_step') == step:
    text += ', the last of the run'
  if known.get('best_step') == step:
    text += ', the best by validation accuracy'
  if description['checkpoint'] not in ('last', 'best'):
    text += (
      '; it was given by number: if it was chosen by its test accuracy, the figures are too good'
    )
  return text


def _measurements(description, known, measured):
  """Paragraphs and tables of accuracies."""
  parts = []
  limit = description['config'].get('eval', {}).get('limit', 0)
  if limit and known['evaluated']:
    parts.append(f'Figures of splits are of their first {limit} rows, where they have more.')
  if description['without']:
    what = ' and '.join(description['without'])
    parts.append(f'The model predicts better with {what}, which this export does not take.')
  if measured:
    share = _percent(measured['acc'])
    parts.append(f'Measured for this card: {share} of {measured["rows"]} test rows are right.')
  if not known['evaluated']:
    return [*parts, f'In the run: {NOT_MEASURED} at this step.']
  rows = [
    (name, *(_percent(found.get(key)) for key in ('acc', 'mean_class_acc', 'f1_macro')))
    for name, found in known['evaluated'].items()
  ]
  parts.append(_table(('split', 'accuracy', 'mean accuracy of classes', 'macro F1'), rows))
  return parts + _by_class(description['classes'], known)


def _by_class(classes, known):
  """Of one split all measures where its predictions are known, else the recalls of each split."""
  if 'per_class' in known:
    found, rows = known['per_class'], []
    for i, name in enumerate(classes):
      keys = ('recall', 'precision', 'f1')
      shares = [_percent(found[key][i]) if found['rows'][i] else 'no rows' for key in keys]
      rows.append((name, found['rows'][i], *shares))
    table = _table(('class', 'rows', 'recall', 'precision', 'F1'), rows)
    return [f'By class, {known["split"]}:', table]
  parts = []
  for split, found in known['evaluated'].items():
    if '/' not in split and f'recall/{classes[0]}' in found:
      rows = [(name, _percent(found.get(f'recall/{name}'))) for name in classes]
      parts += [f'By class, {split}:', _table(('class', 'recall'), rows)]
  return parts


def _limits(description, known, measured):
  test = known['evaluated'].get('test') or next(iter(known['evaluated'].values()), {})
  poses = {k.removeprefix('acc/pose_'): v for k, v in test.items() if k.startswith('acc/pose_')}
  if 'pose' in measured:
    poses = {k: v['acc'] for k, v in measured['pose'].items()}
  of_test = 'test' in known['evaluated'] or 'pose' in measured or len(poses) < 2
  distorted = {k.partition('/')[2]: v for k, v in known['evaluated'].items() if '/' in k}
  noise = known['noise'].get('kind', 'none')
  labels = (
    'the training labels are used as they are given; how many are wrong is not known'
    if noise == 'none'
    else 'a part of the training labels was wrong (see Data); those of test rows were not changed'
  )
  return {
    'pose_split': '' if of_test else f', of the split {test.get("split", "")}',
    'by_pose': _by_pose(poses),
    'by_person': _by_person(measured),
    'label_noise': labels,
    'distorted': ', '.join(f'{k}: {_percent(v.get("acc"))}' for k, v in distorted.items()),
  }


def _by_pose(poses):
  if not poses:
    return NOT_MEASURED
  if len(poses) == 1:
    return f'the test rows have only one pose ({next(iter(poses))}°)'
  listing = ', '.join(f'{angle}°: {_percent(acc)}' for angle, acc in poses.items())
  return f'{listing} (apart by {100 * (max(poses.values()) - min(poses.values())):.1f} points)'


def _by_person(measured):
  if not measured:
    return f'{NOT_MEASURED} (`--evaluate` measures it where people are known)'
  if 'subject' not in measured:
    return f'{NOT_MEASURED}: the test rows do not name the people in them'
  found = measured['subject']
  low, high = found['rows_of_each']
  each = f'{low} to {high}' if low < high else low
  return (
    f'of {found["people"]} people with {each} pictures each, mean '
    f'{_percent(found["mean"])}, standard deviation {100 * found["stddev"]:.1f} points, lowest '
    f'tenth below {_percent(found["lowest_tenth"])}, worst {_percent(found["worst"])}'
  )
