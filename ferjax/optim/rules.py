"""Rules of (regular expression, value) over the names of parameters."""

import re
from collections.abc import Sequence

import jax
from jax import Array

from ferjax.errors import InputError

Rules = Sequence[tuple[str, float]]  # regex, value
EpochRules = Sequence[tuple[str, float, float, float]]  # regex, first epoch, last epoch, period


def by_rules(params, rules: Rules, default: float, where: str):
  """A pytree of numbers like the parameters: each has the value of the first rule whose regex
  matches its whole name, or `default`; see `names_of`.

  Raises:
    InputError: a rule matches no parameter, or is no regular expression.
  """
  names, structure = names_of(params)
  values = [default] * len(names)
  for regex, value in reversed(list(rules)):
    found = matches(regex, names, 'parameter', where)
    values = [value if match else old for match, old in zip(found, values, strict=True)]
  return jax.tree_util.tree_unflatten(structure, values)


def names_of(params):
  """Names of the parameters, such as `model/layer1_0/conv1/kernel`, and the pytree's structure."""
  paths, structure = jax.tree_util.tree_flatten_with_path(params)
  return ['/'.join(str(getattr(k, 'key', k)) for k in path) for path, _ in paths], structure


def matches(regex: str, names: Sequence[str], what: str, where: str) -> list[bool]:
  """Whether a regular expression matches the whole of each name.

  Args:
    regex: The regular expression.
    names: The names.
    what: What has these names, for the error, such as `parameter`.
    where: Where the rule stands, for the error.

  Raises:
    InputError: it matches none, or is no regular expression.
  """
  try:
    found = [re.fullmatch(regex, name) is not None for name in names]
  except re.error as error:
    raise InputError(f'{where}: {regex!r} is no regular expression ({error})') from error
  if not any(found):
    listing = '\n  '.join(names)
    raise InputError(f'{where}: {regex!r} matches no {what}. The {what}s:\n  {listing}')
  return found


def check_epoch_rules(rules: EpochRules, where: str) -> None:
  """Refuses rules that are not (regex, first epoch, last epoch, period).

  Raises:
    InputError: names the rule.
  """
  for rule in rules:
    if len(rule) != 4 or not (0 <= rule[1] < rule[2] <= (rule[3] or rule[2]) and rule[3] >= 0):
      raise InputError(
        f'{where}: {rule!r}: give (regex, first epoch, last epoch, period), first < last and '
        'last <= period; the period is 0 for once'
      )


def within_epochs(
  step: Array, steps_per_epoch: int, first: float, last: float, period: float
) -> Array:
  """bool[]: whether first <= epoch < last, for the epoch modulo `period` when that is above 0."""
  if period:
    step = step % max(1, round(period * steps_per_epoch))
  return (round(first * steps_per_epoch) <= step) & (step < round(last * steps_per_epoch))
