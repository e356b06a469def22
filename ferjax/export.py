"""`python -m ferjax.export --workdir=RUN --out=FOLDER`: a trained model that stands on its own.

The folder holds the model for any number of pictures, with its parameters: `model.stablehlo` (JAX,
on CPU, NVIDIA GPU and TPU alike), `model.onnx` (anything that reads ONNX), `parameters.safetensors`
(what prediction reads of the state), `model.json` (classes, preprocessing, inputs, outputs, the
run) and `README.md`, the model card. `ferjax.load(FOLDER)` predicts with it; the card says how to
without ferjax.
"""

import argparse
import contextlib
import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from absl import flags
from jax.extend.core import Var

from ferjax import build, core, exported, logs, model_card, parallel, sources, trained
from ferjax import config as configs
from ferjax.data import augment, dataset, pipeline
from ferjax.errors import InputError, nearest, told_in_a_line
from ferjax.main import show_messages

LOGGER = logging.getLogger('ferjax.export')  # __name__ is __main__ when it is run

PLATFORMS = ('cpu', 'cuda', 'tpu')
ONNX_CHOICES = ('auto', 'require', 'no')
TOLERANCE = 1e-4  # largest difference of an output of the ONNX file from JAX's
CHECKED_BATCHES = (8, 3)  # pictures, the largest first
FILES = {exported.DESCRIPTION, exported.PROGRAM, exported.ONNX, exported.PARAMETERS, exported.CARD}
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
  'edge_length': 'mean length of the edges of the landmark graph, in pixels of the resized picture',
  'subclass_log_posterior': 'log-probability of each sub-class, those of a class side by side',
}


class Model(NamedTuple):
  """What is exported.

  Attributes:
    function: (variables, inputs) -> outputs.
    variables: {name: array}, what the function reads.
    inputs: {name: shape and type for a batch of one}.
    needs: The inputs that are no picture and not made of others.
    derived: {name of an input: function of the table of features}.
  """

  function: Any
  variables: dict[str, np.ndarray]
  inputs: dict[str, jax.ShapeDtypeStruct]
  needs: frozenset[str]
  derived: Mapping[str, Any]


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
    which: The checkpoint; see `trained.load`.
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
  record = configs.read(workdir)
  with jax.enable_x64(record['config']['precision'] == 'float64'):
    found = trained.load(workdir, which)
    model = describe(found.method, found.state, record, build.picture_dtype(found.config), features)
    LOGGER.info('lowering for %s', ', '.join(PLATFORMS))
    program = lower(model)
  graph, parity = None, {}
  if onnx == 'require' or (onnx == 'auto' and _has_onnx()):
    LOGGER.info('writing ONNX')
    graph, parity = to_onnx(found, record, features)
  elif onnx == 'auto':
    LOGGER.warning("model.onnx is left out: pip install 'ferjax[onnx]' to have it")
  measured = {}
  if evaluate:
    measured = groups(workdir, which, tuple(sorted(model.needs)))
  step = int(found.state.step)
  arrays = {k: np.ascontiguousarray(v).reshape(np.shape(v)) for k, v in model.variables.items()}
  facts = {'classes': json.dumps(record['classes']), 'step': str(step), 'data': record['data']}
  contents = {
    exported.PROGRAM: bytes(program.serialize()),
    exported.PARAMETERS: safetensors.numpy.save(arrays, {'format': 'ferjax', **facts}),
  }
  if graph is not None:
    contents[exported.ONNX] = graph
  description = _description(model, program, found, record, which, step, parity)
  description['without'] = sorted(found.method.predict_uses - model.needs)
  card = model_card.write(
    description, model_card.metrics(workdir, step, record['classes']), measured, data_licence
  )
  partial = out.with_name(f'.{out.name}.{os.getpid()}.partial')
  try:
    partial.mkdir(parents=True)
    contents[exported.CARD] = card.encode()
    for name, content in contents.items():
      (partial / name).write_bytes(content)
    description['files'] = {
      name: {'sha256': hashlib.sha256(content).hexdigest(), 'bytes': len(content)}
      for name, content in sorted(contents.items())
    }
    logs.write_json(partial / exported.DESCRIPTION, description)
    _put(partial, out)
  except OSError as error:
    raise InputError(f'cannot write {out}: {error.strerror or error}') from error
  finally:
    shutil.rmtree(partial, ignore_errors=True)
  LOGGER.info('written to %s in %.1f s', out, time.perf_counter() - start)
  return description


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
    exported.describe(out)
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


