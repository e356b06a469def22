"""Class names and landmark schemes. Both are identified by name, never by a bare integer."""

from collections.abc import Sequence

import numpy as np

from ferjax.errors import InputError

CLASSES = ('neutral', 'happiness', 'surprise', 'sadness', 'anger', 'disgust', 'fear')
CLASSES_8 = (*CLASSES, 'contempt')

SYNONYMS = {
  'happy': 'happiness',
  'smile': 'happiness',
  'surprised': 'surprise',
  'sad': 'sadness',
  'angry': 'anger',
  'disgusted': 'disgust',
  'fearful': 'fear',
  'afraid': 'fear',
}

# The class that annotators confuse with each class (asymmetric label noise of the LA-Net paper).
CONFUSED_WITH = {
  'anger': 'disgust',
  'disgust': 'anger',
  'fear': 'surprise',
  'happiness': 'neutral',
  'sadness': 'neutral',
  'surprise': 'anger',
  'neutral': 'sadness',
  'contempt': 'neutral',
}


def canonical(label: str) -> str:
  """The standard name of a class in lower case, such as `happiness` for `Happy`. Other names are
  returned unchanged."""
  label = label.strip().lower()
  return SYNONYMS.get(label, label)


_MIRRORED_68 = (
  *((i, 16 - i) for i in range(8)),
  *((17 + i, 26 - i) for i in range(5)),
  *((31, 35), (32, 34)),
  *((36, 45), (37, 44), (38, 43), (39, 42), (40, 47), (41, 46)),
  *((48, 54), (49, 53), (50, 52), (55, 59), (56, 58), (60, 64), (61, 63), (65, 67)),
)
_FROM_68 = {
  'ibug68': tuple(range(68)),
  'ibug51': tuple(range(17, 68)),
  'ibug49': tuple(i for i in range(17, 68) if i not in (60, 64)),
}
_FIVE_OF_68 = (tuple(range(36, 42)), tuple(range(42, 48)), (30,), (48,), (54,))
_FIVE_OF_19 = ((7,), (10,), (13,), (15,), (17,))


def _part_of_68(points: Sequence[int]) -> tuple[int, tuple[tuple[int, int], ...]]:
  place = {point: number for number, point in enumerate(points)}
  pairs = ((place[a], place[b]) for a, b in _MIRRORED_68 if a in place and b in place)
  return len(points), tuple(pairs)


# {scheme: (number of points, left-right pairs)}. `ibug68`: 300-W. `ibug51`: without the jaw.
# `ibug49`: also without the inner mouth corners. `aflw19`: AFLW without the ears (brows, eyes,
# nose, mouth, chin). `eyes_nose_mouth5`: both eyes, tip of the nose, mouth corners.
SCHEMES = {
  **{name: _part_of_68(points) for name, points in _FROM_68.items()},
  'aflw19': (19, ((0, 5), (1, 4), (2, 3), (6, 11), (7, 10), (8, 9), (12, 14), (15, 17))),
  'eyes_nose_mouth5': (5, ((0, 1), (3, 4))),
}


def landmark_scheme(points: int) -> str:
  """The name of the scheme with this number of points, '' if there is none."""
  return next((name for name, (count, _) in SCHEMES.items() if count == points), '')


def points_of(scheme: str, other: str) -> tuple[tuple[int, ...], ...] | None:
  """How the landmarks of a scheme come from those of another one.

  A scheme comes from itself, `ibug51` and `ibug49` from the larger ones of iBUG, and
  `eyes_nose_mouth5` from all. The centre of an eye is the mean of iBUG's six points around it, or
  the point of AFLW.

  Args:
    scheme: The scheme that is wanted.
    other: The scheme of the landmarks that are there; '' if it is unknown.

  Returns:
    For each landmark of `scheme` the numbers of the landmarks of `other` of which it is the mean.
    None if they do not come from them.
  """
  if other in SCHEMES and scheme == other:
    return tuple((i,) for i in range(SCHEMES[scheme][0]))
  if (scheme, other) == ('eyes_nose_mouth5', 'aflw19'):
    return _FIVE_OF_19
  if other not in _FROM_68:
    return None
  place = {point: number for number, point in enumerate(_FROM_68[other])}
  of_68 = _FIVE_OF_68
  if scheme != 'eyes_nose_mouth5':
    of_68 = tuple((point,) for point in _FROM_68.get(scheme, (-1,)))
  if not all(point in place for group in of_68 for point in group):
    return None
  return tuple(tuple(place[point] for point in group) for group in of_68)


def mirrored_landmarks(indices: Sequence[int] | None = None, scheme: str = 'ibug68') -> np.ndarray:
  """The position of each landmark's mirror image: `landmarks[mirrored]` is in order after a flip.

  Args:
    indices: The points of the scheme that are used, in order; None for all.
    scheme: A key of `SCHEMES`.

  Returns:
    int[k], positions within `indices`.

  Raises:
    InputError: an index is not a point of the scheme or occurs twice, or the mirror image of a
      point is missing.
  """
  count, pairs = SCHEMES[scheme]
  indices = list(range(count) if indices is None else indices)
  if len(set(indices)) != len(indices) or not set(indices) <= set(range(count)):
    raise InputError(
      f'landmark indices must be distinct and within 0..{count - 1}, not {tuple(indices)}'
    )
  mirror = dict(pairs) | {right: left for left, right in pairs}
  for i in indices:
    if mirror.get(i, i) not in indices:
      raise InputError(
        f'landmark {i} is used but its mirror image {mirror[i]} is not, so pictures cannot be '
        f'flipped: add {mirror[i]}, leave {i} out, or set config.augment.flip=0'
      )
  return np.array([indices.index(mirror.get(i, i)) for i in indices])


def estimated_mirror(points: np.ndarray) -> np.ndarray | None:
  """Finds the mirror image of each landmark from the mean of many faces.

  The mean face is symmetric if heads turn to both sides equally often. Its mirror image is assigned
  to itself, point by point.

  Args:
    points: f[n, k, 2], in pixels.

  Returns:
    int[k] as from `mirrored_landmarks`. None if the assignment is doubtful: it is not mutual, or
    the distance to some mirror image is more than half the distance to the next point.
  """
  from scipy.optimize import linear_sum_assignment  # imported here because it is slow to import

  shape = points.astype(np.float64)
  shape = shape - shape.mean(1, keepdims=True)
  mean = (shape / np.maximum(shape.std((1, 2), keepdims=True), 1e-9)).mean(0)
  distance = np.linalg.norm(mean[:, None] * (-1, 1) - mean[None], axis=-1)
  mirror = linear_sum_assignment(distance)[1]
  found = distance[np.arange(len(mean)), mirror]
  others = np.where(np.arange(len(mean)) == mirror[:, None], np.inf, distance).min(1)
  clear = (mirror[mirror] == np.arange(len(mean))).all() and (2 * found < others).all()
  return mirror if clear else None
