"""Message propagation on a landmark graph, against sampling every node again for each cell.

Times value and gradients with respect to the map and the random walks, with and without W. Both
sides multiply each cell by W once; graph and clusters are given. The literal side samples its eight
nodes one after the other, which needs the least memory.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ferjax.benchmark import measure
from ferjax.methods.hrl import lgmp
from ferjax.ops import landmark_graph


class Case(NamedTuple):
  """A map and its landmarks, and whether W is applied."""

  side: int
  channels: int = 512
  batch: int = 8
  landmarks: int = 50
  weight: bool = True

  @property
  def name(self) -> str:
    size = f'{self.side}x{self.side}x{self.channels}'
    return f'{size}, {self.landmarks} landmarks, batch {self.batch}' + ', W' * self.weight


CASES = tuple(Case(side, weight=weight) for side in (56, 28) for weight in (False, True))
FORMS = {'ferjax': lgmp.propagate, 'literal': lgmp.propagate_literally}


def run(bench: measure.Bench, cases: tuple[Case, ...] = CASES) -> list[dict[str, Any]]:
  """A row for each case: the sides `ferjax` and `literal` with their `memory_mb` (XLA's temporary
  memory and results), and ratios."""
  return measure.each('lgmp', cases, _row, bench)


def _row(case, bench):
  inputs, fixed = _arrays(case)
  sides, memory, sizes = {}, {}, {}
  for name, send in FORMS.items():
    step = jax.jit(_value_and_gradients(send, case.weight)).lower(inputs, fixed).compile()
    sides[name] = measure.jax_turn(lambda step=step: step(inputs, fixed))
    sizes[name] = measure.sizes(step(inputs, fixed))
    analysis = step.memory_analysis()
    memory[name] = (analysis.temp_size_in_bytes + analysis.output_size_in_bytes) / measure.MIB
  measure.check_equal(sizes, case.name)
  timed = measure.interleave(sides, bench)
  for name, side in timed.items():
    side['memory_mb'] = memory[name]
  return {
    'case': case.name,
    **timed,
    'faster_than_literal': measure.ratio(timed, 'literal'),
    'less_memory_than_literal': memory['literal'] / memory['ferjax'],
  }


def _arrays(case):
  """(map, walks, W), (landmarks, graph, clusters)."""
  rng = np.random.default_rng(0)
  batch, side, landmarks, channels = case.batch, case.side, case.landmarks, case.channels
  feature_map = rng.standard_normal((batch, side, side, channels), np.float32)
  walk = rng.standard_normal((batch, landmarks, 2), np.float32)
  weight = rng.standard_normal((channels, channels), np.float32)
  points = rng.uniform(0, side - 1, (batch, landmarks, 2)).astype(np.float32)
  graph = jax.vmap(landmark_graph.uniform_rank)(points)
  cluster = rng.integers(0, landmarks, (batch, side, side))
  arrays = (feature_map, walk, weight), (points, graph, cluster)
  return jax.tree.map(jnp.asarray, arrays)


def _value_and_gradients(send, with_weight):
  def call(inputs, fixed):
    points, graph, cluster = fixed

    def value(feature_map, walk, weight):
      received = jax.vmap(send)(feature_map, points, walk, graph, cluster)
      return received @ weight if with_weight else received

    out, vjp = jax.vjp(value, *inputs)
    return out, vjp(out)

  return call


def table(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
  """Columns for printing."""
  return {
    'forward and backward': [row['case'] for row in rows],
    'literal, ms': [row['literal']['median_ms'] for row in rows],
    'ferjax, ms': [row['ferjax']['median_ms'] for row in rows],
    'literal / ferjax': [row['faster_than_literal'] for row in rows],
    'literal, MiB': [row['literal']['memory_mb'] for row in rows],
    'ferjax, MiB': [row['ferjax']['memory_mb'] for row in rows],
    'memory to ferjax': [row['less_memory_than_literal'] for row in rows],
    'quartiles, literal': measure.spread(rows, 'literal'),
    'quartiles, ferjax': measure.spread(rows, 'ferjax'),
  }
