import csv
import errno
import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from ferjax.annotation import detector as detectors
from ferjax.annotation import faces as annotate
from ferjax.cli.predict import main
from ferjax.datasets import listing
from ferjax.errors import InputError
from ferjax.images import files
from ferjax.prediction import film, inputs, overlay, predict, predictor, reading
from ferjax.training import loop

CLASSES = ('red', 'green', 'blue')


def colours(batch):
  """A model that predicts the mean colour."""
  mean = batch['image'].mean((1, 2)) / 25
  return {'logits': mean.astype(np.float32)}


def fake(run=colours, **changes):
  """A predictor without a network, for pictures of 8 px."""
  model = predictor.Predictor(
    classes=CLASSES,
    poses=(),
    image_size=8,
    needs=frozenset(),
    uses=frozenset(),
    landmarks=None,
    derive=lambda table: table,
    run=run,
    sizes=(1, 2, 4, 8),
  )
  return model._replace(**changes)


def write(path: Path, colour: int, size=(24, 20)) -> Path:
  """A picture in which one of the colours is strong."""
  path.parent.mkdir(parents=True, exist_ok=True)
  image = np.full((*size, 3), 20, np.uint8)
  image[..., 2 - colour] = 150
  cv2.imwrite(str(path), image)
  return path


def film_of(path: Path, frames=10, size=(32, 48), codec='MJPG', fps=10.0) -> Path:
  """A video whose frames are red, green, blue, red ..."""
  video = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), fps, size[::-1])
  for number in range(frames):
    image = np.full((*size, 3), 20, np.uint8)
    image[..., 2 - number % 3] = 150
    video.write(image)
  video.release()
  return path


def frames_of(path: Path):
  video = cv2.VideoCapture(str(path))
  return [image for done, image in iter(video.read, (False, None)) if done]


def read(path: Path):
  with path.open(newline='', encoding='utf-8') as file:
    return list(csv.DictReader(file))


def run(names, out, model=None, **options):
  outputs = options.pop('outputs', predict.Outputs(out))
  counts = predict.predict(model or fake(), [str(name) for name in names], outputs, **options)
  return counts, read(out)


@pytest.fixture
def folder(tmp_path):
  """Twenty pictures in three colours, in two folders, and a text."""
  for number in range(20):
    place = tmp_path / 'faces' / ('more' if number > 11 else '')
    write(place / f'{number:02}.{("png", "jpg", "bmp")[number % 2]}', number % 3)
  (tmp_path / 'faces' / 'notes.txt').write_text('no picture')
  return tmp_path / 'faces'


def test_a_folder_is_a_table(folder, tmp_path):
  out = tmp_path / 'new' / 'faces.csv'
  counts, rows = run([folder], out)
  assert list(rows[0]) == predict.header(CLASSES)
  assert [Path(row['file']).stem for row in rows] == [f'{number:02}' for number in range(20)]
  assert [row['class'] for row in rows] == [CLASSES[number % 3] for number in range(20)]
  assert rows[12]['file'] == str(folder / 'more' / '12.png')
  shares = np.array([[float(row[f'p_{name}']) for name in CLASSES] for row in rows])
  np.testing.assert_allclose(shares.sum(1), 1, atol=1e-5)
  logits = np.array([150, 20, 20]) / 25
  np.testing.assert_allclose(shares[0], np.exp(logits) / np.exp(logits).sum(), rtol=1e-4)
  empty = ('frame', 'time', 'x0', 'y1', 'pose', 'error')
  assert all(row[name] == '' for row in rows for name in empty)
  assert counts[:4] == (20, 20, 20, 0) and counts.classes == {'red': 7, 'green': 7, 'blue': 6}
  assert sorted(path.name for path in out.parent.iterdir()) == ['faces.csv']
  text = predict.summary(counts)
  assert '20 faces of 20 files, 0 errors' in text and 'red 7, green 7, blue 6' in text


