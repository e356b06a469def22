"""A second face model for the same renderer: a checkout of ICT-FaceKit, loaded from a folder.

ICT-FaceKit (USC Institute for Creative Technologies, MIT licence) is not part of ferjax. Its folder
`FaceXModel` contains Wavefront OBJ meshes of the same topology:

  generic_neutral_mesh.obj   the average head
  identity000.obj ...        the average head with one identity shape
  browDown_L.obj ...         the average head with one expression shape
  vertex_indices.json        {"expressions": [names], "idx_to_landmark_verts": [68 vertices], ...}
"""

import json
import os
from pathlib import Path

import numpy as np

from ferjax.datasets.synthetic_faces.drawing import head, points
from ferjax.datasets.synthetic_faces.drawing.action_units import ACTION_UNITS
from ferjax.datasets.synthetic_faces.drawing.model import FaceModel
from ferjax.errors import InputError

NEUTRAL = 'generic_neutral_mesh.obj'
INDICES = 'vertex_indices.json'
_MILLIMETRES = 10.0  # the model's unit is a centimetre

# The expression shapes of each action unit, for both sides, with their weights at intensity 5.
SHAPES = {
  'AU01': {'browInnerUp': 1.0},
  'AU02': {'browOuterUp': 1.0},
  'AU04': {'browDown': 1.0},
  'AU05': {'eyeWide': 1.0},
  'AU06': {'cheekRaiser': 0.8, 'cheekSquint': 0.4},
  'AU07': {'eyeSquint': 1.0},
  'AU09': {'noseSneer': 1.0},
  'AU10': {'mouthUpperUp': 0.9},
  'AU12': {'mouthSmile': 0.9},
  'AU14': {'mouthDimple': 0.9},
  'AU15': {'mouthFrown': 1.0},
  'AU17': {'mouthShrugLower': 0.9},
  'AU20': {'mouthStretch': 0.9},
  'AU23': {'mouthPress': 0.6, 'mouthRollLower': 0.4, 'mouthRollUpper': 0.4},
  'AU25': {'mouthLowerDown': 0.5, 'mouthUpperUp': 0.2},
  'AU26': {'jawOpen': 0.6},
  'AU45': {'eyeBlink': 1.0},
}


def read_obj(path: str | os.PathLike) -> tuple[np.ndarray, np.ndarray]:
  """Reads vertices and triangles of a Wavefront OBJ file. Polygons are split into triangles.

  Args:
    path: The file.

  Returns:
    Vertices f32[v, 3] and triangles i32[t, 3].

  Raises:
    InputError: The file does not exist, a line cannot be read, or a line names a vertex that does
      not exist.
  """
  vertices, triangles = [], []
  with open(path, encoding='utf-8') as lines:
    for number, line in enumerate(lines, start=1):
      words = line.split()
      try:
        if words[:1] == ['v']:
          vertices.append([float(word) for word in words[1:4]])
          if len(vertices[-1]) != 3:
            raise ValueError('fewer than three coordinates')
        elif words[:1] == ['f']:
          corners = [int(word.split('/')[0]) for word in words[1:]]
          corners = [c - 1 if c > 0 else len(vertices) + c for c in corners]
          triangles += [(corners[0], *pair) for pair in zip(corners[1:], corners[2:], strict=False)]
      except ValueError as error:
        raise InputError(
          f'{path}, line {number}: {line.strip()!r} is not Wavefront OBJ ({error}). '
          'Check out the model again: the file may be incomplete or a Git LFS pointer.'
        ) from None
  vertices = np.array(vertices, np.float32).reshape(-1, 3)
  triangles = np.array(triangles, np.int32).reshape(-1, 3)
  if not len(vertices):
    raise InputError(f'{path} has no vertices: is it a Git LFS pointer? Check out the model again.')
  if len(triangles) and not 0 <= triangles.min() <= triangles.max() < len(vertices):
    raise InputError(
      f'{path}: a face names vertex {triangles.max() + 1} of {len(vertices)}: the file is damaged. '
      'Check out the model again.'
    )
  return vertices, triangles


def _read_indices(folder):
  path = folder / INDICES
  if not path.is_file():
    raise InputError(
      f'{path} is missing: give the folder FaceXModel of an ICT-FaceKit checkout, the one with '
      f'{NEUTRAL} and {INDICES}.'
    )
  try:
    indices = json.loads(path.read_text(encoding='utf-8'))
  except json.JSONDecodeError as error:
    raise InputError(f'{path} is not JSON ({error}): check out the model again.') from None
  for key in ('expressions', 'idx_to_landmark_verts'):
    if key not in indices:
      raise InputError(
        f'{path} has no {key!r} (it has {sorted(indices)}): is this ICT-FaceKit version 1 or later?'
      )
  landmarks = np.asarray(indices['idx_to_landmark_verts']).ravel()
  if landmarks.shape != (68,) or landmarks.dtype.kind not in 'iu':
    raise InputError(
      f"{path}: 'idx_to_landmark_verts' must be 68 vertex numbers, one for each iBUG landmark; "
      f'found {len(landmarks)} of kind {landmarks.dtype}.'
    )
  return list(indices['expressions']), landmarks.astype(np.int32)


