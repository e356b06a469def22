"""The weights that a run starts from: `config.model.weights`."""

import logging
from pathlib import Path

import jax
import ml_collections
import numpy as np

from ferjax import files
from ferjax.assembly import build, dlib_package
from ferjax.data import dataset, pipeline
from ferjax.distributed import hosts
from ferjax.errors import InputError
from ferjax.images import augment
from ferjax.models import batch_statistics, pretrained

LOGGER = logging.getLogger(__name__)

DLIB = 'dlib'
MEASURED = 512  # training rows for the statistics of BatchNorm
AT_ONCE = 32


def read(config: ml_collections.ConfigDict) -> pretrained.Weights | None:
  """The weights that `config.model.weights` names, or None if it is empty. All processes must call
  it.

  Raises:
    InputError: see `dlib_package.fetch`, `pretrained.read` and `pretrained.convert`; or dlib's
      weights are for another network.
  """
  path = config.model.get('weights', '')
  if not path:
    return None
  if path != DLIB:
    return _of_file(config, path)
  if config.model.name != 'face_resnet29':
    raise InputError(
      f"config.model.weights=dlib is for config.model.name='face_resnet29', not "
      f"'{config.model.name}'"
    )
  folder = files.cache_folder() / 'weights'
  path = hosts.first_then_others('weights', lambda: dlib_package.fetch(folder))
  return _of_file(config, path)


def _of_file(config, path):
  model = build.make_model(config)
  network = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, False), _picture(config))
  arrays, sha256 = pretrained.read(path)
  weights = pretrained.convert(arrays, network, str(path), sha256)
  if Path(path).suffix.lower() == '.dat':
    weights = weights._replace(has_statistics=False)
  if sha256 == dlib_package.SHA256:
    weights = weights._replace(
      file=dlib_package.NAME, licence=dlib_package.LICENCE, provenance=dlib_package.PROVENANCE
    )
  return weights


def _picture(config):
  size = config.data.image_size
  return jax.ShapeDtypeStruct((1, size, size, 3), build.picture_dtype(config))


def with_statistics(
  config: ml_collections.ConfigDict, weights: pretrained.Weights, split: dataset.Split
) -> pretrained.Weights:
  """The weights with BatchNorm statistics. If the file has none, they are measured on up to
  `MEASURED` training rows, without labels; see `models.batch_statistics`.

  The rows are drawn with `config.seed`. Each process measures all of them on one device, so the
  numbers do not depend on the number of devices.

  Args:
    config: The config.
    weights: See `read`.
    split: The training rows.
  """
  if weights.has_statistics:
    return weights
  rows = np.random.default_rng(config.seed).permutation(len(split.rows))[:MEASURED]
  batch = min(AT_ONCE, len(rows))
  plan = {'index': rows[: len(rows) // batch * batch].reshape(-1, batch)}
  LOGGER.info("measuring BatchNorm's statistics on %d training rows", plan['index'].size)
  batches = pipeline.batches(split, plan, (), config.data.image_size, **config.reading)
  dtype = build.picture_dtype(config)
  normalised = (augment.normalise(batch['image'], dtype) for batch in batches)
  model = build.make_model(config)
  moments = batch_statistics.measure(model, weights.variables, normalised)
  return weights._replace(
    variables=batch_statistics.install(weights.variables, moments),
    statistics={'rows': plan['index'].size, 'image_size': config.data.image_size},
  )
