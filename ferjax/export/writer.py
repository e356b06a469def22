"""Writes a trained model that stands on its own; `reader` reads it."""

import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy

from ferjax import files
from ferjax.assembly import build, restore, sources
from ferjax.data import checks, dataset
from ferjax.errors import InputError, nearest
from ferjax.export import programs, reader
from ferjax.export.card import metrics, write
from ferjax.images import augment
from ferjax.runs.record import PACKAGES, read

LOGGER = logging.getLogger('ferjax.export')  # __name__ is __main__ when it is run

ONNX_CHOICES = ('auto', 'require', 'no')
FILES = {reader.DESCRIPTION, reader.PROGRAM, reader.ONNX, reader.PARAMETERS, reader.CARD}
HOW = {
  'image': 'RGB, 0 to 255, cropped to the face as the pictures of training, resized as below',
  'landmarks': 'x and y in pixels of the resized picture; pixel centres are whole numbers',
}
WHAT = {
  'probabilities': 'of each class: softmax of the logits',
  'logits': 'score of each class, in nats',
  'embedding': "the network's features of the face",
  'pose_logits': 'score of each pose class, in nats',
  'naive_logits': 'score of each class without landmarks, in nats',
  'classifier_logits': 'score of each class by a layer that does not predict, in nats',
  'uncertainty': 'of the face: mean variance of its features',
  'importance': 'of the face, 0 to 1',
  'edge_length': 'mean length of the edges of the landmark graph, in pixels of the resized picture',
  'subclass_log_posterior': 'log-probability of each sub-class, those of a class side by side',
}


def export(
  workdir: Path,
  out: Path,
  *,
  which: str = 'last',
  onnx: str = 'auto',
  features: Sequence[str] = (),
  evaluate: bool = False,
  data_licence: str = '',
  overwrite: bool = False,
) -> dict[str, Any]:
  """Writes a run's model to a folder of its own; half of it is never seen there.

  Args:
    workdir: The run's folder.
    out: The folder to write.
    which: The checkpoint; see `restore.load`.
    onnx: `auto` writes ONNX where the extra `onnx` is installed, `require` refuses to go without,
      `no` leaves it out.
    features: Inputs that the model predicts better with and can do without, such as `landmarks`:
      those that the exported model is to take, always.
    evaluate: Whether to measure the model on the test rows of its data set, by pose and by person.
    data_licence: Of the training data, for the model card.
    overwrite: Whether an export in `out` is replaced.

  Returns:
    What `model.json` holds.

  Raises:
    InputError: no such run or checkpoint, `out` exists, an unknown feature; the model computes
      what has no ONNX node here, or the ONNX file is off by more than 1e-4.
  """
  start = time.perf_counter()
  workdir, out = Path(workdir), Path(out)
  _check(out, onnx, overwrite)
  record = read(workdir)
  with jax.enable_x64(record['config']['precision'] == 'float64'):
    found = restore.load(workdir, which, convolution='native')
    model = programs.describe(
      found.method, found.state, record, build.picture_dtype(found.config), features
    )
    LOGGER.info('lowering for %s', ', '.join(programs.PLATFORMS))
    program = programs.lower(model)
  graph, parity = _onnx(found, record, features, onnx)
  measured = groups(workdir, which, tuple(sorted(model.needs))) if evaluate else {}
  step = int(found.state.step)
  description = _description(model, program, found, record, which, step, parity)
  description['without'] = sorted(found.method.predict_uses - model.needs)
  card = write(description, metrics(workdir, step, record['classes']), measured, data_licence)
  contents = {
    reader.PROGRAM: bytes(program.serialize()),
    reader.PARAMETERS: _parameters(model, record, step),
    **({} if graph is None else {reader.ONNX: graph}),
    reader.CARD: card.encode(),
  }
  description['files'] = {
    name: {'sha256': hashlib.sha256(content).hexdigest(), 'bytes': len(content)}
    for name, content in sorted(contents.items())
  }
  _write_folder(out, contents, description)
  LOGGER.info('written to %s in %.1f s', out, time.perf_counter() - start)
  return description


