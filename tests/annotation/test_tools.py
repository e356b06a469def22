"""Files in the formats of other tools, with the special cases of each."""

import math

import numpy as np
import pytest

from ferjax.annotation import tools
from ferjax.annotation.tools import Annotation
from ferjax.errors import InputError

X = [f'x_{i}' for i in range(68)]
Y = [f'y_{i}' for i in range(68)]


def write(folder, name, header, rows, separator=','):
  path = folder / name
  path.parent.mkdir(parents=True, exist_ok=True)
  lines = [header, *rows]
  path.write_text('\n'.join(separator.join(map(str, line)) for line in lines) + '\n')
  return path


def kinds(found):
  return [problem.kind for problem in found.problems]


OPENFACE = ['frame', 'face_id', 'timestamp', 'confidence', 'success', 'pose_Tx']
OPENFACE += ['pose_Rx', 'pose_Ry', 'pose_Rz', *X, *Y, 'X_0', 'p_0', 'AU01_r', 'AU45_r', 'AU01_c']


def openface_row(size=10.0, success=1, confidence=0.9, yaw=0.25, **changes):
  row = dict.fromkeys(OPENFACE, 0) | {'confidence': confidence, 'success': success}
  row |= {'pose_Tx': 99, 'pose_Rx': 0.1, 'pose_Ry': yaw, 'pose_Rz': -0.2, 'AU01_r': 1.5}
  row |= {'AU45_r': 0.25, 'AU01_c': 1} | {name: size * i / 67 for i, name in enumerate(X)}
  row |= {name: size * i / 67 + 1 for i, name in enumerate(Y)}
  return list((row | changes).values())


def test_openface_headers_have_blanks_and_signs_are_converted(tmp_path):
  for name in ('deep/a.csv', 'b.CSV'):
    write(tmp_path, name, OPENFACE, [openface_row()], separator=', ')
  (tmp_path / 'a_of_details.txt').write_text('Input: a.jpg')
  found = tools.read(tmp_path, 'openface')
  assert [face.picture for face in found.faces] == ['b', 'deep/a'] and not found.problems
  values = found.faces[0].values
  assert set(values) == {*X, *Y, 'pose_Rx', 'pose_Ry', 'pose_Rz', 'AU01_r', 'AU45_r'}
  assert (values['pose_Rx'], values['pose_Ry'], values['pose_Rz']) == (0.1, -0.25, 0.2)
  assert values['x_67'] == 10 and values['y_67'] == 11 and values['AU45_r'] == 0.25
  assert found.faces[0].size == pytest.approx(100)
  mirrored = tools.read(tmp_path, 'openface', mirror_yaw=True)
  assert mirrored.faces[0].values['pose_Ry'] == 0.25


def test_openface_faces_that_cannot_be_used(tmp_path):
  rows = [
    openface_row(success=0),
    openface_row(AU45_r='nan'),
    openface_row(x_3='-nan(ind)'),
    openface_row(confidence=0.3),
    openface_row(),
  ]
  path = write(tmp_path, 'a.csv', OPENFACE, rows)
  found = tools.read(path, 'openface', confidence=0.5)
  assert len(found.faces) == 1 and found.faces[0].place == 'line 6'
  assert kinds(found) == [
    'no face found',
    'AU45_r is not a finite number',
    'landmark is not a finite number',
    'confidence below 0.5',
  ]
  assert found.problems[1].detail == "a.csv, line 3: AU45_r = 'nan'"


def test_openface_sequences_are_refused(tmp_path):
  path = write(tmp_path, 'a.csv', OPENFACE, [openface_row(frame=i) for i in (1, 2)])
  with pytest.raises(InputError, match='2 frames of a sequence.*FaceLandmarkImg'):
    tools.read(path, 'openface')


def test_files_of_one_import_need_the_same_columns(tmp_path):
  write(tmp_path, 'a.csv', ['AU01_r', 'AU02_r'], [(1, 2)])
  write(tmp_path, 'b.csv', ['AU01_r'], [(1,)])
  with pytest.raises(InputError, match="b.csv and .*a.csv have different columns.*'AU02_r'"):
    tools.read(tmp_path, 'openface')


