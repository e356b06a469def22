"""Reads the arrays of files with weights: of safetensors, PyTorch and dlib. Nothing in a file is
run."""

import hashlib
import io
import logging
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from ferjax.errors import InputError
from ferjax.models import dlib_faces

LOGGER = logging.getLogger(__name__)

TORCH_ENDINGS = ('.pth', '.pt', '.bin', '.tar', '.ckpt')
SAFE_TORCH = (2, 10)  # older versions: files can run code or write memory, CVE-2025-32434,
# CVE-2026-24747
LONGEST_PREFIX = 200  # characters of the joined names of nested dicts


def read(path: Path) -> tuple[dict[str, np.ndarray], str]:
  """Reads the arrays of a file. Nothing in the file is run.

  A crafted file for PyTorch can make `torch.load` use far more time and memory than its size;
  a `.safetensors` file cannot.

  Args:
    path: A `.safetensors` file, the `.dat` file of dlib's face recognition (see
      `dlib_faces.arrays`), or a file from `torch.save` (`.pth`, `.pt`, `.bin`, `.tar`, `.ckpt`)
      that holds tensors only. The last needs PyTorch. Names in nested dicts are joined by dots. A
      dict that occurs twice is read once. Tensors that NumPy cannot represent (sparse, quantized,
      without data) are left out with a warning.

  Returns:
    {name: array}, and the sha256 of the file's bytes.

  Raises:
    InputError: the file does not exist, is damaged or compressed, has two arrays of the same name,
      holds anything that would have to be run, or has an unknown ending; or PyTorch is needed but
      is missing or too old to be safe.
  """
  where = f'config.model.weights={path}'
  try:
    file = Path(path).expanduser()
    if file.is_dir():
      raise InputError(f'{where} is a folder: give a file in it')
    if not file.is_file():
      raise InputError(f'{where}: there is no such file')
    kind = file.suffix.lower()
    if kind not in READERS:
      raise InputError(
        f'{where}: give a .safetensors file, or one of PyTorch ({" ".join(TORCH_ENDINGS)}) or of '
        'dlib (.dat)'
      )
    content = file.read_bytes()
  except (OSError, RuntimeError, MemoryError) as error:
    raise InputError(f'{where} cannot be read: {_reason(error)}') from error
  return READERS[kind](content, path), hashlib.sha256(content).hexdigest()


def _from_safetensors(content, path):
  try:
    return safetensors.numpy.load(content)
  except BaseException as error:
    if isinstance(error, (AttributeError, KeyError, TypeError)):  # numbers unknown to NumPy
      raise InputError(
        f'{path} has a dtype that cannot be read ({_reason(error)}): save it as float32'
      ) from error
    if isinstance(error, Exception) or type(error).__name__ == 'PanicException':  # of Rust
      raise InputError(
        f'{path} is damaged or not a safetensors file ({_reason(error)}): download it again'
      ) from error
    raise


def _from_torch(content, path):
  try:
    import torch
  except ImportError as error:
    raise InputError(
      f"{path} is a file of PyTorch: install PyTorch with pip install 'ferjax[torch]', or convert "
      'the file to .safetensors on a machine that has PyTorch'
    ) from error
  if torch.__version__ < SAFE_TORCH:
    least = '.'.join(map(str, SAFE_TORCH))
    raise InputError(
      f'{path}: PyTorch {torch.__version__} may run code that is in such a file: '
      f"pip install --upgrade 'torch>={least}', or convert the file to .safetensors"
    )
  try:
    _check_archive(content, path)
    held = torch.load(io.BytesIO(content), map_location='cpu', weights_only=True)
    return _arrays(held, torch, path)
  except InputError:
    raise
  except Exception as error:  # PyTorch raises many kinds for a damaged file
    raise InputError(
      f'{path} is damaged, or holds more than tensors; none of it was run. Download it again, or, '
      'if you trust its source, load it in PyTorch and save its state_dict alone as .safetensors. '
      f'PyTorch says: {_reason(error)}'
    ) from error


def _check_archive(content, path):
  """Raises InputError for a zip file that unpacks to more than its own size: `torch.save` does not
  compress."""
  if content.startswith(b'PK\x03\x04'):
    entries = zipfile.ZipFile(io.BytesIO(content)).infolist()
    if sum(entry.file_size for entry in entries) > len(content):
      raise InputError(
        f'{path} unpacks to more than its own size, unlike files from torch.save: if you trust its '
        'source, load it in PyTorch and save its state_dict alone'
      )


def _arrays(held, torch, path):
  arrays, without = {}, {}
  for name, tensor in _flat(held, torch.Tensor, path, set()):
    if name in arrays or name in without:
      raise InputError(f'{path} has two arrays named {shown(name)}: save only one of them')
    try:
      arrays[name] = _array(tensor.detach(), torch)
    except (TypeError, RuntimeError, ValueError) as error:
      without[name] = error
  if without:
    reason = _reason(next(iter(without.values())))
    LOGGER.warning(
      '%s: left out arrays that cannot be read: %s: %s', path, some(list(without)), reason
    )
  return arrays


def _flat(held, kind, path, seen, prefix='') -> Iterator[tuple[str, Any]]:
  if not isinstance(held, Mapping) or id(held) in seen:
    return
  if len(prefix) > LONGEST_PREFIX:
    raise InputError(f'{path} nests dicts too deeply, to {shown(prefix)}: save a state_dict alone')
  seen.add(id(held))
  for name, value in held.items():
    if isinstance(name, str | int):
      if isinstance(value, kind):
        yield f'{prefix}{name}', value
      yield from _flat(value, kind, path, seen, f'{prefix}{name}.')


def _array(tensor, torch) -> np.ndarray:
  """The tensor as an array that shares its memory."""
  if tensor.dtype == torch.bfloat16:  # NumPy has no such dtype
    return tensor.view(torch.int16).numpy().view(jnp.bfloat16)
  return tensor.numpy()


def _reason(error) -> str:
  """The first sentence of an error, without PyTorch's advice to run the file."""
  forbidden = re.search(r'GLOBAL \S+', str(error))
  text = forbidden[0] if forbidden else re.split(r'\. |\n', str(error).strip())[0]
  return shown(text) if text else type(error).__name__


READERS = {
  '.safetensors': _from_safetensors,
  '.dat': dlib_faces.arrays,
  **dict.fromkeys(TORCH_ENDINGS, _from_torch),
}


def some(names: Sequence[str]) -> str:
  """The first names of a file's arrays, for messages."""
  more = f' and {len(names) - 3} more' if len(names) > 3 else ''
  return ', '.join(map(shown, names[:3])) + more


def shown(text: str) -> str:
  """The beginning of a text from a file in ASCII, for messages."""
  return ascii(text if len(text) <= 100 else f'{text[:100]}...')