def _onnx(found, record, features, onnx) -> tuple[bytes | None, dict[str, Any]]:
  """The ONNX file, None where it is left out, and how far its outputs are from JAX's."""
  if onnx == 'require' or (onnx == 'auto' and _has_onnx()):
    LOGGER.info('writing ONNX')
    return programs.to_onnx(found, record, features)
  if onnx == 'auto':
    LOGGER.warning("model.onnx is left out: pip install 'ferjax[onnx]' to have it")
  return None, {}


def _parameters(model, record, step) -> bytes:
  arrays = {k: np.ascontiguousarray(v).reshape(np.shape(v)) for k, v in model.variables.items()}
  facts = {'classes': json.dumps(record['classes']), 'step': str(step), 'data': record['data']}
  return safetensors.numpy.save(arrays, {'format': 'ferjax', **facts})


def _write_folder(out, contents, description) -> None:
  """Writes the files into a folder with another name, which then becomes `out`."""
  partial = out.with_name(f'.{out.name}.{os.getpid()}.partial')
  try:
    partial.mkdir(parents=True)
    for name, content in contents.items():
      (partial / name).write_bytes(content)
    files.write_json(partial / reader.DESCRIPTION, description)
    _put(partial, out)
  except OSError as error:
    raise InputError(f'cannot write {out}: {error.strerror or error}') from error
  finally:
    shutil.rmtree(partial, ignore_errors=True)


def _check(out, onnx, overwrite):
  if onnx not in ONNX_CHOICES:
    raise InputError(f'--onnx={onnx}:{nearest(onnx, ONNX_CHOICES)} use {", ".join(ONNX_CHOICES)}')
  if onnx == 'require' and not _has_onnx():
    raise InputError("--onnx=require needs onnx and onnxruntime: pip install 'ferjax[onnx]'")
  if not out.name or out.is_symlink():
    raise InputError(f'--out={out}: give the name of a folder that is to be made')
  if not out.exists():
    return
  try:
    reader.describe(out)
  except InputError:
    raise InputError(
      f'--out={out} exists and is no export: give a folder that is to be made'
    ) from None
  others = sorted({path.name for path in out.iterdir()} - FILES)
  if others:
    raise InputError(f'--out={out} holds more than an export, such as {others[0]}: it stays')
  if not overwrite:
    raise InputError(f'--out={out} holds an export: give another folder, or --overwrite')


def _has_onnx():
  return all(importlib.util.find_spec(name) for name in ('onnx', 'onnxruntime'))


def _put(partial, out):
  """Renames a folder into place; one that is there is gone afterwards."""
  if not out.exists():
    partial.rename(out)
    return
  old = out.with_name(f'.{out.name}.{os.getpid()}.old')
  out.rename(old)
  try:
    partial.rename(out)
  except BaseException:
    old.rename(out)
    raise
  shutil.rmtree(old)


def groups(workdir: Path, which: str, features: tuple[str, ...]) -> dict[str, Any]:
  """Accuracy on the run's test rows by pose and by person, where they are known.

  Args:
    workdir, which: See `restore.load`.
    features: Columns that the model is given besides pictures.

  Raises:
    InputError: the data set cannot be loaded, has no test rows or lacks a feature.
  """
  record = read(workdir)
  with jax.enable_x64(record['config']['precision'] == 'float64'):
    model = restore.load(workdir, which, convolution='native')
    data = sources.load(model.config, model.classes, needs_every_class=False).data
    if 'test' not in data.splits:
      raise InputError(f'{data.name} has no test rows: leave --evaluate out')
    if data.fingerprint != record['fingerprint']:
      raise InputError(
        f'{data.name} is no longer the data that {workdir} was trained on: leave --evaluate out'
      )
    data = sources.derive(model.method, dataset.with_poses(data, model.poses))
    split = data.splits['test']
    checks.check_features(data, frozenset(features))
    unseen = model.method.predict_uses - set(features)
    hidden = unseen | (set(model.method.derived) if unseen else set())
    table = {k: v for k, v in split.table.items() if k not in hidden}
    predicted = model.predict(model.state, split._replace(table=table), limit=0)
  return by_group(predicted.prediction == predicted.label, split.table)


