"""Builds the parts of a run from its config. The modules below this package do not see a config."""

import importlib
import pkgutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from ferjax import config as configs
from ferjax import core, methods, models
from ferjax.errors import InputError, nearest
from ferjax.optim.ema import ema

PRECISIONS = {  # type of the computation, type of the parameters
  'float32': (jnp.float32, jnp.float32),
  'bfloat16': (jnp.bfloat16, jnp.float32),
  'float64': (jnp.float64, jnp.float64),
}

STARTS = ('weights', 'weights_head')  # keys of config.model that say what a run starts from


def make_method(
  config: ml_collections.ConfigDict, num_classes: int, num_poses: int = 0
) -> core.Method:
  """The method of `config.method`, around the network of `config.model`.

  Args:
    config: The config.
    num_classes, num_poses: Arguments of every method's `make`; 0 poses if they are unknown.

  Raises:
    InputError: there is no such method or network, or it lacks a key of the config.
  """
  model = make_model(config)
  name = config.method.name
  names = sorted(module.name for module in pkgutil.iter_modules(methods.__path__))
  if name not in names:
    raise InputError(
      f"config.method.name is '{name}'.{nearest(name, names)} There are: {', '.join(names)}"
    )
  make = importlib.import_module(f'ferjax.methods.{name}').make
  options = configs.without_name(config.method)
  counts = {'num_classes': num_classes, 'num_poses': num_poses}
  method = configs.call(make, 'method', options, model, **counts)
  return ema(method, config.ema, config.ema_statistics) if config.ema else method


def make_model(config: ml_collections.ConfigDict) -> nn.Module:
  """The network of `config.model`.

  Raises:
    InputError: there is no such network, or it lacks a key of the config.
  """
  dtype, param_dtype = PRECISIONS[config.precision]
  make = configs.named(models, config.model.name, 'model')
  options = {k: v for k, v in configs.without_name(config.model).items() if k not in STARTS}
  return configs.call(make, 'model', options, dtype=dtype, param_dtype=param_dtype)


def network_shapes(config: ml_collections.ConfigDict) -> core.PyTree:
  """{'params': {...}, 'batch_stats': {...}} of the network of `config.model`: shapes and dtypes."""
  size = config.data.image_size
  picture = jax.ShapeDtypeStruct((1, size, size, 3), picture_dtype(config))
  model = make_model(config)
  return jax.eval_shape(lambda x: model.init(jax.random.key(0), x, False), picture)


def picture_dtype(config: ml_collections.ConfigDict):
  """Type of pictures and augmentation: float64 in float64 runs, else float32."""
  return PRECISIONS[config.precision][1]


def in_precision(config: ml_collections.ConfigDict, extra: core.PyTree) -> core.PyTree:
  """`extra` of a new run in its precision. Flax creates the statistics of BatchNorm as float32; in
  a float64 run they are converted to float64."""
  dtype = picture_dtype(config)
  return jax.tree.map(lambda x: x.astype(dtype) if x.dtype == jnp.float32 else x, extra)
