"""Builds everything that a run needs from its config. Later modules of training see no config."""

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ferjax import config as configs
from ferjax import core, files
from ferjax.assembly import build, sources
from ferjax.assembly import evaluations as assembled
from ferjax.assembly.terms import make_weights, with_terms
from ferjax.core import LEARNED, Method, TrainState
from ferjax.data import checks, dataset, noise, pipeline, samplers
from ferjax.data.splits import duplicates
from ferjax.distributed import hosts, parallel
from ferjax.errors import InputError
from ferjax.images import augment
from ferjax.models import pretrained
from ferjax.optim import optimizers
from ferjax.runs import checkpoint, record
from ferjax.terms import added
from ferjax.terms import weighting as weightings
from ferjax.training import early_stop, start, transfer
from ferjax.training.step import example_terms, make_train_step

LOGGER = logging.getLogger(__name__)


class Rows(NamedTuple):
  """The rows that a run trains on and is tested on.

  Attributes:
    data: The data set, with label noise and the columns that the method derives.
    tests, groups: See `sources.Data`.
    clean: i32[N], the training labels before the noise.
    sampler: Plans the rows of an epoch; see `data.samplers`.
    columns: The columns of a batch besides the pictures.
    image_size: Picture size in pixels.
    batch: Global batch size.
    seed: Seed of the plans.
    reading: Arguments of `pipeline.batches`: threads, workers, prefetch.
  """

  data: dataset.Dataset
  tests: Mapping[str, dataset.Dataset]
  groups: Mapping[str, tuple[str, ...]]
  clean: np.ndarray
  sampler: samplers.Plan
  columns: tuple[str, ...]
  image_size: int
  batch: int
  seed: int
  reading: Mapping[str, int]

  @property
  def split(self) -> dataset.Split:
    """The training rows."""
    return self.data.splits['train']

  @property
  def steps_per_epoch(self) -> int:
    return len(self.split.rows) // self.batch

  @property
  def has_noise(self) -> bool:
    """Whether the noise changed a training label."""
    return bool((self.split.table['label'] != self.clean).any())


class Run(NamedTuple):
  """Everything that a run needs and that does not change during the run.

  Attributes:
    workdir: The run's folder.
    record: The content of `config.json`.
    write_start: () -> None; writes the other files at the start: `noise.csv`, `weights.csv`.
    devices: The devices of the run.
    rows: The rows that it trains on.
    method: The method.
    steps: The length of the run.
    eval_every, save_every, log_every: Steps between evaluations, saves (0: only after evaluations)
      and lines of the log.
    keep: Number of the last checkpoints to keep.
    profile: Arguments of `logs.profiler`: the first step, and the one after the last.
    train_step: (state, batch) -> state, metrics; on the devices.
    learning_rate: The schedule: step -> rate.
    refresh: (state, epoch) -> state; on the host, before an epoch.
    enroll: (state) -> state; on the host, before an evaluation or save.
    evaluations: The evaluations.
    stops: (lines) -> whether evaluations have stopped improving.
    stop_metric: The metric that decides this.
    uses_graphs: Whether the sampler builds graphs of neighbours.
  """

  workdir: Path
  record: Callable[[], dict[str, Any]]
  write_start: Callable[[], None]
  devices: parallel.Parallel
  rows: Rows
  method: Method
  steps: int
  eval_every: int
  save_every: int
  log_every: int
  keep: int
  profile: Mapping[str, int]
  train_step: Callable[..., tuple[TrainState, dict[str, jax.Array]]]
  learning_rate: optax.Schedule
  refresh: Callable[..., TrainState]
  enroll: Callable[..., TrainState]
  evaluations: assembled.Evaluations
  stops: Callable[..., bool]
  stop_metric: str
  uses_graphs: bool

  def evaluates(self, step: int) -> bool:
    """Whether the state at a step is evaluated."""
    return step % self.eval_every == 0 or step == self.steps

  def saves(self, step: int) -> bool:
    """Whether the state at a step is saved even without an evaluation."""
    return bool(self.save_every) and step % self.save_every == 0


