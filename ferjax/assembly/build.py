"""From a config to the parts of a run; below here no function sees a config."""

import importlib
import inspect
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from ferjax.terms import added, schedules, wrap
from ferjax import core, models
from ferjax.metrics import predictions
from ferjax.report.figures import heatmaps
from ferjax.distributed import parallel
from ferjax.models import pretrained
from ferjax import config as configs
from ferjax.images import augment, distort
from ferjax.data import dataset, graphs, noise, pipeline, samplers
from ferjax.data.splits import take
from ferjax.errors import InputError, nearest

LOGGER = logging.getLogger(__name__)

PRECISIONS = {  # type of the computation, type of the parameters
  'float32': (jnp.float32, jnp.float32),
  'bfloat16': (jnp.bfloat16, jnp.float32),
  'float64': (jnp.float64, jnp.float64),
}


def make_method(
  config: ml_collections.ConfigDict, num_classes: int, num_poses: int = 0
) -> core.Method:
  """The method that a config names, around the model that it names.

  Its factory is told the number of poses where it has such an argument.

  Raises:
    InputError: no such method or model, or a key that neither takes.
  """
  model = make_model(config)
  name = config.method.name
  names = sorted(p.stem for p in (Path(__file__).parent / 'methods').glob('[a-z]*.py'))
  if name not in names:
    raise InputError(
      f"config.method.name is '{name}'.{nearest(name, names)} There are: {', '.join(names)}"
    )
  make = importlib.import_module(f'ferjax.methods.{name}').make
  options = configs.without_name(config.method)
  counts = {'num_classes': num_classes, 'num_poses': num_poses}
  counts = {k: v for k, v in counts.items() if k in inspect.signature(make).parameters}
  method = configs.call(make, 'method', options, model, **counts)
  return wrap.ema(method, config.ema, config.ema_statistics) if config.ema else method


def with_terms(
  config: ml_collections.ConfigDict,
  method: core.Method,
  split: dataset.Split,
  sampler: samplers.Plan,
  num_classes: int,
  num_poses: int = 0,
) -> core.Method:
  """The method with the terms of `config.terms` beside its own, each tried on shapes; it needs the
  columns of the training rows that they read, too.

  Raises:
    InputError: see `added_terms`.
  """
  if not config.terms:
    return method
  every = tuple(name for name, column in split.table.items() if column.dtype.kind in 'biuf')
  batch = example_batch(config, split, every, sampler)
  params, extra = jax.eval_shape(
    lambda rng, batch: method.init(rng, batch, split.table), jax.random.key(0), batch
  )
  outputs, seen = wrap.example(method, params, extra, batch)
  terms, needs = {}, method.needs
  for name, section in sorted(config.terms.to_dict().items()):
    where, function = f'config.terms.{name}', added.function_of(name, section)
    options = {k: v for k, v in section.items() if k not in added.RESERVED}
    counts = {'num_classes': num_classes, 'num_poses': num_poses}
    terms[name] = added.make(where, function, options, **counts)
    read = added.check(where, function, terms[name], outputs, seen)
    needs |= read & set(split.table) - {'label'}
  return wrap.with_terms(method, terms)._replace(needs=needs)


def make_weights(config: ml_collections.ConfigDict, steps_per_epoch: int) -> dict[str, core.Weight]:
  """{term: its weight, a number or a schedule of the step} of `config.weights` and `config.terms`.

  Raises:
    InputError: a weight that is neither, or that both sections give; see `schedules`.
  """
  made = {
    name: _weight(f'weights.{name}', value, steps_per_epoch)
    for name, value in config.weights.to_dict().items()
  }
  for name, section in config.terms.to_dict().items():
    if 'weight' not in section:
      continue
    if name in made:
      raise InputError(f'give config.weights.{name} or config.terms.{name}.weight, not both')
    made[name] = _weight(f'terms.{name}.weight', section['weight'], steps_per_epoch)
  return made


def _weight(where, value, steps_per_epoch):
  if isinstance(value, dict) and 'schedule' in value:
    make = configs.named(schedules, value['schedule'], where, 'schedule')
    options = {
      key: _number(f'{where}.{key}', number) for key, number in value.items() if key != 'schedule'
    }
    return configs.call(make, where, options, steps_per_epoch)
  example = "{'schedule': 'linear', 'start': 0.0, 'end': 0.1, 'epochs': 2}"
  return _number(where, value, f', or a dict such as {example}')


def _number(where, value, or_else=''):
  if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
    raise InputError(f'config.{where} is {value!r}: give a finite number{or_else}')
  return value


