"""Checks of DML-Net's settings, `config.method`, before anything is built."""

from ferjax.errors import InputError, choose
from ferjax.losses import triplet
from ferjax.methods.dmlnet.networks import HEADS_ON
from ferjax.methods.dmlnet.regions import BOXES
from ferjax.methods.dmlnet.terms import ANCHORS


def names(
  heads_on: str, anchors: str, hinge: str, reduction: str, mining: str, region_boxes: str
) -> None:
  """Raises an InputError for a name that does not exist; it suggests the nearest."""
  choose('config.method.heads_on', heads_on, HEADS_ON)
  choose('config.method.anchors', anchors, ANCHORS)
  choose('config.method.hinge', hinge, triplet.HINGES)
  choose('config.method.reduction', reduction, triplet.REDUCTIONS)
  choose('config.method.mining', mining, triplet.MINING)
  choose('config.method.region_boxes', region_boxes, BOXES)


def warmup(steps: int) -> None:
  """Raises an InputError for a number of steps below 0."""
  if steps < 0:
    raise InputError(f'config.method.warmup_steps={steps}: at least 0')


def widths(fusion: int, head: int, embedding: int) -> None:
  """Raises an InputError for a layer without features."""
  for name, value in {'fusion': fusion, 'head': head, 'embedding': embedding}.items():
    if value < 1:
      raise InputError(f'config.method.{name}_width={value}: at least 1')


def deviations(dense: float, softmax: float) -> None:
  """Raises an InputError for first weights that would all be 0."""
  for name, value in {'dense': dense, 'softmax': softmax}.items():
    if value <= 0:
      raise InputError(f'config.method.{name}_stddev={value}: it must be above 0')
