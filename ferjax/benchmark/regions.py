"""DML-Net's three networks in one training step, beside a step for each and the whole face alone.

The separate steps are those of the softmax method on the face and on its top and bottom third; the
one step has fusion, heads and triplets besides.
"""

from typing import Any

from ferjax.benchmark import measure, methods
from ferjax.models.regions import upper_and_lower_third

CASES = (methods.Case('resnet18', 64, 80), methods.Case('resnet50', 224, 15))
PARTS = ('face', 'eyes', 'mouth')


def run(bench: measure.Bench, cases: tuple[methods.Case, ...] = CASES) -> list[dict[str, Any]]:
  """A row for each case: the sides `face`, `eyes`, `mouth` and `together`, and ratios.

  A side has the time of a step as in `measure.interleave`. `apart_to_together` is the time of three
  separate steps over that of the one, `together_to_face` that of the one over the face's alone.
  """
  return [_row(case, bench) for case in cases if bench.only in case.name]


def _row(case, bench):
  batch = methods.host_batch(case)
  pictures = (batch['image'], *upper_and_lower_third(batch['image'], resize=False))
  sides = {}
  for name, image in zip(PARTS, pictures, strict=True):
    measure.progress(f'regions: {case.name}: compiles {name}')
    sides[name], _ = methods.side('softmax', case, batch | {'image': image})
  measure.progress(f'regions: {case.name}: compiles all')
  sides['together'], _ = methods.side('dmlnet', case, batch)
  timed = measure.interleave(sides, bench)
  apart = sum(timed[name]['median_ms'] for name in PARTS)
  together = timed['together']['median_ms']
  return {
    'case': case.name,
    'batch': case.batch,
    **timed,
    'apart_ms': apart,
    'apart_to_together': apart / together,
    'together_to_face': together / timed['face']['median_ms'],
  }


def table(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
  """Columns for a reader."""

  def speed(milliseconds):
    return [row['batch'] / (milliseconds(row) / 1000) for row in rows]

  return {
    'step': [row['case'] for row in rows],
    'face alone, images/s': speed(lambda row: row['face']['median_ms']),
    'together, images/s': speed(lambda row: row['together']['median_ms']),
    'apart, images/s': speed(lambda row: row['apart_ms']),
    'apart / together': [row['apart_to_together'] for row in rows],
    'together / face': [row['together_to_face'] for row in rows],
  }
