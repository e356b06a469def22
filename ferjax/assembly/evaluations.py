"""From a config to what is predicted and evaluated."""

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import ml_collections

from ferjax import core
from ferjax.assembly import sources
from ferjax.assembly.build import picture_dtype
from ferjax.assembly.sources import with_derived
from ferjax.data import dataset, pipeline
from ferjax.data.splits import take
from ferjax.distributed import parallel
from ferjax.images import augment, distort
from ferjax.metrics import predictions
from ferjax.report.figures import heatmaps

LOGGER = logging.getLogger(__name__)


class Evaluations(NamedTuple):
  """What a model is evaluated on, and how.

  Attributes:
    data: The data set.
    splits: {name: (split, distortion)} of it, such as `test` and `test/rotation`.
    tests: Where there are several sets: by name, what each is tested on, its only split `test`.
    groups: Names of tests by the group that their average is of.
    predict: (state, split, distortion='', limit=...) -> predictions; see `make_predict`.
    look: (state) -> what some test pictures look like to the network, or None.
    sheets: Whether to draw sheets of rows: mistakes, searches, label distributions.
    embeddings: Whether to measure neighbours and clusters of embeddings.
    tsne: How many points of t-SNE to draw; 0 for none.
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
    """Predictions by name, as in `splits`."""
    return {name: self.predict(state, *which) for name, which in self.splits.items()}

  def predict_tests(self, state: core.TrainState) -> dict[str, predictions.Predictions]:
    """Predictions by name, as in `tests`."""
    return {name: self.predict(state, data.splits['test']) for name, data in self.tests.items()}


def make(
  config: ml_collections.ConfigDict,
  method: core.Method,
  predict: Callable[..., predictions.Predictions],
  data: sources.Data,
  splits: Sequence[str],
) -> Evaluations:
  """The evaluations that `config.eval` asks for.

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
  """The columns of a split that a method looks at when it predicts."""
  optional = (method.predict_uses | set(method.derived)) & set(split.table)
  return tuple(sorted(method.predict_needs | optional))


def make_predict(
  config: ml_collections.ConfigDict, method: core.Method, devices: parallel.Parallel
) -> Callable[..., predictions.Predictions]:
  """(state, split, distortion='', limit=config.eval.limit) -> predictions for every row, as
  `config.eval` and `config.reading` say; the pictures distorted where `data.distort` has a
  distortion of that name.
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
  """(state, *first) -> state, whose `extra` is change(*first, params, extra, table, embed).

  Args:
    change: `refresh` or `enroll` of a method; None leaves the state as it is.
    predict: See `make_predict`.
    devices: Where the state lies.
    split: The training rows.
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
  """{'': batch -> batch with normalised pictures, distortion: batch -> with distorted ones}."""
  dtype = picture_dtype(config)
  plain = {'': lambda batch: augment.evaluation(batch, dtype)}
  return plain | {name: distort.make(name, config.eval.seed, dtype) for name in distortions}


def evaluated(config: ml_collections.ConfigDict, data: dataset.Dataset, splits: Sequence[str]):
  """{name: (split, distortion)} of all that is evaluated, such as `test` and `test/rotation`."""
  found = {name: (data.splits[name], '') for name in splits if name in data.splits}
  if config.eval.distortions and 'test' not in found:
    LOGGER.warning('%s has no test split: config.eval.distortions changes nothing', data.name)
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
  """What `config.eval.heatmaps` pictures look like to the trained network: of the test split, or of
  the last one there is. None when there are to be none, or the method shows no map."""
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
  return heatmaps.look(method, params, extra, batch, views(config, distort.DISTORTIONS), name)