def describe(
  method: core.Method,
  state: core.TrainState,
  record: Mapping[str, Any],
  dtype: Any,
  features: Sequence[str] = (),
) -> Model:
  """What a method predicts, as a function of what it reads of its state and of its inputs.

  Args:
    method: The method.
    state: Its state.
    record: The run's, with `config` and, where landmarks are an input, `landmarks`.
    dtype: Of the normalised pictures.
    features: See `export`.

  Raises:
    InputError: the method does not use such a feature, or the record does not say how many
      landmarks there are.
  """
  for name in features:
    if name not in method.predict_needs | method.predict_uses:
      uses = ', '.join(sorted(method.predict_needs | method.predict_uses)) or 'none'
      raise InputError(f'--features={name}: the model does not look at it; it uses: {uses}')
  size = record['config']['data']['image_size']
  needs = method.predict_needs | set(features)
  inputs = {'image': jax.ShapeDtypeStruct((1, size, size, 3), np.uint8)}
  for name in sorted(needs):
    if name != 'landmarks':
      raise InputError(f'the model needs {name} besides pictures, which an export cannot give it')
    inputs[name] = jax.ShapeDtypeStruct((1, _landmarks(record), 2), np.float32)
  derived = method.derived if method.needs <= needs else {}
  table = {name: random_inputs(inputs, 1)[name] for name in needs}
  for name, derive in derived.items():
    made = np.asarray(derive(table))
    inputs[name] = jax.ShapeDtypeStruct(made.shape, made.dtype)

  def predict(state, batch):
    outputs = method.predict(*state, augment.evaluation(batch, dtype))
    scores = outputs['logits'].astype(jnp.promote_types(outputs['logits'].dtype, jnp.float32))
    return outputs | {'probabilities': jax.nn.softmax(scores)}

  whole = {'params': core.own(state.params), 'extra': state.extra}
  flat, tree = jax.tree_util.tree_flatten_with_path(whole)
  named = {jax.tree_util.keystr(p, simple=True, separator='/'): np.asarray(x) for p, x in flat}
  traced = jax.make_jaxpr(lambda state, batch: predict((state['params'], state['extra']), batch))
  jaxpr = traced(whole, inputs).jaxpr
  atoms = [*jaxpr.outvars, *(atom for equation in jaxpr.eqns for atom in equation.invars)]
  read = {atom for atom in atoms if isinstance(atom, Var)}
  kept = {k: x for (k, x), v in zip(named.items(), jaxpr.invars, strict=False) if v in read}

  def function(variables, batch):
    leaves = [variables.get(name, value) for name, value in named.items()]
    state = jax.tree.unflatten(tree, leaves)
    return predict((state['params'], state['extra']), batch)

  return Model(function, kept, inputs, frozenset(needs), derived)


def _landmarks(record):
  count = len(record.get('landmark_indices') or ()) or record.get('landmarks', 0)
  if not count:
    raise InputError(
      'the run does not say how many landmarks its model looks at: train it again with this '
      'version, or export it without --features=landmarks'
    )
  return count


def lower(model: Model) -> jax.export.Exported:
  """The program of a model for any number of pictures, its variables inside, for `PLATFORMS`."""
  (batch,) = jax.export.symbolic_shape('b')
  inputs = {
    k: jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype) for k, x in model.inputs.items()
  }
  predict = jax.jit(lambda inputs: model.function(model.variables, inputs))
  with _without_source_files():
    return jax.export.export(predict, platforms=PLATFORMS)(inputs)


