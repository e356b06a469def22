"""The model card of an export: what the model is, how well it does, and what it is not for."""

import importlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ferjax.metrics import classification as measures
from ferjax.runs import folder, history
from ferjax.runs import record as records

UNKNOWN = 'not stated: ask the owner of the data'
NOT_MEASURED = 'not measured'


def metrics(workdir: Path, step: int, classes: Sequence[str]) -> dict[str, Any]:
  """What a run's folder says of one of its checkpoints.

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
  """The card as Markdown.

  Args:
    description: What `model.json` holds, but for its files.
    known: See `metrics`.
    measured: See `writer.by_group`; empty where nothing was measured.
    data_licence: Of the training data; found out where it is ''.
  """
  if description['without']:
    known = _naive(known)
  parts = [
    _what(description),
    _data(description, known, data_licence),
    _use(description),
    _metrics(description, known, measured),
    _limits(description, known, measured),
    _loading(description),
  ]
  return '\n\n'.join(parts) + '\n'


def _naive(known):
  """What is known of the model without the features that it predicts better with."""
  evaluated = {
    split: {k.removeprefix('naive/'): v for k, v in line.items() if k.startswith('naive/')}
    for split, line in known['evaluated'].items()
  }
  return {k: v for k, v in known.items() if k not in ('per_class', 'split')} | {
    'evaluated': {split: found for split, found in evaluated.items() if found}
  }


def _table(header, rows):
  lines = [header, ['---'] * len(header), *rows]
  return '\n'.join('| ' + ' | '.join(map(str, line)) + ' |' for line in lines)


def _percent(share):
  return NOT_MEASURED if share is None else f'{100 * share:.2f} %'


def _what(description):
  config = description['config']
  document = importlib.import_module(f'ferjax.methods.{description["method"]}').__doc__
  paragraphs = [' '.join(part.split()) for part in document.strip().split('\n\n')]
  paper = next((p for p in paragraphs if p.startswith('Reference:')), '')
  poses = ', '.join(f'{angle}°' for angle in description['poses'])
  tells_poses = poses and 'pose_logits' in description['outputs']
  labels = _table(('index', 'class'), [(i, name) for i, name in enumerate(description['classes'])])
  inputs = [
    (f'`{name}`', _shape(part), part['dtype'], part['is'])
    for kind in ('inputs', 'outputs')
    for name, part in description[kind].items()
  ]
  return f"""# Facial expressions: {config['model']['name']} trained by {description['method']}

{paragraphs[0]} {paper}

The network is a {config['model']['name']} (width {config['model']['width']}), {
    description['parameters'] / 1e6:.2f} million parameters and statistics, in {
    config['precision']
  }, from step {description['step']} (checkpoint `{
    description['checkpoint']
  }`), exported by ferjax {description['versions']['ferjax']}.{_further(config)}

## Labels, in the order of `probabilities` and `logits`

{labels}
{
    f'''
Pose classes, in the order of `pose_logits` (yaw): {poses}.
'''
    if tells_poses
    else ''
  }
## Inputs and outputs

{_table(('name', 'shape', 'type', 'what it is'), inputs)}"""


def _further(config):
  """What a config adds to a method."""
  said = ''
  if config.get('terms'):
    said += f' Its loss has further terms: {", ".join(config["terms"])} (see the config).'
  if config.get('ema'):
    said += f' Its parameters are averages over training (decay {config["ema"]}).'
  return said


def _shape(part):
  return '[' + ', '.join(map(str, part['shape'])) + ']'


def data_terms(config: Mapping[str, Any]) -> str:
  """What ferjax knows of the terms of the data sets that a config trains on, or ''."""
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
  config, run = description['config'], description['run']
  names = config['data'].get('sets') or [config['data']['name']]
  rows = ', '.join(f'{count} {split}' for split, count in run.get('rows', {}).items())
  noise = known['noise']
  changed = ''
  if noise.get('kind', 'none') != 'none':
    changed = f' Labels of training rows were changed on purpose: {noise["kind"]}'
    changed += f', rate {noise["rate"]}' if noise.get('rate') else ''
    right = known.get('labels_right')
    changed += f'; {_percent(right)} of them were right.' if right is not None else '.'
  copies = ''
  if known['duplicates']:
    pairs = ', '.join(f'{k}: {v}' for k, v in known['duplicates'].items())
    copies = f' Byte for byte the same picture stands in two splits ({pairs}).'
  if description['data'] == 'manifest' and config['data']['path']:
    names = [f'`{config["data"]["path"]}` (a list of pictures)']
  return f"""## Data

{', '.join(names)}: {rows or 'rows not known'}; fingerprint `{run.get('fingerprint', '')[:16]}`.{
    changed
  }{copies}

Licence of the data: {
    data_licence or data_terms(config)
  }. A model is made from its data, and what their licence says of
