"""From a config to the parts of a run; below here no function sees a config."""

import importlib
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import ml_collections

from ferjax import config as configs
from ferjax import core, evaluate, models, parallel, wrap
from ferjax.data import augment, dataset, pipeline
from ferjax.errors import InputError, nearest

PRECISIONS = {  # type of the computation, type of the parameters
  'float32': (jnp.float32, jnp.float32),
  'bfloat16': (jnp.bfloat16, jnp.float32),
  'float64': (jnp.float64, jnp.float64),
}


def make_method(config: ml_collections.ConfigDict, num_classes: int) -> core.Method:
  """The method that a config names, around the model that it names.

  Raises:
    InputError: no such method or model, or a key that neither takes.
  """
  dtype, param_dtype = PRECISIONS[config.precision]
  make_model = configs.named(models, config.model.name, 'model')
  options = configs.without_name(config.model)
  model = configs.call(make_model, 'model', options, dtype=dtype, param_dtype=param_dtype)
  name = config.method.name
  names = sorted(p.stem for p in (Path(__file__).parent / 'methods').glob('[a-z]*.py'))
  if name not in names:
    raise InputError(
      f"config.method.name is '{name}'.{nearest(name, names)} There are: {', '.join(names)}"
    )
  make = importlib.import_module(f'ferjax.methods.{name}').make
  options = configs.without_name(config.method)
  method = configs.call(make, 'method', options, model, num_classes=num_classes)
  return wrap.ema(method, config.ema) if config.ema else method


def picture_dtype(config: ml_collections.ConfigDict):
  """Type of pictures and augmentation: float64 in float64 runs, else float32."""
  return PRECISIONS[config.precision][1]


def example_batch(config, split: dataset.Split, columns: tuple[str, ...]) -> core.Batch:
  """One row as a batch of one, its picture normalised: what a method is initialised with."""
  plan = pipeline.in_order(1, 1)
  host_batch = next(pipeline.batches(split, plan, columns, config.data.image_size, threads=1))
  batch = {name: jnp.asarray(value) for name, value in host_batch.items()}
  return augment.evaluation(batch, picture_dtype(config))


def make_predict(
  config: ml_collections.ConfigDict, method: core.Method, devices: parallel.Parallel
) -> Callable[[core.TrainState, dataset.Split], evaluate.Predictions]:
  """(state, split) -> predictions for every row, as `config.eval` and `config.reading` say."""

  def prepare(batch):
    return augment.evaluation(batch, picture_dtype(config))

  predict_step = devices.compile(core.make_predict_step(method, prepare))
  batch = -(-config.eval.batch // devices.size) * devices.size

  def predict(state, split):
    return evaluate.predict(
      predict_step,
      devices.shard,
      state,
      split,
      tuple(sorted(method.predict_needs)),
      image_size=config.data.image_size,
      batch=batch,
      limit=config.eval.limit,
      **config.reading,
    )

  return predict
