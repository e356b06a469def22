"""Checks a loss on inputs that may occur in training: `ferjax check-loss my_losses.island`.

The loss is a function `f(outputs, batch) -> f[b]`, or one that makes a `StatefulLoss`, as in
`config.terms`: a path, or the name of a function in `ferjax.terms`. Its other arguments are flags:
`--margin=0.2`. It is called with random embeddings, scores and labels, on the default device of
JAX. A check that fails is printed with its input, and the exit code is then 1.
"""

import argparse
import ast
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ferjax.benchmark import measure
from ferjax.errors import InputError
from ferjax.terms import added
from ferjax.terms.check import ROWS, Sizes, _start, _step, _typed, check, drawn

COSTS = (32, 128, 512)  # rows
REPEATS = 7  # of each time measurement; the result is their median


def costs(term: added.Term, sizes: Sizes, rows: Iterable[int] = COSTS) -> dict[str, list]:
  """Time, FLOPs and temporary memory of the loss and its gradient in float32, by batch size.

  Returns:
    Columns `rows`, `ms`, `MFLOP` and `MiB`.
  """
  triple = added.stateful(term)
  table = {'rows': [], 'ms': [], 'MFLOP': [], 'MiB': []}
  for count in rows:
    outputs, batch = _typed(*drawn(sizes, count), jnp.float32)
    params, state = _start(triple, outputs, batch)
    step = jax.jit(_step(triple)).lower(params, state, outputs, batch).compile()
    jax.block_until_ready(step(params, state, outputs, batch))
    seconds = []
    for _ in range(REPEATS):
      start = time.perf_counter()
      jax.block_until_ready(step(params, state, outputs, batch))
      seconds.append(time.perf_counter() - start)
    memory = step.memory_analysis()
    table['rows'].append(count)
    table['ms'].append(1000 * float(np.median(seconds)))
    table['MFLOP'].append((step.cost_analysis() or {}).get('flops', 0.0) / 1e6)
    table['MiB'].append(memory and memory.temp_size_in_bytes / 2**20)
  return table


def parse(argv: list[str]) -> tuple[str, Sizes, dict[str, Any]]:
  """The loss, the sizes of the inputs and its arguments.

  Raises:
    InputError: an argument is not `--key=value`, or a size is not above 0.
  """
  parser = argparse.ArgumentParser(
    prog='ferjax check-loss',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument('loss', help='module.function, or the name of a built-in term')
  for name, size in Sizes()._asdict().items():
    if name != 'outputs':
      parser.add_argument(f'--{name}', type=int, default=size)
  text = 'row shapes of further outputs, such as "{\'pose_logits\': (5,)}"'
  parser.add_argument('--outputs', default='{}', help=text)
  known, rest = parser.parse_known_args(argv)
  options = {}
  for argument in rest:
    key, given, value = argument.removeprefix('--').partition('=')
    if not given or not argument.startswith('--'):
      raise InputError(f'{argument!r}: give arguments of the loss as --key=value')
    if key in added.RESERVED:
      raise InputError(f'{argument!r}: {key} is a key of config.terms, not an argument of the loss')
    try:
      options[key] = ast.literal_eval(value)
    except (SyntaxError, ValueError):
      options[key] = value
  sizes = vars(known)
  loss, outputs = sizes.pop('loss'), _shapes(sizes.pop('outputs'))
  for name, size in sizes.items():
    if size < 1:
      raise InputError(f'--{name} is {size}: give a number above 0')
  return loss, Sizes(**sizes, outputs=outputs), options


def _shapes(text: str) -> dict[str, tuple[int, ...]]:
  message = f'--outputs is {text}: give shapes by name, such as "{{\'pose_logits\': (5,)}}"'
  try:
    shapes = {str(name): tuple(map(int, shape)) for name, shape in ast.literal_eval(text).items()}
  except (SyntaxError, ValueError, TypeError, AttributeError) as error:
    raise InputError(message) from error
  if any(size < 1 for shape in shapes.values() for size in shape):
    raise InputError(message)
  return shapes


def main(argv: list[str]) -> bool:
  """Checks a loss, prints the results, and returns whether all checks passed.

  Raises:
    InputError: there is no such loss, it lacks an argument, or it does not return f[b].
  """
  name, sizes, options = parse(argv)
  path = '.' in name
  function = added.find('the loss', name) if path else added.builtin('the loss', name)
  counts = {'num_classes': sizes.num_classes, 'num_poses': sizes.num_poses}
  term = added.make(name, function, options, **counts)
  shapes = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), _typed(*drawn(sizes, ROWS), jnp.float32)
  )
  read = added.check(name, function, term, *shapes)
  labels = ', '.join(sorted(read)) or 'nothing'
  print(f'{name} of {added.source(function)} reads these columns of the batch: {labels}\n')
  results = check(term, sizes)
  columns = {
    'check': [result.check for result in results],
    'input': [result.input for result in results],
    'result': [f'FAILS: {r.failure}' if r.failure else r.note or 'ok' for r in results],
  }
  print(measure.markdown(columns), flush=True)
  failed = sum(bool(result.failure) for result in results)
  print(f'\n{failed} of {len(results)} checks failed\n' if failed else '\nall checks passed\n')
  if any(result.failure for result in results if result[:2] == ('finite, float32', 'random')):
    print('Its time and memory are not measured, because it fails on random outputs')
  else:
    print('Loss and gradient on this machine:\n')
    print(measure.markdown(costs(term, sizes)))
  return not failed


def run(argv: Sequence[str]) -> None:
  """Runs the command in its own process."""
  sys.exit(0 if main(argv) else 1)
