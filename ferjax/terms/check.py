"""Checks of a loss: finite, pure, gradients, order of rows, shards of a batch."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ferjax.distributed.parallel import AXIS, gather
from ferjax.losses import StatefulLoss
from ferjax.terms import added

LANDMARKS, ACTION_UNITS, SUBJECTS = 68, 17, 4
ROWS = 16  # of most inputs; all shards have the same number of them
SHARDS = (1, 2, 4, 8)
SMALL = 0.05  # of outputs near each other, where margins are not kept


class Sizes(NamedTuple):
  """Of the invented inputs; `outputs` are shapes of a row of further ones, by name."""

  num_classes: int = 7
  num_poses: int = 5
  dim: int = 64
  outputs: Mapping[str, Sequence[int]] = {}


class Result(NamedTuple):
  """The result of a check: `failure` is empty if it passed; `note` is a remark."""

  check: str
  input: str
  failure: str = ''
  note: str = ''


class Precision(NamedTuple):
  """How precise a loss must be, by the coarsest type in which it computes.

  Attributes:
    width: The step of a difference quotient; 0 where rounding makes it useless.
    slope: Largest relative error of a gradient.
    rounding: Rounding error of a difference quotient, as a share of the sum of all losses.
    equal: Largest relative and absolute error of results that should be equal.
  """

  width: float
  slope: float
  rounding: float
  equal: float


FLOAT64 = Precision(width=1e-6, slope=1e-4, rounding=1e-8, equal=1e-8)
FLOAT32 = Precision(width=1e-3, slope=1e-2, rounding=1e-5, equal=1e-4)
HALF = Precision(width=0, slope=0, rounding=0, equal=5e-2)
PRECISIONS = {'f16[': HALF, 'f32[': FLOAT32}  # by how a trace writes them; bfloat16 is bf16


def drawn(sizes: Sizes, rows: int, label: Sequence[int] | None = None, seed: int = 0):
  """Outputs f64 and labels of some rows, drawn at random: outputs, batch."""
  rng = np.random.default_rng(seed)
  shapes = {'logits': (sizes.num_classes,), 'embedding': (sizes.dim,), **sizes.outputs}
  outputs = {name: rng.normal(size=(rows, *shape)) for name, shape in shapes.items()}
  if label is None:
    label = rng.integers(0, sizes.num_classes, rows)
  pose = rng.integers(0, sizes.num_poses, rows)
  batch = {
    'label': np.asarray(label, np.int32),
    'distribution': rng.dirichlet(np.ones(sizes.num_classes), rows),
    'landmarks': rng.uniform(0, 63, (rows, LANDMARKS, 2)),
    'au': rng.uniform(0, 5, (rows, ACTION_UNITS)),
    'pose': pose.astype(np.int32),
    'yaw_bin': (30 * (pose - sizes.num_poses // 2)).astype(np.int32),
    'yaw': rng.uniform(-45, 45, rows),
    'subject': rng.integers(0, SUBJECTS, rows).astype(np.int32),
    'index': rng.permutation(10 * rows)[:rows].astype(np.int32),
    'position': np.arange(rows, dtype=np.int32),
  }
  return outputs, batch


def inputs(sizes: Sizes) -> dict[str, tuple[dict, dict]]:
  """By name, outputs and labels of batches that can occur in training."""
  outputs, batch = drawn(sizes, ROWS)
  first = {name: np.repeat(value[:1], ROWS, 0) for name, value in outputs.items()}
  near = {name: value + 1e-6 * outputs[name] for name, value in first.items()}
  twice = np.arange(ROWS) // 2
  certain = np.eye(sizes.num_classes)[batch['label']]
  unknown = np.full(ROWS, -1, np.int32)
  return {
    'random': (outputs, batch),
    'one class': drawn(sizes, ROWS, np.zeros(ROWS)),
    'every class once': drawn(sizes, sizes.num_classes, np.arange(sizes.num_classes)),
    'a batch of 1': drawn(sizes, 1),
    'a batch of 2, one class': drawn(sizes, 2, (0, 0)),
    'a batch of 2, two classes': drawn(sizes, 2, (0, 1)),
    'equal outputs': (first, batch),
    'nearly equal outputs': (near, batch),
    'all outputs 0': ({name: 0 * value for name, value in outputs.items()}, batch),
    'tiny outputs, 1e-12': ({name: 1e-12 * value for name, value in outputs.items()}, batch),
    'huge outputs, 1e4': ({name: 1e4 * value for name, value in outputs.items()}, batch),
    'every row twice': tuple(
      {name: value[twice] for name, value in part.items()} for part in (outputs, batch)
    ),
    'certain distributions': (outputs, batch | {'distribution': certain}),
    'unknown poses and subjects': (outputs, batch | {'pose': unknown, 'subject': unknown}),
  }


def check(term: added.Term, sizes: Sizes) -> list[Result]:
  """Every check of a loss; see `added.make`."""
  triple = added.stateful(term)
  step = jax.jit(_step(triple))
  results = [
    Result('finite, float32', name, _tried(_finite, step, triple, *_typed(*given, jnp.float32)))
    for name, given in inputs(sizes).items()
  ]
  given = drawn(sizes, ROWS)
  bfloat16 = _tried(_finite, step, triple, *_typed(*given, jnp.bfloat16))
  results.append(Result('finite, bfloat16', 'random', bfloat16))
  with jax.enable_x64(True):
    refused = _tried(_runs, triple, *_typed(*given, jnp.float64))
  with jax.enable_x64(not refused):
    given = _typed(*given, jnp.float32 if refused else jnp.float64)
    precision = precision_of(triple, *given)
    note = refused and f'this and what follows in float32; in float64: {refused}'
    results.append(Result('pure', 'random', _tried(_pure, triple, *given, precision), note))
    results += gradients(triple, *given, precision)
    permuted = _tried(_permuted, triple, *given, precision)
    results.append(Result('order of the rows', 'random', permuted))
    for shards in SHARDS[1:]:
      failure = _tried(_sharded, triple, *given, precision, shards)
      results.append(Result(f'{shards} devices as one', 'random', failure))
  return results


def precision_of(triple: StatefulLoss, outputs, batch) -> Precision:
  """By the types in the trace of a loss, which may cast float64 outputs."""
  trace = str(jax.make_jaxpr(_whole(triple))(outputs, batch))
  return next((found for name, found in PRECISIONS.items() if name in trace), FLOAT64)


def gradients(triple: StatefulLoss, outputs, batch, precision: Precision) -> list[Result]:
  """The gradient against finite differences, at outputs drawn at random and near 0.

  A gradient that agrees is right. If it does not agree and the loss stops a gradient, it must agree
  with the differences of what is not stopped. A gradient that is wrong on other inputs only, such
  as a batch of one class or large outputs, is not found.
  """
  check, results = 'gradient against finite differences', []
  for name, scale in {'random': 1.0, f'random, times {SMALL}': SMALL}.items():
    given = {output: scale * value for output, value in outputs.items()}, batch
    if not precision.width:
      results.append(Result(check, name, note='not compared: it computes in half precision'))
      continue
    stopped = _tried(_differences, triple, *given, precision)
    failure = stopped and _tried(_differences, triple, *given, precision, True)
    note = f'it stops a gradient: {stopped}' if stopped and not failure else ''
    if scale == 1 and not failure:
      note = _tried(_flat, triple, *given) or note
    results.append(Result(check, name, failure, note))
  return results


def _tried(run: Callable[..., str], *args) -> str:
  try:
    return run(*args)
  except Exception as error:  # a user's function may raise anything
    return f'{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}'


def _typed(outputs, batch, dtype):
  """In the types of a run in that precision: labels are float32 or float64."""
  labels = jnp.float64 if dtype == jnp.float64 else jnp.float32

  def cast(value, to):
    return jnp.asarray(value, to if np.issubdtype(value.dtype, np.floating) else value.dtype)

  return (
    {name: cast(value, dtype) for name, value in outputs.items()},
    {name: cast(value, labels) for name, value in batch.items()},
  )


def _start(triple, outputs, batch):
  return triple.init(jax.random.key(0), outputs, batch)


def _runs(triple, outputs, batch) -> str:
  jax.eval_shape(_whole(triple), outputs, batch)
  return ''


def _whole(triple):
  """(outputs, batch) -> the losses, and the state after an update."""

  def run(outputs, batch):
    params, state = _start(triple, outputs, batch)
    state = triple.update(state, outputs, batch)
    return triple.apply(params, state, outputs, batch), triple.update(state, outputs, batch)

  return run


def _step(triple):
  """(params, state, outputs, batch) -> losses f[b], the gradients of their mean by parameters and
  outputs, and the next state."""

  def mean(params, state, outputs, batch):
    losses = triple.apply(params, state, outputs, batch)
    return losses.mean(), losses

  def step(params, state, outputs, batch):
    (_, losses), grads = jax.value_and_grad(mean, (0, 2), has_aux=True)(
      params, state, outputs, batch
    )
    return losses, grads, triple.update(state, outputs, batch)

  return step


def _finite(step, triple: StatefulLoss, outputs, batch) -> str:
  """At the first state, and after an update."""
  rows = len(batch['label'])
  params, state = _start(triple, outputs, batch)
  for when in ('', ' after an update'):
    losses, (by_params, by_outputs), state = step(params, state, outputs, batch)
    if losses.shape != (rows,) or not jnp.issubdtype(losses.dtype, jnp.floating):
      return f'{losses.dtype}{list(losses.shape)} for {rows} rows'
    bad = np.flatnonzero(~np.isfinite(losses.astype(jnp.float32)))
    if len(bad):
      return f'the loss is not finite{when}, in {len(bad)} of {rows} rows'
    grads = {f'gradient by {name}': value for name, value in by_outputs.items()}
    grads |= {'gradient by the parameters': by_params}
    for what, tree in (grads | {'state': state}).items():
      if not all(np.isfinite(leaf.astype(jnp.float32)).all() for leaf in jax.tree.leaves(tree)):
        return f'the {what} is not finite{when}'
  return ''


def _pure(triple, outputs, batch, precision) -> str:
  """The same twice, and compiled as not."""
  run = _whole(triple)
  first, again = run(outputs, batch), run(outputs, batch)
  if not _equal(first, again, 0):
    return 'two calls with the same arguments differ'
  if not _equal(first, jax.jit(run)(outputs, batch), precision.equal):
    return 'jax.jit changes the result'
  return ''


def _equal(ours, theirs, tolerance) -> bool:
  pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
  return all(np.allclose(a, b, tolerance, tolerance, equal_nan=True) for a, b in pairs)


def _differences(triple, outputs, batch, precision, held: bool = False) -> str:
  """Compares along two random directions in each output and parameter, with random weights of the
  rows; if `held`, what goes through a `stop_gradient` stays constant."""
  params, state = _start(triple, outputs, batch)
  state = triple.update(state, outputs, batch)
  rng = np.random.default_rng(1)
  weight = rng.uniform(0.5, 1.5, len(batch['label']))
  point = (params, outputs)

  def losses(point):
    return weight * triple.apply(point[0], state, point[1], batch)

  moved, hidden = _holding_stops(losses, point) if held else (losses, '')
  moved = jax.jit(moved)
  grads = jax.jit(jax.grad(lambda point: losses(point).sum()))(point)
  rounding = precision.rounding * abs(losses(point)).sum()
  for path, _ in 2 * jax.tree.leaves_with_path(point):
    along = jax.tree.map_with_path(
      lambda at, x, path=path: rng.normal(size=x.shape) if at == path else jnp.zeros_like(x), point
    )
    ahead, behind = (
      moved(jax.tree.map(lambda x, d, w=w: (x + w * d).astype(x.dtype), point, along))
      for w in (precision.width, -precision.width)
    )
    measured = (ahead - behind).sum() / (2 * precision.width)
    expected = sum(jax.tree.leaves(jax.tree.map(lambda g, d: (g * d).sum(), grads, along)))
    allowed = precision.slope * max(abs(measured), abs(expected)) + rounding
    if not abs(measured - expected) <= allowed:  # NaN too
      name = jax.tree_util.keystr(path[1:], simple=True, separator='.') or 'the parameters'
      return (
        f'along a direction in {name} the loss changes by {measured:.6g}, the gradient says '
        f'{expected:.6g}{hidden}'
      )
  return ''


def _flat(triple, outputs, batch) -> str:
  """Whether nothing flows back to the network, as from an accuracy."""
  params, state = _start(triple, outputs, batch)
  state = triple.update(state, outputs, batch)
  grads = jax.grad(lambda outputs: triple.apply(params, state, outputs, batch).sum())(outputs)
  some = any(grad.any() for grad in jax.tree.leaves(grads))
  return '' if some else 'the gradient by every output is 0'


def _holding_stops(function: Callable, point) -> tuple[Callable, str]:
  """The function with the results of every `stop_gradient` held constant at a point, and a remark
  on those that are not held, or that belong to a solver, whose derivative does not use them. A
  `stop_gradient` inside a function with a derivative of its own is not held either."""
  leaves, structure = jax.tree.flatten(point)
  with jax.disable_jit():  # calls and loops become one list of equations
    traced = jax.make_jaxpr(lambda *x: function(jax.tree.unflatten(structure, x)))(*leaves)
  stops = [e for e in traced.eqns if e.primitive.name == 'stop_gradient']
  others = [e for e in traced.eqns if e.primitive.name != 'stop_gradient']
  results = [e.outvars[0] for e in stops]
  until = traced.jaxpr.replace(outvars=results)
  after = traced.jaxpr.replace(invars=[*traced.jaxpr.invars, *results], eqns=others)
  values = jax.jit(lambda *x: jax.core.eval_jaxpr(until, traced.consts, *x))(*leaves)

  def held(point):
    return jax.core.eval_jaxpr(after, traced.consts, *jax.tree.leaves(point), *values)[0]

  hidden = ''
  inner = [e for e in others if not e.primitive.name.startswith('custom_')]
  if any('stop_gradient' in str(e) for e in inner):
    hidden += ' (a stop_gradient inside a loop, a branch or jax.checkpoint is not looked at)'
  if any(e.primitive.name == 'custom_linear_solve' for e in others):
    hidden += ' (the stop_gradient in solve and inv of jax.numpy.linalg counts as one of the loss)'
  return held, hidden


def _permuted(triple, outputs, batch, precision) -> str:
  order = np.random.default_rng(2).permutation(len(batch['label']))
  run = jax.jit(_whole(triple))
  losses, state = run(outputs, batch)
  others, moved = run(*jax.tree.map(lambda x: x[order], (outputs, batch)))
  if not _equal(others, losses[order], precision.equal):
    return 'the loss of a row depends on its place in the batch'
  if not _equal(state, moved, precision.equal):
    return 'the state depends on the order of the rows'
  return ''


def _sharded(triple, outputs, batch, precision, shards) -> str:
  """As in the training step: shares of the batch are gathered, and each device computes the loss of
  all; the gradients of the shares add up to `shards` times that on one device."""
  params, state = _start(triple, outputs, batch)

  def on_each(outputs, batch):
    def loss(params, outputs):
      outputs, seen = gather(outputs), gather(batch)
      return triple.apply(params, state, outputs, seen).mean()

    value, (by_params, by_outputs) = jax.value_and_grad(loss, (0, 1))(params, outputs)
    moved = triple.update(state, gather(outputs), gather(batch))
    return value, by_params, by_outputs, moved

  def on(count):
    shares = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), (outputs, batch))
    value, by_params, by_outputs, moved = jax.vmap(on_each, axis_name=AXIS)(*shares)
    whole = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]) / count, by_outputs)
    return jax.tree.map(lambda x: x[0], (value, by_params, moved)), whole

  one, several = (jax.jit(on, static_argnums=0)(count) for count in (1, shards))
  for what, place in (('loss, parameters or state', 0), ('gradient', 1)):
    if not _equal(one[place], several[place], precision.equal):
      return f'the {what} depends on the number of devices'
  return ''
