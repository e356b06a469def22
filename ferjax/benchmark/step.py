"""The training step of every method, built from a config as in training: time, memory, compilation.

uint8 pictures come from the host. They are normalised on the device, and in augmented cases flipped
and cropped there with the default settings. As in training, the host is up to
`parallel.UNDER_WAY` steps ahead.

Each method takes turns with softmax on the same network and pictures. Softmax is compared with
PyTorch: the same network, loss, augmentation and Adam, with channels last, under autocast in
bfloat16 cases, and compiled on a GPU. On a CPU it is also compared with XLA's native convolutions,
which differ from ferjax's there. Only ferjax's step computes the norm of the gradient.

The device's peak is measured: the rate of a large matrix product in the case's precision, which
takes turns with the steps. A data sheet may give a higher one. FLOPs are XLA's count for the step
as written, with native convolutions. The compiled step is not counted, because XLA cannot count
some kernels, such as cuDNN's, and counts the body of a loop once. Images are the examples with a
loss: the 8 neighbours of each example do not count.
"""

import collections
import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax import lax

from ferjax import config as configs
from ferjax import core
from ferjax.assembly import build
from ferjax.benchmark import measure, profiler
from ferjax.distributed import parallel
from ferjax.images import augment
from ferjax.ops import conv
from ferjax.optim import optimizers
from ferjax.training.step import make_train_step

CLASSES, POSES, LANDMARKS, ROWS, NEIGHBOURS = 7, 5, 50, 5000, 8
STEPS = 10_000  # length of the run for the learning-rate schedule
PROFILED = 3  # steps under the profiler
METHODS = {  # name of a case's method: config.method
  'softmax': {'name': 'softmax'},
  'lanet': {'name': 'lanet'},
  'hrl': {'name': 'hrl'},
  'hrl sifl=False': {'name': 'hrl', 'sifl': False},
  'hrl sifl=False branch=dense': {'name': 'hrl', 'sifl': False, 'branch': 'dense'},
  'dmlnet': {'name': 'dmlnet'},
  'ldl_alsg': {'name': 'ldl_alsg'},
  'ldl_alsg neighbours=separate': {'name': 'ldl_alsg', 'neighbours': 'separate'},
  'sgm': {'name': 'sgm'},
  'dgms': {'name': 'sgm', 'levels': 5},
  'triplet': {'name': 'triplet'},
  'scn': {'name': 'scn'},
  'rul': {'name': 'rul'},
  'eac': {'name': 'eac'},
}


class Case(NamedTuple):
  """A method, a network and its pictures.

  Attributes:
    model: A network of `ferjax.models`.
    size: Height and width of a picture in pixels.
    batch: Pictures in a step.
    precision: `float32` or `bfloat16`.
    method: A key of `METHODS`.
    augmented: Whether the pictures are flipped and cropped.
    width: Features of the network's first stage.
  """

  model: str
  size: int
  batch: int = 32
  precision: str = 'float32'
  method: str = 'softmax'
  augmented: bool = False
  width: int = 64

  @property
  def name(self) -> str:
    augmented = 'augmented, ' if self.augmented else ''
    shape = f'{self.model}, {self.size} px, batch {self.batch}'
    return f'{shape}, {self.precision}, {augmented}{self.method}'


def all_cases() -> tuple[Case, ...]:
  """The cases for this device: small ones on a CPU, the sizes of the papers on others."""
  if jax.default_backend() == 'cpu':
    small, large = Case('resnet18', 64), Case('resnet50', 112, 16)
    networks = [
      small,
      Case('resnet18', 112),
      Case('resnet50', 112),
      small._replace(augmented=True),
      small._replace(precision='bfloat16'),
    ]
  else:
    whole = Case('resnet18', 224, 256, 'bfloat16', augmented=True)
    networks = [whole, whole._replace(model='resnet50')]
    small, large = whole._replace(batch=128), networks[1]._replace(batch=64)
  methods = [small._replace(method=name) for name in METHODS]
  landmark_graphs = [large._replace(method=name) for name in METHODS if name.startswith('hrl')]
  return tuple(dict.fromkeys([*networks, *methods, *landmark_graphs]))


