"""The description of a head for the renderer: a mesh, its shapes and its landmarks."""

from typing import NamedTuple

import numpy as np


class FaceModel(NamedTuple):
  """A face mesh with linear shapes, in millimetres.

  x points to the image's right (the subject's left), y up and z towards the viewer. The vertical
  axis of the head is x = z = 0. Triangles are counter-clockwise when seen from outside.
  """

  vertices: np.ndarray  # f32[v, 3], the neutral average head
  triangles: np.ndarray  # i32[t, 3]
  mane: np.ndarray  # i32[m, 3], triangles of long hair, drawn for some people
  identity: np.ndarray  # f32[i, v, 3], displacement at +1 standard deviation
  action_units: np.ndarray  # f32[a, v, 3], displacement at intensity 5, as in ACTION_UNITS
  landmarks: np.ndarray  # i32[68], vertex of each iBUG landmark
  texels: np.ndarray  # f32[v, 2], position of the vertex in the texture (column, row)
  occlusion: np.ndarray  # f32[v], share of the ambient light that arrives
  gloss: np.ndarray  # f32[v], strength of the highlight
  eyes: np.ndarray  # i32[e, 2], vertices of the two eyeballs: (vertex, 0 right or 1 left)
  eye_centres: np.ndarray  # f32[2, 3], right and left
  eye_radius: float  # millimetres; 0 when lids need not slide over the eyeball
  lids: np.ndarray  # i32[l, 2], vertices that must stay outside the eyeball: (vertex, 0 or 1)
  lips: np.ndarray  # i32[p, 2], facing vertices of the inner upper and lower lip
  hair: np.ndarray  # f32[v], 0..1, how much the hair's thickness moves the vertex outwards
