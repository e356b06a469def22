"""The single training step for all methods."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax
from jax import Array

from ferjax.core import LEARNED, Batch, Method, PyTree, TrainState, example_outputs, labels, own
from ferjax.distributed.parallel import example_keys, gather, mean
from ferjax.errors import InputError, nearest
from ferjax.terms import weighting as weightings
from ferjax.terms.schedules import Weight

EQUAL = weightings.make()


def weights_at(weights: Mapping[str, Weight], step: Array) -> dict[str, float | Array]:
  """The weights at a step: numbers are unchanged, schedules are evaluated."""
  return {name: w(step) if callable(w) else w for name, w in weights.items()}


def weighted_sum(terms: Mapping[str, Array], weights: Mapping[str, float | Array]) -> Array:
  """The loss f32[]: the sum of terms f32[] times their weights. The default weight is 1.

  Raises:
    InputError: the name of a weight is not that of a term.
  """
  for name in weights:
    if name not in terms:
      raise InputError(
        f"config.weights names '{name}', which is not a term of this method."
        f'{nearest(name, terms)} Its terms: {", ".join(terms)}'
      )
  return sum(term * weights.get(name, 1.0) for name, term in terms.items())


@jax.jit
def copy(tree: PyTree) -> PyTree:
  """A copy of parameters, for `norms` after a step that overwrites them."""
  return jax.tree.map(jnp.copy, tree)


@jax.jit
def norms(before: PyTree, after: PyTree) -> dict[str, Array]:
  """The L2 norms f[] of the parameters after a step, `l2_params`, and of their change in the step,
  `l2_updates`."""
  return {
    'l2_params': optax.tree.norm(after),
    'l2_updates': optax.tree.norm(optax.tree.sub(after, before)),
  }


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
  """Makes the training step of a method.

  The weight of a term is its entry in `weights`, a number or a schedule of the step, times the
  factor of `weighting`. If this product varies, it is in the metrics as `weight/<term>`.

  Outputs are gathered and the loss gets the whole global batch, so the result does not depend on
  the number of devices: each of R devices computes the same loss, the transpose of `all_gather`
  sums R equal cotangents, and the mean over devices turns R times each device's share of the
  gradient into the exact global gradient.

  Args:
    method: The method.
    tx: The optimizer.
    augment: (keys, batch) -> the augmented batch.
    weights: {term: weight}; 1 for the others.
    weighting: See `terms/weighting.py`.

  Returns:
    (state, this device's share of a batch) -> state, metrics f32[].
  """

  def train_step(state, batch):
    keys = example_keys(jax.random.fold_in(state.rng, state.step), batch['position'])
    batch = augment(keys, batch)

    def loss_fn(params):
      learned, params = params.get(LEARNED), own(params)
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
    metrics = {'loss': loss, **terms, 'l2_grads': optax.tree.norm(grads)}
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
