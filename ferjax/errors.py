"""The one exception for mistakes that a user can correct, and words for its messages."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
  """Says what is wrong, where, and what to do; commands print it without a traceback."""


def nearest(name: object, names: Iterable[str]) -> str:
  """` Did you mean 'x'?` for the closest of `names`, or an empty string."""
  close = difflib.get_close_matches(str(name), list(names), n=1, cutoff=0.5)
  return f" Did you mean '{close[0]}'?" if close else ''


def choose(where: str, value: object, choices: Iterable[str]) -> None:
  """Refuses a value that is none of the choices.

  Args:
    where: What has the value, such as `config.precision`.
    value: The value.
    choices: All values that are possible.

  Raises:
    InputError: names the nearest choice, and all.
  """
  choices = list(choices)
  if value not in choices:
    raise InputError(f"{where} is '{value}'.{nearest(value, choices)} Use {' or '.join(choices)}")
