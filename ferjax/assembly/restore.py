"""A trained model, from the folder of its run: what evaluation and every later use start from."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

from ferjax import config as configs
from ferjax import core
from ferjax.assembly import build
from ferjax.assembly.evaluations import make_predict
from ferjax.distributed import parallel
from ferjax.metrics.predictions import Predictions
from ferjax.runs import checkpoint
from ferjax.runs.record import read
from ferjax.terms import wrap

LOGGER = logging.getLogger(__name__)


class Trained(NamedTuple):
  """A run's model.

  Attributes:
    config: The run's config.
    classes: Class names in label order.
    method: The method.
    state: The restored state.
    predict: (state, split, distortion='') -> predictions; see `assembly.evaluations.make_predict`.
    poses: Pose classes in label order, yaw in degrees; empty where they were unknown.
  """

  config: ml_collections.ConfigDict
  classes: tuple[str, ...]
  method: core.Method
  state: core.TrainState
  predict: Callable[..., Predictions]
  poses: tuple[int, ...]


def load(workdir: Path, which: str = 'last') -> Trained:
  """Loads a run's model.

  Args:
    workdir: The run's folder.
    which: `last`, `best` (by validation accuracy), or a step.

  Raises:
    InputError: no such run or checkpoint.
  """
  return _load(workdir, which, _config(workdir))


def _config(workdir):
  config = configs.base()
  config.update(configs.with_tuples(read(workdir)['config']))
  return config


def _load(workdir, which, config):
  record = read(workdir)
  classes, poses = tuple(record['classes']), tuple(record.get('poses', ()))
  devices = parallel.make(backend=config.parallel.backend)
  method = build.make_method(config, len(classes), len(poses))
  method = wrap.with_terms(method, {})  # the terms of its loss, of which prediction knows nothing
  saved = checkpoint.restore(workdir, which)
  state = core.TrainState(
    jnp.asarray(saved['step']), saved['params'], (), saved['extra'], jax.random.key(config.seed)
  )
  predict = make_predict(config, method, devices)
  return Trained(config, classes, method, devices.replicate(state), predict, poses)