def test_patterns_and_repeated_pictures(folder, tmp_path, caplog, monkeypatch):
  def names(*wanted):
    return [source.path.name for source in inputs.find([str(name) for name in wanted])]

  assert names(folder / '*.jpg') == ['01.jpg', '03.jpg', '05.jpg', '07.jpg', '09.jpg', '11.jpg']
  assert len(names(folder / '**')) == 20 == len(names(folder / '**' / '*'))
  assert names(folder / 'mo*') == sorted(names(folder / '**' / 'more'))
  assert len(names(f'{folder}/[0]?.png')) == 5
  write(folder / '[x]*.png', 0)
  assert names(folder / '[x]*.png') == ['[x]*.png']  # a name that is there is no pattern
  monkeypatch.chdir(folder)
  assert str(inputs.find(['more'])[0].path) == 'more/12.png'
  counts, rows = run([folder / '00.png', folder / '01.jpg', '00.png', '01.jpg'], tmp_path / 'a.csv')
  assert len(rows) == 4 and counts.faces == 4
  assert caplog.text.count('named and read more than once') == 1 and 'and 1 others' in caplog.text
  for name in ('none', 'no*', str(folder / '*.txt')):
    with pytest.raises(InputError, match=f'{name[-5:].replace("*", "[*]")}: '):
      inputs.find([str(folder), name])
  (tmp_path / 'empty').mkdir()
  with pytest.raises(InputError, match='empty: there is no picture'):
    inputs.find([str(tmp_path / 'empty')])


