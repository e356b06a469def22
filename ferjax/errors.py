"""The one exception for what a user can correct: commands print its message without a traceback."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
  """Says what is wrong, where, and what to do about it."""


def nearest(name: object, names: Iterable[str]) -> str:
  """` Did you mean 'x'?` for the closest of `names`, or an empty string."""
  close = difflib.get_close_matches(str(name), list(names), n=1, cutoff=0.5)
  return f" Did you mean '{close[0]}'?" if close else ''