def yaw_rows(sign):
  """Faces whose nose moves to the right of the picture as OpenFace's yaw falls (sign 1)."""
  return [
    openface_row(yaw=-sign * yaw, x_0=0.0, x_16=100.0, x_30=50 + 50 * math.sin(yaw))
    for yaw in np.linspace(-0.8, 0.8, 12)
  ]


def test_the_sign_of_yaw_is_checked_against_the_landmarks(tmp_path):
  write(tmp_path, 'a.csv', OPENFACE, yaw_rows(1))
  assert tools.read(tmp_path, 'openface').faces[-1].values['pose_Ry'] == pytest.approx(0.8)
  with pytest.raises(InputError, match='contradicts the landmarks of 12 faces.*--mirror_yaw'):
    tools.read(tmp_path, 'openface', mirror_yaw=True)
  write(tmp_path, 'a.csv', OPENFACE, yaw_rows(-1))
  with pytest.raises(InputError, match='contradicts'):
    tools.read(tmp_path, 'openface')


PYFEAT = ['FaceRectX', 'FaceRectY', 'FaceRectWidth', 'FaceRectHeight', 'FaceScore', *X, *Y]
PYFEAT += ['Pitch', 'Roll', 'Yaw', 'AU01', 'AU43', 'anger', 'input', 'frame']


def pyfeat_row(picture, **changes):
  row = dict.fromkeys(PYFEAT, 7) | {'FaceRectWidth': 3, 'FaceRectHeight': 4, 'FaceScore': 0.99}
  row |= {'Pitch': 30, 'Roll': -6, 'Yaw': 90, 'AU01': 0.5, 'AU43': 0.1, 'input': picture}
  return list((row | changes).values())


def test_pyfeat_names_pictures_and_gives_probabilities_and_degrees_or_radians(tmp_path):
  rows = [
    pyfeat_row('C:\\faces\\a.JPG'),
    pyfeat_row('b.png', AU01=1.5),
    pyfeat_row('c.png', FaceScore='', x_0='nan', AU01=''),
    pyfeat_row('d.png', FaceScore=0.2),
  ]
  path = write(tmp_path, 'fex.csv', PYFEAT, rows)
  with pytest.raises(InputError, match='--angles=radians or --angles=degrees'):
    tools.read(path, 'pyfeat')
  found = tools.read(path, 'pyfeat', angles='degrees', confidence=0.5)
  (face,) = found.faces
  assert face.picture == 'C:\\faces\\a.JPG' and face.size == 12
  assert face.values['AU01_r'] == 2.5 and face.values['AU43_r'] == 0.5 and face.values['x_9'] == 7
  pose = [face.values[name] for name in ('pose_Rx', 'pose_Ry', 'pose_Rz')]
  np.testing.assert_allclose(pose, [math.pi / 6, math.pi / 2, -math.pi / 30])
  assert kinds(found) == [
    'action unit outside 0..1',
    'no face found',
    'FaceScore below 0.5',
  ]
  assert 'times 5' in found.remarks[0]
  wrong = tools.read(path, 'pyfeat', angles='radians')
  assert 'angle above a half turn' in kinds(wrong) and not wrong.faces


def test_pyfeat_with_478_points_has_action_units_only(tmp_path):
  header = ['x_0', 'y_0', 'x_477', 'AU01', 'input']
  path = write(tmp_path, 'fex.csv', header, [(1, 2, 3, 0.2, 'a.png')])
  found = tools.read(path, 'pyfeat')
  assert found.faces[0].values == {'AU01_r': pytest.approx(1.0)}
  assert any('not the 68' in remark for remark in found.remarks)


