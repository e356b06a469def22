"""Converts MediaPipe's face mesh to the 68 iBUG points, the pose, and estimates of action units.

For each iBUG point, `landmarks.tsv` in this folder lists the corresponding point of the 478 points
of the mesh, and its position on the average face: x to the right of the picture, y up, z towards
the viewer. The unit is the distance between the outer corners of the eyes. The average is over the
meshes that MediaPipe found on 309 rendered faces of people who are not in the test set, turned back
by their known poses and made symmetric. `right` and `left` are the subject's own.
"""

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

POINTS = 478

# Points that expressions hardly move: upper ends of the jaw line, nose, corners of the eyes.
RIGID = (0, 1, 2, 14, 15, 16, *range(27, 36), 36, 39, 42, 45)

# FACS action units and the ARKit blendshapes with the same definition; left and right are averaged.
# AU25 is the opening of the jaw minus the closing of the lips.
ACTION_UNITS = {
  'AU01': ('browInnerUp',),
  'AU02': ('browOuterUpLeft', 'browOuterUpRight'),
  'AU04': ('browDownLeft', 'browDownRight'),
  'AU05': ('eyeWideLeft', 'eyeWideRight'),
  'AU06': ('cheekSquintLeft', 'cheekSquintRight'),
  'AU07': ('eyeSquintLeft', 'eyeSquintRight'),
  'AU09': ('noseSneerLeft', 'noseSneerRight'),
  'AU10': ('mouthUpperUpLeft', 'mouthUpperUpRight'),
  'AU12': ('mouthSmileLeft', 'mouthSmileRight'),
  'AU14': ('mouthDimpleLeft', 'mouthDimpleRight'),
  'AU15': ('mouthFrownLeft', 'mouthFrownRight'),
  'AU16': ('mouthLowerDownLeft', 'mouthLowerDownRight'),
  'AU17': ('mouthShrugLower',),
  'AU18': ('mouthPucker',),
  'AU20': ('mouthStretchLeft', 'mouthStretchRight'),
  'AU22': ('mouthFunnel',),
  'AU24': ('mouthPressLeft', 'mouthPressRight'),
  'AU26': ('jawOpen',),
  'AU28': ('mouthRollLower', 'mouthRollUpper'),
  'AU45': ('eyeBlinkLeft', 'eyeBlinkRight'),
}


def _table() -> tuple[np.ndarray, np.ndarray]:
  with (Path(__file__).parent / 'landmarks.tsv').open(encoding='utf-8', newline='') as file:
    rows = list(csv.DictReader(file, delimiter='\t'))
  order = np.array([int(row['mesh']) for row in rows])
  return order, np.array([[float(row[axis]) for axis in 'xyz'] for row in rows])


MESH_TO_IBUG68, AVERAGE_FACE = _table()  # int[68]; f64[68, 3]


def landmarks(mesh: np.ndarray) -> np.ndarray:
  """The 68 iBUG points f64[68, 3] of a mesh f[478, 3]: pixels, y down, smaller z is nearer."""
  return np.asarray(mesh, np.float64)[MESH_TO_IBUG68]


def pose(points: np.ndarray) -> np.ndarray:
  """Pitch, yaw and roll of a face, f64[3] in radians, with the signs of a manifest.

  They are of the rotation Rz(roll) Ry(yaw) Rx(pitch) that maps the average face to the rigid points
  with the least squared distance (Kabsch, 1976); axes to the right, up and towards the viewer. With
  yaw > 0, the nose points to the right of the picture; with pitch > 0, down; with roll > 0, the
  face is turned counter-clockwise.

  Args:
    points: f[68, 3], the result of `landmarks`, of any scale and position.
  """
  seen = np.asarray(points, np.float64)[list(RIGID)] * (1, -1, -1)
  average = AVERAGE_FACE[list(RIGID)]
  turned, _ = Rotation.align_vectors(seen - seen.mean(0), average - average.mean(0))
  return turned.as_euler('xyz')


def action_units(blendshapes: Mapping[str, float]) -> dict[str, float]:
  """Intensities 0 to 5, by OpenFace's column names, estimated from blendshapes 0 to 1.

  An intensity is five times the blendshape, which is the share of the largest possible movement. It
  is only an estimate, not the coding of a FACS expert.
  """
  found = {
    name: sum(blendshapes[part] for part in parts) / len(parts)
    for name, parts in ACTION_UNITS.items()
  }
  found['AU25'] = blendshapes['jawOpen'] - blendshapes['mouthClose']
  return {f'{name}_r': min(max(5 * found[name], 0.0), 5.0) for name in sorted(found)}