@contextlib.contextmanager
def _without_source_files():
  """Programs lowered in this block do not name the files of this machine."""
  name = 'jax_hlo_source_file_canonicalization_regex'
  usual = getattr(jax.config, name)
  jax.config.update(name, '.*')
  try:
    yield
  finally:
    jax.config.update(name, usual)


def to_onnx(
  found: trained.Trained, record: Mapping[str, Any], features: Sequence[str]
) -> tuple[bytes, dict[str, Any]]:
  """The ONNX file of a model, in float32, and how far it is from JAX's float32.

  Raises:
    InputError: a primitive without an ONNX node, or outputs that are off by more than 1e-4.
  """
  from ferjax import onnx_graph

  config = found.config.copy_and_resolve_references()
  config.precision = 'float32'
  method = build.make_method(config, len(found.classes), len(found.poses))
  with jax.enable_x64(False):
    state = jax.tree.map(_single, (found.state.params, found.state.extra))
    state = core.TrainState(0, state[0], (), state[1], None)
    model = describe(method, state, record, jnp.float32, features)
    made = onnx_graph.model(model.function, model.variables, model.inputs)
    made.metadata_props.add(key='classes', value=json.dumps(record['classes']))
    content = made.SerializeToString()
    return content, check_onnx(content, model)


def _single(x):
  x = np.asarray(x)
  return x.astype(np.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x


def random_inputs(inputs: Mapping[str, Any], rows: int, seed: int = 0) -> dict[str, np.ndarray]:
  """Random pictures, and landmarks within them, for those of the inputs that are either."""
  draw = np.random.default_rng(seed)
  size = inputs['image'].shape[1]
  made = {'image': draw.integers(0, 256, (rows, size, size, 3)).astype(np.uint8)}
  if 'landmarks' in inputs:
    count = inputs['landmarks'].shape[1]
    made['landmarks'] = draw.uniform(0, size - 1, (rows, count, 2)).astype(np.float32)
  return made


def check_onnx(content: bytes, model: Model) -> dict[str, Any]:
  """How far an ONNX file's outputs are from JAX's, on random pictures.

  A face's landmark graph, and which landmark a cell belongs to, are choices of the nearest: where
  two are equally near to seven digits, rounding may choose either. So where a model looks at
  landmarks, one picture in four may differ by more than 1e-4, and none by more than 1e-2.

  Raises:
    InputError: names the output that is off.
  """
  import onnxruntime

  options = onnxruntime.SessionOptions()
  options.log_severity_level = 3
  session = onnxruntime.InferenceSession(content, options, providers=['CPUExecutionProvider'])
  names = [output.name for output in session.get_outputs()]
  reference = jax.jit(lambda inputs: model.function(model.variables, inputs))
  batch = random_inputs(model.inputs, CHECKED_BATCHES[0])
  batch |= {name: np.asarray(derive(batch)) for name, derive in model.derived.items()}
  wanted = jax.tree.map(np.asarray, reference(batch))
  furthest = dict.fromkeys(names, 0.0)
  off, same = np.zeros(CHECKED_BATCHES[0]), np.ones(CHECKED_BATCHES[0], bool)
  for rows in CHECKED_BATCHES:
    given = session.run(None, {name: value[:rows] for name, value in batch.items()})
    for name, value in zip(names, given, strict=True):
      truth = wanted[name][:rows].reshape(rows, -1)
      difference = np.abs(value.reshape(rows, -1) - truth).max(1)
      furthest[name] = max(furthest[name], float(difference.max()))
      off[:rows] = np.maximum(off[:rows], difference / np.maximum(1, np.abs(truth).max(1)))
      if name == 'logits':
        same[:rows] &= value.argmax(1) == truth.argmax(1)
  allowed = len(off) // 4 if model.needs else 0
  if not (off <= 1e-2).all() or (off > TOLERANCE).sum() > allowed:
    worst = max(furthest, key=furthest.get)
    raise InputError(
      f'the ONNX file differs from JAX by {furthest[worst]:.2g} in {worst}: export without ONNX '
      '(--onnx=no), and report it as a bug'
    )
  largest = max(furthest.values())
  LOGGER.info('ONNX differs from JAX by %.2g at most, on %d random pictures', largest, len(off))
  return {
    'pictures': len(off),
    'batch_sizes': list(CHECKED_BATCHES),
    'largest_difference': furthest,
    'same_class': int(same.sum()),
  }


def groups(workdir: Path, which: str, features: tuple[str, ...]) -> dict[str, Any]:
  """Accuracy on the run's test rows by pose and by person, where they are known.

  Args:
    workdir, which: See `trained.load`.
    features: Columns that the model is given besides pictures.

  Raises:
    InputError: the data set cannot be loaded, has no test rows or lacks a feature.
  """
  record = configs.read(workdir)
  with jax.enable_x64(record['config']['precision'] == 'float64'):
    model = trained.load(workdir, which)
    data = sources.load(model.config, model.classes, needs_every_class=False).data
    if 'test' not in data.splits:
      raise InputError(f'{data.name} has no test rows: leave --evaluate out')
    if data.fingerprint != record['fingerprint']:
      raise InputError(
        f'{data.name} is no longer the data that {workdir} was trained on: leave --evaluate out'
      )
    data = build.derive(model.method, dataset.with_poses(data, model.poses))
    split = data.splits['test']
    pipeline.check_features(data, frozenset(features))
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


def _description(model, program, found, record, which, step, parity):
  gives = jax.tree.unflatten(program.out_tree, program.out_avals)
  config = _without_folders(record['config'])
  run = {k: record[k] for k in ('rows', 'steps', 'fingerprint', 'git_revision') if k in record}
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
    'format': exported.FORMAT,
    'format_version': exported.FORMAT_VERSION,
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
    'versions': {name: importlib.metadata.version(name) for name in configs.PACKAGES},
    'onnx': parity,
  }


