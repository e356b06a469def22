"""From the parameters of a trained model to those of a new run: the encoder, and the classifier."""

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax
import jax.numpy as jnp
import numpy as np

from ferjax.core import Batch, PyTree
from ferjax.errors import InputError
from ferjax.models import pretrained

LOGGER = logging.getLogger(__name__)

HEADS = ('auto', 'keep', 'drop')
KINDS = ('params', 'batch_stats')

Path = tuple[str, ...]
Chosen = dict[Path, tuple[str, np.ndarray]]  # by kind and path: the name in the source, the array


class Trained(NamedTuple):
  """A trained model.

  Attributes:
    weights: Its encoder; see `encoder`.
    arrays: {name such as `params/model/conv1/kernel`: array}: all parameters with which it
      predicts, and the statistics of BatchNorm as `batch_stats/...`.
    method: The name of its method.
    classifier: See `core.Method`.
    classes: Class names in label order.
    poses: Pose classes, yaw in degrees.
  """

  weights: pretrained.Weights
  arrays: Mapping[str, np.ndarray]
  method: str
  classifier: str
  classes: Sequence[str]
  poses: Sequence[int]


class New(NamedTuple):
  """A run before its first step.

  Attributes:
    params, extra: From the method's `init`.
    example: The batch of one row that `init` got.
    table: The table of the training rows that `init` got.
    method: The name of the method.
    classifier: See `core.Method`.
    classes: Class names in label order.
    poses: Pose classes, yaw in degrees.
  """

  params: PyTree
  extra: PyTree
  example: Batch
  table: Mapping[str, np.ndarray]
  method: str
  classifier: str
  classes: Sequence[str]
  poses: Sequence[int]


def encoder(
  arrays: Mapping[str, np.ndarray], network: PyTree, parts: Sequence[str], where: str
) -> tuple[PyTree, dict[str, str]]:
  """The network that sees the whole face.

  Args:
    arrays: See `Trained`.
    network: {'params': {...}, 'batch_stats': {...}} of the network: arrays or shapes.
    parts: `encoder` of the method; see `core.Method`.
    where: What holds the arrays, for errors.

  Returns:
    The variables of the network, and {name of a variable, such as `params/conv1/kernel`: name of
    the array}.

  Raises:
    InputError: some layers of the network are missing, have other shapes, or have values that are
      not finite.
  """
  source = flax.traverse_util.unflatten_dict(dict(arrays), sep='/')
  variables, names = {}, {}
  for kind in KINDS:
    found = dict(pretrained.places(source.get(kind, {}), network[kind]))
    rank = {part: number for number, part in enumerate(parts)}
    variables[kind] = {}
    for place in sorted(found, key=lambda place: (rank.get(place, len(rank)), place)):
      for layer in found[place].keys() - variables[kind].keys():
        tree = {layer: found[place][layer]}
        variables[kind] |= tree
        for name in flax.traverse_util.flatten_dict(tree, sep='/'):
          names[f'{kind}/{name}'] = whole = '/'.join(filter(None, (kind, place, name)))
          _check_finite(whole, arrays[whole])
    lacking = sorted(network[kind].keys() - variables[kind].keys())
    if lacking:
      raise InputError(
        f'{where} does not hold the network of config.model: it lacks {", ".join(lacking[:3])}'
        + (f' and {len(lacking) - 3} more layers' if len(lacking) > 3 else '')
      )
  return variables, names


def sha256(arrays: Mapping[str, np.ndarray]) -> str:
  """SHA-256 over the names, types, shapes and bytes of arrays, in hexadecimal."""
  digest = hashlib.sha256()
  for name, array in sorted(arrays.items()):
    digest.update(f'{name} {array.dtype} {array.shape}'.encode())
    digest.update(np.ascontiguousarray(array).tobytes())
  return digest.hexdigest()


def insert(
  trained: Trained,
  new: New,
  head: str,
  shapes: Callable[[int, int], PyTree],
) -> tuple[pretrained.Weights, PyTree, PyTree, dict[str, str]]:
  """Puts a trained model into the parameters and other state of a new run.

  The encoder goes to every network of the method. If both have the same method, all other
  parameters and statistics of the same name and shape follow. If not, the classifier follows where
  both have one. Classes are matched by name. Copies of parameters in `extra`, such as momentum
  encoders and averages, get the same arrays.

  Args:
    trained: The trained model.
    new: The new run.
    head: What happens to parameters that depend on the classes: `keep`, `drop`, or `auto`, which
      keeps them if the trained model has all classes of the new run.
    shapes: (number of classes, number of poses) -> the shapes of the new run's parameters.

  Returns:
    The weights with the names that are used and left out; `params`; `extra`; and for every leaf
    that was replaced, its name in the source.

  Raises:
    InputError: `keep`, and the trained model lacks a class or a classifier that fits; or an array
      has values that are not finite.
  """
  where = trained.weights.file
  params, extra, placed = pretrained.insert(trained.weights, new.params, new.extra)
  lacking = [name for name in new.classes if name not in trained.classes]
  if lacking and head == 'keep':
    raise InputError(
      f"config.model.weights_head=keep: {where} has no class '{lacking[0]}'; its classes are "
      f'{", ".join(trained.classes)}. Give config.model.weights_head=drop'
    )
  keeps = head != 'drop' and not lacking
  if trained.method == new.method:
    chosen, kept = _same_method(trained, new, keeps, shapes)
  else:
    chosen = kept = _classifier(trained, new) if keeps else {}
  if head == 'keep' and not kept:
    raise InputError(
      f'config.model.weights_head=keep: {new.method} has no classifier that fits the one of '
      f'{where} ({trained.method}). Give config.model.weights_head=drop'
    )
  _log_head(where, head, lacking, kept)
  params, extra = _filled(params, extra, chosen, placed)
  used = set(placed.values())
  weights = trained.weights._replace(
    names={name: name for name in sorted(used)},
    left_out={name: x.shape for name, x in trained.arrays.items() if name not in used},
  )
  return weights, params, extra, placed


