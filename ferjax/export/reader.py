"""Reads the models that `ferjax export` wrote.

`model.stablehlo` is a program, and a program could be harmful. Before it is compiled, its bytes are
compared with the checksum in `model.json`, which detects damage. Then its operations are limited to
arithmetic on its inputs: calls of external functions (`custom_call` in StableHLO) are refused,
except for JAX's own check of input shapes. No file in the folder is a pickle.
"""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ferjax.errors import InputError

FORMAT, FORMAT_VERSION = 'ferjax-export', 1
DESCRIPTION, PROGRAM, ONNX = 'model.json', 'model.stablehlo', 'model.onnx'
PARAMETERS, CARD = 'parameters.safetensors', 'README.md'
BYTECODE = b'ML\xefR'  # the first bytes of a StableHLO program


class Export(NamedTuple):
  """An exported model.

  Attributes:
    record: The content of `model.json`.
    needs: The features that it needs besides pictures.
    derived: The inputs that are computed from these on the host.
    run: (batch of n rows) -> outputs of n rows, NumPy arrays by name.
  """

  record: dict[str, Any]
  needs: frozenset[str]
  derived: frozenset[str]
  run: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]


def is_export(folder: Path) -> bool:
  """Whether a folder holds an export, complete or damaged."""
  return (Path(folder) / DESCRIPTION).is_file()


def read(folder: Path) -> Export:
  """Reads an export. Nothing runs until `run` is called.

  Raises:
    InputError: a file is missing, damaged or other than `model.json` describes; this version does
      not support the format or JAX's calling convention; or the program calls external functions.
  """
  folder = Path(folder)
  record = describe(folder)
  program = _program(folder, record)
  inputs = record['inputs']
  features = frozenset(inputs) - {'image'}
  derived = frozenset(name for name in features if 'derived_from' in inputs[name])
  x64 = record['config']['precision'] == 'float64'
  call = jax.jit(program.call)

  def run(batch):
    for name, given in batch.items():
      wanted = tuple(inputs[name]['shape'][1:])
      if given.shape[1:] != wanted:
        raise InputError(
          f'{name} has the shape {given.shape[1:]} for each picture, but the model takes {wanted}'
        )
    with jax.enable_x64(x64):
      return jax.tree.map(np.asarray, call(batch))

  return Export(record, features - derived, derived, run)


def describe(folder: Path) -> dict[str, Any]:
  """Reads the `model.json` of an export.

  Raises:
    InputError: it is missing or damaged, or this version does not support its format.
  """
  path = Path(folder) / DESCRIPTION
  try:
    record = json.loads(path.read_text(encoding='utf-8'))
    if record.get('format') != FORMAT:
      raise InputError(f'{path} is not from ferjax export: give the folder of a run or export')
    if record['format_version'] != FORMAT_VERSION:
      made = dict(record['versions']).get('ferjax', 'another version')
      raise InputError(
        f'{path} has format {record["format_version"]}, but this ferjax reads {FORMAT_VERSION}: '
        f'use the ferjax that wrote it ({made}), or export the run again'
      )
    _check(record)
  except FileNotFoundError:
    raise InputError(f'{folder} is not an export: it has no {DESCRIPTION}') from None
  except InputError:
    raise
  except (AttributeError, LookupError, TypeError, ValueError, OSError, RecursionError) as error:
    reason = str(error)[:200]
    raise InputError(f'{path} is damaged ({reason}): export the run again') from error
  return record


