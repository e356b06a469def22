"""Identity shapes: smooth displacements of the average head by which people differ."""

import numpy as np

from ferjax.datasets.synthetic_faces.drawing.surface import bump

SHAPES = (
  *('face_length', 'face_width', 'jaw_width', 'jaw_angle', 'chin_length', 'chin_width'),
  *('chin_forward', 'cheekbones', 'fullness', 'forehead_height', 'forehead_slope', 'brow_ridge'),
  *('brow_height', 'brow_tilt', 'eye_distance', 'eye_size', 'eye_tilt', 'eye_depth'),
  *('nose_length', 'nose_width', 'nose_bridge', 'nose_tip', 'nose_tilt'),
  *('mouth_width', 'mouth_height', 'lip_fullness', 'upper_lip', 'neck_width'),
)


def _ramp(value, start, end):
  t = np.clip((value - start) / (end - start), 0, 1)
  return t * t * (3 - 2 * t)


def displacements(vertices: np.ndarray) -> np.ndarray:
  """Displacements of the vertices at +1 standard deviation, f64[i, n, 3], in the order of
  SHAPES."""
  x, y, z = np.asarray(vertices, float).T
  side = np.tanh(x / 6)
  front = _ramp(z, 0, 45)
  zero = np.zeros_like(x)

  def near(x0, y0, width, height):
    return bump(x, y, x0, y0, width, height) * front

  below = _ramp(-y, 10, 120)
  jaw = _ramp(-y, 15, 75) * (1 - _ramp(-y, 125, 160))
  chin = bump(x, y, 0, -106, 24, 17) * front
  eye = near(31, 0, 15, 12)
  lids = near(31, 0, 17, 7)
  brow = near(33, 21, 24, 8)
  nose = near(0, -30, 11, 17)
  wings = near(12, -42, 8, 8)
  tip = near(0, -36, 9, 8)
  bridge = near(0, -12, 9, 15)
  mouth = near(0, -69, 30, 13)
  lip_side = np.tanh((y + 68.3) / 1.5)
  lips = near(0, -69.5, 20, 7.5)
  cheek = near(46, -24, 15, 14)
  hollow = np.exp(-0.5 * (((np.abs(x) - 50) / 18) ** 2 + ((y + 62) / 22) ** 2)) * _ramp(z, -20, 20)
  forehead = _ramp(y, 25, 75)
  shapes = {
    'face_length': (zero, 0.055 * (y + 10) * _ramp(y, -150, -60), zero),
    'face_width': (0.05 * x * _ramp(y, -130, -60), zero, zero),
    'jaw_width': (0.085 * x * jaw, zero, zero),
    'jaw_angle': (zero, -5 * bump(x, y, 58, -70, 18, 22), zero),
    'chin_length': (zero, -4.5 * chin - 1.0 * below * front, zero),
    'chin_width': (5 * np.tanh(x / 12) * bump(x, y, 18, -103, 12, 16) * front, zero, zero),
    'chin_forward': (zero, zero, 4.5 * chin),
    'cheekbones': (2.2 * side * cheek, zero, 2.8 * cheek),
    'fullness': (3.2 * side * hollow, zero, 2.0 * hollow),
    'forehead_height': (zero, 6 * forehead, zero),
    'forehead_slope': (zero, zero, -7 * forehead * front),
    'brow_ridge': (zero, -0.5 * brow, 2.6 * near(26, 15, 20, 8)),
    'brow_height': (zero, 2.3 * brow, zero),
    'brow_tilt': (zero, 2.0 * brow * (np.abs(x) - 33) / 20, zero),
    'eye_distance': (2.3 * side * near(31, 4, 18, 18), zero, zero),
    'eye_size': (0.05 * (x - 31 * side) * eye, 0.13 * y * eye, zero),
    'eye_tilt': (zero, 1.5 * lids * (np.abs(x) - 31) / 15, zero),
    'eye_depth': (zero, zero, -1.3 * near(25, 8, 14, 9)),
    'nose_length': (zero, -3.2 * near(0, -40, 18, 13), 0.8 * tip),
    'nose_width': (2.6 * np.tanh(x / 5) * (wings + 0.5 * tip), zero, zero),
    'nose_bridge': (-0.8 * np.tanh(x / 4) * bridge, zero, 3.2 * bridge),
    'nose_tip': (1.0 * np.tanh(x / 4) * tip, zero, 3.0 * tip + 0.8 * nose),
    'nose_tilt': (zero, 2.6 * tip, 0.5 * tip),
    'mouth_width': (0.12 * x * mouth, zero, -0.6 * mouth),
    'mouth_height': (zero, 2.4 * near(0, -69, 32, 15), zero),
    'lip_fullness': (zero, 1.9 * lip_side * lips * np.minimum(np.abs(y + 68.3) / 5, 1), 1.2 * lips),
    'upper_lip': (zero, 1.4 * near(0, -62, 20, 5), 0.8 * near(0, -63, 18, 5)),
    'neck_width': (0.12 * x * _ramp(-y, 110, 130) * (1 - _ramp(-y, 150, 190)), zero, zero),
  }
  return np.stack([np.stack(np.broadcast_arrays(*shapes[name]), axis=-1) for name in SHAPES])