@contextlib.contextmanager
def native_convolutions():
  """In this context, networks are traced with XLA's own convolutions and max-pooling."""
  with (
    mock.patch.object(conv, 'conv_general_dilated', lax.conv_general_dilated),
    mock.patch.object(conv, 'form', lambda onednn: lax.conv_general_dilated),
    mock.patch.object(conv, 'max_pool', nn.max_pool),
  ):
    yield


def run(bench: measure.Bench, cases: Sequence[Case] | None = None) -> list[dict[str, Any]]:
  """A row for each case, `all_cases()` by default: its sides `ferjax`, `native` and `torch`.

  A side has the time of a step as in `measure.interleave`, `images_per_s` and `memory_mib`. The
  memory is that of XLA's plan; for PyTorch it is the peak of allocated memory, and on a CPU the
  growth of its process. The sides of ferjax have `compile_s` (tracing and compilation, without any
  cache), `flops`, `parameters` and `share_of_peak`; with `bench.profile` also `operations`, as
  from `profiler.operations`.

  A row compares with PyTorch, with native convolutions, and with softmax: `time_to_softmax`,
  `flops_to_softmax` and `time_to_flops`, the first divided by the second.
  """
  groups = {}
  for case in all_cases() if cases is None else cases:
    if bench.only in case.name:
      groups.setdefault(case._replace(method='softmax'), []).append(case)
  return [
    row
    for softmax, group in groups.items()
    for row in _rows(tuple(dict.fromkeys([softmax, *group])), bench)
  ]


def _rows(cases, bench):
  """Rows of cases that differ only in their method; softmax is the first case."""
  softmax = cases[0]
  steps = {}
  for case in cases:
    measure.progress(f'step: compiling {case.name}')
    steps[case.method] = compile_step(case)
  if jax.default_backend() == 'cpu':
    measure.progress(f'step: compiling {softmax.name}, native convolutions')
    with native_convolutions():
      steps['native'] = compile_step(softmax)
  turns = {name: step.turn for name, step in steps.items()}
  turns['product'], operations = _product(softmax)
  torch = bench.torch if jax.default_backend() in ('cpu', 'gpu') else None
  if torch:
    parameters = torch.ask(do='step', case=_of_torch(softmax))['parameters']
    if parameters != steps['softmax'].facts['parameters']:
      raise AssertionError(f'{softmax.name}: PyTorch has {parameters} parameters')
    turns['torch'] = torch.turn
  measure.progress('  trains')
  timed = measure.interleave(turns, bench)
  peak = operations / timed.pop('product')['median_ms']
  for name, side in timed.items():
    side['images_per_s'] = softmax.batch / (side['median_ms'] / 1000)
    if name in steps:
      side |= steps[name].facts
      side['share_of_peak'] = side['flops'] / side['median_ms'] / peak
      if bench.profile:
        side['operations'] = profiler.operations(steps[name].turn, PROFILED)
  if torch:
    timed['torch']['memory_mib'] = torch.ask(do='memory')['bytes'] / measure.MIB
  return [_row(case, timed) for case in cases]


def _row(case, timed):
  softmax, sides = timed['softmax'], {'ferjax': timed[case.method]}
  if case.method == 'softmax':
    sides |= {name: timed[name] for name in ('native', 'torch') if name in timed}
  time_ratio = sides['ferjax']['median_ms'] / softmax['median_ms']
  flops_ratio = sides['ferjax']['flops'] / softmax['flops']
  compile_ratio = None
  if 'native' in sides:
    compile_ratio = sides['ferjax']['compile_s'] / sides['native']['compile_s']
  return {
    'case': case.name,
    **case._asdict(),
    **sides,
    'faster_than_native': measure.ratio(sides, 'native'),
    'faster_than_torch': measure.ratio(sides, 'torch'),
    'cpu_less_than_torch': measure.ratio(sides, 'torch', 'cpu_ms'),
    'compile_ratio': compile_ratio,
    'time_to_softmax': time_ratio,
    'flops_to_softmax': flops_ratio,
    'time_to_flops': time_ratio / flops_ratio,
  }