def test_broken_files_are_rows_with_their_error(folder, tmp_path):
  whole = (folder / '01.jpg').read_bytes()
  (folder / '01.jpg').write_bytes(whole[: len(whole) * 2 // 3])
  (folder / '02.png').write_bytes((folder / '02.png').read_bytes()[:-20])
  (folder / '03.jpg').write_bytes(b'')
  (folder / '04.png').unlink()
  (folder / '04.png').symlink_to(folder / 'nowhere')
  (folder / '05.jpg').write_text('text')
  Image.new('RGB', (9, 9)).save(folder / 'a.gif')
  (folder / 'b.mp4').write_text('no video')
  os.mkfifo(folder / 'c.png')
  Image.fromarray(np.ones((9, 9), np.int32)).save(folder / 'd.tif')
  counts, rows = run([folder, folder / 'a.gif'], tmp_path / 'a.csv')
  errors = {Path(row['file']).name: row['error'] for row in rows if row['error']}
  found = ('01.jpg', '02.png', '03.jpg', '04.png', '05.jpg', 'a.gif', 'b.mp4', 'c.png', 'd.tif')
  assert set(errors) == set(found)
  assert 'truncated' in errors['01.jpg'].lower() and 'No such file' in errors['04.png']
  assert 'JPEG, PNG, BMP, TIFF' in errors['05.jpg'] == errors['a.gif']
  assert 'not a video' in errors['b.mp4'] and 'no file' in errors['c.png']
  assert 'I (32-bit)' in errors['d.tif']
  assert all(row['class'] == row['p_red'] == '' for row in rows if row['error'])
  assert counts.errors == 9 and counts.faces == 15 and counts.files == 24


def test_a_folder_that_cannot_be_read_is_a_row(folder, tmp_path, monkeypatch):
  walk = os.walk

  def refusing(top, onerror, **options):
    yield from walk(top, onerror=onerror, **options)
    onerror(PermissionError(errno.EACCES, 'Permission denied', str(folder / 'secret')))

  monkeypatch.setattr(listing.os, 'walk', refusing)
  counts, rows = run([folder], tmp_path / 'a.csv')
  assert (rows[-1]['file'], rows[-1]['error']) == (str(folder / 'secret'), 'Permission denied')
  assert counts.errors == 1 and counts.faces == 20


def test_pictures_are_read_as_training_reads_them(folder, tmp_path):
  image = Image.open(folder / '00.png')
  exif = Image.Exif()
  exif[0x112] = 6
  image.save(tmp_path / 'turned.jpg', exif=exif)
  image.convert('L').save(tmp_path / 'grey.png')
  image.save(tmp_path / 'colour.tif')
  (tmp_path / 'padded.jpg').write_bytes((folder / '01.jpg').read_bytes() + b'\0' * 9)
  (tmp_path / 'more.jpg').write_bytes((folder / '01.jpg').read_bytes() + b'more')
  for path in [*folder.glob('*.???'), *tmp_path.glob('*.???')]:
    if path.suffix != '.txt':
      expected = files.decode(files.encoded_picture(path))
      np.testing.assert_array_equal(files.read(path), expected)
  assert files.read(tmp_path / 'turned.jpg').shape == (20, 24, 3)


def test_names_of_any_kind(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  names = ['=1+1, "a".png', '@x.png', 'two\nlines.png', 'ünï.png', os.fsdecode(b'\xff.png')]
  for number, name in enumerate(names):
    image = Image.fromarray(np.full((9, 9, 3), np.eye(3)[number % 3] * 200, np.uint8))
    with open(name, 'wb') as file:
      image.save(file, 'PNG')
  _, rows = run(names, Path('out.csv'), outputs=predict.Outputs(Path('out.csv'), Path('s.png')))
  assert [row['class'] for row in rows] == [CLASSES[number % 3] for number in range(5)]
  expected = ['./=1+1, "a".png', './@x.png', 'two\nlines.png', 'ünï.png', '\\udcff.png']
  assert [row['file'] for row in rows] == expected
  assert cv2.imread('s.png').std() > 5


def test_an_output_must_not_be_an_input(folder, tmp_path):
  model, video = fake(), film_of(tmp_path / 'v.avi')
  out, inside = tmp_path / 'a.csv', folder / 'new' / 'a.png'
  manifest = tmp_path / 'manifest.csv'
  manifest.write_text('path\nfaces/00.png\n')
  for names, outputs in (
    ([manifest], predict.Outputs(manifest)),
    ([folder / '00.png'], predict.Outputs(out, folder / '00.png')),
    ([manifest], predict.Outputs(out, folder / '00.png')),
    ([folder], predict.Outputs(out, inside)),
    ([folder / '*.png'], predict.Outputs(out, folder / 'a.png')),
    ([folder / 'm*'], predict.Outputs(out, folder / 'more' / 'a.png')),
    ([f'{tmp_path}/**/*.png'], predict.Outputs(out, inside)),
    ([tmp_path / '*.csv'], predict.Outputs(out)),
    ([video], predict.Outputs(out, video=video)),
    ([folder], predict.Outputs(folder)),
    ([video], predict.Outputs(out, video=tmp_path / 'v.gif')),
    ([folder], predict.Outputs(out, tmp_path / 's.gif')),
    ([video], predict.Outputs(tmp_path / 'x.png', tmp_path / 'x.png')),
    ([folder], predict.Outputs(out, video=tmp_path / 'x.avi')),
  ):
    with pytest.raises(InputError, match='--(out|sheet|video)'):
      predict.predict(model, [str(name) for name in names], outputs)
  assert not out.exists() and not inside.parent.exists()
  run([folder / '*.png'], folder / 'a.csv', outputs=predict.Outputs(folder / 'a.csv'))
  run([folder / '*.png'], out, outputs=predict.Outputs(out, folder / 'a.jpg'))
  for options in ({'every': 0}, {'threads': 0}, {'detection': reading.Detection([], margin=0.5)}):
    with pytest.raises(InputError, match=f'--{[*options][0][:1]}|--margin'):
      predict.predict(model, [str(folder)], predict.Outputs(out), **options)
  os.mkfifo(tmp_path / 'fifo')
  with pytest.raises(InputError, match='not a regular file'):
    run([folder], tmp_path / 'fifo')
  (tmp_path / 'file').write_text('')
  with pytest.raises(InputError, match='cannot make'):
    run([folder], tmp_path / 'file' / 'a.csv')


def test_batches_are_large_and_in_order(folder, tmp_path):
  sizes = []

  def counted(batch):
    sizes.append(len(batch['image']))
    return colours(batch)

  run([folder], tmp_path / 'a.csv', fake(counted))
  assert sizes == [8, 8, 8]  # the last four are padded to what is compiled
  sizes.clear()
  run([folder / '00.png', folder / '01.jpg', folder / '02.png'], tmp_path / 'a.csv', fake(counted))
  assert sizes == [4]


def test_the_memory_of_waiting_items_is_bounded():
  running, most = [], []
  done = threading.Event()

  def task(number):
    def call():
      running.append(number)
      return number

    return 10, call

  class Pool:
    def submit(self, call):
      return type('Future', (), {'result': staticmethod(call)})

  taken = reading.ahead(Pool(), (most.append(n) or task(n) for n in range(100)), limit=50)
  for number, item in enumerate(taken):
    assert item == number and len(most) <= number + 6
  assert running == list(range(100)) and not done.is_set()
  frame = reading.Item(Path('v'), image=np.zeros((10, 10, 3), np.uint8))
  sizes = [len(batch) for batch in reading.batches([frame] * 10, rows=64, limit=1000)]
  assert sizes == [4, 4, 2]
  empty = [reading.Item(Path('v'), error='no')] * 40
  assert [len(batch) for batch in reading.batches(empty, rows=2)] == [32, 8]


def test_an_interrupted_table_is_not_written(folder, tmp_path):
  out = tmp_path / 'a.csv'
  out.write_text('former\n')
  calls = []

  def interrupted(batch):
    calls.append(1)
    if len(calls) > 1:
      raise KeyboardInterrupt
    return colours(batch)

  with pytest.raises(KeyboardInterrupt):
    run([folder], out, fake(interrupted))
  assert out.read_text() == 'former\n'
  assert sorted(path.name for path in tmp_path.iterdir()) == ['a.csv', 'faces']


def with_landmarks(folder: Path, bad=()) -> Path:
  """A manifest of the pictures of a folder; the first landmark is at the middle of the picture."""
  path = folder / 'manifest.csv'
  with path.open('w', newline='') as file:
    lines = csv.writer(file)
    lines.writerow(['path', 'x_0', 'x_1', 'y_0', 'y_1'])
    for number, picture in enumerate(sorted(folder.glob('*.png'))):
      points = ['bad'] * 4 if number in bad else [9.5, -0.5, 11.5, -0.5]
      lines.writerow([picture.name, *points])
    lines.writerow(['../outside.png', 1, 1, 1, 1])
    lines.writerow(['missing.png', 1, 1, 1, 1])
  return path


def test_landmarks_of_a_manifest(folder, tmp_path, caplog):
  seen = []

  def looking(batch):
    seen.append(batch.get('landmarks'))
    return colours(batch)

  path = with_landmarks(folder, bad=[2])
  needing = fake(looking, needs=frozenset({'landmarks'}))
  counts, rows = run([path], tmp_path / 'a.csv', needing)
  np.testing.assert_allclose(seen[0], np.tile([[3.5, 3.5], [-0.5, -0.5]], (8, 1, 1)), atol=1e-6)
  errors = [row['error'] for row in rows if row['error']]
  assert counts.faces == 5 and len(errors) == 3
  assert 'not finite' in errors[0] and 'not below' in errors[1] and 'missing file' in errors[2]
  with pytest.raises(InputError, match='(?s)manifest.*annotate.*--detect'):
    run([path, folder / '01.jpg'], tmp_path / 'a.csv', needing)
  with pytest.raises(InputError, match='besides pictures, which inputs cannot have'):
    run([path], tmp_path / 'a.csv', fake(needs=frozenset({'au'})))
  other = folder / 'other.csv'
  other.write_text('path,x_0,y_0\n00.png,1,1\n')
  with pytest.raises(InputError, match='1 and 2 landmarks'):
    run([path, other], tmp_path / 'a.csv', needing)
  (folder / 'gaps.csv').write_text('path,x_1,y_1\n00.png,1,1\n')
  with pytest.raises(InputError, match='no gaps'):
    inputs.find([str(folder / 'gaps.csv')])
  (folder / 'no.csv').write_text('name\n00.png\n')
  with pytest.raises(InputError, match="no column 'path'"):
    inputs.find([str(folder / 'no.csv')])

  seen.clear()
  using = fake(looking, uses=frozenset({'landmarks'}))
  names = [folder / '01.jpg', path, folder / '03.jpg']
  counts, rows = run(names, tmp_path / 'a.csv', using)
  found = [row['class'] for row in rows if row['class']]
  assert found == ['green', 'red', 'blue', 'red', 'blue', 'green', 'red']
  assert any(points is None for points in seen) and any(points is not None for points in seen)
  assert caplog.text.count('without landmarks of 2 of 10 inputs') == 1
  counts, rows = run([path], tmp_path / 'a.csv', fake(looking))  # a model that looks at none
  assert counts.faces == 6


def test_poses_and_scores_that_are_not_numbers(folder, tmp_path):
  def turned(batch):
    first = np.eye(2)[(batch['image'][:, 0, 0, 0] > 100).astype(int)]
    return colours(batch) | {'pose_logits': first}

  _, rows = run([folder], tmp_path / 'a.csv', fake(turned, poses=(-30, 45)))
  assert [row['pose'] for row in rows[:3]] == ['45', '-30', '-30']
  _, rows = run([folder], tmp_path / 'a.csv', fake(poses=(-30, 45)))
  assert rows[0]['pose'] == ''
  counts, rows = run(
    [folder], tmp_path / 'a.csv', fake(lambda b: {'logits': b['image'].mean((1, 2)) * np.nan})
  )
  assert counts.faces == 0 and counts.errors == 20 and 'not finite' in rows[0]['error']


def test_frames_of_a_video(tmp_path):
  video = film_of(tmp_path / 'v.avi')
  counts, rows = run([video], tmp_path / 'a.csv')
  assert [row['class'] for row in rows] == [CLASSES[number % 3] for number in range(10)]
  assert [row['frame'] for row in rows] == [str(number) for number in range(10)]
  assert [row['time'] for row in rows] == [f'{number / 10:.3f}' for number in range(10)]
  assert counts[:4] == (10, 1, 10, 0)
  counts, rows = run([tmp_path], tmp_path / 'a.csv', every=4)
  assert [(row['frame'], row['class']) for row in rows] == [
    ('0', 'red'),
    ('4', 'green'),
    ('8', 'blue'),
  ]


def test_a_truncated_video(tmp_path):
  whole = film_of(tmp_path / 'whole.avi', frames=40).read_bytes()
  (tmp_path / 'cut.avi').write_bytes(whole[: len(whole) // 2])
  counts, rows = run([tmp_path / 'cut.avi'], tmp_path / 'a.csv')
  assert 2 < counts.faces < 30 and counts.errors == 1
  assert rows[-1]['error'] == f'the video is damaged: {counts.faces} of 40 frames can be read'
  assert rows[-1]['frame'] == str(counts.faces) and rows[-2]['class']


def test_a_video_without_frames(tmp_path):
  counts, (row,) = run([film_of(tmp_path / 'none.avi', frames=0)], tmp_path / 'a.csv')
  assert counts.errors == 1 and row['error'].startswith('cannot be read: it ')


@pytest.mark.parametrize('codec, ending', [('MJPG', '.avi'), ('mp4v', '.mp4')])
def test_an_annotated_video(tmp_path, codec, ending):
  video = film_of(tmp_path / f'v{ending}', codec=codec, size=(96, 128), fps=12.5)
  shown = tmp_path / 'shown' / f'v{ending}'
  outputs = predict.Outputs(tmp_path / 'a.csv', video=shown)
  counts, rows = run([video], tmp_path / 'a.csv', outputs=outputs, every=3)
  assert len(rows) == 4 and {row['class'] for row in rows} == {'red'}
  before, after = frames_of(video), frames_of(shown)
  assert len(after) == 10 and after[0].shape == (96, 128, 3)
  assert cv2.VideoCapture(str(shown)).get(cv2.CAP_PROP_FPS) == 12.5
  for old, new in zip(before, after, strict=True):  # the panel at the top, on every frame
    change = np.abs(old.astype(int) - new).mean((1, 2))
    assert change[:20].mean() > 15 and change[48:].mean() < 8
  assert [path.name for path in shown.parent.iterdir()] == [shown.name]


def test_a_video_that_cannot_be_written(tmp_path, monkeypatch):
  outputs = predict.Outputs(tmp_path / 'a.csv', video=tmp_path / 'x.avi')
  (tmp_path / 'bad.avi').write_text('no video')
  with pytest.raises(InputError, match='no frame'):
    run([tmp_path / 'bad.avi'], tmp_path / 'a.csv', outputs=outputs)
  video = film_of(tmp_path / 'v.avi')
  monkeypatch.setitem(film.CODECS, '.avi', 'none')
  with pytest.raises(InputError, match='cannot write'):
    run([video], tmp_path / 'a.csv', outputs=outputs)
  assert sorted(path.name for path in tmp_path.iterdir()) == ['bad.avi', 'v.avi']


def test_sheets(folder, tmp_path, monkeypatch):
  monkeypatch.setattr(overlay, 'LINES', 2)
  (folder / '01.jpg').write_text('broken')
  sheet = tmp_path / 's.png'
  counts, _ = run([folder], tmp_path / 'a.csv', outputs=predict.Outputs(tmp_path / 'a.csv', sheet))
  pages = [cv2.imread(str(tmp_path / name)) for name in ('s.png', 's.page2.png', 's.page3.png')]
  assert [page.shape[0] for page in pages] == [348, 348, 178]
  assert counts.not_drawn == 0 and not (tmp_path / 's_4.png').exists()
  first = pages[0][26:170, 8:152, ::-1]
  assert (first[..., 0] > 140).mean() > 0.8  # a red picture, upright in a square
  assert (first[:, 0] == 255).all() and (pages[0][100, 450] != 255).any()
  outputs = predict.Outputs(tmp_path / 'a.csv', tmp_path / 't.jpg', pages=1)
  counts, _ = run([folder], tmp_path / 'a.csv', outputs=outputs)
  assert counts.not_drawn == 12 and 'full (--sheet_pages): 12' in predict.summary(counts)
  assert (tmp_path / 't.jpg').read_bytes().startswith(b'\xff\xd8') and not (
    tmp_path / 't.page2.jpg'
  ).exists()


def test_frames_of_any_size():
  shares = np.array([0.7, 0.2, 0.1])
  for height, width in ((1, 1), (16, 9), (48, 48), (97, 101), (720, 1280)):
    image = np.full((height, width, 3), 90, np.uint8)
    for faces in ([], [(0, 0, width, height)], [(0, 0, 2, 2), (1, 1, width, height)], [None]):
      drawn = overlay.frame(image, [overlay.Shown(shares, box) for box in faces], CLASSES)
      assert drawn.shape == image.shape and (drawn != image).any() == bool(faces)
  box = (0, 0, 60, 60)
  drawn = overlay.frame(np.full((200, 300, 3), 90, np.uint8), [overlay.Shown(shares, box)], CLASSES)
  assert (drawn[5:50, 5:50] == 90).all()  # the panel is where the face is not


@pytest.fixture
def discs(tmp_path):
  """A picture with two faces, one without a face, and one on which the detector fails."""
  two = np.full((200, 300, 3), 40, np.uint8)
  cv2.circle(two, (80, 90), 20, (255, 255, 255), -1)
  cv2.circle(two, (220, 120), 30, (255, 255, 255), -1)
  (tmp_path / 'discs').mkdir()
  for name, image in {
    'two': two,
    'none': np.full((200, 300, 3), 40, np.uint8),
    'fails': np.full((200, 300, 3), (255, 0, 0), np.uint8),
  }.items():
    cv2.imwrite(str(tmp_path / 'discs' / f'{name}.png'), image)
  return tmp_path / 'discs'


def test_detected_faces(discs, tmp_path, detector_command):
  seen = []

  def looking(batch):
    seen.extend(zip(batch['image'], batch['landmarks'], strict=True))
    return colours(batch)

  model = fake(looking, image_size=56, needs=frozenset({'landmarks'}))
  outputs = predict.Outputs(tmp_path / 'a.csv', tmp_path / 's.png')
  detection = reading.Detection(detector_command)
  counts, rows = run([discs], tmp_path / 'a.csv', model, outputs=outputs, detection=detection)
  assert counts[:4] == (3, 3, 2, 2)
  assert rows[0]['error'] == 'the detector failed: blue' and rows[1]['error'] == 'no face found'
  assert [Path(row['file']).name for row in rows[2:]] == ['two.png'] * 2
  boxes = [[int(row[name]) for name in ('x0', 'y0', 'x1', 'y1')] for row in rows[2:]]
  assert boxes[0][2] - boxes[0][0] > boxes[1][2] - boxes[1][0]  # the largest first
  for (x0, y0, x1, y1), (x, y) in zip(boxes, ((220, 120), (80, 90)), strict=True):
    assert 0 <= x0 < x < x1 <= 300 and 0 <= y0 < y < y1 <= 200
  detector = detectors.Detector(detector_command)
  image = files.read(discs / 'two.png')
  fields, crop = annotate.describe(image, detector.find(image)[0], 112, 0.1)
  detector.close()
  np.testing.assert_array_equal(seen[0][0], files.resize(crop, 56))
  point = np.array([float(fields['x_30']), float(fields['y_30'])])
  np.testing.assert_allclose(seen[0][1][30], (point + 0.5) / 2 - 0.5, atol=1e-4)
  assert cv2.imread(str(tmp_path / 's.png')).std() > 5


def test_a_tiny_run(small_config, tmp_path, capfd):
  small_config.steps = 2
  small_config.model.width = 4
  small_config.parallel.devices = 1
  workdir = tmp_path / 'run'
  loop.train(small_config, workdir)
  source = Path(small_config.data.path)
  out = tmp_path / 'faces.csv'
  flags = [f'--workdir={workdir}', str(source.parent / 'test_*.png')]
  main([*flags, f'--out={out}', '--threads=2'])
  printed = capfd.readouterr().out
  assert '28 faces of 28 files, 0 errors' in printed
  found = {Path(row['file']).name: row for row in read(out)}
  expected = read(workdir / 'predictions' / 'test.csv')
  assert len(expected) == 28
  for row in expected:
    same = found[row['name']]
    assert same['class'] == row['prediction']
    names = [name for name in row if name.startswith('p_')]
    assert len(names) == 7
    for name in names:
      assert float(same[name]) == pytest.approx(float(row[name]), abs=2e-6)
  main(flags)
  assert list(csv.DictReader(io.StringIO(capfd.readouterr().out))) == list(found.values())


def test_a_path_that_no_file_can_have_is_a_row(folder, tmp_path):
  (folder / 'manifest.csv').write_bytes(b'path\n00.png\na\0b.png\n')
  counts, rows = run([folder / 'manifest.csv'], tmp_path / 'a.csv')
  assert counts.faces == counts.errors == 1 and rows[1]['error'].startswith('missing file')


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='only Linux has /dev/full')
def test_a_table_that_standard_output_cannot_write(folder, monkeypatch):
  with open('/dev/full', 'w') as full:
    monkeypatch.setattr('sys.stdout', full)
    with pytest.raises(InputError, match='cannot write to standard output: No space left'):
      predict.predict(fake(), [str(folder)], predict.Outputs())
  monkeypatch.setattr('sys.stdout', None)
  with pytest.raises(InputError, match='standard output is closed'):
    predict.predict(fake(), [str(folder)], predict.Outputs())


def test_mistakes_are_reported_in_one_line(tmp_path):
  write(tmp_path / 'a.png', 0)
  command = [
    sys.executable,
    '-m',
    'ferjax',
    'predict',
    f'--workdir={tmp_path}',
    str(tmp_path / 'a.png'),
  ]
  result = subprocess.run(command, capture_output=True, text=True)
  assert result.returncode == 1 and result.stderr.startswith('ferjax: ')
  assert 'Traceback' not in result.stderr and json.dumps(str(tmp_path))[1:-1] in result.stderr
