"""Predicts pictures and videos, and writes the results as tables, sheets and a video."""

import collections
import contextlib
import csv
import logging
import queue
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from ferjax import files
from ferjax.annotation import detector as detectors
from ferjax.annotation.faces import check_crop, printable
from ferjax.errors import InputError
from ferjax.prediction import film as films
from ferjax.prediction import inputs, overlay, reading
from ferjax.prediction import predictor as predictors
from ferjax.terminal.progress import Progress

LOGGER = logging.getLogger(__name__)

CLASS = 7  # the column of the class
FORMULA = ('=', '+', '-', '@', '\t', '\r')

Prediction = tuple[np.ndarray, int | None]  # f32[C], and the pose in degrees


def classify(model: predictors.Predictor, batch: Sequence[reading.Item]) -> list[list[Prediction]]:
  """The prediction for each face of each item."""
  crops = [crop for item in batch for crop in item.crops]
  found = {}
  for has_landmarks in (False, True):
    chosen = [i for i, crop in enumerate(crops) if (crop.landmarks is not None) == has_landmarks]
    if not chosen:
      continue
    features = {}
    if has_landmarks:
      features['landmarks'] = np.stack([crops[i].landmarks for i in chosen])
    outputs = model.outputs([crops[i].image for i in chosen], **features)
    poses = [None] * len(chosen)
    if model.poses and 'pose_logits' in outputs:
      poses = [model.poses[best] for best in outputs['pose_logits'].argmax(1)]
    found |= zip(chosen, zip(outputs['probabilities'], poses, strict=True), strict=True)
  places = iter(range(len(crops)))
  return [[found[next(places)] for _ in item.crops] for item in batch]


def predictions(
  model: predictors.Predictor, parts: Iterable[list[reading.Item]]
) -> Iterator[tuple[reading.Item, list[Prediction]]]:
  """Items with their predictions. The model computes a batch while the next one is read.

  All batches are padded to at least the size of the first one, because padding costs less than
  another compilation.
  """
  sizes = ()

  def one(batch):
    nonlocal sizes
    faces = sum(len(item.crops) for item in batch)
    if not sizes and faces:
      least = min(faces, model.sizes[-1])
      sizes = tuple(size for size in model.sizes if size >= least)
    return classify(model._replace(sizes=sizes) if sizes else model, batch)

  with ThreadPoolExecutor(1) as device:
    former = None
    for batch in parts:
      current = batch, device.submit(one, batch)
      if former:
        yield from zip(former[0], former[1].result(), strict=True)
      former = current
    if former:
      yield from zip(former[0], former[1].result(), strict=True)


def header(classes: Sequence[str]) -> list[str]:
  """The columns of the table."""
  shares = [f'p_{name}' for name in classes]
  return ['file', 'frame', 'time', 'x0', 'y0', 'x1', 'y1', 'class', *shares, 'pose', 'error']


def rows(
  item: reading.Item, found: Sequence[Prediction], classes: Sequence[str]
) -> Iterator[list[Any]]:
  """The rows of an item: one for each face, and one for its error."""
  place = [_name(item.file), _or_empty(item.frame)]
  place.append('' if item.time is None else f'{item.time:.3f}')
  for crop, (shares, pose) in zip(item.crops, found, strict=True):
    if np.isfinite(shares).all():
      fields = [
        classes[shares.argmax()],
        *(f'{share:.6g}' for share in shares),
        _or_empty(pose),
        '',
      ]
    else:
      fields = [''] * (len(classes) + 2) + ['the scores of the model are not finite numbers']
    yield [*place, *(crop.box or [''] * 4), *fields]
  if item.error:
    yield [*place, *[''] * (len(classes) + 6), printable(item.error)]


def _or_empty(value):
  return '' if value is None else value


def _name(path: Path) -> str:
  name = printable(str(path))
  return f'./{name}' if name.startswith(FORMULA) else name


class Outputs(NamedTuple):
  """The output files.

  Attributes:
    table: The CSV file; None for standard output.
    sheet: The first page of pictures with their bars, or None.
    pages: The largest number of pages of the sheet.
    video: The annotated video, or None.
  """

  table: Path | None = None
  sheet: Path | None = None
  pages: int = 25
  video: Path | None = None


