"""THE loop: restore, evaluate, save, next batch, step, log. It only sequences."""

import contextlib
import functools
import hashlib
import itertools
import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from ferjax import config as configs
from ferjax import core, files
from ferjax.assembly import build, sources
from ferjax.assembly.evaluations import evaluated, look, make_predict, on_host
from ferjax.assembly.terms import make_weights, with_terms
from ferjax.data import checks, dataset, noise, pipeline
from ferjax.data.splits import duplicates
from ferjax.distributed import hosts, parallel, preemption
from ferjax.errors import InputError
from ferjax.images import augment
from ferjax.metrics.predictions import measure
from ferjax.models import pretrained as weights
from ferjax.optim import optimizers
from ferjax.runs import checkpoint, record
from ferjax.terms import added
from ferjax.terms import weighting as weightings
from ferjax.training import early_stop, logs
from ferjax.training.step import example_terms, make_train_step

LOGGER = logging.getLogger(__name__)


def train(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, Any]:
  """Trains, or goes on where the run in `workdir` stopped, and writes everything of it there.

  SIGTERM and SIGUSR1 end it at the next step, on all processes together, with a checkpoint from
  which the same call goes on; one that comes too late for that, as the last steps are under way,
  changes nothing. Only a run that is finished has a `summary.json`.

  Args:
    config: See `config.base`.
    workdir: The run's folder; of several processes, one that all of them see.

  Returns:
    What `summary.json` holds; nothing where a signal ended the run, and of several processes in all
    but the first.

  Raises:
    InputError: whatever a user can mend; see the modules that this one calls. Another process that
      trains in `workdir` is among it.
    NonFiniteError: the loss or a gradient is not finite.
  """
  with jax.enable_x64(config.precision == 'float64'), contextlib.ExitStack() as stack:
    return _train(config, Path(workdir), stack)


