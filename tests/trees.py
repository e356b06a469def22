"""Made-up data sets in the layouts of the real ones: tiny drawn pictures, with the traps."""

import csv
from pathlib import Path

import numpy as np
from PIL import Image


def text(path: Path, content: str) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(content, encoding='utf-8')


def picture(path: Path, seed: int, size: tuple[int, int] = (16, 16), mode: str = 'RGB') -> None:
  """A picture of random squares, another for each seed."""
  path.parent.mkdir(parents=True, exist_ok=True)
  shape = (4, 4, 3) if mode == 'RGB' else (4, 4)
  squares = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
  Image.fromarray(squares).resize(size, Image.Resampling.NEAREST).save(path)


def points(count: int = 68) -> np.ndarray:
  return np.arange(2 * count, dtype=float).reshape(count, 2) / 10


def raf_db(root: Path) -> None:
  """Tabs on some lines, an upper-case ending, blank lines, and one extra picture."""
  basic, lines, seed = root / 'raf_db' / 'basic', [], 0
  for split, digits, each in (('train', 5, 3), ('test', 4, 2)):
    for number in range(7 * each):
      name, seed = f'{split}_{number + 1:0{digits}}', seed + 1
      ending = 'JPG' if number == 1 else 'jpg'
      picture(basic / 'Image' / 'aligned' / f'{name}_aligned.{ending}', seed)
      picture(basic / 'Image' / 'original' / f'{name}.jpg', seed, (40, 30))
      lines.append(f'{name}.jpg{" " if number % 2 else chr(9)}{number % 7 + 1}')
      rows = '\n'.join(f'{x}\t{y}' for x, y in points(37))
      text(basic / 'Annotation' / 'auto' / f'{name}_auto_attri.txt', rows)
  text(basic / 'EmoLabel' / 'list_patition_label.txt', '\n'.join(lines) + '\n\n')
  picture(basic / 'Image' / 'aligned' / 'train_99999_aligned.jpg', 999)


def pixels(seed: int) -> str:
  return ' '.join(map(str, np.random.default_rng(seed).integers(0, 256, 48 * 48)))


USAGES = (*['Training'] * 14, *['PublicTest'] * 7, *['PrivateTest'] * 7)


def fer2013(root: Path) -> None:
  rows = [(i % 7, pixels(i), usage) for i, usage in enumerate(USAGES)]
  write_csv(root / 'fer2013' / 'fer2013.csv', [('emotion', 'pixels', 'Usage'), *rows])


def write_csv(path: Path, rows) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open('w', newline='') as file:
    csv.writer(file).writerows(rows)


VOTES = ('neutral happiness surprise sadness anger disgust fear contempt unknown NF').split()


def votes(number: int) -> list[int]:
  """Six votes for one of eight classes, three for the next, one for the third."""
  return [{0: 6, 1: 3, 2: 1}.get((i - number) % 8, 0) for i in range(8)] + [0, 0]


def fer_plus(root: Path) -> None:
  """The first row is not a face, the second is unknown."""
  fer2013(root)
  rows = [[usage, f'fer{i:07}.png', *votes(i)] for i, usage in enumerate(USAGES)]
  rows[0][1:] = ['', *[0] * 9, 10]
  rows[1][2:] = [3, 0, 0, 0, 0, 0, 0, 0, 7, 0]
  write_csv(root / 'fer_plus' / 'fer2013new.csv', [('Usage', 'Image name', *VOTES), *rows])


def fer_plus_folders(root: Path) -> None:
  number = 0
  for split in ('Train', 'Valid', 'Test'):
    folder, rows = root / 'fer_plus' / f'FER2013{split}', []
    for _ in range(8):
      name = f'fer{number:07}.png'
      picture(folder / name, number, (48, 48), 'L')
      rows.append([name, '(0, 0, 48, 48)', *votes(number)])
      number += 1
    write_csv(folder / 'label.csv', rows)


def affectnet(root: Path) -> None:
  """The new release: numbers as text, an upper-case ending, 0-d arrays."""
  number = 0
  for folder, each in (('train_set', 3), ('val_set', 1)):
    for i in range(8 * each):
      base = root / 'affectnet' / folder
      picture(base / 'images' / f'{number}.{"JPG" if i == 1 else "jpg"}', number, (32, 32))
      notes = base / 'annotations'
      notes.mkdir(exist_ok=True)
      for key, value in (('exp', str(i % 8)), ('val', '0.5'), ('aro', '-0.1')):
        np.save(notes / f'{number}_{key}.npy', np.array(value))
      np.save(notes / f'{number}_lnd.npy', points().ravel())
      number += 1


COLUMNS = (
  'subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,expression,'
  'valence,arousal'
).split(',')


