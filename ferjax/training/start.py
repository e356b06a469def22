"""The weights that a run starts from: `config.model.weights`."""

import logging
from pathlib import Path

import flax
import jax
import ml_collections
import numpy as np

from ferjax import core, files
from ferjax.assembly import build, restore
from ferjax.data import dataset, pipeline
from ferjax.distributed import hosts
from ferjax.errors import InputError, choose
from ferjax.export import reader
from ferjax.images import augment
from ferjax.models import batch_statistics, pretrained, weight_files
from ferjax.optim.ema import predicting
from ferjax.runs import checkpoint
from ferjax.runs import record as records
from ferjax.terms.wrap import TERMS
from ferjax.training import dlib_package, transfer

LOGGER = logging.getLogger(__name__)

DLIB = 'dlib'
DLIB_NETWORK = 'face_resnet29'
MEASURED = 512  # training rows for the statistics of BatchNorm
AT_ONCE = 32


def read(config: ml_collections.ConfigDict) -> pretrained.Weights | transfer.Trained | None:
  """What `config.model.weights` names, or None if it is empty: the weights of a file, or the model
  of a run or export. All processes must call it.

  Raises:
    InputError: there is no such file, run, checkpoint or export, or it is damaged; see
      `dlib_package.fetch`, `weight_files.read` and `pretrained.convert`. It holds another network;
      or `config.model.weights_head` is unknown, or `keep` without a run or export.
  """
  path, head = config.model.get('weights', ''), config.model.get('weights_head', 'auto')
  choose('config.model.weights_head', head, transfer.HEADS)
  place = _folder(path) if path not in ('', DLIB) else None
  if head == 'keep' and not place:
    raise InputError(
      'config.model.weights_head=keep: only a run or an export in config.model.weights has a '
      f'classifier to keep; it is {path!r}'
    )
  if not path:
    return None
  if place:
    return _of_model(config, *place)
  if path == DLIB:
    if config.model.name != DLIB_NETWORK:
      raise InputError(
        f"config.model.weights=dlib is for config.model.name='{DLIB_NETWORK}', not "
        f"'{config.model.name}'"
      )
    folder = files.cache_folder() / 'weights'
    path = hosts.first_then_others('weights', lambda: dlib_package.fetch(folder))
  return _of_file(config, path)


def _folder(path):
  """The folder and checkpoint that a path such as `runs/a@best` names; None for a file."""
  start, _, which = path.rpartition('@')
  named = ((folder, name) for folder, name in ((path, 'last'), (start, which)) if folder and name)
  try:
    places = ((Path(folder).expanduser(), name) for folder, name in named)
    return next((place for place in places if place[0].is_dir()), None)
  except (OSError, RuntimeError):  # `weight_files.read` says why
    return None


def _of_file(config, path):
  arrays, sha256 = weight_files.read(path)
  weights = pretrained.convert(arrays, build.network_shapes(config), str(path), sha256)
  if Path(path).suffix.lower() == '.dat':
    weights = weights._replace(has_statistics=False)
  if sha256 == dlib_package.SHA256:
    weights = weights._replace(
      file=dlib_package.NAME, licence=dlib_package.LICENCE, provenance=dlib_package.PROVENANCE
    )
  return weights


def _of_model(config, folder, which):
  where = f'config.model.weights={config.model.weights}'
  if reader.is_export(folder):
    if which != 'last':
      raise InputError(f'{where}: an export has only one checkpoint: leave @{which} out')
    record, params, extra, facts = _export(folder)
  elif (folder / 'config.json').is_file():
    record, params, extra, facts = _run(folder, which)
  else:
    raise InputError(f'{where} is a folder, but neither of a run nor of an export')
  theirs = restore.config_in(record)
  for key in ('name', 'width'):
    if theirs.model[key] != config.model[key]:
      raise InputError(
        f'{where} has the network {theirs.model.name} of width {theirs.model.width}, not '
        f'{config.model.name} of width {config.model.width}: give the same config.model'
      )
  method = build.make_method(theirs, len(record['classes']), len(record.get('poses', ())))
  if theirs.ema:
    params, extra = predicting({'average': {}, 'method': {}} | extra, theirs.ema_statistics)
  arrays = {
    '/'.join((kind, *path)): value
    for kind, tree in {'params': params, 'batch_stats': extra.get('batch_stats', {})}.items()
    for path, value in flax.traverse_util.flatten_dict(tree).items()
    if path[0] not in (core.LEARNED, TERMS)
  }
  network = build.network_shapes(config)
  variables, names = transfer.encoder(arrays, network, method.encoder, where)
  origin = record.get('weights') or record.get('run', {}).get('weights') or {}
  weights = pretrained.Weights(
    variables,
    names,
    left_out={},
    file=str(config.model.weights),
    sha256=facts.pop('sha256', None) or transfer.sha256(arrays),
    shapes={name: value.shape for name, value in arrays.items()},
    licence=origin.get('licence', ''),
    provenance=origin.get('provenance', ''),
    source=facts | {'method': theirs.method.name, 'data': record.get('data', theirs.data.name)},
  )
  classes, poses = record['classes'], record.get('poses', ())
  return transfer.Trained(weights, arrays, theirs.method.name, method.classifier, classes, poses)