derived works holds for these files."""


def _use(description):
  size = description['image_size']
  steps = description['preprocessing']
  text = f"""## Preprocessing

Exactly that of evaluation; `ferjax.load` does all but the crop.

1. Crop: {steps['crop']}. The model finds no faces.
2. Colour: {steps['colour']}.
3. Resize: to {size} x {size}, whatever the shape; by area averages where {size} is less than both
   sides (OpenCV's `INTER_AREA`), else bilinearly (`INTER_LINEAR`).
4. Normalisation is within the model: it takes uint8."""
  if 'landmarks' in description['inputs']:
    scheme = description['landmark_scheme'] or 'of an unknown scheme'
    indices = description['landmark_indices']
    which = f', points {", ".join(map(str, indices))}' if indices else ''
    text += f"""
5. Landmarks: {scheme}{which}, in this order, in pixels of the resized picture:
   (x + 0.5) * {size} / width - 0.5, y likewise. `ferjax.load` takes pixels of the pictures that it
   is given, and all points of the scheme or these."""
  return text


def _metrics(description, known, measured):
  step = description['step']
  lines = [f'## Metrics\n\nAt step {step}, the exported one']
  if known.get('last_step') == step:
    lines[0] += ', the last of the run'
  if known.get('best_step') == step:
    lines[0] += ', the best by validation accuracy'
  if description['checkpoint'] not in ('last', 'best'):
    lines[0] += (
      '; it was given by number: if it was chosen by its test accuracy, the figures are too good'
    )
  lines[0] += '.'
  limit = description['config'].get('eval', {}).get('limit', 0)
  if limit and known['evaluated']:
    lines.append(f'Figures of splits are of their first {limit} rows, where they have more.')
  if description['without']:
    what = ' and '.join(description['without'])
    lines.append(f'The model predicts better with {what}, which this export does not take.')
  if measured:
    share = _percent(measured['acc'])
    lines.append(f'Measured for this card: {share} of {measured["rows"]} test rows are right.')
  if not known['evaluated']:
    return '\n\n'.join([*lines, f'In the run: {NOT_MEASURED} at this step.'])
  lines.append(
    _table(
      ('split', 'accuracy', 'mean accuracy of classes', 'macro F1'),
      [
        (name, *(_percent(found.get(k)) for k in ('acc', 'mean_class_acc', 'f1_macro')))
        for name, found in known['evaluated'].items()
      ],
    )
  )
  if 'per_class' in known:
    columns = ('rows', 'recall', 'precision', 'f1')
    found = known['per_class']
    rows = []
    for i, name in enumerate(description['classes']):
      shares = [_percent(found[k][i]) if found['rows'][i] else 'no rows' for k in columns[1:]]
      rows.append((name, found['rows'][i], *shares))
    lines.append(f'By class, {known["split"]}:')
    lines.append(_table(('class', *columns[:3], 'F1'), rows))
  else:
    for split, found in known['evaluated'].items():
      if '/' not in split and f'recall/{description["classes"][0]}' in found:
        rows = [(c, _percent(found.get(f'recall/{c}'))) for c in description['classes']]
        lines += [f'By class, {split}:', _table(('class', 'recall'), rows)]
  return '\n\n'.join(lines)


def _limits(description, known, measured):
  test = known['evaluated'].get('test') or next(iter(known['evaluated'].values()), {})
  split = '' if 'test' in known['evaluated'] else f', of the split {test.get("split", "")}'
  poses = {k.removeprefix('acc/pose_'): v for k, v in test.items() if k.startswith('acc/pose_')}
  if 'pose' in measured:
    poses = {k: v['acc'] for k, v in measured['pose'].items()}
  pose = NOT_MEASURED
  if len(poses) > 1:
    pose = ', '.join(f'{angle}°: {_percent(acc)}' for angle, acc in poses.items())
    pose += f' (apart by {100 * (max(poses.values()) - min(poses.values())):.1f} points)'
  elif poses:
    pose = f'the test rows have one pose only ({next(iter(poses))}°)'
  people = f'{NOT_MEASURED} (`--evaluate` measures it where people are known)'
  if 'subject' in measured:
    found = measured['subject']
    low, high = found['rows_of_each']
    each = f'{low} to {high}' if low < high else low
    people = (
      f'of {found["people"]} people with {each} pictures each, mean '
      f'{_percent(found["mean"])}, standard deviation {100 * found["stddev"]:.1f} points, lowest '
      f'tenth below {_percent(found["lowest_tenth"])}, worst {_percent(found["worst"])}'
    )
  elif measured:
    people = f'{NOT_MEASURED}: the test rows do not say who is who'
  distorted = {k.partition('/')[2]: v for k, v in known['evaluated'].items() if '/' in k}
  distortions = ', '.join(f'{k}: {_percent(v.get("acc"))}' for k, v in distorted.items())
  noise = known['noise'].get('kind', 'none')
  labels = (
    'the training labels are taken as they come; how many are wrong is not known'
    if noise == 'none'
    else 'a part of the training labels was wrong (see Data); those of test rows were left alone'
  )
  return f"""## Known limits and bias

- By pose (yaw){split if len(poses) > 1 and 'pose' not in measured else ''}: {pose}.
- By person: {people}.
- By age, sex, skin or origin: {NOT_MEASURED}. Figures above say nothing of groups that the test
  rows do not have; measure your own before you rely on the model.
- Label noise: {labels}. What a face is said to express is a judgement, and people differ in it.
- Distorted pictures: {distortions or NOT_MEASURED}.
- Pictures of another kind (camera, crop, light, age, drawn or real) than the training data's: {
    NOT_MEASURED
  }. Expect less than above.