def make_model(config: ml_collections.ConfigDict) -> nn.Module:
  """The network that a config names.

  Raises:
    InputError: no such network, or a key that it does not take.
  """
  dtype, param_dtype = PRECISIONS[config.precision]
  make = configs.named(models, config.model.name, 'model')
  options = {k: v for k, v in configs.without_name(config.model).items() if k != 'weights'}
  return configs.call(make, 'model', options, dtype=dtype, param_dtype=param_dtype)


def read_weights(config: ml_collections.ConfigDict) -> pretrained.Weights | None:
  """The weights of the file `config.model.weights`, or None where it names none.

  Raises:
    InputError: see `weights.read` and `weights.convert`.
  """
  path = config.model.get('weights', '')
  if not path:
    return None
  size = config.data.image_size
  picture = jax.ShapeDtypeStruct((1, size, size, 3), picture_dtype(config))
  model = make_model(config)
  network = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, False), picture)
  arrays, sha256 = pretrained.read(path)
  return pretrained.convert(arrays, network, path, sha256)


def make_sampler(config: ml_collections.ConfigDict, table: dataset.Table) -> samplers.Plan:
  """The sampler that a config names.

  Its factory is told the table of the training rows, the picture size and the folder of graphs
  where it has such arguments.

  Raises:
    InputError: no such sampler, a key that it does not take, or rows that it cannot work with.
  """
  make = configs.named(samplers, config.sampler.name, 'sampler')
  known = {
    'table': table,
    'image_size': config.data.image_size,
    'folder': graphs.folder(config.data.dir),
  }
  known = {k: v for k, v in known.items() if k in inspect.signature(make).parameters}
  return configs.call(make, 'sampler', configs.without_name(config.sampler), **known)


def uses_graphs(config: ml_collections.ConfigDict) -> bool:
  """Whether the sampler that a config names builds graphs of neighbours."""
  make = configs.named(samplers, config.sampler.name, 'sampler')
  return 'graphs' in inspect.signature(make).parameters


def picture_dtype(config: ml_collections.ConfigDict):
  """Type of pictures and augmentation: float64 in float64 runs, else float32."""
  return PRECISIONS[config.precision][1]


def in_precision(config: ml_collections.ConfigDict, extra: core.PyTree) -> core.PyTree:
  """`extra` with float64 for float32 in a float64 run: Flax starts BatchNorm's statistics as
  float32, whatever their first step makes of them."""
  dtype = picture_dtype(config)
  return jax.tree.map(lambda x: x.astype(dtype) if x.dtype == jnp.float32 else x, extra)


def example_batch(
  config, split: dataset.Split, columns: tuple[str, ...], sampler: samplers.Plan
) -> core.Batch:
  """One row as a batch of one, its picture normalised: what a method is initialised with. Where
  terms are added, whose functions see all that travels with a row, with what the sampler plans."""
  plan = pipeline.in_order(1, 1)
  if config.terms:
    plan = sampler(0, 1, config.seed, split.table, config.batch)
    plan = {name: values[:1, :1] for name, values in plan.items()}
  host_batch = next(pipeline.batches(split, plan, columns, config.data.image_size, threads=1))
  batch = {name: jnp.asarray(value) for name, value in host_batch.items()}
  return augment.evaluation(batch, picture_dtype(config))


def corrupt_labels(config: ml_collections.ConfigDict, data: dataset.Dataset) -> dataset.Dataset:
  """The data set with the label noise of `config.noise` in its training rows."""
  corrupt = configs.call(noise.make, 'noise', config.noise)
  train_split = data.splits['train']
  others = [name for split in data.splits.values() for name in split.table['name']]
  table = train_split.table
  label = corrupt(table['label'], table['name'], data.classes, others)
  corrupted = train_split._replace(table=table | {'label': label})
  return data._replace(splits=data.splits | {'train': corrupted})


def derive(method: core.Method, data: dataset.Dataset) -> dataset.Dataset:
  """The data set with the columns that a method makes of others; those that are there stay."""
  splits = {name: with_derived(method, split) for name, split in data.splits.items()}
  return data._replace(splits=splits)


def with_derived(method: core.Method, split: dataset.Split) -> dataset.Split:
  """As `derive`, of one split."""
  made = dict(split.table)
  if method.needs <= set(made):
    made |= {k: f(split.table) for k, f in method.derived.items() if k not in made}
  return split._replace(table=made)


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
    name: devices.compile(core.make_predict_step(method, change))
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


def evaluations(config: ml_collections.ConfigDict, data: dataset.Dataset, splits: Sequence[str]):
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
