"""The face renderer: labels agree with the geometry, and the same numbers give the same bytes."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ferjax.datasets.synthetic_faces.drawing import (
  action_units,
  expressions,
  head,
  ict_face_model,
  identity,
  points,
  render,
  sample,
  sheet,
  stream,
)
from ferjax.datasets.synthetic_faces.drawing.action_units import ACTION_UNITS
from ferjax.errors import InputError
from ferjax.labels import CLASSES

CONFIG = sample.Config(num=60, size=64, seed=3, difficulty=0.5, subjects=4)
MIRRORED = np.array(
  [*range(16, -1, -1), *range(26, 16, -1), 27, 28, 29, 30, 35, 34, 33, 32, 31]
  + [45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40]
  + [54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55, 64, 63, 62, 61, 60, 67, 66, 65]
)


def _intensities(**units):
  result = np.zeros(len(ACTION_UNITS), np.float32)
  for name, value in units.items():
    result[ACTION_UNITS.index(name)] = value
  return result


def _landmarks(left, right=None):
  model = head.build()
  right = left if right is None else right
  return render.express(model, model.vertices, left, right)[model.landmarks]


def _camera(yaw=0.0, pitch=0.0, roll=0.0):
  return render.Camera(yaw, pitch, roll, 0.5, (55.5, 55.5), 900.0)


def _seen(**angles):
  model = head.build()
  return render.project(model.vertices[model.landmarks], _camera(**angles))[:, :2]


def test_the_average_head_is_symmetric():
  places = head.build().vertices[head.build().landmarks]
  np.testing.assert_allclose(places[MIRRORED] * (-1, 1, 1), places, atol=1e-3)


def test_landmarks_lie_in_the_order_of_ibug68():
  x, y, _ = head.build().vertices[head.build().landmarks].T
  assert len(points.ibug68()) == 68
  assert np.all(np.diff(x[:17]) > 0) and np.all(np.diff(x[17:27]) > 0)
  assert np.argmin(y[:17]) == 8
  assert np.all(np.diff(y[27:31]) < 0)
  for upper, lower in ((37, 41), (38, 40), (43, 47), (44, 46), (51, 57), (62, 66)):
    assert y[upper] > y[lower]
  assert y[19] > y[37] > y[33] > y[51] > y[8]


def test_every_triangle_and_landmark_names_a_vertex():
  model = head.build()
  count = len(model.vertices)
  for indices in (model.triangles, model.mane, model.landmarks, model.eyes[:, 0], model.lids[:, 0]):
    assert indices.min() >= 0 and indices.max() < count
  assert model.identity.shape == (len(identity.SHAPES), count, 3)
  assert model.action_units.shape == (len(ACTION_UNITS), count, 3)
  assert len(identity.SHAPES) >= 15
  assert all(np.isfinite(part).all() for part in model[:1] + model[3:8])


def test_identity_shapes_are_independent_and_symmetric():
  model = head.build()
  flat = model.identity.reshape(len(model.identity), -1)
  assert np.linalg.matrix_rank(flat, tol=1e-2 * np.linalg.norm(flat, ord=2)) == len(flat)
  shapes = model.identity[:, model.landmarks]
  np.testing.assert_allclose(shapes[:, MIRRORED] * (-1, 1, 1), shapes, atol=1e-3)


# Action unit, landmarks, axis (0 x, 1 y, 2 towards the viewer) and sign of their displacement.
@pytest.mark.parametrize(
  ('unit', 'which', 'axis', 'sign'),
  [
    ('AU01', [21, 22], 1, 1),
    ('AU02', [17, 18, 25, 26], 1, 1),
    ('AU04', [20, 21, 22, 23], 1, -1),
    ('AU04', [21], 0, 1),
    ('AU05', [37, 38, 43, 44], 1, 1),
    ('AU06', [40, 41, 46, 47], 1, 1),
    ('AU07', [37, 38, 43, 44], 1, -1),
    ('AU07', [40, 41, 46, 47], 1, 1),
    ('AU09', [31, 35], 1, 1),
    ('AU10', [50, 51, 52], 1, 1),
    ('AU12', [48, 54], 1, 1),
    ('AU12', [54], 0, 1),
    ('AU14', [48], 0, -1),
    ('AU15', [48, 54], 1, -1),
    ('AU17', [56, 57, 58], 1, 1),
    ('AU20', [48], 0, -1),
    ('AU20', [54], 0, 1),
    ('AU23', [51], 1, -1),
    ('AU23', [57], 1, 1),
    ('AU25', [65, 66, 67], 1, -1),
    ('AU26', [7, 8, 9, 57, 66], 1, -1),
    ('AU45', [37, 38, 43, 44], 1, -1),
  ],
)
def test_action_units_move_landmarks_in_the_named_direction(unit, which, axis, sign):
  moved = _landmarks(_intensities(**{unit: 5})) - _landmarks(_intensities())
  assert np.all(sign * moved[which, axis] > 0.8)
  half = _landmarks(_intensities(**{unit: 2.5})) - _landmarks(_intensities())
  assert np.all(sign * half[which, axis] < sign * moved[which, axis])


def test_every_action_unit_of_the_list_is_described():
  moves = np.abs(head.build().action_units).max(axis=(1, 2))
  assert np.all(moves > 1)
  assert set(ict_face_model.SHAPES) == set(ACTION_UNITS)
  assert action_units.MAXIMUM == 5


def test_one_half_of_the_face_can_move_alone():
  moved = _landmarks(_intensities(AU12=5), _intensities()) - _landmarks(_intensities())
  assert moved[54, 1] > 5 and abs(moved[48, 1]) < 0.2


def test_lips_do_not_pass_through_each_other():
  for units in ({'AU17': 5}, {'AU23': 5, 'AU17': 5}, {'AU15': 5}):
    model = head.build()
    vertices = render.express(model, model.vertices, *[_intensities(**units)] * 2)
    upper, lower = model.lips.T
    assert np.all(vertices[upper, 1] > vertices[lower, 1])


def test_lids_stay_outside_the_eyeball():
  model = head.build()
  vertices = render.express(model, model.vertices, *[_intensities(AU45=5, AU07=5)] * 2)
  away = vertices[model.lids[:, 0]] - model.eye_centres[model.lids[:, 1]]
  assert np.linalg.norm(away, axis=1).min() > model.eye_radius + 0.8


def test_signs_of_the_pose():
  frontal = _seen()
  nose = 30
  assert _seen(yaw=30.0)[nose, 0] > frontal[nose, 0] + 3
  assert _seen(pitch=15.0)[nose, 1] > frontal[nose, 1] + 3
  rolled = _seen(roll=10.0)
  slope = np.degrees(np.arctan2(*(rolled[45] - rolled[36])[::-1]))
  assert -12 < slope < -8


def test_the_far_side_of_the_face_narrows_with_yaw():
  ratios = []
  for yaw in (-60.0, -30.0, 0.0, 30.0, 60.0):
    x = _seen(yaw=yaw)[:, 0]
    ratios.append((x[45] - x[30]) / (x[45] - x[36]))
  assert np.all(np.diff(ratios) < 0)
  assert ratios[2] == pytest.approx(0.5, abs=1e-3)


def test_opposite_yaws_mirror_the_landmarks():
  left, right = _seen(yaw=40.0), _seen(yaw=-40.0)
  np.testing.assert_allclose(111 - left[MIRRORED, 0], right[:, 0], atol=2e-2)
  np.testing.assert_allclose(left[MIRRORED, 1], right[:, 1], atol=2e-2)


def test_rasteriser_finds_the_nearest_triangle():
  near = [(1, 1, 5), (1, 9, 5), (9, 1, 5)]
  far = [(0, 0, 1), (0, 12, 1), (12, 0, 1)]
  behind = [near[0], near[2], near[1]]
  vertices = np.array([*far, *near, *behind], np.float32)
  triangles = np.arange(9).reshape(3, 3)
  seen, which, weights = render.rasterise(vertices, triangles, 12)
  owner = dict(zip(seen.tolist(), which.tolist(), strict=True))
  for row in range(12):
    for column in range(12):
      inside_near = row >= 1 and column >= 1 and row + column <= 10
      inside_far = row + column <= 12
      expected = 1 if inside_near else 0 if inside_far else None
      assert owner.get(row * 12 + column) == expected, (row, column)
  places = np.einsum('pc,pcd->pd', weights, vertices[triangles[which]])
  np.testing.assert_allclose(places[:, 0], seen % 12, atol=1e-2)
  np.testing.assert_allclose(places[:, 1], seen // 12, atol=1e-2)


def test_neighbouring_triangles_leave_no_gap():
  rng = np.random.default_rng(0)
  grid = np.stack(np.meshgrid(np.arange(5), np.arange(5), indexing='ij'), -1) * 5.0
  grid[1:-1, 1:-1] += rng.uniform(-2, 2, (3, 3, 2))
  vertices = np.concatenate([grid.reshape(-1, 2), np.zeros((25, 1))], -1).astype(np.float32)
  at = np.arange(25).reshape(5, 5)
  a, b, c, d = (part.ravel() for part in (at[:-1, :-1], at[:-1, 1:], at[1:, :-1], at[1:, 1:]))
  triangles = np.concatenate([np.stack([a, b, c], -1), np.stack([b, d, c], -1)])[:, ::-1]
  for turned in (triangles, triangles[:, ::-1]):
    seen, _, _ = render.rasterise(vertices, turned, 20)
    assert len(seen) in (0, 400)
  assert sum(len(render.rasterise(vertices, t, 20)[0]) for t in (triangles, turned)) == 400


def test_distributions():
  only = expressions.distribution('anger', 'anger', 1.0, 1.0)
  np.testing.assert_array_equal(only, np.eye(7)[CLASSES.index('anger')])
  blend = expressions.distribution('fear', 'surprise', 0.6, 1.0)
  assert blend[CLASSES.index('fear')] == pytest.approx(0.6)
  assert blend[CLASSES.index('surprise')] == pytest.approx(0.4)
  weak = expressions.distribution('fear', 'fear', 1.0, 0.3)
  assert weak[CLASSES.index('neutral')] == pytest.approx(0.6)


@pytest.mark.parametrize('difficulty', [0.0, 0.5, 1.0])
def test_drawn_expressions_keep_their_label(difficulty):
  rng = np.random.default_rng(0)
  blends = 0
  for name in CLASSES:
    for _ in range(60):
      units, distribution = expressions.draw(rng, name, difficulty)
      assert distribution.sum() == pytest.approx(1, abs=1e-6)
      assert distribution.min() >= 0
      assert CLASSES[np.argmax(distribution)] == name
      assert units.min() >= 0 and units.max() <= 5
      blends += np.sum(distribution > 0) > 1
  assert (blends > 60) == (difficulty > 0)


def test_rows_cover_labels_and_yaws_evenly():
  config = CONFIG._replace(num=280, subjects=4)
  rows = sample.rows(config)
  assert [row.index for row in rows] == list(range(280))
  assert len({row.name for row in rows}) == 280
  for subject in range(4):
    cells = [(row.label, row.yaw_bin) for row in rows if row.subject == subject]
    assert all(cells.count(cell) == 2 for cell in cells) and len(set(cells)) == 35
  assert rows[0].name == f'000_{rows[0].label}_{rows[0].yaw_bin:+03d}_0'


def test_splits_are_disjoint_in_subjects():
  for subjects in (4, 5, 10, 100, 137):
    splits = [sample.split_of(i, subjects) for i in range(subjects)]
    assert set(splits) == {'train', 'val', 'test'}
  splits = [sample.split_of(i, 100) for i in range(100)]
  assert [splits.count(name) for name in ('train', 'val', 'test')] == [70, 10, 20]


def test_a_sample_is_a_function_of_its_arguments():
  rows = sample.rows(CONFIG)
  first = [sample.draw(CONFIG, rows[i]) for i in (0, 20, 45)]
  sample.person.cache_clear()
  again = [sample.draw(CONFIG, rows[i]) for i in (45, 20, 0)][::-1]
  for one, other in zip(first, again, strict=True):
    for left, right in zip(one, other, strict=True):
      np.testing.assert_array_equal(left, right)
  other_seed = sample.draw(CONFIG._replace(seed=4), rows[0])
  assert not np.array_equal(other_seed.image, first[0].image)


def test_a_sample_has_the_documented_shapes():
  row = sample.rows(CONFIG)[7]
  drawn = sample.draw(CONFIG, row)
  assert drawn.image.shape == (64, 64, 3) and drawn.image.dtype == np.uint8
  assert drawn.landmarks.shape == (68, 2) and drawn.landmarks.dtype == np.float32
  assert drawn.au.shape == (len(ACTION_UNITS),) and drawn.au.dtype == np.float32
  assert 0 <= drawn.au.min() and drawn.au.max() <= 5
  assert drawn.image.std() > 10
  yaw = drawn.pose[0]
  assert min(sample.YAWS, key=lambda nominal: abs(nominal - yaw)) == row.yaw_bin


def test_landmarks_do_not_depend_on_the_resolution():
  row = sample.rows(CONFIG)[0]
  small, large = (sample.draw(CONFIG._replace(size=size), row).landmarks for size in (64, 128))
  np.testing.assert_allclose((small + 0.5) * 2 - 0.5, large, atol=3e-3)


def test_eyes_are_at_their_landmarks():
  """The eye openings show the whites and the irises, so they have more contrast than the cheeks."""
  higher = 0
  rows = [row for row in sample.rows(CONFIG) if row.yaw_bin == 0]
  for row in rows[:6]:
    drawn = sample.draw(CONFIG._replace(size=128, difficulty=0.0), row)
    grey = drawn.image.mean(axis=-1)
    x, y = np.mean(drawn.landmarks[36:42] * 1.0, axis=0).round().astype(int)
    down = int(np.linalg.norm(drawn.landmarks[45] - drawn.landmarks[36]) * 0.35)
    eye = grey[y - 2 : y + 3, x - 5 : x + 6].std()
    cheek = grey[y - 2 + down : y + 3 + down, x - 5 : x + 6].std()
    higher += eye > cheek
  assert higher >= 5


def test_the_number_of_processes_changes_nothing():
  config = sample.Config(num=20, size=48, seed=1, difficulty=0.7, subjects=10)
  alone = list(stream.draw_all(config, processes=1))
  together = list(stream.draw_all(config, processes=2))
  assert [row for row, _ in alone] == [row for row, _ in together]
  for (_, one), (_, other) in zip(alone, together, strict=True):
    assert one.image == other.image
    for left, right in zip(one[1:], other[1:], strict=True):
      np.testing.assert_array_equal(left, right)


def test_vector_instructions_change_nothing():
  """The bytes are the same with and without the processor's wide vector instructions."""
  script = (
    'import hashlib\n'
    'from ferjax.datasets.synthetic_faces.drawing import sample, stream\n'
    'config = sample.Config(num=8, size=48, seed=1, difficulty=0.7, subjects=4)\n'
    'digest = hashlib.sha256()\n'
    'for row in sample.rows(config)[::2]:\n'
    '  encoded = stream.encode(sample.draw(config, row))\n'
    '  digest.update(encoded.image + encoded.landmarks.tobytes() + encoded.au.tobytes())\n'
    'print(digest.hexdigest())\n'
  )
  root = str(Path(sample.__file__).resolve().parents[4])
  narrow = {
    'NPY_DISABLE_CPU_FEATURES': 'X86_V3 X86_V4' if platform.machine() == 'x86_64' else '',
    'OPENBLAS_CORETYPE': 'Prescott' if platform.machine() == 'x86_64' else '',
    'OPENCV_CPU_DISABLE': 'AVX512-SKX,AVX2,FMA3,AVX',
  }
  running = [
    subprocess.Popen(
      [sys.executable, '-c', script],
      env={**os.environ, 'PYTHONPATH': root, **more},
      stdout=subprocess.PIPE,
    )
    for more in ({}, {name: value for name, value in narrow.items() if value})
  ]
  digests = [process.communicate()[0] for process in running]
  assert all(process.returncode == 0 for process in running)
  assert digests[0] == digests[1] and len(digests[0]) > 60


