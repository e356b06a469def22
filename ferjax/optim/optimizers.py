"""Optimizers: optax chains with a schedule and (regex, value) rules over parameter names."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ferjax.errors import choose
from ferjax.optim.rules import (
  EpochRules,
  Rules,
  by_rules,
  check_epoch_rules,
  matches,
  names_of,
  within_epochs,
)


def learning_rate_schedule(
  lr: float,
  kind: str,
  steps: int,
  *,
  warmup: int = 0,
  boundaries: Sequence[int] = (),
  decay: float = 0.1,
) -> optax.Schedule:
  """The learning rate as a function of the step.

  Args:
    lr: The rate after warm-up.
    kind: `constant`, `step`, or `linear` or `cosine`, which both fall to 0 at `steps`.
    steps: Length of the run.
    warmup: Steps of linear warm-up from 0.
    boundaries: For `step`: the steps at which the rate is multiplied by `decay`.
    decay: That factor.

  Raises:
    InputError: an unknown kind.
  """
  rest = max(steps - warmup, 1)
  kinds = {
    'constant': lambda: optax.constant_schedule(lr),
    'linear': lambda: optax.linear_schedule(lr, 0.0, rest),
    'cosine': lambda: optax.cosine_decay_schedule(lr, rest),
    'step': lambda: optax.piecewise_constant_schedule(
      lr, {boundary - warmup: decay for boundary in boundaries}
    ),
  }
  choose('config.optimizer.schedule', kind, kinds)
  after = kinds[kind]()
  if not warmup:
    return after
  return optax.join_schedules([optax.linear_schedule(0.0, lr, warmup), after], [warmup])


def decay_weights(rates) -> optax.GradientTransformation:
  """Adds rate * parameter to each gradient; `rates` is a pytree of numbers like the parameters."""

  def update(updates, state, params=None):
    return jax.tree.map(lambda u, p, rate: u + rate * p, updates, params, rates), state

  return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def scale_by_tree(factors) -> optax.GradientTransformation:
  """Multiplies each update by its own factor; `factors` is a pytree of numbers."""
  return optax.stateless(lambda updates, params: jax.tree.map(lambda u, f: u * f, updates, factors))


def freeze(
  transformation: Callable[[Any], optax.GradientTransformation],
  params,
  rules: EpochRules,
  steps_per_epoch: int,
) -> optax.GradientTransformation:
  """A transformation that does not change parameters while a rule freezes them; see
  `within_epochs`.

  Parameters under the same rules share a transformation, whose state stays as it is while they are
  frozen. It begins, bias corrections included, when they first move.

  Args:
    transformation: (which) -> transformation of the parameters where the pytree `which` is True.
    params: The parameters.
    rules: (regex, first epoch, last epoch, period).
    steps_per_epoch: Steps in an epoch.

  Raises:
    InputError: a rule is malformed, or matches no parameter.
  """
  where = 'config.optimizer.freeze_rules'
  check_epoch_rules(rules, where)
  names, structure = names_of(params)
  found = [matches(regex, names, 'parameter', where) for regex, *_ in rules]
  labels = [''.join(str(int(match)) for match in column) for column in zip(*found, strict=True)]
  groups = {}
  for label in sorted(set(labels)):
    spans = [rule[1:] for rule, match in zip(rules, label, strict=True) if match == '1']

    def moves(step, spans=spans):
      frozen = [within_epochs(step, steps_per_epoch, *span) for span in spans]
      return ~jnp.any(jnp.array(frozen))

    inner = transformation(structure.unflatten([one == label for one in labels]))
    groups[label] = optax.conditionally_mask(inner, moves) if spans else inner
  return optax.partition(groups, structure.unflatten(labels))


def make(
  params,
  steps: int,
  steps_per_epoch: int,
  *,
  name: str = 'adam',
  lr: float = 1e-3,
  schedule: str = 'constant',
  warmup_epochs: float = 0.0,
  boundaries: Sequence[float] = (),
  decay: float = 0.1,
  momentum: float = 0.9,
  nesterov: bool = False,
  weight_decay: float = 0.0,
  weight_decay_rules: Rules = (),
  lr_rules: Rules = (),
  freeze_rules: EpochRules = (),
  clip_norm: float = 0.0,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """Factory: config section `optimizer` -> optax transformation, and the learning rate by step.

  Args:
    params: The parameters (their names and shapes).
    steps: Length of the run.
    steps_per_epoch: Steps in an epoch.
    name: `adam` or `sgd`, both with weight decay as an L2 term of the loss, as in PyTorch; or
      `adamw`, with decoupled weight decay.
    lr: Learning rate.
    schedule: How it changes; see `learning_rate_schedule`.
    warmup_epochs: Length of the linear warm-up, in epochs.
    boundaries: Epochs at which the `step` schedule multiplies the rate by `decay`.
    decay: That factor.
    momentum: Momentum of `sgd`.
    nesterov: Nesterov momentum for `sgd`.
    weight_decay: Weight decay of the parameters that no rule matches.
    weight_decay_rules: (regex, weight decay) pairs; see `by_rules`.
    lr_rules: (regex, factor on the learning rate) pairs; factor 0 freezes.
    freeze_rules: (regex, first epoch, last epoch, period): parameters that do not change while
      first <= epoch < last, for the epoch modulo the period when that is above 0. Two rules with a
      period of 2 train two parts of a network in turn.
    clip_norm: Largest gradient norm; 0 for no clipping.

  Raises:
    InputError: an unknown optimizer or schedule, or a rule that matches no parameter.
  """
  rate = learning_rate_schedule(
    lr,
    schedule,
    steps,
    warmup=round(warmup_epochs * steps_per_epoch),
    boundaries=[round(epoch * steps_per_epoch) for epoch in boundaries],
    decay=decay,
  )
  decays = by_rules(params, weight_decay_rules, weight_decay, 'config.optimizer.weight_decay_rules')
  factors = by_rules(params, lr_rules, 1.0, 'config.optimizer.lr_rules')

  def directions(decays):
    decayed = [decay_weights(decays)] if weight_decay or weight_decay_rules else []
    kinds = {
      'adam': [*decayed, optax.scale_by_adam()],
      'adamw': [optax.scale_by_adam(), *decayed],
      'sgd': [*decayed, optax.trace(momentum, nesterov)],
    }
    choose('config.optimizer.name', name, kinds)
    return kinds[name]

  def directions_of(which):
    masked = jax.tree.map(lambda rate, own: rate if own else optax.MaskedNode(), decays, which)
    return optax.chain(*directions(masked))

  moves = directions(decays)
  if freeze_rules:
    moves = [freeze(directions_of, params, freeze_rules, steps_per_epoch)]
  clip = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
  scaled = [optax.scale_by_learning_rate(rate)]
  rules = [scale_by_tree(factors)] if lr_rules else []
  return optax.chain(*clip, *moves, *scaled, *rules), rate