class Counts(NamedTuple):
  """The numbers of what was predicted.

  Attributes:
    items: Pictures and frames that were read.
    files: Files.
    faces: Faces with a prediction.
    errors: Rows with an error.
    classes: {class: number of faces}.
    seconds: Duration in seconds.
    not_drawn: Faces that did not fit on the sheet.
  """

  items: int
  files: int
  faces: int
  errors: int
  classes: dict[str, int]
  seconds: float
  not_drawn: int


def predict(
  model: predictors.Predictor,
  names: Sequence[str],
  outputs: Outputs,
  *,
  detection: reading.Detection | None = None,
  every: int = 1,
  threads: int = 2,
) -> Counts:
  """Predicts all inputs and writes the results. The memory does not grow with the inputs.

  A file that cannot be read becomes a row with its error. Output files appear when they are
  complete.

  Args:
    model: The model.
    names: Inputs; see `inputs.find`.
    outputs: The output files.
    detection: Settings of face detection; None if the pictures are faces.
    every: Predict every Nth frame of a video.
    threads: Number of threads that read, and of processes that find faces.

  Raises:
    InputError: an input names nothing, the model needs landmarks but there are none, an output
      would be an input or cannot be written, or a number is out of range.
  """
  sources = _check(model, names, outputs, detection, every, threads)
  inputs.tell_repeated(sources)
  started = time.perf_counter()
  classes, seen = model.classes, collections.Counter()
  items = errors = 0
  with contextlib.ExitStack() as stack:
    table = csv.writer(stack.enter_context(_opened(outputs.table)))
    sheet = overlay.Sheet(outputs.sheet, classes, outputs.pages) if outputs.sheet else None
    film = None
    if outputs.video:
      film = films.Film(stack.enter_context(files.replacing_path(outputs.video)), classes)
      stack.callback(film.release)
    detector_pool = _detectors(stack, detection, threads)
    looks = 'landmarks' in model.needs | model.uses
    wants = (lambda: sheet.wants) if sheet else (lambda: False)
    reader = reading.Reader(model.image_size, looks, detection, detector_pool, wants)
    progress = stack.enter_context(Progress('Predicting', len(sources)))
    pool = ThreadPoolExecutor(threads)
    stack.callback(pool.shutdown, cancel_futures=True)
    todo = reading.tasks(sources, reader, every, film is not None, progress)
    parts = reading.batches(reading.ahead(pool, todo), model.sizes[-1])
    table.writerow(header(classes))
    for item, found in predictions(model, parts):
      shown = [
        overlay.Shown(shares, crop.box) for crop, (shares, _) in zip(item.crops, found, strict=True)
      ]
      if film and item.image is not None:
        film.add(item, shown)
      if item.skipped:
        continue
      for row in rows(item, found, classes):
        table.writerow(row)
        seen[row[CLASS]] += 1
        errors += bool(row[-1])
      if sheet:
        _draw(sheet, item, shown)
      items += 1
      progress.update()
    if film:
      film.close()
    if sheet:
      sheet.close()
  by_class = {name: seen[name] for name in classes if seen[name]}
  seconds = time.perf_counter() - started
  left_out = sheet.left_out if sheet else 0
  faces = sum(by_class.values())
  return Counts(items, len(sources), faces, errors, by_class, seconds, left_out)


def _detectors(stack, detection, count) -> queue.SimpleQueue:
  """Running detectors, which are closed with the stack; none if `detection` is None."""
  pool = queue.SimpleQueue()
  for _ in range(count if detection else 0):
    detector = detectors.Detector(detection.command)
    stack.callback(detector.close)
    pool.put(detector)
  return pool


def _draw(sheet: overlay.Sheet, item: reading.Item, shown: Sequence[overlay.Shown]) -> None:
  title = item.file.name if item.time is None else f'{item.file.name} {item.time:.2f} s'
  title = printable(title)
  for crop, face in zip(item.crops, shown, strict=True):
    sheet.add(overlay.Cell(crop.thumb, title, face))
  if item.error:
    sheet.add(overlay.Cell(None, title, overlay.Shown(None, None, printable(item.error))))