def test_libreface_gives_intensities_and_no_angles(tmp_path):
  header = ['detected_aus', 'facial_expression', 'pitch', 'yaw', 'roll', 'lm_mp_0_x', 'au_1']
  header += ['au_1_intensity', 'au_26_intensity']
  write(tmp_path, 'a.csv', header, [('{}', 'Fear', 9, 8, 7, 0.4, 1, -0.01, 4.5)])
  write(tmp_path, 'b.csv', header, [('{}', 'Fear', 9, 8, 7, 0.4, 1, 45, 4.5)])
  found = tools.read(tmp_path, 'libreface')
  assert found.faces[0].values == {'AU01_r': 0.0, 'AU26_r': 4.5}
  assert kinds(found) == ['action unit outside 0..5'] and len(found.remarks) == 2
  video = write(tmp_path, 'video.csv', header, [('{}', 'Fear', 9, 8, 7, 0.4, 1, 0, 4.5)] * 2)
  with pytest.raises(InputError, match='2 rows of a video'):
    tools.read(video, 'libreface')
  header = ['', 'input_image_path', 'au_1_intensity']
  named = write(tmp_path, 'old.csv', header, [(0, 'x/c.png', 2)])
  assert tools.read(named, 'libreface').faces[0].picture == 'x/c.png'


def test_pts_counts_from_one(tmp_path):
  points = '\n'.join(f'{i + 1}.5\t {2 * i + 1}' for i in range(68))
  (tmp_path / 'a.pts').write_text(f'version: 1\nn_points:  68\n{{\n{points}\n}}\n')
  (tmp_path / 'B.PTS').write_text('version: 1\r\nnpoints: 5 // eyes\r\n{\r\n' + '1 2\r\n' * 5 + '}')
  found = tools.read(tmp_path / 'a.pts', 'pts').faces[0]
  assert found.picture == 'a' and found.values['x_67'] == 67.5 and found.values['y_67'] == 134
  assert tools.read(tmp_path / 'a.pts', 'pts', origin=0).faces[0].values['x_0'] == 1.5
  five = tools.read(tmp_path / 'B.PTS', 'pts').faces[0]
  assert five.picture == 'B' and five.values['x_4'] == 0 and five.values['y_4'] == 1
  assert kinds(tools.read(tmp_path / 'B.PTS', 'pts', points=68)) == ['not a set of 68 points']


@pytest.mark.parametrize(
  'body, kind',
  [
    ('n_points: 5\n{\n' + '1 2\n' * 4 + '}', 'not two numbers for each point'),
    ('n_points: 7\n{\n' + '1 2\n' * 7 + '}', 'not a set of 5, 19, 37 or 68 points'),
    ('n_points: 5\n{\n' + '1 2\n' * 4 + '1 nan\n}', 'landmark is not a finite number'),
  ],
)
def test_pts_files_that_cannot_be_used(tmp_path, body, kind):
  (tmp_path / 'a.pts').write_text(body)
  assert kinds(tools.read(tmp_path, 'pts')) == [kind]


def test_files_of_points_with_tabs_and_a_suffix(tmp_path):
  lines = [f'{i}\t{i + 10}' for i in range(5)]
  (tmp_path / 'train_1_manu_attri.txt').write_text('\n'.join([*lines, '0', '1', '3', '']))
  (tmp_path / 'train_2_manu_attri.txt').write_text('\n'.join(lines[:4]))
  found = tools.read(tmp_path, 'points', points=5, suffix='_manu_attri')
  assert found.faces[0].picture == 'train_1' and kinds(found) == ['not 5 lines "x y"']
  assert found.faces[0].values['x_4'] == 4 and found.faces[0].values['y_4'] == 14
  with pytest.raises(InputError, match='number of points'):
    tools.read(tmp_path, 'points')