class Step(NamedTuple):
  """A compiled training step.

  Attributes:
    turn: (calls) -> times this number of steps; each starts from the state of the last one.
    facts: `compile_s`, `flops`, `memory_mib` and `parameters`.
  """

  turn: measure.Turn
  facts: dict[str, float]


def compile_step(case: Case) -> Step:
  """The training step of a case, built as in training, on one device."""
  config = config_of(case)
  devices = parallel.make(devices=1)
  method = build.make_method(config, CLASSES, POSES)
  batch = host_batch(case, method)
  example = {name: jnp.asarray(column[:1]) for name, column in batch.items()}
  example = augment.evaluation(example, build.picture_dtype(config))
  params, extra = method.init(jax.random.key(0), example, {'label': np.arange(ROWS) % CLASSES})
  tx, _ = configs.call(optimizers.make, 'optimizer', config.optimizer, params, STEPS, STEPS)
  start = core.TrainState(
    jnp.zeros((), jnp.int32), params, tx.init(params), extra, jax.random.key(1)
  )
  train_step = make_train_step(method, tx, _augmentation(case, config, method), {})
  step = devices.compile(train_step, donate=0)
  states = [devices.replicate(start)]
  with without_caches():
    began = time.perf_counter()
    step = step.lower(states[0], devices.shard(batch)).compile()
    seconds = time.perf_counter() - began

  def turn(calls):
    wall, cpu = time.perf_counter(), time.process_time()
    under_way = collections.deque()
    for _ in range(calls):
      state, metrics = step(states.pop(), devices.shard(batch))
      states.append(state)
      under_way.append(metrics)
      if len(under_way) == parallel.UNDER_WAY:
        jax.block_until_ready(under_way.popleft())
    jax.block_until_ready((states, list(under_way)))
    return time.perf_counter() - wall, time.process_time() - cpu

  facts = {
    'compile_s': seconds,
    'flops': written_flops(train_step, start, batch),
    'memory_mib': _memory(step),
    'parameters': sum(leaf.size for leaf in jax.tree.leaves(params)),
  }
  return Step(turn, facts)


def written_flops(
  train_step: Callable[..., Any], state: core.PyTree, batch: dict[str, np.ndarray]
) -> float:
  """XLA's count of the FLOPs of a step on one device before optimisation; counted on a CPU, with
  native convolutions."""
  whole = jax.vmap(train_step, (None, 0), axis_name=parallel.AXIS)
  inputs = state, {name: column[None] for name, column in batch.items()}
  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), inputs)
  with native_convolutions(), jax.default_device(jax.devices('cpu')[0]):
    return jax.jit(whole).lower(*shapes).cost_analysis()['flops']


def _product(case):
  """Turns of a large matrix product in the precision of a case, and the FLOPs of one product."""
  size = 2048 if jax.default_backend() == 'cpu' else 16_384
  dtype, _ = build.PRECISIONS[case.precision]
  a = jax.random.normal(jax.random.key(0), (size, size), dtype)
  multiply = jax.jit(jnp.matmul)
  return measure.jax_turn(lambda: multiply(a, a)), 2 * size**3


def config_of(case: Case) -> ml_collections.ConfigDict:
  """The training config of a case."""
  config = configs.base()
  config.method = METHODS[case.method]
  config.model.update(name=case.model, width=case.width)
  config.data.image_size = case.size
  config.batch = case.batch
  config.precision = case.precision
  return config


