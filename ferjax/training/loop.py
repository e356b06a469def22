"""The training loop: restore, evaluate, save, next batch, step, log. It only calls these parts."""

import contextlib
import itertools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections

from ferjax.core import Batch, TrainState
from ferjax.data import pipeline
from ferjax.distributed import hosts, parallel, preemption
from ferjax.metrics.predictions import Predictions, measure
from ferjax.runs import checkpoint, history
from ferjax.training import logs, setup
from ferjax.training.step import copy, norms

LOGGER = logging.getLogger(__name__)


class Fitted(NamedTuple):
  """The result of the steps of a run.

  Attributes:
    state: The state after the last step.
    predictions: Predictions of the evaluation of this state, by name; empty if there was none.
    stopped_early: Whether the run stopped because evaluations did not improve.
    left: Whether a signal ended the steps; the same command continues the run.
  """

  state: TrainState
  predictions: dict[str, Predictions]
  stopped_early: bool
  left: bool


def train(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, Any]:
  """Trains a model, or continues the run in `workdir`, and writes all results there.

  SIGTERM and SIGUSR1 end the run at the next step, on all processes together, with a checkpoint
  from which the same call continues. A signal after the last step has no effect. Only a finished
  run has a `summary.json`.

  Args:
    config: See `config.base`.
    workdir: The run's folder; with several processes, a folder that all of them see.

  Returns:
    The content of `summary.json`; {} if a signal ended the run, and on all processes except the
    first.

  Raises:
    InputError: the config or the data are not valid, or another process trains in `workdir`; see
      the modules that this one calls.
    NonFiniteError: the loss or a gradient is not finite.
  """
  with jax.enable_x64(config.precision == 'float64'), contextlib.ExitStack() as stack:
    with preemption.noticed() as signal:
      run, first = setup.prepare(config, Path(workdir))
      stack.enter_context(setup.claimed(run))
      state = restore(run, first)
      del first  # frees a device's memory where the run is restored
      fitted = fit(run, state, signal)
    if not fitted.left:
      return end(run, fitted)
  return {}


def restore(run: setup.Run, first: TrainState) -> TrainState:
  """The newest state of the run that can be read, or else the first one."""
  state = checkpoint.restore_latest(run.workdir, first)
  state = first if state is None else state
  start = int(state.step)
  if start < run.steps and parallel.first_process():
    (run.workdir / 'summary.json').unlink(missing_ok=True)  # if the run was lengthened, it is old
  LOGGER.info(
    '%s step %d of %d: %d examples per step, %d devices, %d training rows, %.2f M parameters, in '
    '%s',
    'continuing at' if start else 'starting at',
    start,
    run.steps,
    run.rows.batch,
    run.devices.size,
    len(run.rows.split.rows),
    sum(leaf.size for leaf in jax.tree.leaves(state.params)) / 1e6,
    run.workdir,
  )
  return state


def fit(run: setup.Run, state: TrainState, signal: Callable[[], str]) -> Fitted:
  """Repeats evaluate, save, next batch, step and log until the run ends.

  The run ends after its last step, when evaluations do not improve, or after a signal. Because of
  this order, a killed run continues to the same result bit for bit.

  Args:
    run: The run.
    state: The state to start from.
    signal: () -> the name of the signal that arrived, '' if none.
  """
  start, agree, first = int(state.step), run.devices.agreement(), parallel.first_process()
  predictions, batches, stopped = {}, None, False
  with (
    checkpoint.open_checkpoints(run.workdir, run.keep) as checkpoints,
    logs.Logs(run.workdir, start, run.steps, run.rows.batch, first) as log,
    logs.profiler(run.workdir, first, **run.profile) as before_step,
  ):
    for step in itertools.count(start):
      evaluates, saves = run.evaluates(step), run.saves(step)
      leaves = agree(bool(signal())) and step < run.steps
      if step > start and (evaluates or saves or leaves):
        log.flush()
        accuracy = None
        if evaluates or saves:
          state = run.enroll(state)
        if evaluates:
          predictions, accuracy = evaluate(run, state, log)
        checkpoint.save(checkpoints, run.devices.joined(state), accuracy)
        log.restart_clock(step)
      if step >= run.steps or leaves:
        break
      if evaluates and step > 0:
        stopped = bool(hosts.of_first(first and run.stops(log.lines)))
      if stopped:
        LOGGER.info('stopped at step %d: %s has not improved', step, run.stop_metric)
        break
      if batches is None or step % run.rows.steps_per_epoch == 0:
        state, batches = epoch(run, state, step)
      batch = run.devices.shard(next(batches))
      before_step(step)
      logged = (step + 1) % run.log_every == 0
      before = copy(parallel.local(state.params)) if logged else None
      state, metrics = run.train_step(state, batch)
      if logged:
        metrics |= norms(before, parallel.local(state.params))
      log.add(step + 1, metrics)
      if step == start:
        log.restart_clock(step + 1)  # the first step compiles
      if logged:
        log.train(step + 1, float(run.learning_rate(step)))
  if leaves:
    LOGGER.info(
      'stopped at step %d of %d%s, because of %s; the same command continues the run',
      step,
      run.steps,
      ', saved' if step > start else ', where it started',
      signal() or 'a signal to another process',
    )
  elif signal():
    LOGGER.info('%s arrived after the last step: the run is finished', signal())
  return Fitted(state, predictions, stopped, leaves)