def _read_shape(path, base):
  if not path.is_file():
    raise InputError(
      f'{path} is missing, but {INDICES} lists it: the checkout is incomplete. '
      'Check out the model again.'
    )
  vertices, _ = read_obj(path)
  if len(vertices) != len(base):
    raise InputError(
      f'{path} has {len(vertices)} vertices, but {NEUTRAL} has {len(base)}: the meshes are of '
      'different versions. Check out one version.'
    )
  return (vertices - base) * _MILLIMETRES


def _texels(vertices, landmarks):
  """The place of each vertex in our texture: the sheet is warped so that the landmarks agree."""
  from scipy.interpolate import RBFInterpolator  # imported here: slow to import, and rarely used

  ours = head.build()
  x, y, z = vertices.T
  sheet = np.stack([np.arctan2(x, z - z.mean()) * points.ARC, y], axis=-1)
  knots, which = np.unique(np.round(sheet[landmarks], 3), axis=0, return_index=True)
  bend = RBFInterpolator(knots, ours.texels[ours.landmarks][which], smoothing=1e-3)
  texels = bend(sheet)
  low, high = np.zeros(2), np.array(head.SHEET) - 1
  texels = np.clip(texels, low, high)
  for eye in (landmarks[36:42], landmarks[42:48]):
    corners = vertices[eye, :2]
    middle = corners.mean(axis=0)
    rim = corners[np.argsort(np.arctan2(*(corners - middle).T[::-1]))]
    step = np.roll(rim, -1, axis=0) - rim
    offset = vertices[:, None, :2] - rim
    inside = (step[:, 0] * offset[..., 1] - step[:, 1] * offset[..., 0] > 1e-3).all(axis=1)
    inside &= z > z.mean()
    flat = (vertices[inside, :2] - middle) * (1, -1)
    texels[inside] = np.array(head.EYE_ORIGIN) + (flat / head.EYE_SPAN + 0.5) * head.EYE_TEXELS
  return texels.astype(np.float32)


def load(folder: str | os.PathLike, *, identities: int | None = None) -> FaceModel:
  """Reads a model in the layout of ICT-FaceKit.

  The model gets this package's texture, aligned by the 68 landmarks. Its eyes do not turn, and its
  hair has no thickness. Its neutral face has the same centre as our own.

  Args:
    folder: The folder with the OBJ files and `vertex_indices.json`.
    identities: Number of identity shapes to read; None for all.

  Returns:
    The model, with this package's action units and 68 landmarks.

  Raises:
    InputError: A file is missing, cannot be read, or does not fit the others. The message names the
      file and the solution.
  """
  folder = Path(folder)
  names, landmarks = _read_indices(folder)
  if not (folder / NEUTRAL).is_file():
    raise InputError(
      f'{folder / NEUTRAL} is missing: give the folder FaceXModel of an ICT-FaceKit checkout.'
    )
  base, triangles = read_obj(folder / NEUTRAL)
  if not 0 <= landmarks.min() <= landmarks.max() < len(base):
    raise InputError(
      f"{folder / INDICES}: 'idx_to_landmark_verts' names vertex {landmarks.max()}, but {NEUTRAL} "
      f'has {len(base)}. Check out one version.'
    )
  files = sorted(folder.glob('identity*.obj'))[:identities]
  if not files:
    raise InputError(
      f'{folder} has no identity000.obj: the checkout is incomplete. Check out the model again.'
    )
  identity = np.stack([_read_shape(path, base) for path in files])
  units = np.zeros((len(ACTION_UNITS), *base.shape), np.float32)
  for index, unit in enumerate(ACTION_UNITS):
    wanted = {f'{n}{side}': w for n, w in SHAPES[unit].items() for side in ('', '_L', '_R')}
    present = [name for name in wanted if name in names]
    if not present:
      raise InputError(
        f"{folder / INDICES}: 'expressions' has none of {sorted(SHAPES[unit])}, which make up "
        f'{unit}. Is this ICT-FaceKit?'
      )
    for name in present:
      units[index] += wanted[name] * _read_shape(folder / f'{name}.obj', base)

  eyes = landmarks[36:48]
  origin = base[eyes].mean(axis=0)
  middle = base[:, 2].mean()
  vertices = (base - (origin[0], origin[1], middle)) * np.float32(_MILLIMETRES)
  count = len(vertices)
  return FaceModel(
    vertices=vertices.astype(np.float32),
    triangles=triangles,
    mane=np.zeros((0, 3), np.int32),
    identity=identity.astype(np.float32),
    action_units=units,
    landmarks=landmarks,
    texels=_texels(vertices, landmarks),
    occlusion=np.ones(count, np.float32),
    gloss=np.full(count, 0.3, np.float32),
    eyes=np.zeros((0, 2), np.int32),
    eye_centres=np.zeros((2, 3), np.float32),
    eye_radius=0.0,
    lids=np.zeros((0, 2), np.int32),
    lips=np.zeros((0, 2), np.int32),
    hair=np.zeros(count, np.float32),
  )
