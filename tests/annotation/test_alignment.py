"""The points of a mesh, the pose of a face, and its crop."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from ferjax.annotation import alignment, detector, mesh
from ferjax.datasets.synthetic_faces.drawing import render
from ferjax.labels import mirrored_landmarks


def test_the_mapping_is_symmetric_and_in_order():
  order, face = mesh.MESH_TO_IBUG68, mesh.AVERAGE_FACE
  assert len(set(order)) == 68 and order.min() >= 0 and order.max() < 468
  np.testing.assert_array_equal(face[mirrored_landmarks()] * (-1, 1, 1), face)
  assert (np.diff(face[:17, 0]) > 0).all() and face[:, 1].argmin() == 8  # jaw: right ear to left
  assert (np.diff(face[17:27, 0]) > 0).all() and (np.diff(face[31:36, 0]) > 0).all()
  assert (np.diff(face[27:31, 1]) < 0).all() and face[:, 2].argmax() == 30  # down to the tip
  for start, side in ((36, -1), (42, 1)):
    eye = face[start : start + 6]
    assert (side * eye[:, 0] > 0).all() and eye[[1, 2], 1].min() > eye[[4, 5], 1].max()
  assert (np.diff(face[48:55, 0]) > 0).all() and (np.diff(face[[54, 55, 56, 57], 0]) < 0).all()
  assert face[51, 1] > face[62, 1] > face[66, 1] > face[57, 1]
  known = {8: 152, 30: 4, 36: 33, 39: 133, 42: 362, 45: 263, 48: 61, 54: 291, 62: 13, 66: 14}
  assert {point: order[point] for point in known} == known


def test_pose_is_that_of_the_rendered_faces():
  rng = np.random.default_rng(0)
  for angles in (*rng.uniform(-60, 60, (20, 3)), (0, 30, 0)):
    pitch, yaw, roll = angles
    rotation = render.rotation(render.Camera(yaw, pitch, roll, 1, (0, 0), 1000))
    seen = (mesh.AVERAGE_FACE @ rotation.T * 37 + (5, 9, 2)) * (1, -1, -1)
    np.testing.assert_allclose(np.degrees(mesh.pose(seen)), angles, atol=1e-3)
  assert seen[30, 0] > seen[[0, 16], 0].mean()  # yaw > 0: the nose is to the picture's right
  open_mouth = seen.copy()
  open_mouth[[*range(4, 13), *range(54, 61)], 1] += 10
  np.testing.assert_allclose(np.degrees(mesh.pose(open_mouth)), angles, atol=1e-3)


def test_action_units_are_five_times_their_blendshapes():
  shares = {part: 0.0 for parts in mesh.ACTION_UNITS.values() for part in parts}
  shares |= {'mouthClose': 0.1, 'jawOpen': 0.3, 'mouthSmileLeft': 0.5, 'mouthSmileRight': 0.7}
  found = mesh.action_units(shares)
  assert list(found) == sorted(found) and len(found) == len(mesh.ACTION_UNITS) + 1
  expected = {'AU12_r': 3.0, 'AU25_r': 1.0, 'AU26_r': 1.5}
  assert {name: value for name, value in found.items() if value} == pytest.approx(expected)
  assert mesh.action_units(shares | {'mouthClose': 0.4})['AU25_r'] == 0


def test_similarity_is_the_least_squares_one():
  rng = np.random.default_rng(1)
  source, destination = rng.normal(size=(2, 5, 2))
  rows, values = [], []
  for (x, y), (u, v) in zip(source, destination, strict=True):
    rows += [[x, -y, 1, 0], [y, x, 0, 1]]
    values += [u, v]
  a, b, c, d = np.linalg.lstsq(np.array(rows), np.array(values), rcond=None)[0]
  found = alignment.similarity(source, destination)
  np.testing.assert_allclose(found, [[a, -b, c], [b, a, d]], atol=1e-12)
  moved = alignment.apply(found, np.array([[1.0, 2.0, 3.0]]))
  expected = [a - 2 * b + c, b + 2 * a + d, 3 * np.hypot(a, b)]
  np.testing.assert_allclose(moved, [expected], atol=1e-12)
  mirrored = alignment.similarity(source, source * (-1, 1))
  assert np.linalg.det(mirrored[:, :2]) > 0


@pytest.mark.parametrize('scale', [2.5, 0.9, 0.17])
def test_a_crop_agrees_with_its_matrix(scale):
  x, y = np.meshgrid(np.arange(300), np.arange(280))
  image = np.stack([x * 0.5, y * 0.5, np.full_like(x, 7)], -1).round().astype(np.uint8)
  turn = scale * Rotation.from_euler('z', 20, degrees=True).as_matrix()[:2, :2]
  matrix = np.column_stack([turn, 16 - turn @ (150, 130)])
  crop = alignment.crop(image, matrix, 32)
  inverse = np.linalg.inv(turn)
  for u, v in ((16, 16), (10, 20), (22, 12)):
    expected = inverse @ (np.array([u, v]) - matrix[:, 2])
    np.testing.assert_allclose(crop[v, u, :2] * 2.0, expected, atol=1.6)
    assert crop[v, u, 2] == 7


def test_the_average_face_is_within_the_margin_in_every_pose():
  front = alignment.target(100, 0.1)
  low, high = front.min(0), front.max(0)
  assert np.ptp(front, axis=0).max() == pytest.approx(80)
  np.testing.assert_allclose(low + high, 99)
  for pitch, yaw in ((0.2, 0.5), (-0.2, -1.0), (0, 1.2)):
    turned = alignment.target(100, 0.1, pitch, yaw)
    assert turned.min() > 2 and turned.max() < 97
    mirrored = alignment.target(100, 0.1, pitch, -yaw)[mirrored_landmarks()]
    np.testing.assert_allclose(turned * (1, 0), (99 - mirrored) * (1, 0), atol=1e-9)


def test_searches_cover_the_picture():
  for height, width in ((48, 48), (200, 300), (900, 800), (192, 1000)):
    image = np.arange(height * width, dtype=np.uint32).reshape(height, width)
    image = np.stack([image >> 16, image >> 8 & 255, image & 255], -1).astype(np.uint8)
    levels = list(detector.searches(image))
    assert len(levels) == {48: 1, 300: 2, 900: 4, 1000: 4}[width if height != 900 else 900]
    for views in levels:
      seen = np.zeros((height, width), bool)
      for view in views:
        assert max(view.image.shape[:2]) >= detector.SMALL
        x, y = view.origin
        if view.scale == 1 and x >= 0:
          part = image[y : y + view.image.shape[0], x : x + view.image.shape[1]]
          np.testing.assert_array_equal(view.image, part)
        far = np.array([y, x]) + np.array(view.image.shape[:2]) // view.scale
        seen[max(y, 0) : far[0], max(x, 0) : far[1]] = True
      assert seen.all()