def _check(record):
  """Raises one of many exceptions if a record differs from what `export` writes."""

  def require(right, what):
    if not right:
      raise ValueError(what)

  for kind in ('inputs', 'outputs'):
    for name, part in record[kind].items():
      whole = all(type(size) is int and 0 < size < 2**31 for size in part['shape'][1:])
      require(whole and isinstance(part['dtype'], str), f'{kind}: {name}')
  size = record['image_size']
  require(record['inputs']['image']['shape'][1:] == [size, size, 3], f'image_size {size}')
  require(record['config']['data']['image_size'] == size, f'image_size {size}')
  require(isinstance(record['config']['precision'], str), 'precision')
  classes, poses, points = record['classes'], record['poses'], record['landmark_indices']
  require(isinstance(classes, list) and all(isinstance(x, str) for x in classes), 'classes')
  require(len(set(classes)) == len(classes), 'a class occurs twice')
  require(record['outputs']['logits']['shape'][1:] == [len(classes)], f'{len(classes)} classes')
  require(isinstance(poses, list) and all(type(x) is int for x in poses), 'poses')
  require(points is None or all(type(x) is int and x >= 0 for x in points), 'landmark_indices')
  require(isinstance(record['versions'], dict), 'versions')
  require(type(record['calling_convention']) is int, 'calling_convention')
  require(isinstance(record['files'][PROGRAM]['sha256'], str), f'files: {PROGRAM}')


def _program(folder, record):
  path = folder / PROGRAM
  if not path.is_file():
    raise InputError(f'{folder} has no {PROGRAM}: copy the whole folder')
  content = path.read_bytes()
  if hashlib.sha256(content).hexdigest() != record['files'][PROGRAM]['sha256']:
    raise InputError(
      f'{path} has another checksum than in {DESCRIPTION}: it is incomplete or changed; copy the '
      'folder again'
    )
  low = jax.export.minimum_supported_calling_convention_version
  high = jax.export.maximum_supported_calling_convention_version
  convention, made = record['calling_convention'], record.get('versions', {}).get('jax', 'unknown')
  if not low <= convention <= high:
    raise InputError(
      f'{path} was written by JAX {made} (calling convention {convention}); JAX {jax.__version__} '
      f'reads {low} to {high}: use a JAX version of about that date, or export the run again'
    )
  return program(content, path, record)


def program(data: bytes, path: Path, record: dict[str, Any]) -> jax.export.Exported:
  """Reads a program without running it.

  Args:
    data: The bytes that `jax.export` serialised.
    path: The file, for error messages.
    record: See `describe`. Its inputs and outputs must be those of the program.

  Raises:
    InputError: the bytes are not such a program, it calls external functions, or its inputs or
      outputs differ from the record.
  """
  try:
    found = jax.export.deserialize(bytearray(data))
    if not found.mlir_module_serialized.startswith(BYTECODE):
      raise ValueError('no StableHLO bytecode')
    # Bytecode contains the names of its operations, so the text is needed only if this one occurs.
    text = found.mlir_module() if b'custom_call' in found.mlir_module_serialized else ''
    takes = jax.tree.unflatten(found.in_tree, found.in_avals)
    gives = jax.tree.unflatten(found.out_tree, found.out_avals)
    described = _described(*takes[0][:1]), _described(gives)
  except Exception as error:  # flatbuffers and MLIR raise many types for invalid bytes
    reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
    made, advice = record.get('versions', {}).get('jax', jax.__version__), ''
    if made != jax.__version__:
      advice = (
        f'. JAX {made} wrote it, and JAX {jax.__version__} may be too old to read it: install JAX '
        f'{made} or newer, or export the run again here'
      )
    raise InputError(
      f'{path} is damaged or not a StableHLO program ({reason[0][:200]}){advice}'
    ) from error
  calls = len(re.findall('custom_call', text))
  if calls != len(re.findall(r'stablehlo\.custom_call @shape_assertion\(', text)):
    raise InputError(
      f'{path} calls external functions, unlike any export of ferjax: do not trust it'
    )
  wanted = tuple(
    {k: (list(v['shape'][1:]), v['dtype']) for k, v in record[kind].items()}
    for kind in ('inputs', 'outputs')
  )
  if described != wanted:
    raise InputError(f'{path} is not the program that {DESCRIPTION} describes: do not trust it')
  return found


def _described(arrays):
  return {name: (list(x.shape[1:]), str(x.dtype)) for name, x in arrays.items()}
