"""A trained model as programs for inference: StableHLO, and ONNX that is compared with JAX."""

import contextlib
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Var

from ferjax import core
from ferjax.assembly import build, restore
from ferjax.errors import InputError
from ferjax.images import augment

LOGGER = logging.getLogger(__name__)

PLATFORMS = ('cpu', 'cuda', 'tpu')
TOLERANCE = 1e-4  # largest difference between an output of the ONNX file and JAX's
CHECKED_BATCHES = (8, 3)  # numbers of pictures, the largest first


class Model(NamedTuple):
  """A model that can be exported.

  Attributes:
    function: (variables, inputs) -> outputs.
    variables: {name: array}, the parts of the state that the function reads.
    inputs: {name: shape and dtype for a batch of one}.
    needs: The inputs besides pictures that the caller must give.
    derived: {name of a further input: function of the table of features that computes it}.
  """

  function: Any
  variables: dict[str, np.ndarray]
  inputs: dict[str, jax.ShapeDtypeStruct]
  needs: frozenset[str]
  derived: Mapping[str, Any]


def describe(
  method: core.Method,
  state: core.TrainState,
  record: Mapping[str, Any],
  dtype: Any,
  features: Sequence[str] = (),
) -> Model:
  """A method's prediction as a function of the variables and inputs that it reads.

  Args:
    method: The method.
    state: Its state.
    record: The record of the run, with `config`, and with `landmarks` or `landmark_indices` if
      landmarks are an input.
    dtype: dtype of the normalised pictures.
    features: See `writer.export`.

  Raises:
    InputError: the method does not use a feature, it needs an input that an export cannot have, or
      the record does not contain the number of landmarks.
  """
  for name in features:
    if name not in method.predict_needs | method.predict_uses:
      uses = ', '.join(sorted(method.predict_needs | method.predict_uses)) or 'none'
      raise InputError(f'--features={name}: the model cannot use it; it uses: {uses}')
  size = record['config']['data']['image_size']
  needs = method.predict_needs | set(features)
  inputs = {'image': jax.ShapeDtypeStruct((1, size, size, 3), np.uint8)}
  for name in sorted(needs):
    if name != 'landmarks':
      raise InputError(
        f'the model needs {name} besides pictures, which an export cannot have: export a run of '
        'another method'
      )
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
      'the run does not contain the number of landmarks of its model: train it again with this '
      'version, or export it without --features=landmarks'
    )
  return count


def lower(model: Model) -> jax.export.Exported:
  """The program of a model for any number of pictures, with its variables, for `PLATFORMS`."""
  (batch,) = jax.export.symbolic_shape('b')
  inputs = {
    k: jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype) for k, x in model.inputs.items()
  }
  predict = jax.jit(lambda inputs: model.function(model.variables, inputs))
  with _without_source_files():
    return jax.export.export(predict, platforms=PLATFORMS)(inputs)


@contextlib.contextmanager
def _without_source_files():
  """Programs lowered in this context do not contain file names of this machine."""
  name = 'jax_hlo_source_file_canonicalization_regex'
  usual = getattr(jax.config, name)
  jax.config.update(name, '.*')
  try:
    yield
  finally:
    jax.config.update(name, usual)


def to_onnx(
  found: restore.Trained, record: Mapping[str, Any], features: Sequence[str]
) -> tuple[bytes, dict[str, Any]]:
  """The ONNX file of a model, in float32, compared with JAX's float32.

  Returns:
    The bytes of the file, and the differences as from `check_onnx`.

  Raises:
    InputError: a primitive has no ONNX node, or outputs differ by more than 1e-4.
  """
  from ferjax.export import onnx

  config = found.config.copy_and_resolve_references()
  config.precision = 'float32'
  method = build.make_method(config, len(found.classes), len(found.poses))
  with jax.enable_x64(False):
    state = jax.tree.map(_single, (found.state.params, found.state.extra))
    state = core.TrainState(0, state[0], (), state[1], None)
    model = describe(method, state, record, jnp.float32, features)
    made = onnx.model(model.function, model.variables, model.inputs)
    made.metadata_props.add(key='classes', value=json.dumps(record['classes']))
    content = made.SerializeToString()
    return content, check_onnx(content, model)


def _single(x):
  x = np.asarray(x)
  return x.astype(np.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x


def random_inputs(inputs: Mapping[str, Any], rows: int, seed: int = 0) -> dict[str, np.ndarray]:
  """Random pictures u8[rows, s, s, 3], and random landmarks f32[rows, k, 2] inside them if `inputs`
  has landmarks."""
  draw = np.random.default_rng(seed)
  size = inputs['image'].shape[1]
  made = {'image': draw.integers(0, 256, (rows, size, size, 3)).astype(np.uint8)}
  if 'landmarks' in inputs:
    count = inputs['landmarks'].shape[1]
    made['landmarks'] = draw.uniform(0, size - 1, (rows, count, 2)).astype(np.float32)
  return made


def check_onnx(content: bytes, model: Model) -> dict[str, Any]:
  """Compares the outputs of an ONNX file with JAX's, on random pictures.

  The landmark graph of a face, and the landmark of a cell, are choices of the nearest. If two are
  equally near to seven digits, rounding may select either. So with landmarks, one picture in four
  may differ by more than 1e-4, and none by more than 1e-2.

  Args:
    content: The bytes of the file.
    model: The model that was exported.

  Returns:
    `pictures`, `batch_sizes`, `largest_difference` by output, and `same_class`, the number of
    pictures with the same predicted class.

  Raises:
    InputError: an output differs too much. The message gives its name.
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
      '(--onnx=no), and report this as a bug'
    )
  largest = max(furthest.values())
  LOGGER.info('ONNX differs from JAX by %.2g at most, on %d random pictures', largest, len(off))
  return {
    'pictures': len(off),
    'batch_sizes': list(CHECKED_BATCHES),
    'largest_difference': furthest,
    'same_class': int(same.sum()),
  }
