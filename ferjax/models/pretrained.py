"""Weights trained with PyTorch: read without running code, and inserted where a method has the
network.

A file fits the network of the config if both have the same layers and shapes. The layers of the
file may have the names of torchvision, of timm (MobileNetV2), or numbers (a ResNet in an
`nn.Sequential`). Any prefix is accepted (`module.`, `backbone.`, `state_dict`). Arrays that do not
belong to the network, such as the last linear layer `fc`, are left out. Only names and shapes are
compared. A network with equal names and shapes but another computation is not detected: strides at
other places, as in ResNet v1, smoothed downsampling, or additional layers.

A method has the network at every subtree of its parameters or of its other state whose entries are
all layers of the network, by name and shape. Most methods have one such subtree. LA-Net has the
stem, both branches, and the averaged encoder; DML-Net has one network each for face, eyes and
mouth. Averages of such subtrees are filled too.
"""

import collections
import csv
import hashlib
import io
import logging
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from ferjax import files
from ferjax.errors import InputError
from ferjax.models import dlib_faces, mobilenet

LOGGER = logging.getLogger(__name__)

PyTree = Any
TORCH_ENDINGS = ('.pth', '.pt', '.bin', '.tar', '.ckpt')
SAFE_TORCH = (2, 10)  # older versions: files can run code or write memory, CVE-2025-32434,
# CVE-2026-24747
LONGEST_PREFIX = 200  # characters of the joined names of nested dicts
LEAVES = {
  'kernel': 'weight',
  'scale': 'weight',
  'bias': 'bias',
  'mean': 'running_mean',
  'var': 'running_var',
}
IN_SEQUENCE = {'0': 'conv1', '1': 'bn1', **{str(3 + i): f'layer{i}' for i in range(1, 5)}}
TIMM_LAYERS = {
  'conv_pw': 'conv.0.0',
  'bn1': 'conv.0.1',
  'conv_dw': 'conv.1.0',
  'bn2': 'conv.1.1',
  'conv_pwl': 'conv.2',
  'bn3': 'conv.3',
}
TIMM_FIRST_LAYERS = {'conv_dw': 'conv.0.0', 'bn1': 'conv.0.1', 'conv_pw': 'conv.1', 'bn2': 'conv.2'}
TIMM_ENDS = {
  'conv_stem': 'features.0.0',
  'bn1': 'features.0.1',
  'conv_head': 'features.18.0',
  'bn2': 'features.18.1',
}


class Weights(NamedTuple):
  """The arrays of a file that belong to a network.

  Attributes:
    variables: {'params': {...}, 'batch_stats': {...}} of the network, of arrays f[...].
    names: {name of a variable, such as `params/conv1/kernel`: name of the array in the file}.
    left_out: {name of an array in the file that the network does not use: its shape there}, without
      `num_batches_tracked`.
    file: The file's name.
    sha256: Checksum of the file's bytes, in hexadecimal.
    has_statistics: Whether the file has the statistics of BatchNorm, for training mode.
    statistics: If they were measured instead: on how many `rows`, of which `image_size`.
    shapes: {name of an array in the file: its shape there}.
    licence, provenance: Of the weights, where they are known.
    source: Further facts of the weights of a run or export: `checkpoint`, `step`, `method`, `data`.
  """

  variables: PyTree
  names: dict[str, str]
  left_out: dict[str, tuple[int, ...]]
  file: str
  sha256: str
  has_statistics: bool = True
  statistics: Mapping[str, int] = MappingProxyType({})
  shapes: Mapping[str, tuple[int, ...]] = MappingProxyType({})
  licence: str = ''
  provenance: str = ''
  source: Mapping[str, Any] = MappingProxyType({})


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
      raise InputError(f'{path} has two arrays named {_shown(name)}: save only one of them')
    try:
      arrays[name] = _array(tensor.detach(), torch)
    except (TypeError, RuntimeError, ValueError) as error:
      without[name] = error
  if without:
    reason = _reason(next(iter(without.values())))
    LOGGER.warning(
      '%s: left out arrays that cannot be read: %s: %s', path, _some(list(without)), reason
    )
  return arrays


def _flat(held, kind, path, seen, prefix='') -> Iterator[tuple[str, Any]]:
  if not isinstance(held, Mapping) or id(held) in seen:
    return
  if len(prefix) > LONGEST_PREFIX:
    raise InputError(f'{path} nests dicts too deeply, to {_shown(prefix)}: save a state_dict alone')
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
  return _shown(text) if text else type(error).__name__


READERS = {
  '.safetensors': _from_safetensors,
  '.dat': dlib_faces.arrays,
  **dict.fromkeys(TORCH_ENDINGS, _from_torch),
}