def evaluate(
  run: setup.Run, state: TrainState, log: logs.Logs
) -> tuple[dict[str, Predictions], float | None]:
  """Predicts and measures all splits, and writes a line for each to the log.

  Returns:
    Predictions by name, and the accuracy on `val`, or None without that split.

  Raises:
    NonFiniteError: a loss is not finite.
  """
  step, accuracy = int(state.step), None
  predictions = run.evaluations.predict_splits(state)
  for name, predicted in predictions.items():
    values = measure(predicted, run.rows.data.classes)
    logs.check_finite([(step, {f'{name} loss': values['loss']})])
    accuracy = values['acc'] if name == 'val' else accuracy
    values['mean_last_5'] = history.mean_last_5(log.lines, name, values['acc'])
    log.write(step, name, values)
  return predictions, accuracy


def epoch(run: setup.Run, state: TrainState, step: int) -> tuple[TrainState, Iterator[Batch]]:
  """The state at a step and the batches of its epoch from this step on. At the start of an epoch,
  the state is refreshed."""
  rows = run.rows
  number, offset = divmod(step, rows.steps_per_epoch)
  if offset == 0:
    state = run.refresh(state, number)
  further = parallel.host(run.method.columns(state.extra)) if run.method.columns else {}
  epochs = -(-run.steps // rows.steps_per_epoch)
  plan = rows.sampler(number, epochs, rows.seed, rows.split.table | further, rows.batch)
  share = run.devices.share(rows.batch)
  batches = pipeline.batches(
    rows.split, plan, rows.columns, rows.image_size, start=offset, share=share, **rows.reading
  )
  return state, batches


def end(run: setup.Run, fitted: Fitted) -> dict[str, Any]:
  """Evaluates and writes the results at the end of a run; see `evaluation.finish`."""
  # Imported here, so that training starts without matplotlib and scikit-learn.
  from ferjax.evaluation.finish import TrainingRows, finish
  from ferjax.report.figures import embeddings

  state, rows, evaluations = fitted.state, run.rows, run.evaluations
  LOGGER.info('evaluating the final state; predictions, tables and pictures follow')
  predictions = fitted.predictions or evaluations.predict_splits(state)
  tested = evaluations.predict_tests(state)
  more_is_known = run.method.estimates or 'distribution' in rows.split.table or rows.has_noise
  stored, training = None, None
  if more_is_known or evaluations.embeddings:
    stored = evaluations.predict(state, rows.split)
  if more_is_known:
    estimated = None
    if run.method.estimates:
      label = rows.split.table['label']
      estimated = parallel.host(run.method.estimates(parallel.host(state.extra), label))
    training = TrainingRows(rows.split, stored, rows.clean, estimated)
  if not parallel.first_process():
    return {}
  if run.uses_graphs:
    path = run.workdir / 'report' / 'auxiliary_spaces.png'
    embeddings.auxiliary_spaces(
      path, rows.split.table, rows.clean, rows.data.classes, rows.image_size
    )
  lines = history.read_lines(run.workdir / 'metrics.jsonl')
  facts = history.summarise(lines) | {
    'step': int(state.step),
    'stopped_early': fitted.stopped_early,
    'data': rows.data.name,
    'state_sha256': checkpoint.state_sha256(state),
  }
  looks = evaluations.look(state)
  return finish(
    run.workdir,
    evaluations,
    facts,
    predictions,
    tested,
    looks=looks,
    stored=stored,
    training=training,
    lines=lines,
  )
