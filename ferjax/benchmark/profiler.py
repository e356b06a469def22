"""The costliest operations of a compiled program, by JAX's profiler."""

import collections
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax


class Event(NamedTuple):
  """An operation that ran: its name in the program, its start and its length in nanoseconds."""

  name: str
  start: float
  length: float


def operations(run: Callable[[int], Any], calls: int) -> list[dict[str, Any]]:
  """Runs a program under the profiler.

  Args:
    run: (calls) -> runs the program so often, and waits for its results.
    calls: How often.

  Returns:
    For each kind of operation, the costliest first: `name`, `ms` and `count` of one call, and
    `share` of the time of all. The time is that of its thread or stream, without other operations
    inside it; a call's operations may run at the same time. Empty where the profiler tells of no
    operations.
  """
  options = jax.profiler.ProfileOptions()
  options.python_tracer_level = 0
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder, profiler_options=options):
      run(calls)
    lines = [line for file in Path(folder).rglob('*.xplane.pb') for line in _lines(file)]
  return costs(lines, calls)


def _lines(file) -> Iterable[list[Event]]:
  """The operations of each thread or stream. Other events, such as those of the host that starts
  them, have no `hlo_op`."""
  for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
    for line in plane.lines:
      found = [(event, dict(event.stats).get('hlo_op')) for event in line.events]
      yield [Event(str(name), e.start_ns, e.duration_ns) for e, name in found if name]


def costs(lines: Iterable[Sequence[Event]], calls: int) -> list[dict[str, Any]]:
  """The time of each kind of operation; see `operations`.

  Args:
    lines: The operations of each thread or stream. Those of a line stand beside or inside each
      other.
    calls: How many calls they are of.
  """
  spent, count = collections.Counter(), collections.Counter()
  for line in lines:
    around = []  # the operations that the present one is inside of, and their ends
    for event in sorted(line, key=lambda event: (event.start, -event.length)):
      while around and around[-1][1] <= event.start:
        around.pop()
      kind = re.sub(r'[.\d]+$', '', event.name)
      if around:
        spent[around[-1][0]] -= event.length
      spent[kind] += event.length
      count[kind] += 1
      around.append((kind, event.start + event.length))
  whole = sum(spent.values())
  return [
    {
      'name': kind,
      'ms': length / 1e6 / calls,
      'share': length / whole,
      'count': count[kind] / calls,
    }
    for kind, length in spent.most_common()
    if length > 0
  ]


def table(row: Mapping[str, Any], most: int = 12) -> dict[str, list[Any]]:
  """Columns for printing: the costliest operations of a row of `step`."""
  found = row['ferjax']['operations'][:most]
  return {
    f'operations: {row["case"]}': [part['name'] for part in found],
    'ms a step': [part['ms'] for part in found],
    'share': [part['share'] for part in found],
    'how often': [part['count'] for part in found],
  }
