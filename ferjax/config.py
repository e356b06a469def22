"""Configs: every key with its default and limits, and the checks before a run."""

import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import ml_collections

from ferjax.core import NO_TERMS
from ferjax.errors import InputError, choose, nearest


class Within(NamedTuple):
  """A number of a config: its default, and the least and the largest value that it may have."""

  default: float
  low: float
  high: float


# Every key with its default; a section's keys are arguments of the factory in its comment.
KEYS = {
  'seed': Within(0, 0, 2**32 - 1),
  'precision': 'float32',  # float32 | bfloat16 | float64
  'convolution': 'auto',  # auto | native | onednn; on a CPU: assembly.build.onednn_version
  'epochs': Within(8, 1, 10**9),
  'steps': Within(0, 0, 10**12),  # instead of epochs, when above 0
  'batch': Within(32, 1, 10**9),  # over all devices
  'log_every': Within(20, 1, 10**9),  # steps
  'ema': Within(0.0, 0, 1),  # optim.ema: largest decay; 0 for none
  'ema_statistics': False,  # of BatchNorm's statistics too
  'terms': {},  # assembly.terms.with_terms: {term: {'weight': 0.1, ...}}, added to the method's
  'weights': {},  # assembly.terms.make_weights: {term: weight, or {'schedule': 'linear', ...}}
  'weighting': {  # terms.weighting.make
    'name': 'constant',  # constant | dynamic | uncertainty
    'total': 0.0,  # of the weights of all terms, added ones included; 0 for their number
    'temperature': 2.0,
    'window': 5,
    'clip': (0.1, 10.0),
    'off': (),
  },
  'method': {'name': 'softmax'},  # methods.<name>.make
  'model': {  # models.<name>
    'name': 'resnet18',
    'width': Within(64, 1, 10**6),
    'output_stride': 32,
    # What training starts from: 'dlib', a file of weights, a run (RUN, RUN@best) or an export
    'weights': '',  # training.start.read
    'weights_head': 'auto',  # auto | keep | drop: the classifier of a run or export
  },
  'data': {  # data.dataset.load, of every one of `sets`
    'name': 'synthetic_faces',
    'path': '',
    'sets': (),  # instead of name and path: train on several, ('raf_db', 'manifest:FILE.csv')
    'dir': '',
    'manual_dir': '',
    'protocol': '',
    'fold': 0,
    'options': {
      'raf_db': {'images': 'aligned'},
      'fer_plus': {'rule': 'argmax'},
      'sfew': {'images': 'aligned'},
      'multi_pie': {'illuminations': (7,)},
      'oulu_casia': {'camera': 'VL', 'light': 'Strong', 'images': 'original'},
      'synthetic_faces': {
        'num': 5000,
        'size': 112,
        'seed': 0,
        'difficulty': 0.5,
        'ict_face_model': '',
      },
    },
    'image_size': Within(64, 8, 10**5),
    'classes': (),
    'class_map': (),  # such as (('smile', 'happiness'), ('scream', 'fear'))
    'landmarks': (),
    'poses': (),
    'val_fraction': Within(0.1, 0, 0.9),
    'seed': Within(0, 0, 2**32 - 1),
    'skip_bad': False,
    'allow_shared_subjects': False,
    'drop_duplicates': False,  # data.near_duplicates.drop: training rows that other splits have
    'duplicate_distance': Within(40, 0, 255),  # bits of the hashes that may differ
    'duplicate_mirrored': False,  # whether flipped pictures count as well
  },
  'noise': {  # data.noise.make
    'kind': 'none',
    'rate': 0.0,
    'seed': Within(0, 0, 2**32 - 1),
    'file': '',
    'label_order': (),
    'first_label': 0,
  },
  'sampler': {'name': 'natural'},  # data.samplers.<name>
  'augment': {  # images.augment.make
    'flip': 0.5,
    'crop_scale': (0.75, 1.0),
    'crop_ratio': (3 / 4, 4 / 3),
    'rotation': 0.0,
    'scale': (1.0, 1.0),
    'translation': 0.0,
    'perspective': 0.0,
    'brightness': 0.0,
    'contrast': 0.0,
    'saturation': 0.0,
    'erasing': 0.0,
    'erasing_scale': (0.02, 0.2),
    'erasing_ratio': (0.3, 3.3),
  },
  'optimizer': {  # optim.optimizers.make
    'name': 'adam',
    'lr': 1e-3,
    'schedule': 'linear',
    'warmup_epochs': 0.0,
    'boundaries': (),
    'decay': 0.1,
    'momentum': 0.9,
    'nesterov': False,
    'weight_decay': 0.0,
    'weight_decay_rules': (),
    'lr_rules': (),
    'freeze_rules': (),
    'clip_norm': Within(0.0, 0, 10**9),
  },
  'eval': {
    'every': Within(0, 0, 10**12),  # steps; 0 for an epoch
    'limit': Within(0, 0, 10**12),  # rows of a split; 0 for all
    'batch': Within(64, 1, 10**9),
    'distortions': (),  # rotation perspective occlusion: images.distort; the test split once more
    'seed': Within(0, 0, 2**32 - 1),  # of the distortions
    'sheets': True,  # the report's pictures of rows: mistakes, searches, label distributions
    'heatmaps': Within(6, 0, 100),  # rows of the report's heatmaps
    'tsne': Within(1000, 0, 10**5),  # points of its t-SNE; 0 for none
    'sets': (),  # further data sets to test the final model on, named as in data.sets
    'groups': (),  # averages over some of them, such as (('lab', ('ck_plus', 'jaffe')),)
    'embeddings': True,  # neighbours, clusters of the final model: metrics.embeddings.measure
  },
  'early_stop': {  # training.early_stop.make
    'metric': 'val/loss',
    'mode': 'min',
    'patience': 0,  # evaluations; 0 to never stop
    'min_delta': 0.0,
  },
  'checkpoint': {
    'every': Within(0, 0, 10**12),  # steps; 0 for only after evaluations
    'keep': Within(2, 1, 10**6),
  },
  'reading': {  # data.pipeline.batches
    'threads': Within(4, 1, 1000),
    'workers': Within(0, 0, 1000),
    'prefetch': Within(4, 1, 10**6),
  },
  'parallel': {  # distributed.parallel.make
    'devices': Within(0, 0, 10**6),
    'backend': 'pmap',  # pmap | shard_map
  },
  'profile': {'start': 0, 'stop': 0},  # steps traced by jax.profiler
}


