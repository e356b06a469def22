"""Loads a trained model from the folder of its run, for evaluation and every later use."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

from ferjax import config as configs
from ferjax import core
from ferjax.assembly import build
from ferjax.assembly.evaluations import make_predict
from ferjax.distributed import parallel
from ferjax.metrics.predictions import Predictions
from ferjax.runs import checkpoint, record
from ferjax.terms import wrap


class Trained(NamedTuple):
  """A run's model.

  Attributes:
    config: The run's config.
    classes: Class names in label order.
    method: The method.
    state: The restored state.
    predict: (state, split, distortion='') -> predictions; see `assembly.evaluations.make_predict`.
    poses: Pose classes in label order, yaw in degrees; empty if they were unknown.
  """

  config: ml_collections.ConfigDict
  classes: tuple[str, ...]
  method: core.Method
  state: core.TrainState
  predict: Callable[..., Predictions]
  poses: tuple[int, ...]


def load(workdir: Path, which: str = 'last', convolution: str = '') -> Trained:
  """Loads a run's model.

  Args:
    workdir: The run's folder.
    which: `last`, `best` (by validation accuracy), or a step.
    convolution: `config.convolution`, such as `native` for a model that is exported; when empty,
      that of the run.

  Raises:
    InputError: no such run or checkpoint.
  """
  config = config_of(workdir)
  config.convolution = convolution or config.convolution
  return load_with(workdir, which, config)


def config_of(workdir: Path) -> ml_collections.ConfigDict:
  """The config of a run; see `config_in`.

  Raises:
    InputError: there is no run.
  """
  return config_in(record.read(workdir))


def config_in(found: Mapping[str, Any]) -> ml_collections.ConfigDict:
  """The config in the record of a run or export, with the current defaults for keys that it lacks.
  A model that was trained with oneDNN can be used where there is none."""
  config = configs.base()
  config.update(configs.with_tuples(found['config']))
  if config.convolution == 'onednn':
    config.convolution = 'auto'
  return config


def load_with(workdir: Path, which: str, config: ml_collections.ConfigDict) -> Trained:
  """Loads a run's model like `load`, with another config. Its sections `data`, `eval` and `reading`
  may differ from those of the run."""
  found = record.read(workdir)
  classes, poses = tuple(found['classes']), tuple(found.get('poses', ()))
  devices = parallel.make(backend=config.parallel.backend)
  method = build.make_method(config, len(classes), len(poses))
  method = wrap.with_terms(method, {})  # prediction does not use added terms
  saved = checkpoint.restore(workdir, which)
  state = core.TrainState(
    jnp.asarray(saved['step']), saved['params'], (), saved['extra'], jax.random.key(config.seed)
  )
  predict = make_predict(config, method, devices)
  return Trained(config, classes, method, devices.replicate(state), predict, poses)