def parse(argv: Sequence[str]) -> argparse.Namespace:
  arguments = argparse.ArgumentParser(
    prog='python -m ferjax.export',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  arguments.add_argument('--workdir', type=Path, required=True, help='the run of a trained model')
  arguments.add_argument('--out', type=Path, required=True, help='the folder to write')
  arguments.add_argument('--checkpoint', default='last', help='last, best, or a step')
  arguments.add_argument('--onnx', default='auto', help='auto, require or no')
  arguments.add_argument(
    '--features',
    default='',
    help='inputs that the model can do without and is to take, such as landmarks',
  )
  arguments.add_argument(
    '--evaluate', action='store_true', help='measure accuracy by pose and person, for the card'
  )
  arguments.add_argument('--data_licence', default='', help='of the training data, for the card')
  arguments.add_argument('--overwrite', action='store_true', help='replace an export')
  return arguments.parse_args(argv)


def main(argv: Sequence[str]) -> None:
  """Exports the run that the arguments name.

  Raises:
    InputError: see `export`.
  """
  options = parse(argv)
  made = export(
    options.workdir,
    options.out,
    which=options.checkpoint,
    onnx=options.onnx,
    features=tuple(name for name in options.features.split(',') if name),
    evaluate=options.evaluate,
    data_licence=options.data_licence,
    overwrite=options.overwrite,
  )
  for name, file in made['files'].items():
    print(f'{file["bytes"] / 1e6:10.2f} MB  {options.out / name}')


if __name__ == '__main__':
  flags.FLAGS.mark_as_parsed()  # grain reads absl flags
  show_messages()
  parallel.keep_freed_memory()
  with told_in_a_line():
    main(sys.argv[1:])