def convert(
  arrays: Mapping[str, np.ndarray], network: PyTree, file: str, sha256: str = ''
) -> Weights:
  """Converts arrays in the layout of PyTorch to the variables of a network.

  Kernels [out, in, h, w] become [h, w, in, out] (`in` is 1 for depthwise kernels). BatchNorm's
  weight, bias, running_mean and running_var become scale, bias, mean and var. Arrays named
  `num_batches_tracked` are ignored.

  Args:
    arrays: See `read`.
    network: {'params': {...}, 'batch_stats': {...}} of the network. Its leaves give the shapes and
      dtypes of the variables; they may be arrays or `jax.ShapeDtypeStruct`.
    file: The file's name, for errors and records.
    sha256: See `read`.

  Raises:
    InputError: the file does not hold the network, or holds it several times; layers are missing,
      unknown, or of other shapes; two arrays belong to the same variable; or numbers are not finite
      in the variables' dtypes, or variances are negative.
  """
  kinds = {kind: network[kind] for kind in ('params', 'batch_stats')}
  wanted = flax.traverse_util.flatten_dict(kinds, sep='/')
  paths = {_torch_name(path): path for path in wanted}
  names = [name for name in arrays if not name.endswith('num_batches_tracked')]
  translate, prefix = _layout(names, paths, file)
  own = {n: translate(n.removeprefix(prefix)) for n in names if n.startswith(prefix)}
  found = {}
  for name, key in own.items():
    path = paths.get(_key(key))
    if path in found:
      raise InputError(
        f'{file}: {_shown(found[path])} and {_shown(name)} are both {path}: remove one of them'
      )
    if path:
      found[path] = name
  used = set(found.values())
  groups = {own[name].partition('.')[0] for name in used}
  more = [name for name in own if own[name].partition('.')[0] in groups and name not in used]
  lacking = [path for path in wanted if path not in found]
  if lacking or more:
    raise InputError(
      f'{file} holds another network than that of config.model.name'
      + (f'; missing in the file: {_some(lacking)}' if lacking else '')
      + (f'; not in the network: {_some(more)}' if more else '')
    )
  differing = [
    f'  {_shown(name)}: {arrays[name].shape} in the file, '
    f'{_as_torch(wanted[path].shape)} in the model'
    for path, name in found.items()
    if arrays[name].shape != _as_torch(wanted[path].shape)
  ]
  if differing:
    raise InputError(
      f'{file} holds a network with other shapes than config.model:\n'
      + '\n'.join(differing[:5])
      + (f'\n  and {len(differing) - 5} more' if len(differing) > 5 else '')
      + '\nPublished weights need config.model.width=64 and their own network in config.model.name'
    )
  values = {}
  for path, name in found.items():
    array, dtype = arrays[name], np.dtype(wanted[path].dtype)
    if jnp.issubdtype(array.dtype, jnp.floating):
      with np.errstate(all='ignore'):
        values[path] = _as_flax(array).astype(dtype)
    if path not in values or not np.isfinite(values[path]).all():
      raise InputError(f'{file}: {_shown(name)} has values that are not finite {dtype} numbers')
    if path.endswith('/var') and (values[path] < 0).any():
      raise InputError(f'{file}: {_shown(name)} has negative variances')
  left_out = {name: arrays[name].shape for name in names if name not in used}
  variables = flax.traverse_util.unflatten_dict(values, sep='/')
  shapes = {name: arrays[name].shape for name in names}
  return Weights(variables, found, left_out, file, sha256, shapes=shapes)


def _torch_name(path):
  _, *layers, leaf = path.split('/')
  return '_'.join([*layers, LEAVES[leaf]])


def _layout(names, paths, file):
  """The naming function and the prefix that give the most names of the network."""
  counts = collections.Counter()
  longest = 1 + max(key.count('_') for key in paths)  # parts of a name without a prefix
  for name in names:
    parts = name.split('.')
    for start in range(max(0, len(parts) - longest), len(parts) - 1):
      prefix = '.'.join([*parts[:start], ''])
      for translate in (_torchvision, _sequential, _timm_mobilenet):
        counts[translate, prefix] += _key(translate('.'.join(parts[start:]))) in paths
  most = max(counts.values(), default=0)
  best = [layout for layout, count in counts.items() if count == most]
  if most < len(paths) // 4:
    raise InputError(
      f'{file} does not hold the network of config.model.name: '
      + (f'it has {_some(names)}' if names else 'it has no arrays')
    )
  prefixes = sorted({prefix for _, prefix in best})
  if len(prefixes) > 1 and most == len(paths):
    raise InputError(
      f'{file} holds several such networks, at {_some(prefixes)}: save only one of them'
    )
  return best[0]


def _key(name):
  return name.replace('.', '_')


def _torchvision(name):
  return name


def _sequential(name):
  number, _, rest = name.partition('.')
  return f'{IN_SEQUENCE.get(number, number)}.{rest}'


def _timm_mobilenet(name):
  layer, _, leaf = name.rpartition('.')
  if not layer.startswith('blocks.'):
    return f'{TIMM_ENDS.get(layer, layer)}.{leaf}'
  unknown = f'features.{name}'
  block = re.fullmatch(r'blocks\.([0-9])\.([0-9])\.(\w+)', layer)
  if block is None:
    return unknown
  group, number = int(block[1]), int(block[2])
  sizes = [blocks for groups in mobilenet.STAGES for _, _, blocks, _ in groups]
  layers = TIMM_LAYERS if group else TIMM_FIRST_LAYERS
  if group >= len(sizes) or number >= sizes[group] or block[3] not in layers:
    return unknown
  return f'features.{1 + sum(sizes[:group]) + number}.{layers[block[3]]}.{leaf}'