def affectnet_old(root: Path) -> None:
  """Validation without its header, an upper-case ending, None and Uncertain, bad rows apart."""
  base = root / 'affectnet'
  for name, each, header in (('training', 2, [COLUMNS]), ('validation', 1, [])):
    rows = []
    for i in range(11 * each):
      path = f'{i % 3}/{name}{i}.jpg'
      written = path.replace('.jpg', '.JPG') if i == 2 else path
      picture(base / 'Manually_Annotated_Images' / written, hash_of(path), (40, 40))
      landmarks = ';'.join(str(v) for v in (points() + 10).ravel())
      rows.append([path, 10, 5, 24, 20, landmarks, i % 11, -2, -2])
    write_csv(base / 'Manually_Annotated_file_lists' / f'{name}.csv', [*header, *rows])


def hash_of(name: str) -> int:
  return sum(i * ord(c) for i, c in enumerate(name, 1))


def ck_plus(root: Path, subjects: int = 10) -> None:
  """One sequence without a label, an empty folder, a lower-case `emotion`, some grey frames."""
  base = root / 'ck_plus'
  for s in range(subjects):
    for q in range(1, 8):
      sequence = f'S{s + 5:03}/{q:03}'
      stem = sequence.replace('/', '_')
      for frame in range(1, 6):
        name = f'{stem}_{frame:08}'
        frames = base / 'extended-cohn-kanade-images' / 'cohn-kanade-images'
        mode = 'L' if frame % 2 else 'RGB'
        picture(frames / sequence / f'{name}.png', 1000 * s + 10 * q + frame, mode=mode)
        rows = '\n'.join(f'   {x:.7e}   {y:.7e}' for x, y in points())
        text(base / 'Landmarks' / sequence / f'{name}_landmarks.txt', rows)
      if (s, q) != (0, 7):
        emotion = base / 'emotion' / sequence / f'{stem}_00000005_emotion.txt'
        text(emotion, f'   {float(q):.7e}\n')
      units = '   4.0000000e+00   0.0000000e+00\n   1.2000000e+01   3.0000000e+00\n'
      text(base / 'FACS' / sequence / f'{stem}_00000005_facs.txt', units)
  (base / 'emotion' / 'S005' / '007').mkdir()


FOLDERS = ('Angry', 'Disgust', 'Fear', 'Happy', 'Neutral', 'Sad', 'Surprise')


def sfew(root: Path) -> None:
  """Aligned and original pictures side by side, and a test set without labels."""
  for folder, each, size in (
    ('Train', 3, (40, 30)),
    ('Val', 2, (40, 30)),
    ('Train_Aligned_Faces/Train_Aligned_Faces', 2, (16, 16)),
    ('Val_Aligned_Faces_new', 1, (16, 16)),
  ):
    for c, name in enumerate(FOLDERS):
      for i in range(each):
        file = f'AlexEmma_{c:04}{i:05}_{i:08}.{"PNG" if i else "png"}'
        picture(root / 'sfew' / folder / name / file, hash_of(f'{folder}{name}{i}'), size)
  picture(root / 'sfew' / 'Test' / 'AlexEmma_000000000_00000000.png', 1)


def kdef(root: Path) -> None:
  """Session A and a woman make the prefix AF, which is also afraid; one name lacks its angle."""
  base = root / 'kdef' / 'KDEF_and_AKDEF' / 'KDEF'
  for number in (1, 2, 3):
    for sex in 'FM':
      for expression in ('AF', 'AN', 'DI', 'HA', 'NE', 'SA', 'SU'):
        for angle in ('FL', 'HL', 'S', 'HR', 'FR'):
          stem = f'A{sex}{number:02}{expression}{angle}'
          picture(base / stem[:4] / f'{stem}.JPG', hash_of(stem))
  picture(base / 'AF01' / 'AF01ANF.JPG', 1)
  picture(base.parent / 'AKDEF' / 'MNES.JPG', 2)


def bu3dfe(root: Path, rendered: bool = False, subjects: int = 10) -> None:
  for s in range(subjects):
    subject = f'{"FM"[s % 2]}{s // 2 + 1:04}'
    for expression in ('NE', 'AN', 'DI', 'FE', 'HA', 'SA', 'SU'):
      level, race = '00' if expression == 'NE' else '02', ('WH', 'AM', 'BL')[s % 3]
      stem = f'{subject}_{expression}{level}{race}'
      folder = root / 'bu3dfe' / subject
      picture(folder / f'{stem}_F2D.bmp', hash_of(stem))
      text(folder / f'{stem}_F3D.bnd', '4096\t\t1.0 2.0 3.0\n')
      for yaw in ('-90', '-45', '+0', '+30', '+15') if rendered else ():
        picture(folder / f'{stem}_y{yaw}.png', hash_of(stem + yaw))


