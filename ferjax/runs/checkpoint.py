"""Checkpoints of the whole training state, with Orbax: the last few, and the best by validation."""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from ferjax.core import TrainState
from ferjax.distributed import hosts, parallel
from ferjax.errors import InputError

LOGGER = logging.getLogger(__name__)


def open_checkpoints(workdir: Path, keep: int) -> ocp.training.Checkpointer:
  """Opens the checkpoints of a run for saving, as a context manager. Its exit waits for unfinished
  saves.

  Args:
    workdir: The run's folder.
    keep: Number of the last checkpoints to keep, in addition to the best by validation accuracy.
  """
  policies = ocp.training.preservation_policies
  best = policies.BestN(get_metric_fn=_rank, n=1, keep_checkpoints_without_metrics=False)
  return ocp.training.Checkpointer(
    _folder(workdir),
    preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), best]),
    cleanup_tmp_directories=True,
  )


def save(checkpoints: ocp.training.Checkpointer, state: TrainState, val_acc: float | None) -> None:
  """Saves the state in the background, with its validation accuracy 0..1, or None if unknown."""
  step = int(state.step)
  metrics = None if val_acc is None else {'val_acc': val_acc, 'step': step}
  context = ocp.Context()
  context.array.saving.use_replica_parallel = False  # else each array is split among the devices
  with context:
    checkpoints.save_async(step, _stored(state), force=True, metrics=metrics)


def restore_latest(workdir: Path, like: TrainState) -> TrainState | None:
  """The newest state that can be read. Damaged checkpoints are moved away with a warning.

  Args:
    workdir: The run's folder.
    like: A state of the same shapes, on the devices where the restored one shall be.

  Returns:
    The state, or None if no checkpoint was saved.

  Raises:
    InputError: there are checkpoints but none can be read, only some processes can read the newest
      one, or it holds another model.
  """
  for step in _saved(workdir) if parallel.first_process() else ():
    try:
      _metrics(workdir, step)  # Orbax reads the metrics of all checkpoints before it saves another
    except (OSError, ValueError) as error:
      _set_aside(workdir, step, error)
  while (step := hosts.of_first(max(_saved(workdir), default=-1))) >= 0:
    path, error = _folder(workdir) / str(step), None
    hosts.appears(path / '_CHECKPOINT_METADATA')
    try:
      state = like.replace(**_load_placed(path, _stored(like)))
    except Exception as found:  # Orbax and its storage raise many kinds for a damaged checkpoint
      error = found
    readers = hosts.how_many(error is None)
    if readers == jax.process_count():
      return state
    if readers:
      here = _first_line(error) if error else 'it can be read here'
      raise InputError(
        f'{path} can be read by {readers} of {jax.process_count()} processes ({here}): make sure '
        'that all see the same folder'
      ) from error
    if hosts.of_first(_is_whole(path)):
      raise InputError(
        f'{path} holds another state than this config makes with the installed versions '
        f'({_first_line(error).rstrip(":")}). Continue the run with the version of ferjax and the '
        'config that it began with, or give another --workdir'
      ) from error
    if parallel.first_process():
      _set_aside(workdir, step, error)
  aside = Path(workdir) / 'checkpoints_unreadable'
  if aside.is_dir():
    raise InputError(
      f'no checkpoint of {workdir} can be read; they were moved to {aside}. '
      'Use another --workdir to start again'
    )
  return None


def restore(workdir: Path, which: str) -> dict[str, Any]:
  """The state of one checkpoint, of any shapes. The folder is not changed.

  Args:
    workdir: The run's folder.
    which: `last`, `best` (by validation accuracy; the earliest if several are equal), or a step.

  Returns:
    The fields of `TrainState` by name, as nested dicts of NumPy arrays.

  Raises:
    InputError: there is no such checkpoint, or it cannot be read.
  """
  steps = _saved(workdir)
  if not steps:
    raise InputError(f'{workdir} holds no checkpoint: train there first')
  try:
    measured = [metrics for step in steps if (metrics := _metrics_or_none(workdir, step))]
    names = {str(step): step for step in steps} | {'last': max(steps)}
    if measured:
      names['best'] = max(measured, key=_rank)['step']
    if which not in names:
      raise InputError(f"{workdir} has no checkpoint '{which}'; there are: {', '.join(names)}")
    return _load_as_numpy(_folder(workdir) / str(names[which]))
  except InputError:
    raise
  except Exception as error:  # as above
    raise InputError(f'a checkpoint of {workdir} cannot be read: {_first_line(error)}') from error


def exist(workdir: Path) -> bool:
  """Whether a run has saved a checkpoint."""
  return bool(_saved(workdir))


def _stored(state: TrainState) -> dict[str, Any]:
  """The fields that a checkpoint holds; `weighting` only if it has a state."""
  return {k: v for k, v in vars(state).items() if k != 'weighting' or jax.tree.leaves(v)}


def _folder(workdir: Path) -> Path:
  return Path(workdir).resolve() / 'checkpoints'


def _saved(workdir: Path) -> list[int]:
  return sorted(int(path.name) for path in _folder(workdir).glob('*') if path.name.isdigit())


def _metrics(workdir: Path, step: int) -> dict[str, float] | None:
  folder = _folder(workdir) / str(step)
  json.loads((folder / '_CHECKPOINT_METADATA').read_text())
  path = folder / 'metrics' / 'metrics'
  return json.loads(path.read_text()) if path.parent.exists() else None


def _metrics_or_none(workdir: Path, step: int) -> dict[str, float] | None:
  try:
    return _metrics(workdir, step)
  except (OSError, ValueError) as error:
    LOGGER.warning('checkpoint %d is damaged (%s)', step, _first_line(error))
    return None


def _rank(metrics: dict[str, float]) -> tuple[float, float]:
  return metrics['val_acc'], -metrics['step']


def _load_as_numpy(path: Path) -> dict[str, Any]:
  with _by_itself():
    stored = ocp.metadata(path).metadata
    return ocp.load(path, jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), stored))


def _by_itself() -> ocp.Context:
  """A context in which a process reads without waiting for the others, which may fail to read."""
  context, process = ocp.Context(), jax.process_index()
  context.multiprocessing.primary_host = process
  context.multiprocessing.active_processes = {process}
  return context


def _load_placed(path: Path, like: Any) -> Any:
  """Loads what was saved and places it on the devices of `like`. Arrays are read as NumPy arrays:
  Orbax reads in its own threads, where `jax.enable_x64` has no effect and JAX arrays would be
  rounded to float32."""

  def is_key(leaf):
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)

  host = jax.tree.map(lambda x: x if is_key(x) else np.empty(x.shape, x.dtype), like)
  with _by_itself():
    loaded = ocp.load(path, host)
  return jax.tree.map(
    lambda x, placed: x if is_key(placed) else parallel.place(x, placed.sharding), loaded, like
  )


def _is_whole(path: Path) -> bool:
  try:
    _load_as_numpy(path)
  except Exception:  # as above
    return False
  return True


def _set_aside(workdir: Path, step: int, error: Exception) -> None:
  parent = Path(workdir) / 'checkpoints_unreadable'
  parent.mkdir(exist_ok=True)
  aside = parent / f'{step}-{len(list(parent.iterdir()))}'
  (_folder(workdir) / str(step)).rename(aside)
  LOGGER.warning('checkpoint %d cannot be read (%s); moved to %s', step, _first_line(error), aside)


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
