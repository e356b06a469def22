"""Method -> Method: features that any method can wear."""

import zlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from ferjax import core
from ferjax.core import Method, _dressed
from ferjax.errors import InputError
from ferjax.images import augment
from ferjax.terms import added

TERMS = 'terms'  # where parameters and states of added terms stand, in `params` and in `extra`
EXAMPLE_ROWS = 16


def with_terms(method: Method, terms: Mapping[str, added.Term]) -> Method:
  """Further terms of the loss: means over the global batch of losses of its outputs and labels.

  What a `StatefulLoss` learns is under `terms` in `params`, its state under `terms` in `extra`;
  both are there only where there are any, and prediction passes them by. So the method with no
  terms at all predicts from the state of one with terms.

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

  def forward(params, extra, batch, keys):
    return method.forward(own(params), own(extra), batch, keys)

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

  def kept(extra):
    return {TERMS: extra[TERMS]} if TERMS in extra else {}

  def predict(params, extra, batch, delta=None):
    return method.predict(own(params), own(extra), batch, delta)

  def refresh(epoch, params, extra, table, embed):
    return method.refresh(epoch, own(params), own(extra), table, embed) | kept(extra)

  def estimates(extra, label):
    return method.estimates(own(extra), label)

  def enroll(params, extra, table, embed):
    return method.enroll(own(params), own(extra), table, embed) | kept(extra)

  def columns(extra):
    return method.columns(own(extra))

  return _dressed(method, init, forward, loss, update, predict, refresh, estimates, enroll, columns)


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
