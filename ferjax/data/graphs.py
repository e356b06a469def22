"""Graphs of nearest neighbours in auxiliary label spaces, built once for a table and then stored.

Reference: LDL-ALSG (Chen et al., CVPR 2020), section 3.
"""

import functools
import hashlib
import logging
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from ferjax import files
from ferjax.data.neighbours import Neighbours, nearest_others
from ferjax.errors import InputError, choose, nearest
from ferjax.terminal import progress

LOGGER = logging.getLogger(__name__)

VERSION = 1
SPACES = {'au': 'AU01_r ...', 'landmarks': 'x_0 ... x_67, y_0 ... y_67'}  # columns of a manifest
LANDMARK_UNIT = 224  # picture size in pixels
ALIGNMENTS = ('procrustes', 'none')  # of landmarks


class Graph(NamedTuple):
  """Neighbours in one space.

  Attributes:
    index: i32[n, k], rows of the table, nearest first.
    affinity: f32[n, k], a_ij of equation 3.
  """

  index: np.ndarray
  affinity: np.ndarray


def folder(data_dir: str) -> Path:
  """The folder of stored graphs, next to the prepared data sets."""
  return Path(data_dir or tfds.core.constants.DATA_DIR).expanduser() / 'graphs'


def coordinates(
  table: Mapping[str, np.ndarray],
  space: str,
  image_size: int,
  landmark_alignment: str = 'procrustes',
) -> np.ndarray:
  """The coordinates of each row in a space.

  Args:
    table: Columns of n rows, landmarks in pixels of pictures of `image_size`.
    space: `au` (intensities, 0..5) or `landmarks` (x and y of each, in pixels of a picture of
      224x224).
    image_size: See `table`.
    landmark_alignment: `procrustes` (see `aligned`), or `none`.

  Returns:
    f32[n, d].

  Raises:
    InputError: there is no such space or alignment, the table lacks its column, a number is not
      finite, or all landmarks of a row are one point.
  """
  choose('config.sampler.landmark_alignment', landmark_alignment, ALIGNMENTS)
  if space not in SPACES:
    raise InputError(
      f"config.sampler.graphs names '{space}'.{nearest(space, SPACES)} Use {' or '.join(SPACES)}"
    )
  if space not in table:
    raise InputError(
      f"the training rows have no '{space}', which a graph needs. Add the columns "
      f'{SPACES[space]} to a manifest, or leave the graph out with config.sampler.graphs'
    )
  values = np.asarray(table[space], np.float32).reshape(len(table[space]), -1)
  unknown = np.flatnonzero(~np.isfinite(values).all(1))
  if len(unknown):
    name = table['name'][unknown[0]] if 'name' in table else f'row {unknown[0]}'
    raise InputError(f"'{space}' of {name} is not a finite number: correct it to build the graph")
  if space == 'au':
    return values
  points = values.reshape(len(values), -1, 2) * np.float32(LANDMARK_UNIT / image_size)
  if landmark_alignment == 'procrustes':
    flat = np.flatnonzero(np.ptp(points, 1).max(1) == 0)
    if len(flat):
      name = table['name'][flat[0]] if 'name' in table else f'row {flat[0]}'
      raise InputError(f'the landmarks of {name} are one point: correct them to build the graph')
    points = aligned(points)
  return points.reshape(len(points), -1)


def aligned(points: np.ndarray, iterations: int = 5) -> np.ndarray:
  """Shapes moved, turned and scaled onto their mean, in least squares (generalised Procrustes).

  What is left of landmarks is the shape, whatever the place, the size and the roll of the face.
  Reference: Gower, "Generalized Procrustes analysis", Psychometrika 40, 1975.

  Args:
    points: f[n, k, 2], no row of which is one point.
    iterations: How often the mean is taken again.

  Returns:
    f32[n, k, 2], centred, of the shapes' mean size and the mean's roll.
  """
  shapes = points[..., 0].astype(np.float64) + 1j * points[..., 1]
  shapes -= shapes.mean(1, keepdims=True)
  sizes = np.linalg.norm(shapes, axis=1, keepdims=True)
  shapes /= sizes
  mean = shapes.mean(0)
  for _ in range(iterations):
    mean /= np.linalg.norm(mean)
    turned = (shapes.conj() @ mean)[:, None] * shapes
    mean = turned.mean(0)
  turned *= sizes.mean()
  return np.stack([turned.real, turned.imag], -1).astype(np.float32)


