"""Bilinear sampling with its gradients, compared with JAX's `map_coordinates` and PyTorch.

Maps [b, h, w, c] are sampled at n points each; the gradients are with respect to map and points.
All sides repeat the border and have pixel centres at integers. `jax.scipy.ndimage.map_coordinates`
samples one channel at a time and is mapped over channels and maps. PyTorch's `grid_sample` gets
channels-first maps, for which it is fastest.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates

from ferjax.benchmark import measure
from ferjax.ops import bilinear


class Case(NamedTuple):
  """Maps, and the number of points at which each map is sampled."""

  batch: int
  side: int
  channels: int
  points: int

  @property
  def name(self) -> str:
    return f'{self.batch} of {self.side}x{self.side}x{self.channels} at {self.points} points'


CASES = (Case(32, 112, 3, 112 * 112), Case(32, 14, 256, 14 * 14), Case(8, 56, 512, 50))


def by_channel(image: jax.Array, points: jax.Array) -> jax.Array:
  """`bilinear.sample`, computed by `map_coordinates`: f[h, w, c], f[n, 2] -> f[n, c]."""
  places = [points[:, 1], points[:, 0]]
  sample = functools.partial(map_coordinates, coordinates=places, order=1, mode='nearest')
  return jax.vmap(sample, -1, -1)(image)


FORMS = {'ferjax': bilinear.sample, 'map_coordinates': by_channel}


def run(bench: measure.Bench, cases: tuple[Case, ...] = CASES) -> list[dict[str, Any]]:
  """A row for each case: the sides `ferjax`, `map_coordinates` and `torch`, and ratios."""
  return measure.each('bilinear', cases, _row, measure.on_cpu(bench))


def _row(case, bench):
  arrays = _arrays(case)
  sides, sizes = {}, {}
  for name, sample in FORMS.items():
    call = jax.jit(functools.partial(_value_and_gradients, sample))
    sides[name] = measure.jax_turn(lambda call=call: call(*arrays))
    sizes[name] = measure.sizes(call(*arrays))
  if bench.torch:
    sizes['torch'] = bench.torch.ask(do='bilinear', case=case._asdict())['sizes']
    sides['torch'] = bench.torch.turn
  measure.check_equal(sizes, case.name)
  timed = measure.interleave(sides, bench)
  return {
    'case': case.name,
    **timed,
    'faster_than_map_coordinates': measure.ratio(timed, 'map_coordinates'),
    'faster_than_torch': measure.ratio(timed, 'torch'),
  }


def _arrays(case):
  """Maps, points and cotangent. `torch_side.py` draws the same numbers."""
  rng = np.random.default_rng(0)
  maps = rng.standard_normal((case.batch, case.side, case.side, case.channels), np.float32)
  points = rng.uniform(0, case.side - 1, (case.batch, case.points, 2)).astype(np.float32)
  cotangent = rng.standard_normal((case.batch, case.points, case.channels), np.float32)
  return [jnp.asarray(array) for array in (maps, points, cotangent)]


def _value_and_gradients(sample, maps, points, cotangent):
  value, vjp = jax.vjp(jax.vmap(sample), maps, points)
  return value, *vjp(cotangent)


def table(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
  """Columns for printing. The quartiles are of the time, in % of its median."""
  return {
    'bilinear sampling, forward and backward, ms': [row['case'] for row in rows],
    'map_coordinates': measure.column(rows, 'map_coordinates'),
    'ferjax': measure.column(rows, 'ferjax'),
    'PyTorch': measure.column(rows, 'torch'),
    'map_coordinates / ferjax': [row['faster_than_map_coordinates'] for row in rows],
    'PyTorch / ferjax': [row['faster_than_torch'] for row in rows],
    'quartiles, ferjax': measure.spread(rows, 'ferjax'),
    'quartiles, PyTorch': measure.spread(rows, 'torch'),
  }
