"""Weights in PyTorch's layout, converted to those of a network and inserted where a method has it.

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
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np

from ferjax import files
from ferjax.errors import InputError
from ferjax.models import mobilenet
from ferjax.models.weight_files import shown, some

LOGGER = logging.getLogger(__name__)

PyTree = Any
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


def convert(
  arrays: Mapping[str, np.ndarray], network: PyTree, file: str, sha256: str = ''
) -> Weights:
  """Converts arrays in the layout of PyTorch to the variables of a network.

  Kernels [out, in, h, w] become [h, w, in, out] (`in` is 1 for depthwise kernels). BatchNorm's
  weight, bias, running_mean and running_var become scale, bias, mean and var. Arrays named
  `num_batches_tracked` are ignored.

  Args:
    arrays: See `weight_files.read`.
    network: {'params': {...}, 'batch_stats': {...}} of the network. Its leaves give the shapes and
      dtypes of the variables; they may be arrays or `jax.ShapeDtypeStruct`.
    file: The file's name, for errors and records.
    sha256: See `weight_files.read`.

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
        f'{file}: {shown(found[path])} and {shown(name)} are both {path}: remove one of them'
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
      + (f'; missing in the file: {some(lacking)}' if lacking else '')
      + (f'; not in the network: {some(more)}' if more else '')
    )
  differing = [
    f'  {shown(name)}: {arrays[name].shape} in the file, '
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
      raise InputError(f'{file}: {shown(name)} has values that are not finite {dtype} numbers')
    if path.endswith('/var') and (values[path] < 0).any():
      raise InputError(f'{file}: {shown(name)} has negative variances')
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
      + (f'it has {some(names)}' if names else 'it has no arrays')
    )
  prefixes = sorted({prefix for _, prefix in best})
  if len(prefixes) > 1 and most == len(paths):
    raise InputError(
      f'{file} holds several such networks, at {some(prefixes)}: save only one of them'
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
      f'{some(lost)}'
    )
  return state['params'], state['extra'], {k: weights.names[v] for k, v in placed.items()}


def _inserted(tree, variables, path, placed):
  if not isinstance(tree, dict):
    return tree
  for kind, network in variables.items():
    if _is_part(tree, network):
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
  if _is_part(tree, network):
    yield path, tree
    return
  for name, subtree in tree.items():
    yield from places(subtree, network, f'{path}/{name}' if path else name)


def _is_part(tree, network):
  """Whether a dict that is not empty has only layers of a network, by name and shape."""
  return bool(tree) and all(n in network and _alike(tree[n], network[n]) for n in tree)


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
    some(list(weights.left_out)) or 'none',
    some(list(kept)) or 'none',
    path.name,
  )
