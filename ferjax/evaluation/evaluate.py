"""`--mode=eval`: a trained run on its own or on another data set."""

import functools
import logging
from pathlib import Path
from typing import Any

import jax
import ml_collections

from ferjax import config as configs
from ferjax import files
from ferjax.assembly import sources
from ferjax.assembly.evaluations import evaluated, look
from ferjax.assembly.restore import _config, _load
from ferjax.data import checks, dataset
from ferjax.distributed import hosts, parallel
from ferjax.errors import InputError
from ferjax.evaluation import finish
from ferjax.metrics.predictions import measure
from ferjax.report.figures import embeddings, heatmaps

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
  workdir, config = Path(workdir), _config(workdir)
  if other is not None:
    configs.check(other)
    belongs_to_model = {key: config.data[key] for key in ('image_size', 'landmarks')}
    config.data = ml_collections.ConfigDict(other.data.to_dict() | belongs_to_model)
    config.eval, config.reading = other.eval, other.reading
  with jax.enable_x64(config.precision == 'float64'):
    model = _load(workdir, which, config)
    load = functools.partial(sources.load, config, model.classes, needs_every_class=False)
    data, tests, groups = hosts.first_then_others('data', load)
    tests = sources.fit(model.method, tests, model.poses)
    checks.check_features(data, model.method.predict_needs)
    data = sources.derive(model.method, dataset.with_poses(data, model.poses))
    tables = [split.table for split in data.splits.values()]
    without = sorted(model.method.predict_uses.difference(*tables))
    if without:
      what = ', '.join(without)
      LOGGER.warning('%s has no %s: the model predicts without them', data.name, what)
    lacking = dataset.classes_without_rows(data)
    if lacking:
      what = ', '.join(lacking)
      LOGGER.warning('%s has no row of %s: means are over the other classes', data.name, what)
    evaluations = evaluated(config, data, tuple(data.splits))
    predictions = {name: model.predict(model.state, *what) for name, what in evaluations.items()}
    tested = {name: model.predict(model.state, one.splits['test']) for name, one in tests.items()}
    if not parallel.first_process():
      return {}
    step = int(model.state.step)
    folder = workdir / 'eval' / f'{data.name}-{data.fingerprint[:8]}-{step}'
    measured = {}
    for name, predicted in predictions.items():
      measured[name] = measure(predicted, model.classes)
      rows = data.splits.get(name) if config.eval.sheets else None
      finish.split(folder, rows, predicted, model.classes, name, data.poses)
    looks = look(config, model.method, model.state, data)
    if looks:
      heatmaps.write(folder / 'report', looks, model.classes)
    summary = {'step': step, 'data': data.name, 'fingerprint': data.fingerprint, **measured}
    summary |= finish.each_set(folder, tests, tested, groups, pictures=config.eval.sheets)
    training = predictions.get('train')
    if other is None and training:
      training = _as_given(training, config, data)
    seen = embeddings.write(
      folder / 'report',
      predictions,
      training,
      model.classes,
      numbers=config.eval.embeddings,
      tsne=config.eval.tsne,
    )
    if seen:
      summary['embeddings'] = seen
    if without:
      summary['without'] = without
    if lacking:
      summary['classes_without_rows'] = lacking
    files.write_json(folder / 'summary.json', summary)
  LOGGER.info('written to %s', folder)
  return summary


def _as_given(training, config, data):
  """Predictions of the training rows with the labels that the run was given."""
  try:
    given = sources.corrupt_labels(config, data).splits['train'].table['label']
  except InputError as error:
    LOGGER.warning('neighbours have clean labels, for the noisy ones cannot be made: %s', error)
    return training
  return training._replace(table={**training.table, 'label': given[: len(training.label)]})