def by_group(right: np.ndarray, table: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """Accuracy of all rows, and by what the table knows of them.

  Args:
    right: bool[n].
    table: With `yaw_bin` int[n] (degrees) and `subject` [n] where these are known.

  Returns:
    `rows`, `acc`; `pose` {degrees: {rows, acc}}; `subject` {people, rows_of_each (least and most),
    mean, worst, lowest_tenth, stddev} over the accuracies of people.
  """
  found = {'rows': len(right), 'acc': float(right.mean())}
  if 'yaw_bin' in table:
    yaw = table['yaw_bin']
    found['pose'] = {
      str(angle): {'rows': int((yaw == angle).sum()), 'acc': float(right[yaw == angle].mean())}
      for angle in np.unique(yaw)
    }
  if 'subject' in table:
    _, place = np.unique(table['subject'], return_inverse=True)
    rows = np.bincount(place)
    acc = np.bincount(place, right) / rows
    found['subject'] = {
      'people': len(rows),
      'rows_of_each': [int(rows.min()), int(rows.max())],
      'mean': float(acc.mean()),
      'stddev': float(acc.std()),
      'worst': float(acc.min()),
      'lowest_tenth': float(np.quantile(acc, 0.1)),
    }
  return found


def _without_folders(value):
  """A config whose paths, such as `manifest:/home/anna/faces.csv`, are cut to their last part."""
  if isinstance(value, Mapping):
    return {key: _without_folders(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [_without_folders(item) for item in value]
  if isinstance(value, str) and ('/' in value or os.sep in value):
    kind, colon, path = value.partition(':')
    return kind + colon + Path(path).name if colon and '/' not in kind else Path(value).name
  return value


def start_of(weights: Mapping[str, Any]) -> dict[str, Any]:
  """What a run's record says of the weights that it started from (see `pretrained.facts`), without
  folders and without what was left out."""
  known = {k: v for k, v in weights.items() if k != 'left_out'}
  return known | {'file': _without_folders(known['file'])}


def _description(model, program, found, record, which, step, parity):
  gives = jax.tree.unflatten(program.out_tree, program.out_avals)
  config = _without_folders(record['config'])
  run = {k: record[k] for k in ('rows', 'steps', 'fingerprint', 'git_revision') if k in record}
  if 'weights' in record:
    run['weights'] = start_of(record['weights'])
  inputs = {
    name: {
      'shape': ['batch', *x.shape[1:]],
      'dtype': str(x.dtype),
      'is': HOW.get(name, f'made by ferjax.load of {", ".join(sorted(model.needs))}'),
    }
    for name, x in model.inputs.items()
  }
  for name in model.derived:
    inputs[name]['derived_from'] = sorted(found.method.needs)
  return {
    'format': reader.FORMAT,
    'format_version': reader.FORMAT_VERSION,
    'method': config['method']['name'],
    'classes': record['classes'],
    'poses': record.get('poses', []),
    'image_size': config['data']['image_size'],
    'preprocessing': {
      'colour': 'RGB, 8 bit; grey is repeated, EXIF orientation is applied',
      'crop': 'to the face, as the pictures that it was trained on',
      'resize': 'to image_size x image_size whatever the shape: area averages where both sides '
      'shrink (OpenCV INTER_AREA), else bilinear (INTER_LINEAR)',
      'normalisation': 'within the model: value / 255, less the mean, over the deviation',
      'mean': list(augment.MEAN),
      'deviation': list(augment.STDDEV),
    },
    'inputs': inputs,
    'outputs': {
      name: {
        'shape': ['batch', *x.shape[1:]],
        'dtype': str(x.dtype),
        'is': WHAT.get(name, 'see the method'),
      }
      for name, x in gives.items()
    },
    'landmark_scheme': record.get('landmark_scheme', ''),
    'landmark_indices': record.get('landmark_indices'),
    'data': record['data'],
    'run': run,
    'checkpoint': which,
    'step': step,
    'config': config,
    'parameters': sum(int(x.size) for x in model.variables.values()),
    'platforms': list(program.platforms),
    'calling_convention': program.calling_convention_version,
    'versions': {name: importlib.metadata.version(name) for name in PACKAGES},
    'onnx': parity,
  }
