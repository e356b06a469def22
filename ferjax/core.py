"""What a method is, what changes in training, and the one training step."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import Array

from ferjax.errors import InputError, nearest
from ferjax.terms import weighting as weightings
from ferjax.distributed.parallel import AXIS, example_keys, gather, mean

PyTree = Any
Batch = dict[str, Array]
Weight = float | optax.Schedule
EQUAL = weightings.make()


class Method(NamedTuple):
  """Pure functions over explicit state; `extra` is whatever the method itself moves.

  Attributes:
    needs: Features it trains on, beyond image and label; checked before anything is built.
    predict_needs: Features it needs at inference.
    predict_uses: Features that it predicts better with, where the data set has them.
    derived: {name: (table) -> array of n rows}: further features, made on the host from a split's
      table where that has all that the method needs; they travel with the batch.
    init: (rng, batch, table) -> params, extra. `table` holds host columns of the training rows,
      label noise applied.
    forward: (params, extra, batch, keys) -> outputs, carry. Runs the networks on this device's
      share of the batch; one key for each local example. `outputs` are per example and hold
      `logits` f32[b, C] (where there is a classifier) and `embedding` f32[b, d].
    loss: (params, extra, outputs, batch, step) -> terms, aux. Over the global batch, pure;
      terms {name: f32[]}, unweighted. Where aux is a dict, its `metrics` {name: f32[]} are logged.
    update: (extra, params, carry, outputs, batch, aux) -> extra. After the optimizer, no gradient.
    predict: (params, extra, batch, delta=None) -> {'logits', 'embedding', ...}, rows of the batch.
      Other scores `<name>_logits` are measured too, against the table's column `<name>` where
      there is one, else against the label; so are numbers f32[b]. `delta` is added to the last
      feature map, which is then among the predictions as `last_map` f[b, h, w, d].
    refresh: (epoch, params, extra, table, embed) -> extra. On the host, before an epoch's plan, of
      NumPy arrays; embed() -> f[N, d] gives the embeddings that it predicts for its training rows.
    enroll: (params, extra, table, embed) -> extra. As `refresh`, before every evaluation and save:
      what prediction needs to know of the training rows, such as class means.
    columns: (extra) -> {name: array of N rows}. What the sampler's table has besides the columns
      of the training rows.
    estimates: (extra, label) -> f32[N, C]. The label distributions that it estimated for its
      training rows, whose given labels are i32[N]; None where it estimates none.
    views: How many augmented views of each picture it trains on; above 1, `image` and `landmarks`
      have them as their second axis.
  """

  needs: frozenset[str]
  predict_needs: frozenset[str]
  init: Callable[..., tuple[PyTree, PyTree]]
  forward: Callable[..., tuple[PyTree, PyTree]]
  loss: Callable[..., tuple[dict[str, Array], PyTree]]
  update: Callable[..., PyTree]
  predict: Callable[..., dict[str, Array]]
  refresh: Callable[..., PyTree] | None = None
  estimates: Callable[..., Array] | None = None
  views: int = 1
  predict_uses: frozenset[str] = frozenset()
  derived: Mapping[str, Callable[[Mapping[str, Any]], Any]] = MappingProxyType({})
  enroll: Callable[..., PyTree] | None = None
  columns: Callable[..., dict[str, Array]] | None = None


@flax.struct.dataclass
class TrainState:
  """All that changes in training, hence all that is saved."""

  step: Array  # i32[]
  params: PyTree
  opt_state: PyTree
  extra: PyTree
  rng: Array  # key[]
  weighting: PyTree = ()  # see `losses/weighting.py`


def weights_at(weights: Mapping[str, Weight], step: Array) -> dict[str, float | Array]:
  """The weights of a step: numbers as they are, schedules at the step."""
  return {name: w(step) if callable(w) else w for name, w in weights.items()}


def weighted_sum(terms: Mapping[str, Array], weights: Mapping[str, float | Array]) -> Array:
  """The loss f32[]: terms f32[] times their weights; a term without a weight counts once.

  Raises:
    InputError: a weight names no term.
  """
  for name in weights:
    if name not in terms:
      raise InputError(
        f"config.weights names '{name}', which is no term of this method."
        f'{nearest(name, terms)} Its terms: {", ".join(terms)}'
      )
  return sum(term * weights.get(name, 1.0) for name, term in terms.items())


def own(params: PyTree) -> PyTree:
  """The parameters of the method: all but learned weights of its terms."""
  return {name: value for name, value in params.items() if name != weightings.LEARNED}


def labels(batch: Batch) -> Batch:
  """What the loss sees of a batch: all but the pictures."""
  return {name: value for name, value in batch.items() if not name.endswith('image')}


def example_outputs(
  method: Method,
  augment: Callable[[Array, Batch], Batch],
  params: PyTree,
  extra: PyTree,
  batch: Batch,
) -> tuple[dict[str, jax.ShapeDtypeStruct], dict[str, jax.ShapeDtypeStruct]]:
  """Names, shapes and types of what the loss sees, outputs and labels, of a global batch; nothing
  is computed, and `params`, `extra` and `batch` may be shapes themselves."""

  def run(params, extra, batch):
    keys = example_keys(jax.random.key(0), batch['position'])
    batch = augment(keys, batch)
    outputs, _ = method.forward(params, extra, batch, keys)
    return outputs, labels(batch)

  one_device = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), batch)
  mapped = jax.vmap(run, (None, None, 0), axis_name=AXIS)
  found = jax.eval_shape(mapped, params, extra, one_device)
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), found)


def example_terms(
  method: Method,
  augment: Callable[[Array, Batch], Batch],
  params: PyTree,
  extra: PyTree,
  batch: Batch,
) -> dict[str, jax.ShapeDtypeStruct]:
  """Names, shapes and types of a method's terms on a global batch; nothing is computed."""
  outputs, seen = example_outputs(method, augment, params, extra, batch)
  return jax.eval_shape(
    lambda params, extra, *given: method.loss(params, extra, *given, 0)[0],
    params,
    extra,
    outputs,
    seen,
  )


