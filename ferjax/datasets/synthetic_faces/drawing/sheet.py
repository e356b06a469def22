"""Contact sheets of drawn faces.

python -m ferjax.datasets.synthetic_faces.drawing.sheet OUT.png [--landmarks]
"""

import argparse

import cv2
import numpy as np

from ferjax.datasets.synthetic_faces.drawing import sample
from ferjax.labels import CLASSES

_POSES = (0, 0, 0, 30, -30, 60, -60, 0)


def sheet(
  *,
  size: int = 112,
  seed: int = 0,
  difficulty: float = 0.5,
  first: int = 0,
  landmarks: bool = False,
) -> np.ndarray:
  """A sheet u8[h, w, 3] RGB: a column for each expression, a row for each of eight people."""
  config = sample.Config(num=5000, size=size, seed=seed, difficulty=difficulty, subjects=100)
  plan = {}
  for row in sample.rows(config):
    plan.setdefault((row.subject, row.label, row.yaw_bin), row)
  lines = []
  for k, yaw in enumerate(_POSES):
    cells = []
    for label in CLASSES:
      drawn = sample.draw(config, plan[first + k, label, yaw])
      cell = drawn.image
      if landmarks:
        cell = cv2.resize(cell, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
        for x, y in (drawn.landmarks + 0.5) * 2 - 0.5:
          at = np.round(np.array([x, y]) * 8).astype(int).tolist()
          cv2.circle(cell, at, 12, (40, 255, 60), -1, cv2.LINE_AA, 3)
      cells.append(cell)
    lines.append(np.concatenate(cells, axis=1))
  picture = np.concatenate(lines)
  title = np.full((26, picture.shape[1], 3), 255, np.uint8)
  for k, label in enumerate(CLASSES):
    at = (k * picture.shape[1] // len(CLASSES) + 6, 18)
    cv2.putText(title, label, at, cv2.FONT_HERSHEY_SIMPLEX, 0.5, (20, 20, 20), 1, cv2.LINE_AA)
  return np.concatenate([title, picture])


def main() -> None:
  parser = argparse.ArgumentParser(
    prog='python -m ferjax.datasets.synthetic_faces.drawing.sheet', description=__doc__
  )
  parser.add_argument('out', help='the picture to write; its ending gives the format')
  parser.add_argument('--landmarks', action='store_true', help='draw the 68 landmarks')
  parser.add_argument('--size', type=int, default=112, help='pixels of one face')
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--first', type=int, default=0, help='the first of the eight people')
  parser.add_argument('--difficulty', type=float, default=0.5, help='0 to 1')
  options = parser.parse_args()
  picture = sheet(
    size=options.size,
    seed=options.seed,
    difficulty=options.difficulty,
    first=options.first,
    landmarks=options.landmarks,
  )
  jpeg = options.out.lower().endswith(('.jpg', '.jpeg'))
  quality = (cv2.IMWRITE_JPEG_QUALITY, 85) if jpeg else ()
  if not cv2.imwrite(options.out, picture[..., ::-1], quality):
    raise SystemExit(f'{options.out} could not be written: check its folder and its ending')


if __name__ == '__main__':
  main()