- The probabilities are not calibrated, and there is no class for "none of these" or "no face".

## Intended use, and what it is not for

For research on facial expressions, and for sorting pictures that a person then looks at. It names
the expression that a face shows, as people labelled such faces; it does not know what anybody
feels, means or intends, and a face does not tell. Do not use it to judge people, as in hiring,
teaching, policing, at borders, for credit or diagnosis, nor on anyone without their knowledge.

Laws limit such systems. In the European Union, Regulation 2024/1689 (AI Act) forbids inferring
emotions of people at work and in education other than for medical or safety reasons (article
5(1)(f)), counts other emotion recognition among the high-risk uses (annex III), and asks that
people be told (article 50(3)); pictures of faces are personal data. This is no legal advice."""


def _loading(description):
  features = [name for name in description['inputs'] if name != 'image']
  derived = [name for name in features if 'derived_from' in description['inputs'][name]]
  size, double = description['image_size'], description['config']['precision'] == 'float64'
  given, arguments, words = '', '', ''
  if 'landmarks' in features:
    count = description['inputs']['landmarks']['shape'][1]
    given = f'landmarks = np.zeros((1, {count}, 2), np.float32)  # of the picture: yours\n'
    arguments = ', landmarks=landmarks'
  inputs = "{'image': picture[None]" + (", 'landmarks': landmarks" if arguments else '') + '}'
  read = f"""picture = cv2.imread('face.png', cv2.IMREAD_COLOR_RGB)
shrinks = {size} < min(picture.shape[:2])
method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
picture = cv2.resize(picture, ({size}, {size}), interpolation=method)
{given}"""
  result = "print(dict(zip(classes, outputs['probabilities'][0].tolist())))"
  text = f"""## How to load it

From this folder, with a face in `face.png`. With ferjax (files or arrays of any size):

```python
{'import numpy as np' + chr(10) * 2 if given else ''}import ferjax

model = ferjax.load('.')
{given}print(dict(zip(model.classes, model('face.png'{arguments})[0].tolist())))
```"""
  if derived:
    words = (
      f'Without ferjax, its inputs {", ".join(derived)} have to be made of the landmarks as '
      f'`ferjax/methods/{description["method"]}.py` does.'
    )
    return f'{text}\n\n{words}\n\n{_formats(description)}'
  text += f"""

With JAX alone (a program calls what it likes: take it only from whom you trust):

```python
import json

import cv2
import jax
import numpy as np

{read}{
    '''jax.config.update('jax_enable_x64', True)
'''
    if double
    else ''
  }program = jax.export.deserialize(bytearray(open('model.stablehlo', 'rb').read()))
classes = json.load(open('model.json'))['classes']
outputs = jax.jit(program.call)({inputs})
{result}
```"""
  if description['onnx']:
    text += f"""

With ONNX Runtime:

```python
import json

import cv2
import numpy as np
import onnxruntime

{read}session = onnxruntime.InferenceSession('model.onnx', providers=['CPUExecutionProvider'])
classes = json.load(open('model.json'))['classes']
names = [output.name for output in session.get_outputs()]
outputs = dict(zip(names, session.run(None, {inputs})))
{result}
```"""
  return f'{text}\n\n{_formats(description)}'


def _formats(description):
  precision = description['config']['precision']
  text = f"""`model.stablehlo` was written by JAX {
    description['versions']['jax']
  } (calling convention {description['calling_convention']}), lowered for {
    ', '.join(description['platforms'])
  }; JAX
promises to read such files for six months at least, and `ferjax.load` says so where it no longer
can. The parameters are in `parameters.safetensors` too, by their names in ferjax."""
  parity = description['onnx']
  if parity:
    largest = max(parity['largest_difference'].values())
    text += f"""

`model.onnx` computes in float32{
      '' if precision == 'float32' else f', the run in {precision}'
    }. On {parity['pictures']} random pictures it differed from JAX{
      '' if precision == 'float32' else ' in float32'
    } by {largest:.2g} at most, and gave the same
class for {parity['same_class']} of them."""
  else:
    text += """

`model.onnx` was left out; `pip install 'ferjax[onnx]'` and export again to have it."""
  return text