def _train(config, workdir, stack):
  signals = stack.enter_context(contextlib.ExitStack())
  signalled = signals.enter_context(preemption.noticed())
  configs.check(config)
  devices = configs.call(parallel.make, 'parallel', config.parallel)
  parallel.check_batch(config.batch, devices.size)
  pretrained = None if checkpoint.exist(workdir) else build.read_weights(config)
  load = functools.partial(sources.load, config)
  data, tests, groups = hosts.first_then_others('data', load)
  method = build.make_method(config, len(data.classes), len(data.poses))
  checks.check_trainable(data, method.needs | method.predict_needs, config.batch)
  tests = sources.fit(method, tests, data.poses)
  clean = data.splits['train'].table
  data = sources.derive(method, sources.corrupt_labels(config, data))

  split = data.splits['train']
  make_sampler = functools.partial(sources.make_sampler, config, split.table)
  sampler = hosts.first_then_others('sampler', make_sampler)
  counts = len(data.classes), len(data.poses)
  method = with_terms(config, method, split, sampler, *counts)
  columns = ('label', *sorted(method.needs), *sorted(method.derived))
  steps_per_epoch = len(split.rows) // config.batch
  steps = config.steps or config.epochs * steps_per_epoch
  init_rng, rng = jax.random.split(jax.random.key(config.seed))
  example = sources.example_batch(config, split, columns, sampler)
  params, extra = method.init(init_rng, example, split.table)
  extra = build.in_precision(config, extra)
  if pretrained:
    params, extra, placed = weights.insert(pretrained, params, extra)
  flips = config.augment.flip > 0
  augmentation = configs.call(
    augment.make,
    'augment',
    config.augment,
    views=method.views,
    flip_order=dataset.flip_order(data) if 'landmarks' in columns and flips else None,
    flip_poses=dataset.flip_poses(data) if 'pose' in columns and flips else None,
    dtype=build.picture_dtype(config),
  )
  weighting = configs.call(weightings.make, 'weighting', config.weighting, steps_per_epoch)
  history = ()
  if weighting.varies:
    plan = sampler(0, 1, config.seed, split.table, config.batch)
    whole = next(pipeline.batches(split, plan, columns, config.data.image_size, threads=1))
    terms = example_terms(method, augmentation, params, extra, whole)
    learned, history = weighting.init(terms)
    params = params | {core.LEARNED: learned} if learned else params
  tx, learning_rate = configs.call(
    optimizers.make, 'optimizer', config.optimizer, params, steps, steps_per_epoch
  )
  step = jnp.zeros((), jnp.int32)
  state = core.TrainState(step, params, tx.init(params), extra, rng, history)
  state = devices.replicate(state)
  term_weights = make_weights(config, steps_per_epoch)
  train_step = make_train_step(method, tx, augmentation, term_weights, weighting)
  train_step = devices.compile(train_step, donate=0)
  predict = make_predict(config, method, devices)
  refresh, enroll = (
    on_host(change, predict, devices, split) for change in (method.refresh, method.enroll)
  )
  evaluations = evaluated(config, data, ('val', 'test'))
  eval_every = config.eval.every or steps_per_epoch
  stops = configs.call(early_stop.make, 'early_stop', config.early_stop, eval_every)

  if parallel.first_process():
    busy = f'another process trains in {workdir}: wait for its end, or give another --workdir'
    stack.enter_context(files.locked(workdir / 'train.lock', busy))
    _record(config, data, tests, clean['label'], steps, pretrained, workdir)
    if pretrained:
      weights.write(workdir / 'weights.csv', pretrained, placed, core.own(params))
  hosts.wait('record')
  _check_shared(workdir)
  restored = checkpoint.restore_latest(workdir, state)
  state = state if restored is None else restored
  start = int(state.step)
  if start < steps and parallel.first_process():
    (workdir / 'summary.json').unlink(missing_ok=True)  # of the run before it was lengthened
  LOGGER.info(
    '%s step %d of %d: %d examples a step, %d devices, %d training rows, %.2f M parameters, in %s',
    'going on at' if start else 'from',
    start,
    steps,
    config.batch,
    devices.size,
    len(split.rows),
    sum(leaf.size for leaf in jax.tree.leaves(state.params)) / 1e6,
    workdir,
  )

  share, agree = devices.share(config.batch), devices.agreement()
  predictions, pending, stopped = {}, [], False
  with (
    checkpoint.open_checkpoints(workdir, config.checkpoint.keep) as checkpoints,
    logs.Logs(workdir, start, steps, config.batch, parallel.first_process()) as log,
    configs.call(
      logs.profiler, 'profile', config.profile, workdir, parallel.first_process()
    ) as before_step,
  ):
    for step in itertools.count(start):
      evaluates = step % eval_every == 0 or step == steps
      saves = config.checkpoint.every and step % config.checkpoint.every == 0
      preempted = agree(bool(signalled())) and step < steps
      if step > start and (evaluates or saves):
        logs.check_finite(pending)
        pending = []
        state = enroll(state)
        val_acc = None
        if evaluates:
          predictions = {name: predict(state, *what) for name, what in evaluations.items()}
          for name, predicted in predictions.items():
            values = measure(predicted, data.classes)
            logs.check_finite([(step, {f'{name} loss': values['loss']})])
            val_acc = values['acc'] if name == 'val' else val_acc
            log.write(step, name, values)
        checkpoint.save(checkpoints, devices.joined(state), val_acc)
        log.restart_clock(step)
      elif step > start and preempted:
        logs.check_finite(pending)
        checkpoint.save(checkpoints, devices.joined(state), None)
      if step >= steps or preempted:
        break
      if evaluates and step > 0:
        stopped = bool(hosts.of_first(parallel.first_process() and stops(log.lines)))
      if stopped:
        LOGGER.info('stopped at step %d: %s is no better', step, config.early_stop.metric)
        break
      if step == start or step % steps_per_epoch == 0:
        epoch, offset = divmod(step, steps_per_epoch)
        epochs = -(-steps // steps_per_epoch)
        if offset == 0:
          state = refresh(state, epoch)
        found = parallel.host(method.columns(state.extra)) if method.columns else {}
        plan = sampler(epoch, epochs, config.seed, split.table | found, config.batch)
        batches = pipeline.batches(
          split, plan, columns, config.data.image_size, start=offset, share=share, **config.reading
        )
      batch = devices.shard(next(batches))
      before_step(step)
      state, metrics = train_step(state, batch)
      pending.append((step + 1, metrics))
      # A few steps under way: batches wait on the host, not on the device.
      jax.block_until_ready(pending[max(0, len(pending) - parallel.UNDER_WAY)][1])
      if step == start:
        log.restart_clock(step + 1)
      if (step + 1) % config.log_every == 0:
        *_, (_, values) = logs.check_finite(pending)
        pending = []
        speed = {'lr': float(learning_rate(step)), 'images_per_s': log.speed(step + 1)}
        log.write(step + 1, 'train', {'loss': values['loss'], **values, **speed})

  from ferjax.evaluation import finish  # here, so that training starts without what they import
  from ferjax.report.figures import embeddings

  signals.close()
  if preempted:
    LOGGER.info(
      'left at step %d of %d%s, for %s; the same command goes on',
      step,
      steps,
      ', saved' if step > start else ', where it began',
      signalled() or 'a signal to another process',
    )
    return {}
  if signalled():
    LOGGER.info('%s came after the last step: the run is only finished', signalled())
  if not predictions:
    predictions = {name: predict(state, *what) for name, what in evaluations.items()}
  tested = {name: predict(state, one.splits['test']) for name, one in tests.items()}
  training = None
  more_known = method.estimates or 'distribution' in split.table or config.noise.kind != 'none'
  if more_known or config.eval.embeddings:
    estimated = None
    if method.estimates:
      label = split.table['label']
      estimated = parallel.host(method.estimates(parallel.host(state.extra), label))
    training = finish.TrainingRows(split, predict(state, split), clean['label'], estimated)
  if not parallel.first_process():
    return {}
  if sources.uses_graphs(config):
    path, size = workdir / 'report' / 'auxiliary_spaces.png', config.data.image_size
    embeddings.auxiliary_spaces(path, split.table, clean['label'], data.classes, size)
  looks = look(config, method, state, data)
  return finish.finish(
    workdir,
    state,
    data,
    predictions,
    training,
    looks,
    finish.each_set(workdir, tests, tested, groups, pictures=config.eval.sheets),
    stopped_early=stopped,
    pictures=config.eval.sheets,
    numbers=config.eval.embeddings,
    tsne=config.eval.tsne,
  )


def _check_shared(workdir):
  if not hosts.appears(workdir / 'config.json'):
    raise InputError(
      f'--workdir={workdir}: what the first process wrote there is not here; give a '
      'folder that all hosts share'
    )


def _record(config, data, tests, clean, steps, pretrained, workdir):
  """Writes what a run starts from; see `config.write`."""
  table = data.splits['train'].table
  further = {f'test/{k}': t.splits['test'] for k, t in tests.items()}
  own = {f'test/{name}' for name in data.sets}
  copies = duplicates(data.splits | {k: split for k, split in further.items() if k not in own})
  if copies:
    LOGGER.warning('byte for byte the same picture in two splits: %s', copies)
  facts = {
    'data': data.name,
    'fingerprint': data.fingerprint,
    'labels_sha256': hashlib.sha256(table['label'].tobytes()).hexdigest(),
    'classes': list(data.classes),
    'poses': list(data.poses),
    'landmark_scheme': data.landmark_scheme,
    'landmarks': table['landmarks'].shape[1] if 'landmarks' in table else 0,
    'landmark_indices': data.landmark_indices and list(data.landmark_indices),
    'action_units': list(data.action_units),
    'rows': {name: len(split.rows) for name, split in (data.splits | further).items()},
    'duplicates': copies,
    'steps': steps,
  }
  if config.terms:
    facts['term_sources'] = added.sources(config.terms.to_dict())
  if pretrained:
    facts['weights'] = weights.facts(pretrained)
  record.write(workdir, config, facts)
  if config.noise.kind != 'none':
    wrong = (table['label'] != clean).mean()
    LOGGER.info('%.2f %% of the training labels are wrong; see noise.csv', 100 * wrong)
    options = {key: config.noise[key] for key in ('file', 'label_order', 'first_label')}
    noise.record(workdir, table['name'], table['label'], clean, data.classes, **options)