RECORDINGS = ((1, 1), (1, 2), (2, 2), (2, 3), (3, 3), (4, 3))


def multi_pie(root: Path) -> None:
  """Other lights, the overhead camera, profiles, and the pictures of `highres`."""
  for subject in (1, 2, 3, 4, 5, 6, 7, 346):
    for session, recording in RECORDINGS:
      base = root / 'multi_pie' / 'data' / f'session{session:02}'
      for camera in ('05_1', '13_0', '04_1', '24_0', '19_1'):
        for light in (7, 12) if camera == '05_1' else (7,):
          plain = camera.replace('_', '')
          name = f'{subject:03}_{session:02}_{recording:02}_{plain}_{light:02}.png'
          folder = base / 'multiview' / f'{subject:03}' / f'{recording:02}' / camera
          picture(folder / name, hash_of(name))
  picture(base / 'highres' / '001' / '001_01_01.jpg', 1)


def jaffe(root: Path) -> None:
  """Subject NA, whose pictures of other expressions hold no AN; KA has one."""
  for subject in ('KA', 'KL', 'KM', 'KR', 'MK', 'NA', 'NM', 'TM', 'UY', 'YM'):
    for i, expression in enumerate(('AN', 'DI', 'FE', 'HA', 'NE', 'SA', 'SU')):
      name = f'{subject}.{expression}1.{i + 39}.tiff'
      picture(root / 'jaffe' / name, hash_of(name), mode='L')
  text(root / 'jaffe' / 'README_FIRST.txt', 'Ratings')


def mmi(root: Path) -> None:
  """A sequence without an emotion, a profile, frames numbered without zeros, one more XML."""
  for n in range(12):
    stem = f'S{n + 1:03}-{n + 1:03}'
    base = root / 'mmi' / 'Sessions' / str(n + 1)
    emotion = n % 6 + 1 if n < 10 else (99 if n == 10 else 1)
    tag = f'<Metatag Name="Emotion" Value="{emotion}"/>'
    text(base / f'{stem}.xml', f'<Clip><Metatag Name="Note" Value="x"/>{tag}</Clip>')
    text(
      base / f'{stem}-oao_aucs.xml', '<AnnotationFile><ActionUnit Number="12"/></AnnotationFile>'
    )
    view = 1 if n == 11 else 0
    text(base / 'session.xml', f'<Session><track filename="{stem}.avi" view="{view}"/></Session>')
    for frame in range(1, 13):
      picture(base / stem / f'{frame}.png', 100 * n + frame)


def oulu_casia(root: Path) -> None:
  """Other cameras and lights, and the cropped twin."""
  names = ('Anger', 'Disgust', 'Fear', 'Happiness', 'Sadness', 'Surprise')
  for subject in range(1, 11):
    for name in names:
      for frame in range(10):
        path = f'VL/Strong/P{subject:03}/{name}/{frame:03}.jpeg'
        picture(root / 'oulu_casia' / 'B_OriginalImg' / 'OriginalImg' / path, hash_of(path))
  picture(root / 'oulu_casia' / 'B_OriginalImg' / 'NI' / 'Dark' / 'P001' / 'Fear' / '000.jpeg', 1)
  cropped = root / 'oulu_casia' / 'VL_Acropped' / 'Strong' / 'P001' / 'Anger'
  for frame in range(4):
    picture(cropped / f'{frame:03}.jpeg', frame)


def cfee(root: Path) -> None:
  for subject in range(100, 110):
    for emotion in range(1, 23):
      name = f'{emotion:02}_{subject}_{3000 + emotion}.jpg'
      folder = root / 'cfee' / 'CFEE_Database_230' / '01-04' / f'Images{emotion % 4}'
      picture(folder / name, hash_of(name))


def expw(root: Path) -> None:
  """Two faces in each picture, boxes as top, left, right, bottom, a repeated line."""
  lines = []
  for number in range(60):
    name = f'angry face_{number}.jpg'
    picture(root / 'expw' / 'image' / 'origin' / name, number, (60, 40))
    for face in range(2):
      lines.append(f'{name} {face} 4 {10 + 20 * face} {28 + 20 * face} 34 50.5 {number % 7}')
  text(root / 'expw' / 'label' / 'label.lst', '\n'.join([*lines, lines[0]]) + '\n')


def folder(root: Path) -> None:
  for split, each in (('train', 4), ('test', 2)):
    for name in ('Happy', 'neutral', 'sad', 'pride'):
      for i in range(each):
        path = root / 'folder' / split / name / 'deep' / f'{i}.{"bmp" if i else "jpg"}'
        picture(path, hash_of(f'{split}{name}{i}'))
  text(root / 'folder' / 'train' / 'notes.txt', 'nothing')