def _as_flax(array):
  return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array


def _as_torch(shape):
  return tuple(shape[i] for i in (3, 2, 0, 1)) if len(shape) == 4 else tuple(shape)


def _some(names):
  more = f' and {len(names) - 3} more' if len(names) > 3 else ''
  return ', '.join(map(_shown, names[:3])) + more


def _shown(text):
  return ascii(text if len(text) <= 100 else f'{text[:100]}...')


def insert(
  weights: Weights, params: PyTree, extra: PyTree
) -> tuple[PyTree, PyTree, dict[str, str]]:
  """Puts weights into every subtree of a method's state that consists of the network's layers.

  Args:
    weights: See `convert`.
    params, extra: Parameters and other state of the method, from its `init`.

  Returns:
    Both, with the weights in the dtypes of the leaves that they replace; and for every leaf that
    was replaced its name in the file: {'params/model/conv1/kernel': 'conv1.weight', ...}.

  Raises:
    InputError: the state has no place for some of the weights.
  """
  placed = {}
  state = {'params': params, 'extra': extra}
  state = {name: _inserted(part, weights.variables, name, placed) for name, part in state.items()}
  lost = sorted(weights.names.keys() - set(placed.values()))
  if lost:
    raise InputError(
      'config.model.weights has no place in this method: its parameters do not contain '
      f'{_some(lost)}'
    )
  return state['params'], state['extra'], {k: weights.names[v] for k, v in placed.items()}


def _inserted(tree, variables, path, placed):
  if not isinstance(tree, dict):
    return tree
  for kind, network in variables.items():
    if tree and all(name in network and _alike(tree[name], network[name]) for name in tree):
      for name in flax.traverse_util.flatten_dict(tree, sep='/'):
        placed[f'{path}/{name}'] = f'{kind}/{name}'
      given = {name: network[name] for name in tree}
      return jax.tree.map(lambda old, new: jnp.array(new, old.dtype), tree, given)
  return {k: _inserted(v, variables, f'{path}/{k}', placed) for k, v in tree.items()}


def places(tree: PyTree, network: PyTree, path: str = '') -> Iterator[tuple[str, PyTree]]:
  """The subtrees that consist of layers of a network, by name and shape, with their paths.

  Args:
    tree: Nested dicts of arrays or shapes.
    network: The layers of the network, such as its `params`.
    path: The path of the tree; the parts of a path are joined by `/`.
  """
  if not isinstance(tree, dict):
    return
  if tree and all(name in network and _alike(tree[name], network[name]) for name in tree):
    yield path, tree
    return
  for name, subtree in tree.items():
    yield from places(subtree, network, f'{path}/{name}' if path else name)


def _alike(a, b):
  shapes = (jax.tree.map(lambda leaf: leaf.shape, tree) for tree in (a, b))
  return next(shapes) == next(shapes)


def facts(weights: Weights) -> dict[str, Any]:
  """The record of the weights in `config.json`: file, sha256, number of arrays in use, names of
  those that are left out, and what else is known of them (see `Weights`)."""
  known = {name: getattr(weights, name) for name in ('licence', 'provenance')}
  known |= {name: dict(getattr(weights, name)) for name in ('source', 'statistics')}
  return {
    'file': weights.file,
    'sha256': weights.sha256,
    'used': len(weights.names),
    'left_out': sorted(weights.left_out),
    **{name: value for name, value in known.items() if value},
  }


def write(path: Path, weights: Weights, placed: Mapping[str, str], params: PyTree) -> None:
  """Writes where each array went, as CSV with the columns `file,model,shape,source,licence`.

  There is a row for every place that an array fills, for every array of `left_out` (with `model`
  empty), and for every parameter that keeps its initial values (with `file`, `source` and `licence`
  empty). `file` is the name of the array in the file or run, and `source` the name of the file or
  run. The shape is in the order of the file for its arrays, and of the model for such parameters.

  Args:
    path: The file to write.
    weights: See `convert`.
    placed: See `insert`.
    params: The method's parameters.
  """
  own = flax.traverse_util.flatten_dict({'params': params}, sep='/')
  kept = {name: value.shape for name, value in own.items() if name not in placed}
  origin = weights.file, weights.licence
  rows = [(name, place, weights.shapes[name], *origin) for place, name in placed.items()]
  rows += [(name, '', shape, *origin) for name, shape in weights.left_out.items()]
  rows += [('', name, shape, '', '') for name, shape in kept.items()]
  with files.replacing(path) as file:
    lines = csv.writer(file)
    lines.writerow(['file', 'model', 'shape', 'source', 'licence'])
    lines.writerows(
      [name, place, 'x'.join(map(str, shape)), *others] for name, place, shape, *others in rows
    )
  LOGGER.info(
    '%d arrays of %s fill %d places of the model; left out: %s; not there: %s; see %s',
    len(weights.names),
    weights.file,
    len(placed),
    _some(list(weights.left_out)) or 'none',
    _some(list(kept)) or 'none',
    path.name,
  )