def _log_head(where, head, lacking, kept):
  if kept:
    LOGGER.info('the classifier is that of %s', where)
  elif lacking and head == 'auto':
    LOGGER.info('the classifier starts from random weights: %s has no class %s', where, lacking[0])
  else:
    LOGGER.info('the classifier starts from random weights')


def _same_method(trained, new, keeps, shapes) -> tuple[Chosen, Chosen]:
  """All arrays that fit; and those of them that depend on the classes."""
  counts = len(new.classes), len(new.poses)
  of_classes = _axes(new.params, shapes(counts[0] + 1, counts[1]))
  of_poses = {}
  if list(new.poses) != list(trained.poses):
    of_poses = _axes(new.params, shapes(counts[0], counts[1] + 1))
  knows_poses = set(new.poses) <= set(trained.poses)
  chosen, kept = {}, {}
  for path, leaf in flax.traverse_util.flatten_dict(new.params).items():
    name = '/'.join(('params', *path))
    array = trained.arrays.get(name)
    classes, poses = of_classes.get(path, ()), of_poses.get(path, ())
    if array is None or (classes and not keeps) or (poses and not knows_poses):
      continue
    array = _reordered(array, classes, trained.classes, new.classes)
    array = _reordered(array, poses, trained.poses, new.poses)
    if array.shape == leaf.shape:
      chosen['params', *path] = name, array
      kept |= {path: chosen['params', *path]} if classes else {}
  for name, array in trained.arrays.items():
    kind, *path = name.split('/')
    if kind == 'batch_stats':
      chosen[kind, *path] = name, array
  return chosen, kept


def _axes(params, larger) -> dict[Path, tuple[int, ...]]:
  """The axes of parameters that are longer in `larger`, shapes for another number of classes or
  poses; leaves without such an axis are left out."""
  before, after = (flax.traverse_util.flatten_dict(tree) for tree in (params, larger))
  found = {}
  for path in before.keys() & after.keys():  # not those of added terms
    pairs = zip(before[path].shape, after[path].shape, strict=True)
    axes = tuple(axis for axis, (a, b) in enumerate(pairs) if a != b)
    found |= {path: axes} if axes else {}
  return found


def _reordered(array, axes, theirs, ours):
  """The array with the entries of `ours` along axes with the entries of `theirs`."""
  for axis in axes:
    if axis < array.ndim and array.shape[axis] == len(theirs):
      array = np.take(array, [list(theirs).index(name) for name in ours], axis)
  return array


def _classifier(trained, new) -> Chosen:
  """The classifier of another method, or {} if one of both has none or their shapes differ."""
  if not trained.classifier or not new.classifier:
    return {}
  path, chosen = tuple(new.classifier.split('/')), {}
  params = flax.traverse_util.flatten_dict(new.params)
  for leaf in ('kernel', 'bias'):
    name = f'params/{trained.classifier}/{leaf}'
    array, old = trained.arrays.get(name), params.get((*path, leaf))
    if array is None or old is None:
      return {}
    array = _reordered(array, (array.ndim - 1,), trained.classes, new.classes)
    if array.shape != old.shape:
      return {}
    chosen['params', *path, leaf] = name, array
  return chosen


def _filled(params, extra, chosen: Chosen, placed):
  """Both with the chosen arrays, in `extra` wherever a path ends like that of one; adds to
  `placed`."""
  trees = {'params': params, 'extra': extra}
  for part, tree in trees.items():
    flat = flax.traverse_util.flatten_dict(tree, keep_empty_nodes=True)
    for path, leaf in flat.items():
      found = chosen.get((part, *path)) if part == 'params' else _ending(path, chosen)
      if found is None or getattr(leaf, 'shape', None) != found[1].shape:
        continue
      flat[path] = _cast(*found, leaf.dtype)
      placed['/'.join((part, *path))] = found[0]
    trees[part] = flax.traverse_util.unflatten_dict(flat)
  return trees['params'], trees['extra']


def _ending(path: Path, chosen: Chosen):
  if 'batch_stats' in path:
    return chosen.get(path[path.index('batch_stats') :])
  suffixes = (('params', *path[start:]) for start in range(1, len(path)))
  return next((chosen[suffix] for suffix in suffixes if suffix in chosen), None)


def _cast(name: str, array: np.ndarray, dtype: Any):
  with np.errstate(all='ignore'):
    array = np.asarray(array).astype(dtype)
  _check_finite(name, array)
  return jnp.asarray(array)


def _check_finite(name, array):
  if not np.isfinite(array).all():
    raise InputError(
      f'config.model.weights: {name} has values that are not finite {array.dtype} numbers'
    )