def test_stopping_early_ends_the_processes():
  config = sample.Config(num=40, size=48, seed=1, difficulty=0.7, subjects=20)
  drawn = stream.draw_all(config, processes=2)
  assert next(drawn)[0].index == 0
  drawn.close()


def test_a_wrong_folder_is_reported_before_processes_start():
  config = sample.Config(num=8, size=48, seed=1, difficulty=0.7, subjects=4, ict_face_model='/no')
  with pytest.raises(InputError, match='vertex_indices.json is missing'):
    list(stream.draw_all(config, processes=2))


def test_a_process_that_fails_is_reported(capfd, monkeypatch):
  config = sample.Config(num=8, size=48, seed=1, difficulty=0.7, subjects=4, ict_face_model='/no')
  monkeypatch.setattr(sample, 'face_model', lambda folder: None)  # in this process only
  with pytest.raises(RuntimeError, match='ended before row 0'):
    list(stream.draw_all(config, processes=2))
  assert 'vertex_indices.json is missing' in capfd.readouterr().err


def test_contact_sheet():
  picture = sheet.sheet(size=32, landmarks=True)
  assert picture.shape == (26 + 8 * 64, 7 * 64, 3)


@pytest.fixture
def ict_folder(tmp_path):
  """A small model in ICT-FaceKit's layout, whose only vertices are our landmarks."""
  from scipy.spatial import Delaunay

  base = head.build().vertices[head.build().landmarks] / 10
  base = base + np.random.default_rng(0).normal(0, 0.02, base.shape)
  faces = Delaunay(base[:, :2]).simplices + 1

  def write(name, vertices):
    lines = [f'v {x:.5f} {y:.5f} {z:.5f}' for x, y, z in vertices]
    lines += ['f ' + ' '.join(f'{i}/{i}/{i}' for i in face) for face in faces]
    (tmp_path / name).write_text('# made up\n' + '\n'.join(lines) + '\n')

  write('generic_neutral_mesh.obj', base)
  write('identity000.obj', base * (1.1, 1, 1))
  write('identity001.obj', base * (1, 1.1, 1))
  names = []
  for shapes in ict_face_model.SHAPES.values():
    for shape in shapes:
      for side in ('_L', '_R'):
        if f'{shape}{side}' not in names:
          names.append(f'{shape}{side}')
          write(f'{names[-1]}.obj', base + (0, 0.1 if side == '_L' else 0.3, 0))
  indices = {'expressions': names, 'idx_to_landmark_verts': list(range(68))}
  (tmp_path / 'vertex_indices.json').write_text(json.dumps(indices))
  return tmp_path