def _augmentation(case, config, method):
  dtype = build.picture_dtype(config)
  if not case.augmented:
    return lambda keys, batch: augment.evaluation(batch, dtype)
  orders = {'flip_order': np.arange(LANDMARKS)[::-1], 'flip_poses': np.arange(POSES)[::-1]}
  return configs.call(
    augment.make, 'augment', config.augment, views=method.views, dtype=dtype, **orders
  )


def host_batch(case: Case, method: core.Method) -> dict[str, np.ndarray]:
  """Random pictures and labels, as a method gets them from the host."""
  rng = np.random.default_rng(0)
  picture, group = (case.size, case.size, 3), (case.batch, NEIGHBOURS)
  columns = {
    'image': rng.integers(0, 256, (case.batch, *picture), np.uint8),
    'label': rng.integers(0, CLASSES, case.batch).astype(np.int32),
    'index': rng.permutation(ROWS)[: case.batch].astype(np.int32),
    'position': np.arange(case.batch, dtype=np.int32),
    'landmarks': rng.uniform(0, case.size - 1, (case.batch, LANDMARKS, 2)).astype(np.float32),
    'pose': rng.integers(0, POSES, case.batch).astype(np.int32),
    'subject': rng.integers(0, 20, case.batch).astype(np.int32),
  }
  needed = {'image', 'label', 'index', 'position', *method.needs}
  batch = {name: column for name, column in columns.items() if name in needed}
  if METHODS[case.method]['name'] == 'ldl_alsg':  # columns that its sampler adds
    batch['neighbour_image'] = rng.integers(0, 256, (*group, *picture), np.uint8)
    batch['affinity'] = rng.random(group).astype(np.float32)
  return batch


def _of_torch(case):
  """The request to PyTorch for a case."""
  config = config_of(case)
  ranges = ('flip', 'crop_scale', 'crop_ratio')
  device = {'cpu': 'cpu', 'gpu': 'cuda'}[jax.default_backend()]
  return case._asdict() | {
    'num_classes': CLASSES,
    'augment': {name: config.augment[name] for name in ranges} if case.augmented else None,
    'lr': config.optimizer.lr,
    'device': device,
    'compiled': device == 'cuda',
  }


@contextlib.contextmanager
def without_caches():
  """In this context, everything is traced and compiled again."""
  jax.clear_caches()
  enabled = jax.config.jax_enable_compilation_cache
  jax.config.update('jax_enable_compilation_cache', False)
  try:
    yield
  finally:
    jax.config.update('jax_enable_compilation_cache', enabled)


def _memory(step):
  """Arguments, results and temporaries of a compiled step in MiB; None if XLA does not give
  them."""
  analysis = step.memory_analysis()
  if analysis is None:
    return None
  results = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
  return (analysis.argument_size_in_bytes + results + analysis.temp_size_in_bytes) / measure.MIB


def table(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
  """Columns for printing."""

  def column(side, key):
    return [row[side][key] if side in row else None for row in rows]

  return {
    'step': [row['case'] for row in rows],
    'images/s': column('ferjax', 'images_per_s'),
    'PyTorch, images/s': column('torch', 'images_per_s'),
    'ferjax / PyTorch': [row['faster_than_torch'] for row in rows],
    'ferjax / native': [row['faster_than_native'] for row in rows],
    'time to softmax': [row['time_to_softmax'] for row in rows],
    'FLOPs to softmax': [row['flops_to_softmax'] for row in rows],
    'time / FLOPs': [row['time_to_flops'] for row in rows],
    'GFLOP': [flops / 1e9 for flops in column('ferjax', 'flops')],
    'share of peak': column('ferjax', 'share_of_peak'),
    'page faults': column('ferjax', 'faults'),
    'compile, s': column('ferjax', 'compile_s'),
    'to native': [row['compile_ratio'] for row in rows],
    'MiB': column('ferjax', 'memory_mib'),
    'PyTorch, MiB': column('torch', 'memory_mib'),
    'M parameters': [parameters / 1e6 for parameters in column('ferjax', 'parameters')],
  }
