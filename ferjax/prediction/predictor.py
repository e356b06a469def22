"""A trained model as a function of pictures: `ferjax.load(RUN_OR_EXPORT)(pictures)`."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy import special

from ferjax import core, labels
from ferjax.assembly import build, restore
from ferjax.data import landmarks
from ferjax.distributed import parallel
from ferjax.errors import InputError
from ferjax.export import reader
from ferjax.images import augment, files
from ferjax.metrics import predictions
from ferjax.runs.record import read

Picture = str | os.PathLike | np.ndarray
LARGEST_BATCH = 64


class Predictor(NamedTuple):
  """A trained model that predicts faces. Crop pictures like those that it was trained on.

  Attributes:
    classes: Class names, in the order of the probabilities.
    poses: Pose classes, yaw in degrees; empty for a model without poses.
    image_size: Pictures are resized to this square, as in evaluation.
    needs: Features that it needs besides pictures, such as `landmarks`.
    uses: Further features that improve the prediction.
    landmarks: Indices in their scheme of the landmarks that it uses; None if all are used.
    derive: (table of features, n rows each) -> the table with the features that the method derives.
    run: (batch: `image` u8[n, s, s, 3] and features) -> outputs of n rows, NumPy arrays.
    sizes: Numbers of rows that `run` is called with; batches are padded to the next one.
    landmark_scheme: The scheme of the landmarks, one of `labels.SCHEMES`; '' if it is unknown.
  """

  classes: tuple[str, ...]
  poses: tuple[int, ...]
  image_size: int
  needs: frozenset[str]
  uses: frozenset[str]
  landmarks: tuple[int, ...] | None
  derive: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]
  run: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]
  sizes: tuple[int, ...]
  landmark_scheme: str = ''

  def __call__(self, pictures: Picture | Sequence[Picture], **features: Any) -> np.ndarray:
    """The probabilities of the classes, f32[n, C], for n pictures; see `outputs`."""
    return self.outputs(pictures, **features)['probabilities']

  def outputs(
    self, pictures: Picture | Sequence[Picture], **features: Any
  ) -> dict[str, np.ndarray]:
    """All outputs of the model for pictures.

    Args:
      pictures: Files, or arrays u8[h, w, 3] (RGB) or u8[h, w] (grey) of any sizes: one of them, a
        list, or an array u8[n, h, w, 3].
      **features: For a model that needs or uses them, `landmarks` f[n, k, 2], in pixels of the
        given pictures; pixel centres are whole numbers. They are those that the model uses, all
        of their scheme, or all of a scheme from which they come (see `labels.points_of`).

    Returns:
      Arrays of n rows: `probabilities` f32[n, C], `logits` f[n, C], `embedding` f[n, d] if the
      method has one, and its other outputs, such as `pose_logits` f[n, p].

    Raises:
      InputError: a picture cannot be read or is not such an array, or a feature is missing, unknown
        or has a wrong shape. The message names it.
    """
    pictures = _listed(pictures)
    self._check_features(features, len(pictures))
    parts = []
    for start in range(0, len(pictures), self.sizes[-1]) or (0,):
      stop = start + self.sizes[-1]
      chosen = {name: value[start:stop] for name, value in features.items()}
      parts.append(self._batch(pictures[start:stop], start, chosen))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

  def _check_features(self, features, rows):
    for name in sorted(self.needs - set(features)):
      raise InputError(f'the model needs {name} besides pictures: give {name}=...')
    for name, value in features.items():
      if name not in self.needs | self.uses:
        raise InputError(f'the model does not use {name}: leave it out')
      if len(value) != rows:
        raise InputError(f'{rows} pictures, but {name} of {len(value)}: give the same number')

  def _batch(self, pictures, start, features):
    rows = len(pictures)
    size = next(size for size in self.sizes if size >= rows)
    batch = {'image': np.zeros((size, self.image_size, self.image_size, 3), np.uint8)}
    shapes = np.ones((rows, 2))
    for place, given in enumerate(pictures):
      picture = pixels(given, f'picture {start + place}')
      shapes[place] = picture.shape[:2]
      batch['image'][place] = files.resize(picture, self.image_size)
    table = dict(features)
    if 'landmarks' in features:
      table['landmarks'] = self._landmarks(features['landmarks'], shapes)
    for name, column in (self.derive(table) if table else {}).items():
      column = column if rows else np.zeros((1, *column.shape[1:]), column.dtype)
      batch[name] = np.concatenate([column, np.repeat(column[:1], size - len(column), 0)])
    outputs = {name: value[:rows] for name, value in self.run(batch).items()}
    logits = outputs['logits'].astype(np.float64)
    return outputs | {'probabilities': special.softmax(logits, axis=1).astype(np.float32)}

  def _landmarks(self, points, shapes):
    points = np.asarray(points, np.float32)
    if points.ndim != 3 or points.shape[2] != 2:
      raise InputError(f'landmarks have the shape {points.shape}: give [pictures, points, 2]')
    if not np.isfinite(points).all():
      raise InputError('landmarks are not finite numbers: leave these pictures out')
    wanted, count = self.landmarks, points.shape[1]
    if wanted is not None and count != len(wanted):
      given, own = labels.landmark_scheme(count), self.landmark_scheme
      if own and given not in ('', own):
        converted = landmarks.convert(points, (given, tuple(range(count))), (own, wanted))
        if converted is None:
          raise InputError(
            f'got {count} landmarks for each picture ({given}): the model uses {len(wanted)} of '
            f'{own}, which do not come from them'
          )
        points = converted
      elif count <= max(wanted):
        raise InputError(
          f'got {count} landmarks for each picture: the model uses {len(wanted)}, up to number '
          f'{max(wanted)} of their scheme'
        )
      else:
        points = points[:, list(wanted)]
    return files.rescale(points, shapes[:, None, ::-1], self.image_size)


def load(path: str | os.PathLike, which: str = 'last') -> Predictor:
  """The model of a run or of an export, ready to use.

  Args:
    path: The folder of a run, or one that `ferjax export` wrote.
    which: The checkpoint of a run: `last`, `best` (by validation accuracy), or a step.

  Raises:
    InputError: there is no such run, export or checkpoint, or the files are damaged; see
      `reader.read`.
  """
  path = Path(path)
  if reader.is_export(path):
    if str(which) != 'last':
      raise InputError(f'{path} is an export, which has only one checkpoint: leave {which!r} out')
    return _load_export(path)
  record = read(path)
  x64 = record['config']['precision'] == 'float64'
  with jax.enable_x64(x64):
    model = restore.load(path, str(which))
    devices = parallel.make(backend=model.config.parallel.backend)
    dtype = build.picture_dtype(model.config)
    step = devices.compile(
      predictions.make_predict_step(model.method, lambda batch: augment.evaluation(batch, dtype))
    )

  def run(batch):
    with jax.enable_x64(x64):
      return parallel.host(step(model.state, devices.shard(batch)))

  needs, uses = model.method.predict_needs, model.method.predict_uses
  derive = deriver(model.method)
  return make(record, run, needs=needs, uses=uses, derive=derive, multiple=devices.size)


def _load_export(path):
  model = reader.read(path)
  derive = _unchanged
  if model.derived:
    config = restore.config_in(model.record)
    classes, poses = len(model.record['classes']), len(model.record['poses'])
    derive = deriver(build.make_method(config, classes, poses))
  return make(model.record, model.run, needs=model.needs, derive=derive)


def _unchanged(table):
  return table


def deriver(method: core.Method) -> Callable[[dict[str, Any]], dict[str, Any]]:
  """A function (table of features) -> the table with the columns that a method derives. A table
  that lacks a feature that the method needs is returned unchanged."""

  def derive(table):
    if not method.needs <= set(table):
      return table
    return table | {k: f(table) for k, f in method.derived.items() if k not in table}

  return derive


def make(
  record: dict[str, Any],
  run: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]],
  *,
  needs: frozenset[str],
  uses: frozenset[str] = frozenset(),
  derive: Callable[[dict[str, Any]], dict[str, Any]] = _unchanged,
  multiple: int = 1,
) -> Predictor:
  """Makes a predictor from the record of a run and a function that runs its model.

  Args:
    record: The record; see `runs.record.read`. It needs at least `config` and `classes`.
    run, needs, uses, derive: See `Predictor`.
    multiple: The number of rows of a batch is a multiple of this number.
  """
  indices = record.get('landmark_indices') or record['config']['data'].get('landmarks') or None
  sizes = [multiple]
  while sizes[-1] < LARGEST_BATCH:
    sizes.append(2 * sizes[-1])
  return Predictor(
    classes=tuple(record['classes']),
    poses=tuple(record.get('poses', ())),
    image_size=record['config']['data']['image_size'],
    needs=needs,
    uses=uses,
    landmarks=None if indices is None else tuple(indices),
    landmark_scheme=record.get('landmark_scheme', ''),
    derive=derive,
    run=run,
    sizes=tuple(sizes),
  )


def pixels(picture: Picture, name: str = 'the picture') -> np.ndarray:
  """The pixels of a picture u8[h, w, 3], RGB. Files are read as in evaluation.

  Args:
    picture: A file, or u8[h, w, 3] (RGB) or u8[h, w] (grey).
    name: The name of an array in messages.

  Raises:
    InputError: the file cannot be read, or the array has a wrong shape or type.
  """
  if isinstance(picture, str | os.PathLike):
    try:
      return files.read(Path(picture))
    except InputError as error:
      raise InputError(f'{picture}: {error}') from error
  array = np.asarray(picture)
  if array.dtype != np.uint8:
    raise InputError(f'{name} has numbers of type {array.dtype}: give uint8, 0 to 255')
  if array.ndim == 2:
    array = np.repeat(array[..., None], 3, 2)
  if array.ndim != 3 or array.shape[2] != 3 or not array.size:
    raise InputError(
      f'{name} has the shape {array.shape}: give [height, width, 3] (RGB) or [height, width]'
    )
  return array


def _listed(pictures) -> Sequence[Picture]:
  if isinstance(pictures, str | os.PathLike):
    return [pictures]
  if hasattr(pictures, '__array__') or hasattr(pictures, '__array_interface__'):
    array = np.asarray(pictures)
    if array.dtype.kind in 'OSU':
      return array.tolist()
    return array if array.ndim > 3 else [array]
  try:
    return pictures if isinstance(pictures, Sequence) else list(pictures)
  except TypeError:
    raise InputError(
      f'pictures are {type(pictures).__name__}: give files, or arrays u8[height, width, 3]'
    ) from None
