"""From a config to what is predicted and evaluated."""

import logging
from collections.abc import Callable, Sequence

import ml_collections

from ferjax import core
from ferjax.assembly.build import picture_dtype
from ferjax.assembly.sources import with_derived
from ferjax.data import dataset, pipeline
from ferjax.data.splits import take
from ferjax.distributed import parallel
from ferjax.images import augment, distort
from ferjax.metrics import predictions
from ferjax.report.figures import heatmaps

LOGGER = logging.getLogger(__name__)


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
