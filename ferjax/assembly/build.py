"""Builds the parts of a run from its config. The modules below this package do not see a config."""

import functools
import importlib
import logging
import pkgutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from ferjax import config as configs
from ferjax import core, files, methods, models
from ferjax.errors import InputError, choose, nearest
from ferjax.ops import onednn
from ferjax.optim.ema import ema

LOGGER = logging.getLogger(__name__)

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
  model = configs.call(make, 'model', options, dtype=dtype, param_dtype=param_dtype)
  return model.clone(onednn=True) if onednn_version(config) else model


def onednn_version(config: ml_collections.ConfigDict) -> str:
  """The version of oneDNN if it computes the convolutions of a run on a CPU, else ''.

  Raises:
    InputError: `config.convolution` is unknown, or is `onednn` where that is not possible.
  """
  choice = config.convolution
  choose('config.convolution', choice, ('auto', 'native', 'onednn'))
  if choice == 'native':
    return ''
  if jax.default_backend() != 'cpu' or config.precision != 'float32':
    version, reason = '', 'it is for a CPU and config.precision=float32'
  else:
    version, reason = _loaded(files.cache_folder() / 'onednn')
  if choice == 'onednn' and reason:
    raise InputError(f'config.convolution=onednn is not possible: {reason}; auto does without')
  return version


@functools.cache
def _loaded(folder):
  """oneDNN's version, and why it cannot be used; one of them is empty."""
  try:
    return onednn.load(folder), ''
  except onednn.Unavailable as unavailable:
    LOGGER.info('convolutions are computed by XLA, because of oneDNN: %s', unavailable)
    return '', str(unavailable)


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
