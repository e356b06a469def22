"""Makes the predictions and evaluations that a config defines."""

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import ml_collections

from ferjax import core
from ferjax.assembly import sources
from ferjax.assembly.build import make_model, picture_dtype
from ferjax.assembly.sources import with_derived
from ferjax.data import dataset, pipeline
from ferjax.data.splits import take
from ferjax.distributed import parallel
from ferjax.images import augment, distort
from ferjax.metrics import predictions
from ferjax.report.figures import heatmaps

LOGGER = logging.getLogger(__name__)


class Evaluations(NamedTuple):
  """The data that a model is evaluated on, and the settings of the evaluation.

  Attributes:
    data: The data set.
    splits: {name: (split, distortion)} of the data set, such as `test` and `test/rotation`.
    tests: If there are several sets: {name: test data of the set, with the only split `test`}.
    groups: {group: names of its tests, which are averaged}.
    predict: (state, split, distortion='', limit=...) -> predictions; see `make_predict`.
    look: (state) -> heat maps of some test pictures, or None; see `look`.
    sheets: Whether to draw sheets of rows: mistakes, searches, label distributions.
    embeddings: Whether to measure neighbours and clusters of embeddings.
    tsne: Number of points to draw with t-SNE; 0 for none.
  """

  data: dataset.Dataset
  splits: Mapping[str, tuple[dataset.Split, str]]
  tests: Mapping[str, dataset.Dataset]
  groups: Mapping[str, Sequence[str]]
  predict: Callable[..., predictions.Predictions]
  look: Callable[[core.TrainState], heatmaps.Looks | None]
  sheets: bool
  embeddings: bool
  tsne: int

  def predict_splits(self, state: core.TrainState) -> dict[str, predictions.Predictions]:
    """Predictions by name, with the names of `splits`."""
    return {name: self.predict(state, *which) for name, which in self.splits.items()}

  def predict_tests(self, state: core.TrainState) -> dict[str, predictions.Predictions]:
    """Predictions by name, with the names of `tests`."""
    return {name: self.predict(state, data.splits['test']) for name, data in self.tests.items()}


def make(
  config: ml_collections.ConfigDict,
  method: core.Method,
  predict: Callable[..., predictions.Predictions],
  data: sources.Data,
  splits: Sequence[str],
) -> Evaluations:
  """The evaluations that `config.eval` requests.

  Args:
    config: The config.
    method: The method.
    predict: See `make_predict`.
    data: The data sets, with the columns that the method derives.
    splits: Names of the splits to evaluate; those that the data set lacks are left out.
  """
  return Evaluations(
    data.data,
    evaluated(config, data.data, splits),
    data.tests,
    data.groups,
    predict,
    functools.partial(look, config, method, data=data.data),
    config.eval.sheets,
    config.eval.embeddings,
    config.eval.tsne,
  )


def predict_columns(method: core.Method, split: dataset.Split) -> tuple[str, ...]:
  """The columns of a split that a method uses for prediction."""
  optional = (method.predict_uses | set(method.derived)) & set(split.table)
  return tuple(sorted(method.predict_needs | optional))


def make_predict(
  config: ml_collections.ConfigDict, method: core.Method, devices: parallel.Parallel
) -> Callable[..., predictions.Predictions]:
  """Makes the function that predicts a split, with the settings of `config.eval` and
  `config.reading`.

  Returns:
    (state, split, distortion='', limit=config.eval.limit) -> predictions for every row.
    `distortion` is '' or one of `config.eval.distortions`; see `images.distort`.
  """
  distort.check(config.eval.distortions)
  prepare = views(config, config.eval.distortions)
  steps = {
    name: devices.compile(predictions.make_predict_step(method, change))
    for name, change in prepare.items()
  }
  batch = -(-config.eval.batch // devices.size) * devices.size

  def predict(state, split, distortion='', limit=config.eval.limit):
    split = with_derived(method, split)
    return predictions.predict(
      steps[distortion],
      devices.shard,
      state,
      split,
      predict_columns(method, split),
      image_size=config.data.image_size,
      batch=batch,
      limit=limit,
      share=devices.share(batch),
      **config.reading,
    )

  return predict


def on_host(
  change: Callable[..., core.PyTree] | None,
  predict: Callable[..., predictions.Predictions],
  devices: parallel.Parallel,
  split: dataset.Split,
) -> Callable[..., core.TrainState]:
  """Makes a function that changes `extra` of a state on the host.

  Args:
    change: `refresh` or `enroll` of a method; None leaves the state unchanged.
    predict: See `make_predict`.
    devices: The devices that hold the state.
    split: The training rows.

  Returns:
    (state, *first) -> the state with `extra` = change(*first, params, extra, table, embed).
  """

  def apply(state, *first):
    if change is None:
      return state
    params, extra = parallel.host((core.own(state.params), state.extra))
    extra = change(
      *first,
      params,
      extra,
      split.table,
      lambda: predict(state, split, limit=0).outputs['embedding'],
    )
    return state.replace(extra=devices.replicate(extra))

  return apply


def views(config: ml_collections.ConfigDict, distortions: Sequence[str]):
  """Functions batch -> batch: '' normalises the pictures, each distortion also distorts them."""
  dtype = picture_dtype(config)
  plain = {'': lambda batch: augment.evaluation(batch, dtype)}
  return plain | {name: distort.make(name, config.eval.seed, dtype) for name in distortions}


def evaluated(config: ml_collections.ConfigDict, data: dataset.Dataset, splits: Sequence[str]):
  """{name: (split, distortion)} of all evaluations, such as `test` and `test/rotation`."""
  found = {name: (data.splits[name], '') for name in splits if name in data.splits}
  if config.eval.distortions and 'test' not in found:
    LOGGER.warning('%s has no test split: config.eval.distortions has no effect', data.name)
  if 'test' in found:
    test = data.splits['test']
    found |= {f'test/{name}': (test, name) for name in config.eval.distortions}
  return found


def look(
  config: ml_collections.ConfigDict,
  method: core.Method,
  state: core.TrainState,
  data: dataset.Dataset,
) -> heatmaps.Looks | None:
  """Heat maps of the trained network for `config.eval.heatmaps` pictures.

  The pictures are from the test split, or from the last split if there is no test split. The result
  is None if no picture is requested, or the method has no feature map.
  """
  name = 'test' if 'test' in data.splits else list(data.splits)[-1]
  split = data.splits[name]
  rows = heatmaps.some_of_each_class(split.table['label'], config.eval.heatmaps)
  if not len(rows):
    return None
  plan, size = pipeline.in_order(len(rows), len(rows)), config.data.image_size
  columns = ('label', *predict_columns(method, split))
  batch = next(pipeline.batches(take(split, rows), plan, columns, size, threads=1))
  batch['index'] = rows.astype(batch['index'].dtype)
  params, extra = parallel.host((core.own(state.params), state.extra))
  seen, cells = views(config, distort.OURS), make_model(config).cells(size)[-1]
  return heatmaps.look(method, params, extra, batch, seen, name, cells)