def make_train_step(
  method: Method,
  tx: optax.GradientTransformation,
  augment: Callable[[Array, Batch], Batch],
  weights: Mapping[str, Weight],
  weighting: weightings.Weighting = EQUAL,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
  """The step of every method: (state, this device's share of a batch) -> state, metrics f32[].

  Terms count `weights`, numbers or schedules of the step, times what `weighting` says. The product
  is among the metrics as `weight/<term>` where it varies.

  Outputs are gathered and the loss sees the whole global batch, so the result does not depend on
  the number of devices: each of R devices computes the same loss, the transpose of `all_gather`
  sums R equal cotangents, and the mean over devices turns R times each device's share of the
  gradient into the exact global gradient.
  """

  def train_step(state, batch):
    keys = example_keys(jax.random.fold_in(state.rng, state.step), batch['position'])
    batch = augment(keys, batch)

    def loss_fn(params):
      learned, params = params.get(weightings.LEARNED), own(params)
      outputs, carry = method.forward(params, state.extra, batch, keys)
      outputs = gather(outputs)
      seen = gather(labels(batch))
      terms, aux = method.loss(params, state.extra, outputs, seen, state.step)
      factors, penalties = weighting.weigh(learned, state.weighting, terms, state.step)
      now = weights_at(weights, state.step)
      loss = weighted_sum({k: factors[k] * v + penalties[k] for k, v in terms.items()}, now)
      return loss, (terms, factors, aux, carry, outputs, seen)

    (loss, seen_and_done), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    terms, factors, aux, carry, outputs, seen = seen_and_done
    grads = mean(grads)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    extra = method.update(state.extra, own(params), carry, outputs, seen, aux)
    metrics = {
      'loss': loss,
      **terms,
      'l2_grads': optax.tree.norm(grads),
      'l2_params': optax.tree.norm(params),
      'l2_updates': optax.tree.norm(updates),
    }
    if 'logits' in outputs:
      metrics['acc'] = jnp.mean(outputs['logits'].argmax(-1) == seen['label'])
    if isinstance(aux, dict):
      metrics |= aux.get('metrics', {})
    now = weights_at(weights, state.step)
    varying = factors if weighting.varies else [k for k in terms if callable(weights.get(k))]
    metrics |= {f'weight/{k}': factors[k] * now.get(k, 1.0) for k in varying}
    history = weighting.update(state.weighting, terms)
    state = TrainState(state.step + 1, params, opt_state, extra, state.rng, history)
    return state, metrics

  return train_step


def make_predict_step(
  method: Method, prepare: Callable[[Batch], Batch]
) -> Callable[[TrainState, Batch], dict[str, Array]]:
  """(state, this device's share of a batch) -> the method's predictions for the whole batch."""

  def predict_step(state, batch):
    return gather(method.predict(own(state.params), state.extra, prepare(batch)))

  return predict_step