def _run(folder, which):
  record, saved = records.read(folder), checkpoint.restore(folder, which)
  facts = {'checkpoint': which, 'step': int(saved['step'])}
  return record, saved['params'], saved['extra'], facts


def _export(folder):
  record, path = reader.describe(folder), folder / reader.PARAMETERS
  arrays, sha256 = weight_files.read(path)
  if sha256 != record['files'].get(reader.PARAMETERS, {}).get('sha256'):
    raise InputError(
      f'{path} has another checksum than in {reader.DESCRIPTION}: it is incomplete or changed; '
      'copy the folder again'
    )
  state = flax.traverse_util.unflatten_dict(arrays, sep='/')
  facts = {'checkpoint': record.get('checkpoint', ''), 'step': record.get('step', 0)}
  return record, state.get('params', {}), state.get('extra', {}), facts | {'sha256': sha256}


def with_statistics(
  config: ml_collections.ConfigDict,
  weights: pretrained.Weights | transfer.Trained,
  split: dataset.Split,
) -> pretrained.Weights | transfer.Trained:
  """The weights with BatchNorm statistics. If they have none, the statistics are measured on up to
  `MEASURED` training rows, without labels; see `models.batch_statistics`.

  The rows are drawn with `config.seed`. Each process measures all of them on one device, so the
  numbers do not depend on the number of devices.

  Args:
    config: The config.
    weights: See `read`.
    split: The training rows.
  """
  if isinstance(weights, transfer.Trained) or weights.has_statistics:
    return weights
  rows = np.random.default_rng(config.seed).permutation(len(split.rows))[:MEASURED]
  batch = min(AT_ONCE, len(rows))
  plan = {'index': rows[: len(rows) // batch * batch].reshape(-1, batch)}
  LOGGER.info("measuring BatchNorm's statistics on %d training rows", plan['index'].size)
  threads = config.reading.threads
  batches = pipeline.batches(split, plan, (), config.data.image_size, threads=threads)
  dtype = build.picture_dtype(config)
  normalised = (augment.normalise(batch['image'], dtype) for batch in batches)
  model = build.make_model(config)
  moments = batch_statistics.measure(model, weights.variables, normalised)
  return weights._replace(
    variables=batch_statistics.install(weights.variables, moments),
    statistics={'rows': plan['index'].size, 'image_size': config.data.image_size},
  )


def insert(
  config: ml_collections.ConfigDict,
  weights: pretrained.Weights | transfer.Trained,
  new: transfer.New,
) -> tuple[pretrained.Weights, core.PyTree, core.PyTree, dict[str, str]]:
  """Puts the weights into the parameters and other state of a new run.

  Args:
    config: The config.
    weights: See `read`.
    new: The run that starts.

  Returns:
    The weights as a record, the parameters, `extra`, and for every leaf that was replaced its name
    in the source.

  Raises:
    InputError: see `pretrained.insert` and `transfer.insert`.
  """
  if isinstance(weights, pretrained.Weights):
    return weights, *pretrained.insert(weights, new.params, new.extra)

  def shapes(classes, poses):
    """The shapes of the parameters for other numbers of classes and poses."""
    method = build.make_method(config, classes, poses)
    table = dict(new.table) | {'label': np.arange(len(new.table['label'])) % classes}
    return jax.eval_shape(lambda x: method.init(jax.random.key(0), x, table)[0], new.example)

  return transfer.insert(weights, new, config.model.weights_head, shapes)
