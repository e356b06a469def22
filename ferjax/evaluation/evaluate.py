"""Evaluates a trained run on its own or on another data set (`--mode=eval`)."""

import functools
import logging
from pathlib import Path
from typing import Any

import jax
import ml_collections

from ferjax import config as configs
from ferjax.assembly import evaluations, restore, sources
from ferjax.data import checks, dataset, landmarks
from ferjax.distributed import hosts, parallel
from ferjax.errors import InputError
from ferjax.evaluation import finish
from ferjax.metrics.predictions import measure
from ferjax.runs import record

LOGGER = logging.getLogger(__name__)


def evaluate_run(
  workdir: Path, which: str = 'last', other: ml_collections.ConfigDict | None = None
) -> dict[str, Any]:
  """Evaluates a run's model on every split of a data set.

  Args:
    workdir: The run's folder.
    which: The checkpoint; see `restore.load`.
    other: A config whose sections `data`, `eval` and `reading` replace those of the run; None for
      the run's own. The picture size, the landmarks and the classes still are those of the model:
      landmarks of another scheme become the model's (see `labels.points_of`), and `data.class_map`
      maps other class names.

  Returns:
    The content of `<workdir>/eval/<data set>-<fingerprint>-<step>/summary.json`: metrics by name,
    with the names of `evaluations.evaluated`; `embeddings`, the result of `embeddings.write`;
    `without`, the features that the method uses and the data set lacks; `classes_without_rows`, the
    classes of the model without a row, which means over classes leave out; and with several sets
    the result of `finish.each_set`. Neighbours of embeddings are searched among the training rows
    of the evaluated data set; on the run's own data set, these have the labels that the run was
    trained on. Predictions and the tables and pictures of the report are written to the same
    folder. With several processes, only the first one writes, and the others return {}.

  Raises:
    InputError: there is no such run or checkpoint, or the data set does not fit the model.
  """
  workdir = Path(workdir)
  found = record.read(workdir)
  config = _config(workdir, other, found)
  with jax.enable_x64(config.precision == 'float64'):
    model = restore.load_with(workdir, which, config)
    data = _data(config, model, found)
    gaps = _gaps(model.method, data.data)
    requested = evaluations.make(config, model.method, model.predict, data, tuple(data.data.splits))
    predictions = requested.predict_splits(model.state)
    tested = requested.predict_tests(model.state)
    if not parallel.first_process():
      return {}
    stored = predictions.get('train')
    if other is None and stored:
      stored = _as_given(stored, config, data.data)
    step, name = int(model.state.step), data.data.name
    folder = workdir / 'eval' / f'{name}-{data.data.fingerprint[:8]}-{step}'
    facts = {'step': step, 'data': name, 'fingerprint': data.data.fingerprint}
    facts |= {name: measure(found, model.classes) for name, found in predictions.items()}
    facts |= gaps
    looks = requested.look(model.state)
    summary = finish.finish(
      folder, requested, facts, predictions, tested, looks=looks, stored=stored
    )
  LOGGER.info('written to %s', folder)
  return summary


def _config(workdir, other, found):
  """The config of the run, with the sections of `other` that do not define the model."""
  config = restore.config_of(workdir)
  if other is not None:
    configs.check(other)
    of_model = {key: config.data[key] for key in ('image_size', 'landmarks')}
    if found.get('landmark_scheme'):
      of_model['landmarks'] = ()  # `_data` makes them those of the model
    config.data = ml_collections.ConfigDict(other.data.to_dict() | of_model)
    config.eval, config.reading = other.eval, other.reading
  return config


def _data(config, model, found):
  """The data that the model is evaluated on, with the features that the method derives."""
  load = functools.partial(sources.load, config, model.classes, needs_every_class=False)
  data, tests, groups = hosts.first_then_others('data', load)
  if (
    found.get('landmark_scheme')
    and 'landmarks' in model.method.predict_needs | model.method.predict_uses
  ):
    points = found['landmark_scheme'], tuple(found['landmark_indices'])
    fit = functools.partial(landmarks.like, wanted=points, count=len(points[1]), name='the model')
    data, tests = fit(data), {name: fit(one) for name, one in tests.items()}
  tests = sources.fit(model.method, tests, model.poses)
  checks.check_features(data, model.method.predict_needs)
  data = sources.derive(model.method, dataset.with_poses(data, model.poses))
  return sources.Data(data, tests, groups)


def _gaps(method, data):
  """Features that the method uses and classes of the model that the data set lacks. Warnings name
  them too."""
  found = {}
  features = sorted(method.predict_uses.difference(*(one.table for one in data.splits.values())))
  if features:
    what = ', '.join(features)
    LOGGER.warning('%s has no %s: the model predicts without them', data.name, what)
    found['without'] = features
  classes = dataset.classes_without_rows(data)
  if classes:
    what = ', '.join(classes)
    LOGGER.warning('%s has no row of %s: means are over the other classes', data.name, what)
    found['classes_without_rows'] = classes
  return found


def _as_given(training, config, data):
  """Predictions of the training rows, with the labels that the run was trained on."""
  try:
    given = sources.corrupt_labels(config, data).splits['train'].table['label']
  except InputError as error:
    LOGGER.warning('neighbours have clean labels, because the noise cannot be applied: %s', error)
    return training
  return training._replace(table={**training.table, 'label': given[: len(training.label)]})