def prepare(config, workdir: Path) -> tuple[Run, TrainState]:
  """Checks a config and builds everything that a run needs. It writes nothing to `workdir`.

  Raises:
    InputError: the config or the data are not valid.
  """
  configs.check(config)
  devices = configs.call(parallel.make, 'parallel', config.parallel)
  parallel.check_batch(config.batch, devices.size)
  resumes = hosts.of_first(checkpoint.exist(workdir))
  weights = None if resumes else start.read(config)
  method, rows = _method_and_rows(config)
  weights = weights and start.with_statistics(config, weights, rows.split)
  steps = config.steps or config.epochs * rows.steps_per_epoch
  augmentation = _augmentation(config, method, rows)
  weighting = configs.call(weightings.make, 'weighting', config.weighting, rows.steps_per_epoch)
  params, extra, rng, weights, placed = _initialised(config, method, rows, weights)
  params, history = _with_weighting(weighting, method, rows, augmentation, params, extra)
  tx, learning_rate = configs.call(
    optimizers.make, 'optimizer', config.optimizer, params, steps, rows.steps_per_epoch
  )
  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), core.own(params))
  state = TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), extra, rng, history)
  term_weights = make_weights(config, rows.steps_per_epoch)
  train_step = make_train_step(method, tx, augmentation, term_weights, weighting)
  predict = assembled.make_predict(config, method, devices)
  refresh, enroll = (
    assembled.on_host(change, predict, devices, rows.split)
    for change in (method.refresh, method.enroll)
  )
  given = sources.Data(rows.data, rows.tests, rows.groups)
  eval_every = config.eval.every or rows.steps_per_epoch
  run = Run(
    workdir=workdir,
    record=functools.partial(_record, config, rows, steps, weights),
    write_start=functools.partial(_write_start, config, workdir, rows, weights, placed, shapes),
    devices=devices,
    rows=rows,
    method=method,
    steps=steps,
    eval_every=eval_every,
    save_every=config.checkpoint.every,
    log_every=config.log_every,
    keep=config.checkpoint.keep,
    profile=config.profile.to_dict(),
    train_step=devices.compile(train_step, donate=0),
    learning_rate=learning_rate,
    refresh=refresh,
    enroll=enroll,
    evaluations=assembled.make(config, method, predict, given, ('val', 'test')),
    stops=configs.call(early_stop.make, 'early_stop', config.early_stop, eval_every),
    stop_metric=config.early_stop.metric,
    uses_graphs=sources.uses_graphs(config),
  )
  return run, devices.replicate(state)


def _method_and_rows(config):
  """The method with added terms, and the rows that it trains on. Both are checked to fit."""
  load = functools.partial(sources.load, config)
  data, tests, groups = hosts.first_then_others('data', load)
  counts = len(data.classes), len(data.poses)
  method = build.make_method(config, *counts)
  checks.check_trainable(data, method.needs | method.predict_needs, config.batch)
  tests = sources.fit(method, tests, data.poses)
  clean = data.splits['train'].table['label']
  data = sources.derive(method, sources.corrupt_labels(config, data))
  split = data.splits['train']
  make_sampler = functools.partial(sources.make_sampler, config, split.table)
  sampler = hosts.first_then_others('sampler', make_sampler)
  method = with_terms(config, method, split, sampler, *counts)
  columns = ('label', *sorted(method.needs), *sorted(method.derived))
  reading = config.reading.to_dict()
  return method, Rows(
    data,
    tests,
    groups,
    clean,
    sampler,
    columns,
    config.data.image_size,
    config.batch,
    config.seed,
    reading,
  )


def _augmentation(config, method, rows):
  flips = config.augment.flip > 0
  return configs.call(
    augment.make,
    'augment',
    config.augment,
    views=method.views,
    flip_order=dataset.flip_order(rows.data) if 'landmarks' in rows.columns and flips else None,
    flip_poses=dataset.flip_poses(rows.data) if 'pose' in rows.columns and flips else None,
    dtype=build.picture_dtype(config),
  )


