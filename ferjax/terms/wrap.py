"""Further terms of the loss, for any method."""

import zlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from ferjax import core
from ferjax.core import Method
from ferjax.errors import InputError
from ferjax.images import augment
from ferjax.terms import added

TERMS = 'terms'  # key of the parameters and states of added terms, in `params` and in `extra`
EXAMPLE_ROWS = 16


def with_terms(method: Method, terms: Mapping[str, added.Term]) -> Method:
  """Further terms of the loss: means over the global batch of losses of its outputs and labels.

  What a `StatefulLoss` learns is under `terms` in `params`, its state under `terms` in `extra`;
  `terms` is there only where it is not empty, and prediction does not use it: a method that is
  given no terms here can predict from the state of one that was trained with terms.

  Args:
    method: Any method whose `params` and `extra` are dicts.
    terms: By name, (outputs, batch) -> f[b] or a `StatefulLoss`, of the gathered outputs of
      `method.forward` and the batch without its pictures.

  Raises:
    InputError: from the loss, a term has the name of one of the method's own.
  """
  triples = {name: added.stateful(term) for name, term in terms.items()}

  def own(tree):
    return {name: value for name, value in tree.items() if name != TERMS}

  def init(rng, batch, table):
    params, extra = method.init(rng, batch, table)
    outputs, seen = jax.tree.map(
      lambda x: jnp.zeros(x.shape, x.dtype), example(method, params, extra, batch)
    )
    learned, states = {}, {}
    for name, term in triples.items():
      key = jax.random.fold_in(rng, zlib.crc32(name.encode()))
      learned[name], states[name] = term.init(key, outputs, seen)
    return params | _under_terms(learned), extra | _under_terms(states)

  def loss(params, extra, outputs, batch, step):
    values, aux = method.loss(own(params), own(extra), outputs, batch, step)
    learned, states = params.get(TERMS, {}), extra.get(TERMS, {})
    for name, term in triples.items():
      if name in values:
        raise InputError(
          f"config.terms.{name}: the method has a term '{name}' of its own. Use another name, such "
          f"as config.terms.{name}_2 with 'name': '{name}' among its keys"
        )
      losses = term.apply(learned.get(name, {}), states.get(name, ()), outputs, batch)
      values = values | {name: losses.mean()}
    return values, aux

  def update(extra, params, carry, outputs, batch, aux):
    inner = method.update(own(extra), own(params), carry, outputs, batch, aux)
    states = extra.get(TERMS, {})
    moved = {name: triples[name].update(state, outputs, batch) for name, state in states.items()}
    return inner | _under_terms(moved)

  inner = core.inside(
    method,
    params_of=own,
    extra_of=own,
    with_extra=lambda extra, inner: inner | ({TERMS: extra[TERMS]} if TERMS in extra else {}),
  )
  return inner._replace(init=init, loss=loss, update=update)


def example(method: Method, params, extra, batch):
  """Shapes and types of the outputs, and of the labels as the loss sees them, of `EXAMPLE_ROWS`
  rows; see `core.example_outputs`.

  Args:
    method: Any method.
    params, extra: The method's, or their shapes.
    batch: One row of all that the method trains on, its picture normalised.
  """
  rows = jax.tree.map(lambda x: jax.ShapeDtypeStruct((EXAMPLE_ROWS, *x.shape[1:]), x.dtype), batch)
  change = augment.make(flip=0.0, views=method.views, dtype=batch['image'].dtype)
  return core.example_outputs(method, change, params, extra, rows)


def _under_terms(trees):
  """{'terms': those that have leaves}, or {}."""
  found = {name: tree for name, tree in trees.items() if jax.tree.leaves(tree)}
  return {TERMS: found} if found else {}