def test_ict_face_model_is_read_and_drawn(ict_folder):
  model = ict_face_model.load(ict_folder)
  assert model.identity.shape == (2, 68, 3)
  width = np.ptp(model.vertices[:, 0])
  np.testing.assert_allclose(np.ptp(model.identity[0, :, 0]), 0.1 * width, rtol=1e-3)
  jaw = model.action_units[ACTION_UNITS.index('AU26')]
  np.testing.assert_allclose(jaw[:, 1], 0.6 * (1 + 3), atol=1e-3)
  ours = head.build().texels[head.build().landmarks]
  corners = [0, 8, 16, 30, 48, 54]
  np.testing.assert_allclose(model.texels[corners], ours[corners], atol=1.0)
  config = CONFIG._replace(ict_face_model=str(ict_folder))
  drawn = sample.draw(config, sample.rows(config)[0])
  assert drawn.image.std() > 5
  assert len(ict_face_model.load(ict_folder, identities=1).identity) == 1


@pytest.mark.parametrize(
  ('spoil', 'error', 'message'),
  [
    (lambda f: (f / 'vertex_indices.json').unlink(), InputError, 'FaceXModel'),
    (lambda f: (f / 'vertex_indices.json').write_text('{'), InputError, 'not JSON'),
    (lambda f: (f / 'vertex_indices.json').write_text('{}'), InputError, "no 'expressions'"),
    (
      lambda f: (f / 'vertex_indices.json').write_text(
        json.dumps({'expressions': [], 'idx_to_landmark_verts': [1, 2]})
      ),
      InputError,
      '68 vertex numbers',
    ),
    (lambda f: (f / 'generic_neutral_mesh.obj').unlink(), InputError, 'neutral_mesh.obj is'),
    (lambda f: (f / 'identity001.obj').write_text('v 1 2\n'), InputError, 'line 1'),
    (lambda f: (f / 'identity001.obj').write_text('v 1 2 3\n'), InputError, 'has 1 vertices'),
    (lambda f: (f / 'jawOpen_L.obj').unlink(), InputError, 'jawOpen_L.obj is missing'),
    (lambda f: (f / 'jawOpen_L.obj').write_text('version http\n'), InputError, 'LFS pointer'),
    (
      lambda f: (f / 'generic_neutral_mesh.obj').write_text('v 1 2 3\nf 1 2 3\n'),
      InputError,
      'names vertex 3 of 1',
    ),
  ],
)
def test_ict_face_model_reports_what_is_wrong(ict_folder, spoil, error, message):
  spoil(ict_folder)
  with pytest.raises(error, match=message):
    ict_face_model.load(ict_folder)