def make(
  table: Mapping[str, np.ndarray],
  space: str,
  *,
  image_size: int,
  neighbours: int,
  sigma: float,
  folder: Path,
  landmark_alignment: str = 'procrustes',
) -> Graph:
  """The graph of a table's rows in a space. It is read from `folder`, or built and written there.

  The log says how well the space knows the classes: the share of neighbours with the row's own
  label, and what it would be by chance.

  Args:
    table, space, image_size, landmark_alignment: See `coordinates`. The table also has the
      `label`.
    neighbours: Number of neighbours k of each row.
    sigma: The sigma of equation 3, in units of the space.
    folder: The folder of graphs. The name of each file contains its fingerprint.

  Raises:
    InputError: see `coordinates` and `load`; or there are not more rows than neighbours.
  """
  points = coordinates(table, space, image_size, landmark_alignment)
  digest = fingerprint(points, neighbours)
  path = folder / f'{space}-{digest[:16]}.npz'
  found = load(path, digest)
  if found is None:
    LOGGER.info('building the graph of %d rows by %s: %s', len(points), space, path)
    track = functools.partial(progress.track, title=f'Neighbours by {space}', unit='blocks')
    found = nearest_others(points, neighbours, progress=track)
    try:
      save(path, found, digest)
    except OSError as error:
      LOGGER.warning('cannot store the graph: %s. It will be built again next time', error)
  affinity = np.exp(-((found.distance / sigma) ** 2) / 2)
  LOGGER.info(
    'graph by %s: recall %.3f, median distance %.3g, median a_ij %.3f, %.1f %% of the neighbours '
    'have the label of their row (%.1f %% by chance)',
    space,
    found.recall,
    np.median(found.distance),
    np.median(affinity),
    100 * same_label(table['label'], found.index),
    100 * np.square(np.bincount(table['label']) / len(points)).sum(),
  )
  if space == 'au' and points.max() <= 1:
    LOGGER.warning(
      'no action unit is above %.3g: intensities of 0..5 are expected. If these have another '
      'scale, adapt config.sampler.au_sigma (%g) to it',
      points.max(),
      sigma,
    )
  for name, extreme in (('0', affinity < 0.01), ('1', affinity > 0.99)):
    if extreme.mean() > 0.95:
      LOGGER.warning(
        'by %s nearly all a_ij are %s: with a median distance of %.3g between neighbours, sigma=%g '
        'separates nothing. Are these the units it expects (%s)?',
        space,
        name,
        np.median(found.distance),
        sigma,
        'intensities of 0..5' if space == 'au' else 'pixels of aligned faces',
      )
  return Graph(found.index, affinity.astype(np.float32))


def same_label(label: np.ndarray, index: np.ndarray) -> float:
  """The share of the neighbours i[n, k] that have the label of their row, of labels i[n]."""
  return float((label[index] == label[:, None]).mean())


def fingerprint(points: np.ndarray, neighbours: int) -> str:
  """SHA-256 of the rows f32[n, d] in their order, and of the number of neighbours."""
  text = f'{VERSION} {neighbours} {points.shape}'
  return hashlib.sha256(text.encode() + np.ascontiguousarray(points).tobytes()).hexdigest()


def save(path: Path, found: Neighbours, digest: str) -> None:
  """Writes `index`, `distance`, `recall` and the fingerprint. The file appears when complete."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with files.replacing(path, 'wb') as file:
    np.savez(file, fingerprint=digest, **found._asdict())


def load(path: Path, digest: str) -> Neighbours | None:
  """The neighbours in a file; None if it does not exist or is damaged.

  Raises:
    InputError: the file is the graph of other rows, or of the same rows in another order.
  """
  try:
    with path.open('rb') as file, np.load(file, allow_pickle=False) as stored:
      content = {name: stored[name] for name in (*Neighbours._fields, 'fingerprint')}
  except FileNotFoundError:
    return None
  except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
    LOGGER.warning('%s is damaged (%s): it is built again', path, error)
    return None
  if content.pop('fingerprint') != digest:
    raise InputError(
      f'{path} is the graph of other rows, or of these rows in another order: delete it, and the '
      'right one is built'
    )
  return Neighbours(**(content | {'recall': float(content['recall'])}))
