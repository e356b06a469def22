"""Enlarges and reduces pictures in plain NumPy: the same bits on every processor."""

import numpy as np


def _taps(coarse, fine):
  """Four neighbours i64[4, fine] and Catmull-Rom weights f32[4, fine] along one axis."""
  at = (np.arange(fine) + 0.5) * (coarse / fine) - 0.5
  first = np.floor(at).astype(int)
  t = at - first
  weights = 0.5 * np.stack(
    [
      t * (-1 + t * (2 - t)),
      2 + t * t * (3 * t - 5),
      t * (1 + t * (4 - 3 * t)),
      t * t * (t - 1),
    ]
  )
  return np.clip(first + np.arange(-1, 3)[:, None], 0, coarse - 1), weights.astype(np.float32)


def enlarge(coarse: np.ndarray, rows: int, columns: int) -> np.ndarray:
  """Smoothly enlarges f32[h, w, ...] to f32[rows, columns, ...]."""
  coarse = np.asarray(coarse, np.float32)
  for axis, size in ((1, columns), (0, rows)):
    shape = [1] * coarse.ndim
    shape[axis] = size
    neighbours, weights = _taps(coarse.shape[axis], size)
    result = np.take(coarse, neighbours[0], axis=axis) * weights[0].reshape(shape)
    for tap in (1, 2, 3):
      result += np.take(coarse, neighbours[tap], axis=axis) * weights[tap].reshape(shape)
    coarse = result
  return coarse


def reduce_3_to_2(picture: np.ndarray) -> np.ndarray:
  """Area averages of u8[3h, 3w, c] as u8[2h, 2w, c]: along each axis, three pixels become two."""
  wide = picture.astype(np.uint16)
  a, b, c = wide[0::3], wide[1::3], wide[2::3]
  rows = np.stack([2 * a + b, b + 2 * c], axis=1).reshape(-1, *wide.shape[1:])
  a, b, c = rows[:, 0::3], rows[:, 1::3], rows[:, 2::3]
  both = np.stack([2 * a + b, b + 2 * c], axis=2)
  return ((both + 4) // 9).astype(np.uint8).reshape(len(rows), -1, picture.shape[2])
