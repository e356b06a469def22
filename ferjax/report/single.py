"""The page of one run: results, training, labels, pictures, provenance."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ferjax import config as configs
from ferjax import files
from ferjax.errors import InputError
from ferjax.report import comparison, page
from ferjax.report import sections as evaluation
from ferjax.report.figures import curves
from ferjax.report.page import Cell, Section, share
from ferjax.report.pictures import as_jpeg, picture
from ferjax.report.words import DIVERGENCE, HONEST, MEASURES, numbers, split_name, words
from ferjax.runs.folder import Run, confusion, read, read_summary, tests_first

DRAWN_AS_SVG = ('learning_curves', 'terms')
LIMIT = 20e6  # bytes of pictures in a page; above it the largest become JPEG

RESULTS = {
  'last': 'last',
  'mean_last_5': 'mean of the last five',
  'best_by_val': 'best by validation',
  'best_by_test': 'best by test',
}
LABELS = {
  'given': 'the given labels',
  'predicted': 'the predicted distributions',
  'estimated': "the method's estimated distributions",
  'importance': 'the importance of the rows',
  'uncertainty': 'the uncertainty of the rows',
}


def write(workdirs: Sequence[Path], out: Path) -> None:
  """Writes the report of a run, or the comparison of several.

  Raises:
    InputError: a folder is no run, one of its files is damaged, or `out` cannot be written.
  """
  runs = [read(workdir) for workdir in workdirs]
  text = one(runs[0]) if len(runs) == 1 else comparison.page_of(runs)
  try:
    out.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(out) as file:
      file.write(text)
  except OSError as error:
    raise InputError(f'cannot write to {out}: {error}') from error


def one(run: Run) -> str:
  """The page of a run."""
  evaluations = [path.parent for path in sorted((run.workdir / 'eval').glob('*/summary.json'))]
  shown = [path for folder in (run.workdir, *evaluations) for path in evaluation.shown(folder)]
  if run.lines:
    shown = [path for path in shown if path.stem not in DRAWN_AS_SVG]
  pictures, reduced = _pictures(shown)
  found = evaluation.sections(run.workdir, run.record['classes'], run.splits, pictures, level=3)
  sections = [
    Section('Results', _results(run)),
    Section('Robustness', _robustness(run)),
    Section('Training', _training(run)),
    Section('Classes', found.pop('Classes')),
    Section('Poses', found.pop('Poses')),
    Section('Labels', _labels(run) + found.pop('Labels')),
    Section('Embeddings', evaluation.embeddings(run.summary) + found.pop('Embeddings')),
    *(Section(*part) for part in found.items()),
    *(_evaluation(folder, run, pictures) for folder in evaluations),
    Section('Where it comes from', _provenance(run)),
  ]
  missing = [*_missing(run), *reduced]
  lead = page.paragraph(_lead(run), 'lead')
  if missing:
    lead += page.notice(missing)
  return page.page(f'Run {run.name}', lead, sections)


def _lead(run):
  config = run.record['config']
  data = run.record.get('data', config['data.name'])
  model = f'{config["model.name"]} of width {config["model.width"]}'
  return (
    f'{config["method.name"]} with {model} on {data}: step {run.step} of {run.record["steps"]}.'
  )


def _missing(run):
  found, ended = [], run.summary.get('step')
  if not run.finished and ended is None:
    found.append(
      f'This run is not finished: step {run.step} of {run.record["steps"]}. The files that are '
      'written at its end (tables, pictures, summary.json) are missing.'
    )
  elif not run.finished:
    found.append(
      f'This run was continued: it is at step {run.step} of {run.record["steps"]}. Tables and '
      f'pictures are those of step {ended}.'
    )
  if not run.lines:
    found.append('The run has no metrics.jsonl, or an empty one: there are no curves.')
  elif not run.results['last']:
    found.append('Nothing was evaluated yet: no results.')
  if run.summary and not (run.workdir / 'predictions').is_dir():
    found.append('The folder predictions is missing: confusion matrices are pictures.')
  for folder in sorted((run.workdir / 'eval').glob('*/')):
    if not (folder / 'summary.json').is_file():
      found.append(f'The evaluation eval/{folder.name} is not finished: it is left out.')
  return found


def _pictures(paths):
  """{path: picture}, the largest as JPEG if they are too large for a page; and a note about it."""
  found = {path: picture(path) for path in paths}
  total, changed = sum(len(one.content) for one in found.values()), 0
  for path in sorted(found, key=lambda path: -len(found[path].content)):
    if total * 4 / 3 <= LIMIT:
      break
    smaller = as_jpeg(found[path])
    total -= len(found[path].content) - len(smaller.content)
    found[path] = smaller
    changed += 1
  note = f'To keep the page small, {changed} of its pictures are JPEG here and PNG in the folder.'
  return found, [note] if changed else []


def _results(run):
  if not run.results['last']:
    return page.paragraph('There are no results yet.')
  found = {name: run.results[key] for key, name in RESULTS.items() if run.results[key]}
  groups = {'': [('step', *(Cell(str(one['step'])) for one in found.values()))]}
  for split in (name for name in ('val', 'test') if name in run.results['last']):
    keys = [key for key in run.results['last'][split] if not key.startswith(('recall/', 'acc/'))]
    groups[split_name(split)] = [
      (
        evaluation.measure(key),
        *(evaluation.number(one.get(split, {}).get(key), key) for one in found.values()),
      )
      for key in keys
    ]
  note = f'{HONEST} {_price(run)}' if run.results['best_by_test'] else 'There is no test split.'
  if not run.results['best_by_val']:
    note += ' There are no validation rows, so nothing is “best by validation”.'
  if any('jensen_shannon' in (run.results['last'].get(name) or {}) for name in ('val', 'test')):
    note += f' {DIVERGENCE}'
  html = page.table('The last and the best evaluations', ['', *found], groups, note=note)
  path = run.workdir / 'report' / 'sets.csv'
  if path.is_file():
    html += evaluation.sets(path)
  return html


def _price(run):
  """What choosing the step on the test set adds, in a sentence."""
  best = run.results['best_by_test']['test']['acc']
  gains = {
    name: max(0.0, 100 * (best - run.results[key]['test']['acc']))
    for key, name in RESULTS.items()
    if key != 'best_by_test' and 'test' in (run.results[key] or {})
  }
  parts = [f'{gain:.1f} points above “{name}”' for name, gain in gains.items()]
  return f'Here “best by test” is {", ".join(parts)}.'


def _robustness(run):
  last = run.results['last'] or {}
  conditions = {'plain': last.get('test')}
  conditions |= {
    name.removeprefix('test/'): values
    for name, values in last.items()
    if name.startswith('test/') and isinstance(values, dict)
  }
  if len(conditions) < 2 or not conditions['plain']:
    return ''
  plain = conditions['plain']['acc']
  rows = [
    (
      name,
      share(values['acc']),
      Cell('' if name == 'plain' else f'{100 * (values["acc"] - plain):+.1f}'),
      *(share(values.get(key)) for key in ('mean_class_acc', 'f1_macro')),
    )
    for name, values in conditions.items()
  ]
  head = ['test pictures', 'accuracy', 'difference (points)']
  head += [MEASURES['mean_class_acc'], MEASURES['f1_macro']]
  html = page.table(f'Distorted test pictures, step {last["step"]}', head, rows)
  classes = [(f'recall/{name}', name) for name in run.record['classes']]
  recalls = [
    (name, *(share(values.get(key), heat=True) for key, _ in classes))
    for name, values in conditions.items()
  ]
  return html + page.table(
    'Recall by class', ['test pictures', *(n for _, n in classes)], recalls, kind='heat'
  )


def _training(run):
  html = page.curves(curves.learning_panels(run.lines, split_name), 'learning')
  if any(line['split'] == 'train' for line in run.lines):
    html += page.paragraph(
      'Training rows: the running mean over single batches, which are drawn faintly; the loss is '
      'the weighted sum of its terms. For other splits the loss is the cross-entropy.',
      'note',
    )
  terms = page.curves(curves.term_panels(run.lines), 'terms')
  if terms:
    html += page.heading('Terms of the loss', 3) + terms
  course = page.curves(curves.course_panels(run.lines), 'course')
  if course:
    html += page.heading('Course of the training', 3) + course
  return html


def _labels(run):
  html, measured = '', run.summary.get('training_labels', {})
  path = run.workdir / 'noise.csv'
  if path.is_file():
    counts = confusion(path, run.record['classes'], 'clean_label', 'label')
    wrong, total = counts.sum() - np.trace(counts), max(counts.sum(), 1)
    config = run.record['config']
    html += page.paragraph(
      f'Label noise ({config["noise.kind"]}): {100 * wrong / total:.2f} % of {counts.sum()} '
      'training labels are wrong.'
    )
    html += evaluation.confusion(
      counts,
      run.record['classes'],
      'Training labels before the noise and after it',
      corner='before',
      above='given to the method',
      note='',
    )
  if measured:
    columns = {'jensen_shannon': MEASURES['jensen_shannon'], 'auc': 'finds wrong labels (AUC)'}
    columns = {k: name for k, name in columns.items() if any(k in one for one in measured.values())}
    rows = [
      (
        LABELS.get(name, name),
        share(values.get('acc')),
        *(evaluation.number(values.get(key), '') for key in columns),
      )
      for name, values in ((name, numbers(values)) for name, values in measured.items())
    ]
    head = ['', 'most likely class is the label before the noise', *columns.values()]
    note = (
      'AUC: the probability that a row with a wrong label is more suspicious than one with a right '
      'label; 0.5 is chance. The command “ferjax relabel” lists the rows.'
    )
    note = note if 'auc' in columns else ''
    html += page.table('Training labels against what is known about them', head, rows, note=note)
  return html


def _evaluation(folder, run, pictures):
  summary = read_summary(folder / 'summary.json')
  splits = {
    name: numbers(values)
    for name, values in sorted(summary.items(), key=lambda item: tests_first(item[0]))
    if isinstance(values, dict) and 'acc' in values
  }
  rows = [
    (
      split_name(name),
      *(evaluation.number(values.get(key), key) for key in MEASURES),
    )
    for name, values in splits.items()
  ]
  html = page.table(
    f'Results at step {summary["step"]}, from eval/{folder.name}',
    ['split', *MEASURES.values()],
    rows,
  )
  for key, what in (
    ('without', 'Inputs that the method can use but the data set does not have'),
    ('classes_without_rows', 'Means are over the other classes; classes without rows'),
  ):
    if summary.get(key):
      html += page.paragraph(f'{what}: {words(summary[key])}.', 'note')
  path = folder / 'report' / 'sets.csv'
  if path.is_file():
    html += evaluation.sets(path)
  names = [*splits, *(f'test/{name}' for name in summary.get('sets', ()))]
  names.sort(key=tests_first)
  parts = evaluation.sections(folder, run.record['classes'], names, pictures, level=4)
  parts['Embeddings'] = evaluation.embeddings(summary) + parts['Embeddings']
  for title, part in parts.items():
    html += page.heading(title, 3) + part if part else ''
  return Section(f'Evaluated on {summary.get("data", folder.name)}', html)


def _provenance(run):
  record, summary = run.record, run.summary
  devices = f'{record.get("device_count", "?")} × {record.get("device_kind", "?")}'
  if record.get('process_count', 1) != 1:
    devices += f', {record["process_count"]} processes'
  speeds = [
    line['images_per_s']
    for line in run.lines
    if line['split'] == 'train' and line.get('images_per_s')
  ]
  rows = [
    ('folder', str(run.workdir)),
    ('method', str(record['config']['method.name'])),
    ('data set', str(record.get('data', ''))),
    ('fingerprint of the data', record['fingerprint']),
    ('sha256 of the training labels', str(record['labels_sha256'])),
    ('rows', words(record.get('rows', {}))),
    ('the same picture in two splits', words(record.get('duplicates', {})) or 'none'),
    ('left out as near duplicates', words(record.get('dropped_duplicates', {})) or 'none'),
    ('classes', words(record['classes'])),
    ('poses (yaw, degrees)', words(record.get('poses', ())) or 'unknown'),
    ('seeds', words({key: record['config'][key] for key in comparison.SEEDS})),
    ('steps', f'{run.step} of {record["steps"]}'),
    ('stopped early', 'yes' if summary.get('stopped_early') else 'no'),
    ('sha256 of the state', str(summary.get('state_sha256', 'known at the end of the run'))),
    ('git revision', str(record.get('git_revision') or 'unknown')),
    ('devices', devices),
    ('pictures per second (median)', f'{np.median(speeds):.1f}' if speeds else 'unknown'),
    ('versions', words(record.get('versions', {}))),
  ]
  weights = record.get('weights')
  if isinstance(weights, dict):
    rows += [(f'weights: {key.replace("_", " ")}', words(value)) for key, value in weights.items()]
  else:
    rows.append(('weights', 'none: trained from scratch'))
  defaults = configs.flat(configs.plain(configs.base()))
  differing = [
    (key, words(value), words(defaults[key]) if key in defaults else '')
    for key, value in sorted(record['config'].items())
    if key not in defaults or value != defaults[key]
  ]
  every = page.facts(
    'Every key', [(key, words(value)) for key, value in sorted(record['config'].items())]
  )
  return (
    page.facts('This run', rows)
    + page.table(
      'Config keys that differ from the default',
      ['key', 'value', 'default of ferjax.config.base()'],
      differing,
      note='Keys of the method and the sampler have no default.',
      kind='keys',
    )
    + page.folded('The whole config', every)
  )
