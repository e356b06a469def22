"""Optimizers: optax chains with a schedule and (regex, value) rules over parameter names."""

import re
from collections.abc import Sequence

import jax
import optax

from ferjax.errors import InputError

Rules = Sequence[tuple[str, float]]


def learning_rate_schedule(
  lr: float,
  kind: str,
  steps: int,
  *,
  warmup: int = 0,
  boundaries: Sequence[int] = (),
  decay: float = 0.1,
) -> optax.Schedule:
  """Learning rate by step.

  Args:
    lr: The rate after warm-up.
    kind: `constant`; `linear` or `cosine`, both down to 0 at `steps`; `step`.
    steps: Length of the run.
    warmup: Steps of linear warm-up from 0.
    boundaries: For `step`: where the rate is multiplied by `decay`.
    decay: That factor.

  Raises:
    InputError: unknown kind.
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
  if kind not in kinds:
    raise InputError(f"config.optimizer.schedule is '{kind}': use {', '.join(kinds)}")
  after = kinds[kind]()
  if not warmup:
    return after
  return optax.join_schedules([optax.linear_schedule(0.0, lr, warmup), after], [warmup])


def by_rules(params, rules: Rules, default: float, where: str):
  """A pytree of numbers for the parameters: of the first rule whose regex matches the whole name.

  Names are joined by `/`, such as `model/layer1_0/conv1/kernel`.

  Raises:
    InputError: a rule matches no parameter, or is no regular expression.
  """
  paths, structure = jax.tree_util.tree_flatten_with_path(params)
  names = ['/'.join(str(getattr(k, 'key', k)) for k in path) for path, _ in paths]
  values = [default] * len(names)
  for regex, value in reversed(list(rules)):
    try:
      matches = [re.fullmatch(regex, name) is not None for name in names]
    except re.error as error:
      raise InputError(f'{where}: {regex!r} is no regular expression ({error})') from error
    if not any(matches):
      listing = '\n  '.join(names)
      raise InputError(f'{where}: {regex!r} matches no parameter. The parameters:\n  {listing}')
    values = [value if match else old for match, old in zip(matches, values, strict=True)]
  return jax.tree_util.tree_unflatten(structure, values)


def decay_weights(rates) -> optax.GradientTransformation:
  """Adds rate * parameter to each gradient; `rates` is a pytree of numbers like the parameters."""

  def update(updates, state, params=None):
    return jax.tree.map(lambda u, p, rate: u + rate * p, updates, params, rates), state

  return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def scale_by_tree(factors) -> optax.GradientTransformation:
  """Multiplies each update by its own factor; `factors` is a pytree of numbers."""
  return optax.stateless(lambda updates, params: jax.tree.map(lambda u, f: u * f, updates, factors))


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
  clip_norm: float = 0.0,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """Factory: config section `optimizer` -> optax transformation and its learning rate by step.

  Args:
    params: The parameters (their names and shapes).
    steps: Length of the run.
    steps_per_epoch: Steps in an epoch.
    name: `adam`, `sgd` (both with weight decay as an L2 term of the loss, as PyTorch has it), or
      `adamw` (decoupled).
    lr: Learning rate.
    schedule: Its course; see `learning_rate_schedule`.
    warmup_epochs: Length of the linear warm-up.
    boundaries: Epochs at which the `step` schedule multiplies the rate by `decay`.
    decay: That factor.
    momentum: Momentum of `sgd`.
    nesterov: Nesterov momentum for `sgd`.
    weight_decay: Weight decay of parameters that no rule names.
    weight_decay_rules: (regex, weight decay) pairs; see `by_rules`.
    lr_rules: (regex, factor on the learning rate) pairs; factor 0 freezes.
    clip_norm: Largest gradient norm; 0 for no clipping.

  Raises:
    InputError: unknown optimizer or schedule, or a rule that matches nothing.
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
  decayed = [decay_weights(decays)] if weight_decay or weight_decay_rules else []
  directions = {
    'adam': [*decayed, optax.scale_by_adam()],
    'adamw': [optax.scale_by_adam(), *decayed],
    'sgd': [*decayed, optax.trace(momentum, nesterov)],
  }
  if name not in directions:
    raise InputError(f"config.optimizer.name is '{name}': use {', '.join(directions)}")
  clip = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
  scaled = [optax.scale_by_learning_rate(rate)]
  rules = [scale_by_tree(factors)] if lr_rules else []
  return optax.chain(*clip, *directions[name], *scaled, *rules), rate
