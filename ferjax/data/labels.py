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


def _mirror_ibug_68() -> np.ndarray:
  mirror = np.arange(68)
  pairs = [(i, 16 - i) for i in range(8)]
  pairs += [(17 + i, 26 - i) for i in range(5)]
  pairs += [(31, 35), (32, 34)]
  pairs += [(36, 45), (37, 44), (38, 43), (39, 42), (40, 47), (41, 46)]
  pairs += [(48, 54), (49, 53), (50, 52), (55, 59), (56, 58), (60, 64), (61, 63), (65, 67)]
  for left, right in pairs:
    mirror[left], mirror[right] = right, left
  return mirror


def mirrored_landmarks(indices: Sequence[int] | None = None) -> np.ndarray:
  """Where each landmark's mirror image stands: after a flip, `landmarks[mirrored]` is in order.

  Args:
    indices: Which of the 68 iBUG points are used, in order; all of them when None.

  Returns:
    int[k], positions within `indices`.

  Raises:
    InputError: an index is not one of 0..67, stands twice, or its mirror image is not used.
  """
  indices = list(range(68) if indices is None else indices)
  if len(set(indices)) != len(indices) or not set(indices) <= set(range(68)):
    raise InputError(f'landmark indices must be distinct and within 0..67, not {tuple(indices)}')
  mirror = _mirror_ibug_68()
  for i in indices:
    if mirror[i] not in indices:
      raise InputError(
        f'landmark {i} is used but its mirror image {mirror[i]} is not, so pictures cannot be '
        f'flipped: add {mirror[i]}, leave {i} out, or set config.augment.flip=0'
      )
  return np.array([indices.index(mirror[i]) for i in indices])
