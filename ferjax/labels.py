"""Class names and landmark schemes: everything here goes by name, never by a bare integer."""

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

# What a wrong annotator confuses (asymmetric label noise of the LA-Net paper).
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
  """The field's name of a class: lower case, `Happy` -> `happiness`; other names pass unchanged."""
  label = label.strip().lower()
  return SYNONYMS.get(label, label)


# {scheme: (points, pairs of left and right)}. `ibug68`: 300-W. `aflw19`: AFLW without the ears
# (brows, eyes, nose, mouth, chin). `eyes_nose_mouth5`: both eyes, tip of the nose, mouth corners.
SCHEMES = {
  'ibug68': (
    68,
    (
      *((i, 16 - i) for i in range(8)),
      *((17 + i, 26 - i) for i in range(5)),
      *((31, 35), (32, 34)),
      *((36, 45), (37, 44), (38, 43), (39, 42), (40, 47), (41, 46)),
      *((48, 54), (49, 53), (50, 52), (55, 59), (56, 58), (60, 64), (61, 63), (65, 67)),
    ),
  ),
  'aflw19': (19, ((0, 5), (1, 4), (2, 3), (6, 11), (7, 10), (8, 9), (12, 14), (15, 17))),
  'eyes_nose_mouth5': (5, ((0, 1), (3, 4))),
}


def landmark_scheme(points: int) -> str:
  """The scheme that has so many points, '' where none has."""
  return next((name for name, (count, _) in SCHEMES.items() if count == points), '')


def mirrored_landmarks(indices: Sequence[int] | None = None, scheme: str = 'ibug68') -> np.ndarray:
  """Where each landmark's mirror image stands: after a flip, `landmarks[mirrored]` is in order.

  Args:
    indices: Which points of the scheme are used, in order; all of them when None.
    scheme: One of `SCHEMES`.

  Returns:
    int[k], positions within `indices`.

  Raises:
    InputError: an index is not one of the scheme's, stands twice, or its mirror image is not used.
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
  """Which landmark is the mirror image of which, from the mean of many faces.

  The mean face is symmetric where heads turn to both sides alike; its mirror image is assigned to
  itself point by point.

  Args:
    points: f[n, k, 2], in pixels.

  Returns:
    int[k] as `mirrored_landmarks`; None where it is doubtful: a point's mirror image is not another
    whose mirror image it is, or is not twice as near as the next point.
  """
  from scipy.optimize import linear_sum_assignment  # here: its import takes long

  shape = points.astype(np.float64)
  shape = shape - shape.mean(1, keepdims=True)
  mean = (shape / np.maximum(shape.std((1, 2), keepdims=True), 1e-9)).mean(0)
  distance = np.linalg.norm(mean[:, None] * (-1, 1) - mean[None], axis=-1)
  mirror = linear_sum_assignment(distance)[1]
  found = distance[np.arange(len(mean)), mirror]
  others = np.where(np.arange(len(mean)) == mirror[:, None], np.inf, distance).min(1)
  clear = (mirror[mirror] == np.arange(len(mean))).all() and (2 * found < others).all()
  return mirror if clear else None