def base() -> ml_collections.ConfigDict:
  """The defaults of every run; see `KEYS`."""
  return ml_collections.ConfigDict(_defaults(KEYS))


def _defaults(keys):
  if isinstance(keys, Within):
    return keys.default
  return {k: _defaults(v) for k, v in keys.items()} if isinstance(keys, Mapping) else keys


def smoke() -> ml_collections.ConfigDict:
  """The start of every `:smoke`: ten steps of a narrow network on some 200 pictures."""
  config = base()
  config.steps = 10
  config.batch = 16
  config.log_every = 1
  config.model.update(name='resnet10', width=8)
  config.data.options.synthetic_faces.num = 200
  config.data.image_size = 32
  config.eval.update(every=5, limit=200, tsne=100)
  config.checkpoint.every = 3
  return config


def check(config: ml_collections.ConfigDict) -> None:
  """Refuses unknown keys and impossible values; `call` checks the sections of factories.

  Raises:
    InputError: names the key, and the nearest one that exists.
  """
  known = base()
  for key in config:
    if key not in known:
      raise InputError(f'unknown key config.{key}.{nearest(key, known)}')
  for key in known:
    if key not in config:
      raise InputError(f'the config lacks {key}: start from ferjax.config.base()')
  for section in ('eval', 'checkpoint', 'profile'):
    for key in config[section]:
      if key not in known[section]:
        raise InputError(f'unknown key config.{section}.{key}.{nearest(key, known[section])}')
  for name, section in config.terms.items():
    if not isinstance(section, Mapping | ml_collections.ConfigDict):
      raise InputError(
        f"config.terms.{name} is {section!r}: give a dict, such as {{'weight': 0.1}} for the term "
        f"'{name}' of ferjax.terms, or {{'path': 'my_losses.island', 'weight': 0.1}}"
      )
    if name in NO_TERMS:
      raise InputError(
        f"config.terms.{name}: the log has '{name}' already. Use another name, such as "
        f"config.terms.{name}_2 with 'name': '{name}' among its keys"
      )
    if {'name', 'path'} <= set(section):
      raise InputError(
        f'config.terms.{name}: give path, of a function of yours, or name, of one of ferjax.terms'
      )
  values = flat(config.to_dict())
  for key, number in flat(KEYS).items():
    if isinstance(number, Within) and key in values:
      if not number.low <= values[key] <= number.high:
        raise InputError(
          f'config.{key}={values[key]}: it must lie within {number.low}..{number.high}'
        )
  if config['ema_statistics'] and not config['ema']:
    raise InputError('config.ema_statistics=True needs an average: set config.ema, such as 0.9999')
  choose('config.precision', config['precision'], ('float32', 'bfloat16', 'float64'))


def call(factory: Callable, where: str, section: Mapping[str, Any], *args, **kwargs):
  """factory(*args, **section, **kwargs), with a readable error for a key that is no argument.

  Raises:
    InputError: a key of the section is no keyword argument of the factory; names the nearest.
  """
  accepted = {
    name
    for name, parameter in inspect.signature(factory).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY and name not in kwargs
  }
  for key in section:
    if key not in accepted:
      raise InputError(
        f'unknown key config.{where}.{key}.{nearest(key, accepted)} '
        f'There are: {", ".join(sorted(accepted))}'
      )
  return factory(*args, **section, **kwargs)


def named(module, kind: str, where: str, key: str = 'name') -> Callable:
  """The public function of a module that a config names.

  Raises:
    InputError: there is none; lists those that exist.
  """
  functions = {
    name: value
    for name, value in vars(module).items()
    if inspect.isfunction(value) and not name.startswith('_')
  }
  if kind not in list(functions):
    raise InputError(
      f"config.{where}.{key} is '{kind}'.{nearest(kind, functions)} "
      f'There are: {", ".join(sorted(functions))}'
    )
  return functions[kind]


def without_name(section: Mapping[str, Any]) -> dict[str, Any]:
  """A section's arguments: all but `name`."""
  return {key: value for key, value in section.items() if key != 'name'}


def plain(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """A config in the types of JSON: dicts, lists, numbers and strings."""
  return json.loads(json.dumps(config.to_dict()))


def with_tuples(value):
  """A plain config with tuples for lists, as `base` has them."""
  if isinstance(value, Mapping):
    return {key: with_tuples(item) for key, item in value.items()}
  return tuple(with_tuples(item) for item in value) if isinstance(value, list) else value


def flat(config: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """{'optimizer.lr': 0.001, ...}."""
  found = {}
  for key, value in config.items():
    if isinstance(value, Mapping) and value:
      found |= flat(value, f'{prefix}{key}.')
    else:
      found[prefix + key] = value
  return found
