"""How the terms of a loss are weighted: constantly, by their descent, or by learned uncertainty."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from ferjax.errors import InputError, choose
from ferjax.optim import rules

NAMES = ('constant', 'dynamic', 'uncertainty')
ABSENT = -1e30  # an exponent of 0
LEAST = 0.01  # the least value of a term, where an uncertainty is learned

Terms = Mapping[str, Array]


class Weighting(NamedTuple):
  """Pure functions over explicit state.

  Attributes:
    init: (terms) -> learned, state. For terms of these names and types: what the optimizer changes
      ({} for nothing), and what `update` changes.
    weigh: (learned, state, terms, step) -> weights, penalties {name: f[]}. A term counts as its
      weight times itself, plus its penalty.
    update: (state, terms) -> state. After a step, with the terms that it had, unweighted.
    varies: Whether weights can change from step to step; if not, `init` returns ({}, ()).
  """

  init: Callable[[Terms], tuple[dict[str, Array], Any]]
  weigh: Callable[..., tuple[dict[str, Array], dict[str, Array]]]
  update: Callable[[Any, Terms], Any]
  varies: bool


class History(NamedTuple):
  """The last losses of each term f[2 * window], oldest first, and how many steps were seen."""

  terms: dict[str, Array]
  seen: Array  # i32[]


def make(
  steps_per_epoch: int = 1,
  *,
  name: str = 'constant',
  total: float = 0.0,
  temperature: float = 2.0,
  window: int = 5,
  clip: Sequence[float] = (0.1, 10.0),
  off: rules.EpochRules = (),
) -> Weighting:
  """Factory: config section `weighting`. The constants of `config.weights` multiply on top.

  `constant`: each of the n terms in force has the weight total / n.
  `dynamic`: dynamic weight average, weights total * softmax(omega / temperature); see
  `descent_rates`.
  `uncertainty`: a term L counts as exp(-s) L + s / 2 with its own learned s = log sigma^2, which
  starts at 0; `total` is not used. The constant of `config.weights` multiplies both parts: if it
  multiplied the first one only, it would cancel, as s settles at log(2 L). This weighting is meant
  for losses that are negative log-likelihoods. For s, a term below 0.01 counts as 0.01 (ours): the
  weight is at most 50, while a term at or below 0 would drive s to minus infinity.

  References: Liu et al., "End-to-End Multi-Task Learning with Attention", CVPR 2019; DML-Net (Liu
  et al., 2021), equation 8. Kendall et al., "Multi-Task Learning Using Uncertainty to Weigh Losses
  for Scene Geometry and Semantics", CVPR 2018 (the form for classification).

  Args:
    steps_per_epoch: Steps in an epoch.
    name: `constant`, `dynamic` or `uncertainty`.
    total: K, the sum of the weights; 0 for the number of terms in force.
    temperature: T of `dynamic`; weights become equal as it grows.
    window: Steps in a mean of `dynamic`.
    clip: Smallest and largest descent rate.
    off: (regex, first epoch, last epoch, period): these terms are left out while
      first <= epoch < last; see `rules.within_epochs`. The others share `total`.

  Raises:
    InputError: an unknown name or a number out of range; from the functions: a rule that matches no
      term.

  Example:
    >>> import jax.numpy as jnp
    >>> terms = {'cross_entropy': jnp.array(2.0), 'contrastive': jnp.array(6.0)}
    >>> made = make(name='uncertainty')
    >>> learned, state = made.init(terms)
    >>> weights, penalties = made.weigh(learned, state, terms, 0)
    >>> print({name: float(weight) for name, weight in weights.items()})
    {'cross_entropy': 1.0, 'contrastive': 1.0}
    >>> print({name: float(penalty) for name, penalty in penalties.items()})
    {'cross_entropy': 0.0, 'contrastive': 0.0}
  """
  choose('config.weighting.name', name, NAMES)
  if total < 0 or temperature <= 0 or window < 1:
    raise InputError(
      f'config.weighting: total={total} must be at least 0, temperature={temperature} above 0, '
      f'window={window} at least 1'
    )
  if len(clip) != 2 or not 0 <= clip[0] <= clip[1]:
    raise InputError(f'config.weighting.clip={tuple(clip)}: give (low, high), 0 <= low <= high')
  rules.check_epoch_rules(off, 'config.weighting.off')

  def in_force(terms, step):
    """{name: 0 or 1}."""
    on = {term: jnp.ones((), value.dtype) for term, value in terms.items()}
    for regex, *span in off:
      found = rules.matches(regex, list(terms), 'term', 'config.weighting.off')
      for term, match in zip(terms, found, strict=True):
        if match:
          absent = rules.within_epochs(step, steps_per_epoch, *span)
          on[term] = jnp.where(absent, 0, on[term])
    return on

  if name == 'uncertainty':
    return _uncertainty(in_force)
  if name == 'dynamic':
    return _dynamic(in_force, total, temperature, window, clip)
  return _constant(in_force, total, varies=bool(off))


def _constant(in_force, total, varies) -> Weighting:
  def weigh(learned, state, terms, step):
    on = in_force(terms, step)
    present = sum(on.values())
    equal = (total or present) / jnp.maximum(present, 1)
    return {term: value * equal for term, value in on.items()}, _zeros(terms)

  return Weighting(lambda terms: ({}, ()), weigh, lambda state, terms: state, varies)


def _dynamic(in_force, total, temperature, window, clip) -> Weighting:
  def init(terms):
    history = {term: jnp.zeros(2 * window, value.dtype) for term, value in terms.items()}
    return {}, History(history, jnp.zeros((), jnp.int32))

  def weigh(learned, state, terms, step):
    on = in_force(terms, step)
    shared = total or sum(on.values())
    rates = descent_rates(state, window, clip)
    exponents = [jnp.where(on[term] > 0, rates[term] / temperature, ABSENT) for term in terms]
    shares = shared * jax.nn.softmax(jnp.stack(exponents))
    weights = {term: on[term] * share for term, share in zip(terms, shares, strict=True)}
    return weights, _zeros(terms)

  def update(state, terms):
    history = {
      term: jnp.append(past[1:], terms[term].astype(past.dtype))
      for term, past in state.terms.items()
    }
    return History(history, state.seen + 1)

  return Weighting(init, weigh, update, varies=True)


def _uncertainty(in_force) -> Weighting:
  def init(terms):
    return {term: jnp.zeros((), value.dtype) for term, value in terms.items()}, ()

  def weigh(learned, state, terms, step):
    on = in_force(terms, step)
    weights = {term: on[term] * jnp.exp(-s) for term, s in learned.items()}
    missing = {term: jnp.maximum(LEAST - lax.stop_gradient(terms[term]), 0) for term in terms}
    penalties = {
      term: on[term] * s / 2 + weights[term] * missing[term] for term, s in learned.items()
    }
    return weights, penalties

  return Weighting(init, weigh, lambda state, terms: state, varies=True)


def _zeros(terms) -> dict[str, Array]:
  return {term: jnp.zeros(()) for term in terms}


def descent_rates(history: History, window: int, clip: Sequence[float]) -> dict[str, Array]:
  """omega of each term f[]: its mean over the last `window` steps / over the `window` before.

  1 while fewer than 2 * window steps were seen, or where the denominator is below 1e-8.

  Args:
    history: See `History`.
    window: Steps of a mean.
    clip: Smallest and largest rate.
  """
  rates = {}
  for term, past in history.terms.items():
    before, last = past[:window].mean(), past[window:].mean()
    known = (history.seen >= 2 * window) & (before >= 1e-8)
    rates[term] = jnp.clip(jnp.where(known, last / jnp.where(known, before, 1), 1), *clip)
  return rates
