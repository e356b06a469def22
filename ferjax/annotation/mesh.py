"""MediaPipe's face mesh -> the 68 iBUG points, the pose, and estimates of action units.

`landmarks.tsv` in this folder lists which of the mesh's 478 points lies on which iBUG point, and
where that point is on the average face: x to the right of the picture, y up, z towards the viewer,
in distances between the outer corners of the eyes. The average is over the meshes that MediaPipe
found on 309 rendered faces of people who are not in the test set, turned back by their known poses
and made symmetric. `right` and `left` are the subject's own.
"""

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

POINTS = 478

# Points that expressions hardly move: the upper jaw, the nose, the corners of the eyes.
RIGID = (0, 1, 2, 14, 15, 16, *range(27, 36), 36, 39, 42, 45)

# FACS action units from ARKit's blendshapes, whose definitions they follow; left and right are
# averaged. AU25 is what remains of an open jaw while the lips are not kept closed.
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
  """Pitch, yaw and roll of a face, f64[3] in radians, in a manifest's convention.

  The rotation Rz(roll) Ry(yaw) Rx(pitch) that carries the average face onto the rigid points with
  the least squared distance (Kabsch, 1976); axes to the right, up and towards the viewer. Yaw > 0
  turns the nose to the picture's right, pitch > 0 lowers it, roll > 0 turns the face
  counter-clockwise.

  Args:
    points: f[68, 3], as `landmarks` gives them, of any scale and place.
  """
  seen = np.asarray(points, np.float64)[list(RIGID)] * (1, -1, -1)
  average = AVERAGE_FACE[list(RIGID)]
  turned, _ = Rotation.align_vectors(seen - seen.mean(0), average - average.mean(0))
  return turned.as_euler('xyz')


def action_units(blendshapes: Mapping[str, float]) -> dict[str, float]:
  """Intensities 0 to 5, by OpenFace's column names, estimated from blendshapes 0 to 1.

  Five times the blendshape, which says how far towards its own extreme a movement has gone: an
  estimate, made by nobody who was trained in FACS.
  """
  found = {
    name: sum(blendshapes[part] for part in parts) / len(parts)
    for name, parts in ACTION_UNITS.items()
  }
  found['AU25'] = blendshapes['jawOpen'] - blendshapes['mouthClose']
  return {f'{name}_r': min(max(5 * found[name], 0.0), 5.0) for name in sorted(found)}
