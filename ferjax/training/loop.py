"""THE loop: restore, evaluate, save, next batch, step, log. It only sequences."""

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

LOGGER = logging.getLogger(__name__)


class Fitted(NamedTuple):
  """How the steps of a run ended.

  Attributes:
    state: The state after the last step.
    predictions: Those of its evaluation, by name; empty where there was none.
    stopped_early: Whether evaluations were no longer better.
    left: Whether a signal ended the steps; the same command goes on.
  """

  state: TrainState
  predictions: dict[str, Predictions]
  stopped_early: bool
  left: bool


def train(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, Any]:
  """Trains, or goes on where the run in `workdir` stopped, and writes everything there.

  SIGTERM and SIGUSR1 end it at the next step, on all processes together, with a checkpoint from
  which the same call goes on. A signal that comes during the last steps changes nothing. Only a
  finished run has a `summary.json`.

  Args:
    config: See `config.base`.
    workdir: The run's folder; with several processes, one that all of them see.

  Returns:
    What `summary.json` holds; nothing where a signal ended the run, and with several processes in
    all but the first.

  Raises:
    InputError: whatever a user can correct; see the modules that this one calls. Another process
      that trains in `workdir` is one case.
    NonFiniteError: the loss or a gradient is not finite.
  """
  with jax.enable_x64(config.precision == 'float64'), contextlib.ExitStack() as stack:
    with preemption.noticed() as signal:
      run = setup.prepare(config, Path(workdir))
      stack.enter_context(setup.claimed(run))
      fitted = fit(run, restore(run), signal)
    if not fitted.left:
      return end(run, fitted)
  return {}


def restore(run: setup.Run) -> TrainState:
  """The newest state of the run that can be read, or its first."""
  state = checkpoint.restore_latest(run.workdir, run.first)
  state = run.first if state is None else state
  start = int(state.step)
  if start < run.steps and parallel.first_process():
    (run.workdir / 'summary.json').unlink(missing_ok=True)  # of the run before it was lengthened
  LOGGER.info(
    '%s step %d of %d: %d examples a step, %d devices, %d training rows, %.2f M parameters, in %s',
    'going on at' if start else 'from',
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
  """Evaluate, save, next batch, step, log; in this order, until the run is long enough, no longer
  gets better, or a signal came. A killed run goes on bit for bit because of this order."""
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
        log.check_finite()
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
        LOGGER.info('stopped at step %d: %s is no better', step, run.stop_metric)
        break
      if batches is None or step % run.rows.steps_per_epoch == 0:
        state, batches = epoch(run, state, step)
      batch = run.devices.shard(next(batches))
      before_step(step)
      state, metrics = run.train_step(state, batch)
      log.add(step + 1, metrics)
      if step == start:
        log.restart_clock(step + 1)  # the first step compiles
      if (step + 1) % run.log_every == 0:
        log.train(step + 1, float(run.learning_rate(step)))
  if leaves:
    LOGGER.info(
      'left at step %d of %d%s, for %s; the same command goes on',
      step,
      run.steps,
      ', saved' if step > start else ', where it began',
      signal() or 'a signal to another process',
    )
  elif signal():
    LOGGER.info('%s came after the last step: the run is finished', signal())
  return Fitted(state, predictions, stopped, leaves)


def evaluate(
  run: setup.Run, state: TrainState, log: logs.Logs
) -> tuple[dict[str, Predictions], float | None]:
  """Predictions by name, each with a line in the log, and the accuracy on `val` where it exists."""
  step, accuracy = int(state.step), None
  predictions = run.evaluations.predict_splits(state)
  for name, predicted in predictions.items():
    values = measure(predicted, run.rows.data.classes)
    logs.check_finite([(step, {f'{name} loss': values['loss']})])
    accuracy = values['acc'] if name == 'val' else accuracy
    log.write(step, name, values)
  return predictions, accuracy


def epoch(run: setup.Run, state: TrainState, step: int) -> tuple[TrainState, Iterator[Batch]]:
  """The state at a step, refreshed where it begins an epoch, and the epoch's batches from there."""
  rows = run.rows
  number, offset = divmod(step, rows.steps_per_epoch)
  if offset == 0:
    state = run.refresh(state, number)
  columns = parallel.host(run.method.columns(state.extra)) if run.method.columns else {}
  epochs = -(-run.steps // rows.steps_per_epoch)
  plan = rows.sampler(number, epochs, rows.seed, rows.split.table | columns, rows.batch)
  share = run.devices.share(rows.batch)
  batches = pipeline.batches(
    rows.split, plan, rows.columns, rows.image_size, start=offset, share=share, **rows.reading
  )
  return state, batches


def end(run: setup.Run, fitted: Fitted) -> dict[str, Any]:
  """Evaluates and writes what remains at the end of a run; see `evaluation.finish`."""
  # Imported here, so that training starts without matplotlib and scikit-learn.
  from ferjax.evaluation.finish import TrainingRows, finish
  from ferjax.report.figures import embeddings

  state, rows, first = fitted.state, run.rows, parallel.first_process()
  predictions = fitted.predictions or run.evaluations.predict_splits(state)
  more_is_known = run.method.estimates or 'distribution' in rows.split.table or rows.has_noise
  stored, training = None, None
  if more_is_known or run.evaluations.embeddings:
    stored = run.evaluations.predict(state, rows.split)
  if more_is_known:
    estimated = None
    if run.method.estimates:
      label = rows.split.table['label']
      estimated = parallel.host(run.method.estimates(parallel.host(state.extra), label))
    training = TrainingRows(rows.split, stored, rows.clean, estimated)
  if run.uses_graphs and first:
    path = run.workdir / 'report' / 'auxiliary_spaces.png'
    embeddings.auxiliary_spaces(
      path, rows.split.table, rows.clean, rows.data.classes, rows.image_size
    )
  lines = history.read_lines(run.workdir / 'metrics.jsonl') if first else []
  facts = history.summarise(lines) | {
    'step': int(state.step),
    'stopped_early': fitted.stopped_early,
    'data': rows.data.name,
    'state_sha256': checkpoint.state_sha256(state) if first else '',
  }
  return finish(
    run.workdir,
    run.evaluations,
    state,
    facts,
    predictions,
    stored=stored,
    training=training,
    lines=lines,
  )
