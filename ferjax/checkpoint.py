"""Checkpoints: the whole training state, through Orbax; the last few and the best by validation."""

import hashlib
import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from ferjax.core import TrainState
from ferjax.errors import InputError

LOGGER = logging.getLogger(__name__)

BEST = 'val_acc'


def open_checkpoints(workdir: Path, keep: int) -> ocp.training.Checkpointer:
  """The checkpoints of a run (a context manager; leaving it waits for saves under way).

  Args:
    workdir: The run's folder.
    keep: How many of the last checkpoints to keep, besides the best by validation accuracy.
  """
  policies = ocp.training.preservation_policies
  best = policies.BestN(
    get_metric_fn=lambda metrics: metrics[BEST], n=1, keep_checkpoints_without_metrics=False
  )
  return ocp.training.Checkpointer(
    Path(workdir).resolve() / 'checkpoints',
    preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), best]),
    cleanup_tmp_directories=True,
  )


def save(checkpoints: ocp.training.Checkpointer, state: TrainState, val_acc: float | None) -> None:
  """Saves the state in the background, with its validation accuracy where it was just measured."""
  metrics = None if val_acc is None else {BEST: val_acc}
  checkpoints.save_async(int(state.step), state, force=True, metrics=metrics)


def restore_latest(workdir: Path, keep: int, like: TrainState) -> TrainState | None:
  """The newest state that can be read; unreadable ones are set aside, and said so.

  Args:
    workdir: The run's folder.
    keep: As for `open_checkpoints`.
    like: A state of the same shapes, placed as the restored one shall be.

  Returns:
    The state, or None where no checkpoint was ever saved.

  Raises:
    InputError: there are checkpoints and none can be read.
  """
  folder = Path(workdir) / 'checkpoints'
  set_aside = []
  while True:
    steps = sorted((int(p.name) for p in folder.glob('*') if p.name.isdigit()), reverse=True)
    if not steps:
      break
    try:
      return _load(workdir, keep, steps[0], like)
    except Exception as error:  # Orbax and its storage raise many kinds for a damaged checkpoint
      aside = Path(workdir) / 'checkpoints_unreadable' / str(steps[0])
      aside.parent.mkdir(exist_ok=True)
      number = 0
      while aside.exists():
        number += 1
        aside = aside.with_name(f'{steps[0]}.{number}')
      (folder / str(steps[0])).rename(aside)
      set_aside.append(str(aside))
      LOGGER.warning(
        'checkpoint %d cannot be read (%s); moved to %s, trying the one before it',
        steps[0],
        _first_line(error),
        aside,
      )
  if set_aside:
    raise InputError(
      f'no checkpoint of {workdir} can be read; they were moved to {", ".join(set_aside)}. '
      'Use another --workdir to start anew'
    )
  return None


def restore(workdir: Path, keep: int, which: str) -> dict[str, Any]:
  """The state of one checkpoint, without knowing its shapes.

  Args:
    workdir: The run's folder.
    keep: As for `open_checkpoints`.
    which: `last`, `best` (by validation accuracy), or a step.

  Returns:
    The fields of `TrainState` by name, as nested dicts of NumPy arrays.

  Raises:
    InputError: there is no such checkpoint, or it cannot be read.
  """
  folder = Path(workdir) / 'checkpoints'
  if not folder.is_dir():
    raise InputError(f'{workdir} holds no checkpoint: train there first')
  with open_checkpoints(workdir, keep) as checkpoints:
    found = {c.step: c.metrics for c in checkpoints.checkpoints}
  measured = {step: m[BEST] for step, m in found.items() if m}
  if which == 'last' and found:
    step = max(found)
  elif which == 'best' and measured:
    step = max(measured, key=lambda s: (measured[s], -s))
  elif which.isdigit() and int(which) in found:
    step = int(which)
  else:
    raise InputError(
      f"{workdir} has no checkpoint '{which}'; there are: last, "
      f'{"best, " if measured else ""}{", ".join(map(str, sorted(found)))}'
    )
  try:
    return _load(workdir, keep, step, None)
  except Exception as error:
    raise InputError(
      f'checkpoint {step} of {workdir} cannot be read: {_first_line(error)}'
    ) from error


def _load(workdir, keep, step, like):
  with open_checkpoints(workdir, keep) as checkpoints:
    if like is None:
      stored = checkpoints.metadata(step).metadata
      like = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), stored)
    return checkpoints.load(step, like)


def _first_line(error: Exception) -> str:
  return (str(error).strip().splitlines() or [''])[0][:200] or type(error).__name__


def state_sha256(state: TrainState) -> str:
  """SHA-256 over the names, types, shapes and bytes of all leaves of a state."""
  digest = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      leaf = jax.random.key_data(leaf)
    array = np.ascontiguousarray(leaf)
    digest.update(f'{jax.tree_util.keystr(path)} {array.dtype} {array.shape}'.encode())
    digest.update(array.tobytes())
  return digest.hexdigest()