def test_one_list_of_points_after_a_count_and_names(tmp_path):
  path = tmp_path / 'list.txt'
  rows = ['a.jpg  0 1 2 3 4 5 6 7 8 9', 'b.jpg 0 1 2 3 4 5 6 7 8', 'c.jpg 0 1 2 3 4 5 6 7 8 x']
  path.write_text('\n'.join(['3', 'lefteye_x lefteye_y nose_x nose_y', *rows]))
  found = tools.read(path, 'points', points=5)
  (face,) = found.faces
  assert (face.picture, face.place) == ('a.jpg', 'line 3')
  assert [face.values[f'x_{i}'] for i in range(5)] == [0, 2, 4, 6, 8]
  assert [problem.line for problem in found.problems] == [4, 5]


@pytest.mark.parametrize(
  'name, content, format, message',
  [
    ('a.csv', 'path,split\n', 'openface', 'not a table of OpenFace 2'),
    ('a.csv', '', 'pyfeat', 'not a table of py-feat'),
    ('a.csv', 'au_1\n', 'libreface', 'not a table of LibreFace'),
    ('a.pts', '1 2\n3 4', 'pts', 'is not a .pts file'),
    ('a.txt', '', 'openface', r'no file \*.csv'),
    ('a.csv', '', 'openfaec', "Did you mean 'openface'"),
    ('a.pts', '', 'pts', 'is not a .pts file'),
  ],
)
def test_files_that_are_not_annotations(tmp_path, name, content, format, message):
  (tmp_path / name).write_text(content)
  with pytest.raises(InputError, match=message):
    tools.read(tmp_path, format)


def test_missing_files_and_unknown_numbers_of_points(tmp_path):
  with pytest.raises(InputError, match='no such file or folder'):
    tools.read(tmp_path / 'none', 'pts')
  with pytest.raises(InputError, match='sets of 5, 19, 37, 68 points'):
    tools.read(tmp_path, 'pts', points=21)


def face(picture, source='fex.csv', size=1.0):
  return Annotation(picture, source, 'line 2', size, {'AU01_r': size})


def matched(names, pictures):
  found, problems = tools.by_picture([face(name) for name in names], pictures)
  return {p: one.picture for p, one in found.items()}, [p.kind for p in problems]


def test_names_fit_whole_paths_first():
  pictures = ['train/happy/a.jpg', 'train/sad/a.jpg', 'train/sad/b.JPG', 'train/sad/c.png']
  found, problems = matched(
    ['D:\\data\\TRAIN\\sad\\A.jpg', 'happy/a', 'b.jpg', 'other/place/c.png'], pictures
  )
  assert found == {
    'train/sad/a.jpg': 'D:\\data\\TRAIN\\sad\\A.jpg',
    'train/happy/a.jpg': 'happy/a',
    'train/sad/b.JPG': 'b.jpg',
    'train/sad/c.png': 'other/place/c.png',
  }
  assert not problems


def test_ambiguous_names():
  assert matched(['a'], ['x/a.jpg', 'y/a.jpg']) == ({}, ['several pictures have this name'])
  assert matched(['a'], ['a.jpg', 'a.png']) == ({}, ['several pictures have this name'])
  assert matched(['a.png'], ['a.jpg', 'a.png']) == ({'a.png': 'a.png'}, [])
  assert matched(['b'], ['a.jpg']) == ({}, ['annotation without a picture'])
  found, problems = matched(['here/a', 'there/a'], ['x/a.jpg'])
  assert not found and problems == ['annotation without a picture'] * 2
  assert matched(['v1.0'], ['v1.0.jpg']) == ({'v1.0.jpg': 'v1.0'}, [])


def test_the_largest_face_of_a_picture_is_kept():
  faces = [face('a.jpg', size=2.0), face('a.jpg', size=9.0), face('a.jpg', size=3.0)]
  found, problems = tools.by_picture(faces, ['a.jpg'])
  assert found['a.jpg'].size == 9
  assert [p.kind for p in problems] == ['smaller of several faces in a picture'] * 2
  two = [face('a', 'x/a.csv'), face('a', 'y/a.csv'), face('a', 'x/a.csv')]
  found, problems = tools.by_picture(two, ['a.jpg'])
  assert not found and problems[0].kind == 'picture annotated by two files'