def _check(model, names, outputs, detection, every, threads) -> list[inputs.Source]:
  if every < 1:
    raise InputError(f'--every={every}: it must be at least 1')
  if threads < 1:
    raise InputError(f'--threads={threads}: it must be at least 1')
  if outputs.pages < 1:
    raise InputError(f'--sheet_pages={outputs.pages}: it must be at least 1')
  if detection:
    check_crop(detection.size, detection.margin)
  endings = {'--sheet': ('.png', '.jpg', '.jpeg'), '--video': tuple(films.CODECS)}
  paths = {'--out': outputs.table, '--sheet': outputs.sheet, '--video': outputs.video}
  paths = {option: path for option, path in paths.items() if path}
  for option, path in paths.items():
    if option in endings and path.suffix.lower() not in endings[option]:
      raise InputError(f'{option}={path}: its ending must be one of {" ".join(endings[option])}')
  sources = inputs.find(names)
  for option, path in paths.items():
    inputs.check_out(path, option, names, sources)
  if len({path.resolve() for path in paths.values()}) < len(paths):
    raise InputError(f'{" and ".join(paths)} name the same file: give different ones')
  if outputs.video and sum(source.is_video for source in sources) != 1:
    count = sum(source.is_video for source in sources)
    raise InputError(f'--video needs exactly one video, but the inputs have {count}')
  _check_features(model, sources, detection)
  for path in paths.values():
    _make_folder(path)
  return sources


def _check_features(model, sources, detection) -> None:
  """Checks that the inputs have the features that the model needs. A warning names landmarks that
  the model could also use."""
  others = model.needs - {'landmarks'}
  if others:
    raise InputError(
      f'the model needs {", ".join(sorted(others))} besides pictures, which inputs cannot have: '
      'use `ferjax eval` on a data set that has it'
    )
  without = [s for s in sources if s.landmarks is None and not s.error and not detection]
  if without and 'landmarks' in model.needs:
    raise InputError(
      f'the model needs landmarks besides pictures, but {without[0].path} has none: give a '
      'manifest that has them (columns x_0 ... x_67, y_0 ... y_67), such as one from `ferjax '
      'annotate`, or use --detect'
    )
  if without and 'landmarks' in model.uses:
    which = '' if len(without) == len(sources) else f' of {len(without)} of {len(sources)} inputs'
    LOGGER.warning(
      'the model predicts less well without landmarks%s: give a manifest, or use --detect', which
    )
  numbers = {len(s.landmarks) for s in sources if s.landmarks is not None}
  if len(numbers) > 1 and not detection and 'landmarks' in model.needs | model.uses:
    raise InputError(
      f'manifests with {" and ".join(map(str, sorted(numbers)))} landmarks: give one manifest'
    )


def _make_folder(path: Path) -> None:
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise InputError(f'cannot make {path.parent}: {error.strerror}') from error


@contextlib.contextmanager
def _opened(table: Path | None) -> Iterator[IO]:
  if table is None and sys.stdout is None:
    raise InputError('standard output is closed: give a file for the table with --out')
  try:
    if table is None:
      number = sys.stdout.fileno()
      with open(number, 'w', encoding='utf-8', newline='', closefd=False) as file:
        yield file
    else:
      with files.replacing(table) as file:
        yield file
  except BrokenPipeError:
    raise
  except OSError as error:
    what = table or 'to standard output'
    raise InputError(f'cannot write {what}: {error.strerror}') from error


def summary(counts: Counts) -> str:
  """A text with the counts."""
  rate = counts.items / max(counts.seconds, 1e-9)
  lines = [
    f'{counts.faces} faces of {counts.files} files, {counts.errors} errors, {rate:.0f} pictures/s'
  ]
  if counts.classes:
    lines.append(', '.join(f'{name} {count}' for name, count in counts.classes.items()))
  if counts.not_drawn:
    lines.append(f'not on the sheet, whose pages are full (--sheet_pages): {counts.not_drawn}')
  return '\n'.join(lines)
