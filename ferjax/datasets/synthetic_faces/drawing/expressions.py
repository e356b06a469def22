"""Expressions as combinations of action units, and their label distributions."""

from typing import NamedTuple

import numpy as np

from ferjax.datasets.synthetic_faces.drawing.action_units import ACTION_UNITS, MAXIMUM
from ferjax.labels import CLASSES

# Similar to EMFACS: for each action unit, (intensity at full strength, probability). The variants
# of an expression are equally likely.
RECIPES: dict[str, tuple[dict[str, tuple[float, float]], ...]] = {
  'neutral': ({},),
  'happiness': (
    {'AU06': (3.6, 0.9), 'AU12': (4.2, 1.0), 'AU25': (2.4, 0.55), 'AU07': (1.5, 0.2)},
    {'AU06': (3.8, 0.9), 'AU12': (4.6, 1.0), 'AU25': (3.2, 0.9), 'AU26': (1.6, 0.6)},
  ),
  'surprise': (
    {
      'AU01': (4.2, 0.95),
      'AU02': (4.2, 0.95),
      'AU05': (3.0, 0.8),
      'AU25': (2, 0.9),
      'AU26': (4.6, 1),
    },
    {'AU01': (3.8, 0.9), 'AU02': (4.2, 0.9), 'AU05': (3.6, 0.9), 'AU26': (3.4, 0.9)},
  ),
  'sadness': (
    {'AU01': (4.2, 0.95), 'AU04': (2.0, 0.7), 'AU15': (4.0, 0.95), 'AU17': (2.2, 0.6)},
    {'AU01': (3.8, 0.9), 'AU15': (3.6, 0.9), 'AU45': (1.4, 0.6), 'AU17': (1.6, 0.4)},
  ),
  'anger': (
    {
      'AU04': (4.4, 1.0),
      'AU05': (1.6, 0.4),
      'AU07': (3.4, 0.8),
      'AU23': (4.2, 0.9),
      'AU17': (2, 0.4),
    },
    {
      'AU04': (4.4, 1.0),
      'AU07': (3.2, 0.8),
      'AU10': (2.0, 0.5),
      'AU25': (3.0, 0.9),
      'AU23': (2, 0.6),
    },
  ),
  'disgust': (
    {
      'AU09': (4.4, 1.0),
      'AU10': (3.0, 0.7),
      'AU17': (2.2, 0.5),
      'AU15': (1.5, 0.4),
      'AU07': (2, 0.4),
    },
    {
      'AU09': (3.4, 0.8),
      'AU10': (4.4, 1.0),
      'AU25': (2.2, 0.8),
      'AU04': (1.2, 0.3),
      'AU06': (1.5, 0.3),
    },
  ),
  'fear': (
    {
      **{'AU01': (4.2, 0.95), 'AU02': (2.2, 0.7), 'AU04': (2.8, 0.8), 'AU05': (4.2, 0.95)},
      **{'AU20': (4.2, 0.9), 'AU25': (2.4, 0.9), 'AU26': (1.2, 0.4), 'AU07': (1.2, 0.2)},
    },
  ),
}
_SUBTLE = 0.75  # below this strength, an expression is partly neutral


class Expression(NamedTuple):
  """The expression of a face: its action units and its label distribution."""

  action_units: np.ndarray  # f32[a], 0..5
  distribution: np.ndarray  # f32[C], sum 1


def _draw_recipe(rng, name, drop_out):
  variants = RECIPES[name]
  variant = variants[rng.integers(len(variants))]
  units = np.zeros(len(ACTION_UNITS))
  for unit, (intensity, chance) in variant.items():
    present = rng.uniform() < 1 - (1 - chance) * drop_out
    units[ACTION_UNITS.index(unit)] = present * intensity * np.clip(rng.normal(1, 0.16), 0.5, 1.5)
  return units


def distribution(first: str, second: str, share: float, strength: float) -> np.ndarray:
  """The label distribution of a blend, f32[C] with sum 1.

  Args:
    first: The class that dominates.
    second: The class blended in; may equal `first`.
    share: Weight of the first class, 0.5..1.
    strength: Strength of the whole expression; below 0.75 part of the mass is neutral, growing to
      all of it at strength 0.
  """
  visible = min(strength / _SUBTLE, 1.0)
  result = np.zeros(len(CLASSES))
  result[CLASSES.index(first)] += visible * share
  result[CLASSES.index(second)] += visible * (1 - share)
  result[CLASSES.index('neutral')] += 1 - visible
  return (result / result.sum()).astype(np.float32)


def draw(rng: np.random.Generator, name: str, difficulty: float) -> Expression:
  """Draws an expression whose most probable label is `name`.

  Args:
    rng: Random numbers.
    name: One of CLASSES.
    difficulty: 0 (strong, pure expressions) to 1 (weak ones, blends, missing units).

  Returns:
    Intensities and label distribution. The largest entry of the distribution is that of `name`.
  """
  others = [c for c in CLASSES if c not in ('neutral', name)]
  if name == 'neutral':
    first = others[rng.integers(len(others))]
    second, share = first, 1.0
    strength = rng.uniform(0, 0.15 + 0.18 * difficulty) * (rng.uniform() < 0.7)
  else:
    first = second = name
    share = 1.0
    strength = rng.uniform(0.85 - 0.42 * difficulty, 1.1)
    if rng.uniform() < 0.6 * difficulty:
      second = others[rng.integers(len(others))]
      share = rng.uniform(0.53, 0.85)
      strength = max(strength, _SUBTLE * 1.1 / (1 + share))
  units = share * _draw_recipe(rng, first, 2 * difficulty)
  if second != first:
    units += (1 - share) * _draw_recipe(rng, second, 2 * difficulty)
  units *= strength
  habit = rng.uniform(0, 0.5 + 0.5 * difficulty, len(units)) * (rng.uniform(size=len(units)) < 0.25)
  habit[[ACTION_UNITS.index('AU25'), ACTION_UNITS.index('AU26')]] *= 0.35
  units = np.clip(units + habit, 0, MAXIMUM).astype(np.float32)
  return Expression(units, distribution(first, second, share, strength))
