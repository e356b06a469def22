"""Models that `ferjax export` wrote: what is in the folder, and how it is read.

`model.stablehlo` is a program, and a program could do harm. Before any of it is compiled, its bytes
are compared with `model.json`, which notices damage; what its operations may do is then limited to
arithmetic on its inputs: a call of anything outside (a StableHLO `custom_call`) is refused, but for
the check of input shapes that JAX itself puts in. Nothing in the folder is a pickle.
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
BYTECODE = b'ML\xefR'  # how a StableHLO program begins


class Export(NamedTuple):
  """An exported model.

  Attributes:
    record: What `model.json` holds.
    needs: Features that it needs besides pictures.
    derived: Inputs that are made of these on the host.
    run: (batch of n rows) -> outputs of n rows, NumPy arrays.
  """

  record: dict[str, Any]
  needs: frozenset[str]
  derived: frozenset[str]
  run: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]


def is_export(folder: Path) -> bool:
  """Whether a folder holds an export, whole or damaged."""
  return (Path(folder) / DESCRIPTION).is_file()


def read(folder: Path) -> Export:
  """Reads an export; nothing is run until it is called.

  Raises:
    InputError: a file is missing, damaged or not what `model.json` says, the format or JAX's
      calling convention is unknown to this version, or the program calls anything outside itself.
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
          f'{name} of the shape {given.shape[1:]} for each picture: the model takes {wanted}'
        )
    with jax.enable_x64(x64):
      return jax.tree.map(np.asarray, call(batch))

  return Export(record, features - derived, derived, run)


def describe(folder: Path) -> dict[str, Any]:
  """The `model.json` of an export.

  Raises:
    InputError: there is none, it is damaged, or of a format that is unknown to this version.
  """
  path = Path(folder) / DESCRIPTION
  try:
    record = json.loads(path.read_text(encoding='utf-8'))
    if record.get('format') != FORMAT:
      raise InputError(f'{path} is not of an export of ferjax: give the folder of a run or export')
    if record['format_version'] != FORMAT_VERSION:
      made = dict(record['versions']).get('ferjax', 'another version')
      raise InputError(
        f'{path} has the format {record["format_version"]}, this ferjax reads {FORMAT_VERSION}: '
        f'use the ferjax that wrote it ({made}), or export the run again'
      )
    _check(record)
  except FileNotFoundError:
    raise InputError(f'{folder} is no export: it has no {DESCRIPTION}') from None
  except InputError:
    raise
  except (AttributeError, LookupError, TypeError, ValueError, OSError, RecursionError) as error:
    reason = str(error)[:200]
    raise InputError(f'{path} is damaged ({reason}): export the run again') from error
  return record


def _check(record):
  """Raises one of many errors where a record is not as `export` writes it."""

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
  require(len(set(classes)) == len(classes), 'a class twice')
  require(record['outputs']['logits']['shape'][1:] == [len(classes)], f'{len(classes)} classes')
  require(isinstance(poses, list) and all(type(x) is int for x in poses), 'poses')
  require(points is None or all(type(x) is int and x >= 0 for x in points), 'landmark_indices')
  require(isinstance(record['versions'], dict), 'versions')
  require(type(record['calling_convention']) is int, 'calling_convention')
  require(isinstance(record['files'][PROGRAM]['sha256'], str), f'files: {PROGRAM}')


def _program(folder, record):
  path = folder / PROGRAM
  if not path.is_file():
    raise InputError(f'{folder} lacks {PROGRAM}: copy the whole folder')
  content = path.read_bytes()
  if hashlib.sha256(content).hexdigest() != record['files'][PROGRAM]['sha256']:
    raise InputError(f'{path} is not the file that {DESCRIPTION} names: it is cut short or changed')
  low = jax.export.minimum_supported_calling_convention_version
  high = jax.export.maximum_supported_calling_convention_version
  convention, made = record['calling_convention'], record.get('versions', {}).get('jax', 'unknown')
  if not low <= convention <= high:
    raise InputError(
      f'{path} was written by JAX {made} (calling convention {convention}); JAX {jax.__version__} '
      f'reads {low} to {high}: use a JAX of about that age, or export the run again'
    )
  return program(content, path, record)


def program(data: bytes, path: Path, record: dict[str, Any]) -> jax.export.Exported:
  """The program of a file's bytes; it is not run.

  Args:
    data: What `jax.export` serialised.
    path: The file, for errors.
    record: See `describe`: its inputs and outputs must be the program's.

  Raises:
    InputError: it is no such program, calls anything outside itself, or takes and gives others than
      the record says.
  """
  try:
    found = jax.export.deserialize(bytearray(data))
    if not found.mlir_module_serialized.startswith(BYTECODE):
      raise ValueError('no StableHLO bytecode')
    # Bytecode holds the names of its operations as they are; the text has to be made from it.
    text = found.mlir_module() if b'custom_call' in found.mlir_module_serialized else ''
    takes = jax.tree.unflatten(found.in_tree, found.in_avals)
    gives = jax.tree.unflatten(found.out_tree, found.out_avals)
    described = _described(*takes[0][:1]), _described(gives)
  except Exception as error:  # flatbuffers and MLIR raise many kinds for bytes that are not theirs
    reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
    raise InputError(f'{path} is damaged, or no StableHLO program ({reason[0][:200]})') from error
  calls = len(re.findall('custom_call', text))
  if calls != len(re.findall(r'stablehlo\.custom_call @shape_assertion\(', text)):
    raise InputError(
      f'{path} calls functions outside itself, which no export of ferjax does: do not trust it'
    )
  wanted = tuple(
    {k: (list(v['shape'][1:]), v['dtype']) for k, v in record[kind].items()}
    for kind in ('inputs', 'outputs')
  )
  if described != wanted:
    raise InputError(f'{path} is another program than {DESCRIPTION} describes: do not trust it')
  return found


def _described(arrays):
  return {name: (list(x.shape[1:]), str(x.dtype)) for name, x in arrays.items()}