def _initialised(config, method, rows, weights):
  """Parameters, `extra` and random key of a run; with `weights`, their record and the destinations
  of their arrays."""
  init_rng, rng = jax.random.split(jax.random.key(config.seed))
  example = sources.example_batch(config, rows.split, rows.columns, rows.sampler)
  table, placed = rows.split.table, None
  params, extra = method.init(init_rng, example, table)
  extra = build.in_precision(config, extra)
  if weights:
    of_run = (config.method.name, method.classifier, rows.data.classes, rows.data.poses)
    new = transfer.New(params, extra, example, table, *of_run)
    weights, params, extra, placed = start.insert(config, weights, new)
  return params, extra, rng, weights, placed


def _with_weighting(weighting, method, rows, augmentation, params, extra):
  """The parameters with the learned weights of terms, and the state of the weighting."""
  if not weighting.varies:
    return params, ()
  plan = rows.sampler(0, 1, rows.seed, rows.split.table, rows.batch)
  whole = next(pipeline.batches(rows.split, plan, rows.columns, rows.image_size, threads=1))
  terms = example_terms(method, augmentation, params, extra, whole)
  learned, history = weighting.init(terms)
  return params | ({LEARNED: learned} if learned else {}), history


def _record(config, rows, steps, weights):
  """What `config.json` holds; see `record.make`."""
  data, table = rows.data, rows.split.table
  further = {f'test/{name}': one.splits['test'] for name, one in rows.tests.items()}
  of_data = {f'test/{name}' for name in data.sets}
  copies = duplicates(data.splits | {k: split for k, split in further.items() if k not in of_data})
  facts = {
    'data': data.name,
    'fingerprint': data.fingerprint,
    'labels_sha256': record.labels_sha256(table['label']),
    'classes': list(data.classes),
    'poses': list(data.poses),
    'landmark_scheme': data.landmark_scheme,
    'landmarks': table['landmarks'].shape[1] if 'landmarks' in table else 0,
    'landmark_indices': data.landmark_indices and list(data.landmark_indices),
    'action_units': list(data.action_units),
    'rows': {name: len(split.rows) for name, split in (data.splits | further).items()},
    'duplicates': copies,
    'dropped_duplicates': dict(data.dropped),
    'steps': steps,
  }
  if version := build.onednn_version(config):
    facts['onednn'] = version
  if config.terms:
    facts['term_sources'] = added.sources(config.terms.to_dict())
  if weights:
    facts['weights'] = pretrained.facts(weights)
  return record.make(config, facts)


def _write_start(config, workdir, rows, weights, placed, shapes):
  if config.noise.kind != 'none':
    label = rows.split.table['label']
    wrong = (label != rows.clean).mean()
    LOGGER.info('%.2f %% of the training labels are wrong; see noise.csv', 100 * wrong)
    options = {key: config.noise[key] for key in ('file', 'label_order', 'first_label')}
    names = rows.split.table['name']
    noise.record(workdir, names, label, rows.clean, rows.data.classes, **options)
  if weights:
    pretrained.write(workdir / 'weights.csv', weights, placed, shapes)


@contextlib.contextmanager
def claimed(run: Run) -> Iterator[None]:
  """Locks the run's folder, and writes the files of the start of a run.

  Raises:
    InputError: another process trains there, the folder holds another run or cannot be written, or
      not all processes see it.
  """
  with contextlib.ExitStack() as lock:
    if parallel.first_process():
      busy = f'another process trains in {run.workdir}: wait for its end, or give another --workdir'
      lock.enter_context(files.locked(run.workdir / 'train.lock', busy))
      found = run.record()
      copies = found['duplicates']
      if copies:
        LOGGER.warning('byte for byte the same picture in two splits: %s', copies)
      record.write(run.workdir, found)
      run.write_start()
    hosts.wait('record')
    if not hosts.appears(run.workdir / 'config.json'):
      raise InputError(
        f'--workdir={run.workdir}: this process does not see the files of the first process; give '
        'a folder that all hosts share'
      )
    yield
