"""`--mode=eval`: a trained run on its own or on another data set."""

import functools
import logging
from pathlib import Path
from typing import Any

import jax
import ml_collections

from ferjax import config as configs
from ferjax.assembly import evaluations, restore, sources
from ferjax.data import checks, dataset
from ferjax.distributed import hosts
from ferjax.errors import InputError
from ferjax.evaluation import finish
from ferjax.metrics.predictions import measure

LOGGER = logging.getLogger(__name__)


def evaluate_run(
  workdir: Path, which: str = 'last', other: ml_collections.ConfigDict | None = None
) -> dict[str, Any]:
  """Evaluates a run's model on every split of a data set.

  Args:
    workdir: The run's folder.
    which: See `load`.
    other: A config whose sections `data`, `eval` and `reading` replace the run's (but for the
      picture size and the classes, which belong to the model: `data.class_map` says what other
      names mean); None for the run's own.

  Returns:
    What `<workdir>/eval/<data set>-<step>/summary.json` holds: the metrics by name as in
    `evaluations.evaluated`, under `embeddings` those of `embeddings.write` (neighbours are sought
    among the training rows of the data set that is evaluated, in the run's own by the labels that
    it was given), under `without` the features that the method looks at and the data set does not
    have,
    have, under `classes_without_rows` the model's classes that it does not have: means over classes
    are over the others; and where there are several sets what `finish.each_set` returns.
    Predictions, and the report's tables and pictures, are written beside it. Of several processes,
    only the first one writes, and the others return nothing.

  Raises:
    InputError: no such run or checkpoint, or a data set that does not fit.
  """
  workdir = Path(workdir)
  config = _config(workdir, other)
  with jax.enable_x64(config.precision == 'float64'):
    model = restore.load_with(workdir, which, config)
    data = _data(config, model)
    gaps = _gaps(model.method, data.data)
    asked = evaluations.make(config, model.method, model.predict, data, tuple(data.data.splits))
    predictions = asked.predict_splits(model.state)
    stored = predictions.get('train')
    if other is None and stored:
      stored = _as_given(stored, config, data.data)
    step, name = int(model.state.step), data.data.name
    folder = workdir / 'eval' / f'{name}-{data.data.fingerprint[:8]}-{step}'
    facts = {'step': step, 'data': name, 'fingerprint': data.data.fingerprint}
    facts |= {name: measure(found, model.classes) for name, found in predictions.items()}
    facts |= gaps
    summary = finish.finish(folder, asked, model.state, facts, predictions, stored=stored)
  if summary:
    LOGGER.info('written to %s', folder)
  return summary


def _config(workdir, other):
  """The run's config, with the sections of another that do not belong to the model."""
  config = restore.config_of(workdir)
  if other is not None:
    configs.check(other)
    of_model = {key: config.data[key] for key in ('image_size', 'landmarks')}
    config.data = ml_collections.ConfigDict(other.data.to_dict() | of_model)
    config.eval, config.reading = other.eval, other.reading
  return config


def _data(config, model):
  """What the model is evaluated on, with the features that it derives."""
  load = functools.partial(sources.load, config, model.classes, needs_every_class=False)
  data, tests, groups = hosts.first_then_others('data', load)
  tests = sources.fit(model.method, tests, model.poses)
  checks.check_features(data, model.method.predict_needs)
  data = sources.derive(model.method, dataset.with_poses(data, model.poses))
  return sources.Data(data, tests, groups)


def _gaps(method, data):
  """Features that the method looks at and classes of the model, which the data set does not have;
  each is also logged."""
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
  """Predictions of the training rows with the labels that the run was given."""
  try:
    given = sources.corrupt_labels(config, data).splits['train'].table['label']
  except InputError as error:
    LOGGER.warning('neighbours have clean labels, for the noisy ones cannot be made: %s', error)
    return training
  return training._replace(table={**training.table, 'label': given[: len(training.label)]})
