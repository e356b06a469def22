"""Label noise: seeded, defined by class names, and written to a file that can be read back."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ferjax import files
from ferjax import labels as label_names
from ferjax.errors import InputError, choose, nearest


def symmetric(label: np.ndarray, rate: float, num_classes: int, seed: int) -> np.ndarray:
  """Replaces each label with probability `rate` by one of the *other* classes, uniformly.

  Args:
    label: int[n].
    rate: Probability of a wrong label, 0..1.
    num_classes: C.
    seed: Seed of the draw.

  Returns:
    int[n]. Source: LA-Net (ICCV 2023), section 4.1.

  Raises:
    InputError: there is only one class.
  """
  if num_classes < 2:
    raise InputError('label noise needs at least two classes')
  rng = np.random.default_rng(seed)
  wrong = rng.random(len(label)) < rate
  shift = rng.integers(1, num_classes, len(label))
  return np.where(wrong, (label + shift) % num_classes, label).astype(label.dtype)


def asymmetric(label: np.ndarray, rate: float, classes: Sequence[str], seed: int) -> np.ndarray:
  """Replaces each label with probability `rate` by the class it is most often taken for.

  Args:
    label: int[n], positions in `classes`.
    rate: Probability of a wrong label, 0..1.
    classes: Class names.
    seed: Seed of the draw.

  Returns:
    int[n]. Source: LA-Net (ICCV 2023), section 4.1; the pairs are `labels.CONFUSED_WITH`.

  Raises:
    InputError: a class has no counterpart among `classes`.
  """
  target = []
  for name in classes:
    other = label_names.CONFUSED_WITH.get(name)
    if other not in classes:
      raise InputError(
        f"asymmetric noise defines no class that '{name}' turns into among {tuple(classes)}: "
        'use config.noise.kind=symmetric, or a noise file'
      )
    target.append(classes.index(other))
  wrong = np.random.default_rng(seed).random(len(label)) < rate
  return np.where(wrong, np.array(target)[label], label).astype(label.dtype)


def write(path: Path, names: Sequence[str], noisy: np.ndarray, clean: np.ndarray, classes) -> None:
  """Writes `name,label,clean_label` for each training row. The file appears when it is complete."""
  with files.replacing(path) as file:
    rows = csv.writer(file)
    rows.writerow(('name', 'label', 'clean_label'))
    rows.writerows((n, classes[a], classes[b]) for n, a, b in zip(names, noisy, clean, strict=True))


def write_list(
  path: Path,
  names: Sequence[str],
  label: np.ndarray,
  classes: Sequence[str],
  label_order: Sequence[str] = (),
  first_label: int = 0,
) -> None:
  """Writes `name label` in two columns, the format of published lists.

  Args:
    path: The file.
    names: Names of the n rows.
    label: int[n], positions in `classes`.
    classes: Class names.
    label_order: Class names in the order of their numbers. If empty, class names are written.
    first_label: The number of the first class.

  Raises:
    InputError: a class is not in `label_order`.
  """
  order = [label_names.canonical(name) for name in label_order]
  missing = set(classes) - set(order)
  if order and missing:
    raise InputError(f"config.noise.label_order lacks the class '{min(missing)}'")
  text = [str(order.index(name) + first_label) if order else name for name in classes]
  with files.replacing(path) as file:
    file.writelines(f'{name} {text[number]}\n' for name, number in zip(names, label, strict=True))


def record(
  workdir: Path,
  names: Sequence[str],
  noisy: np.ndarray,
  clean: np.ndarray,
  classes: Sequence[str],
  *,
  file: str = '',
  label_order: Sequence[str] = (),
  first_label: int = 0,
) -> None:
  """Writes the labels that a run trains on.

  `noise.csv` is written by `write`, and with a `label_order` also `noise.txt` by `write_list`. The
  `file` that the labels were read from is copied to `noise_file.*`.
  """
  write(workdir / 'noise.csv', names, noisy, clean, classes)
  if label_order:
    write_list(workdir / 'noise.txt', names, noisy, classes, label_order, first_label)
  if file:
    with files.replacing(workdir / f'noise_file{Path(file).suffix}', 'wb') as copy:
      copy.write(Path(file).read_bytes())


def read(
  path: Path,
  names: Sequence[str],
  label: np.ndarray,
  classes: Sequence[str],
  label_order: Sequence[str] = (),
  first_label: int = 0,
  others: Sequence[str] = (),
) -> np.ndarray:
  """Reads noisy labels: our `noise.csv`, or the two columns `name label` of published lists.

  Args:
    path: The file, UTF-8. A header with `name` and `label` makes it a CSV; else the last word of a
      line is the label, and the text before it is the name.
    names: Names of the n training rows; a file's name matches a row's name or its last part.
    label: int[n], used for the rows that the file leaves out.
    classes: Class names in label order.
    label_order: For files with numbers: the class names that the numbers stand for, in order.
    first_label: For files with numbers: the number of the first of them.
    others: Names of rows that are not trained on; their lines are ignored.

  Returns:
    int[n].

  Raises:
    InputError: there is no such file, it is empty or not text, or it has a malformed line, an
      unknown name or label, an ambiguous name, or a row with two labels.
  """
  path = Path(path)
  if not path.is_file():
    raise InputError(f'no such noise file: {path}')
  try:
    lines = path.read_text(encoding='utf-8-sig').splitlines()
  except UnicodeDecodeError as error:
    raise InputError(f'{path} is not UTF-8 text: {error}') from error
  if not any(map(str.strip, lines)):
    raise InputError(f'{path} is empty: no label was read')
  try:
    if {'name', 'label'} <= set(next(csv.reader(lines[:1]), [])):
      records = enumerate(csv.DictReader(lines))
      parsed = [(i + 2, [r.get('name'), r.get('label')]) for i, r in records]
    else:
      parsed = [(i + 1, line.rsplit(maxsplit=1)) for i, line in enumerate(lines) if line.strip()]
  except csv.Error as error:
    raise InputError(f'cannot read {path} as a CSV file: {error}') from error
  row_of = {name: row for row, name in enumerate(names)}
  rows_of_last_part = {}
  for row, name in enumerate(names):
    rows_of_last_part.setdefault(Path(name).name, []).append(row)
  not_trained_on = {key for name in others for key in (name, Path(name).name)}
  noisy, line_of = np.array(label), {}
  for number, fields in parsed:
    if len(fields) != 2 or not all(fields):
      raise InputError(f"{path}, line {number}: expected 'name label', found {fields}")
    name, text = map(str.strip, fields)
    rows = [row_of[name]] if name in row_of else rows_of_last_part.get(name, [])
    if not rows and name in not_trained_on:
      continue
    if len(rows) != 1:
      what = (
        'names several training rows' if rows else f'is not a training row.{nearest(name, names)}'
      )
      raise InputError(f"{path}, line {number}: '{name}' {what}")
    (row,), where = rows, f'{path}, line {number}'
    label_number = _label_number(text, classes, label_order, first_label, where)
    if row in line_of and noisy[row] != label_number:
      raise InputError(f"{where}: '{name}' has another label on line {line_of[row]}")
    noisy[row], line_of[row] = label_number, number
  return noisy


def _label_number(text, classes, label_order, first_label, where) -> int:
  if text.lstrip('-').isdecimal() and (label_order or text not in classes):
    if not label_order:
      raise InputError(
        f"{where}: label '{text}' is a number; define what the numbers mean, for example "
        "--config.noise.label_order=\"('surprise','fear','disgust','happiness','sadness','anger',"
        "'neutral')\" --config.noise.first_label=1 for RAF-DB"
      )
    position = int(text) - first_label
    if not 0 <= position < len(label_order):
      raise InputError(f"{where}: label '{text}' is outside config.noise.label_order")
    text = label_order[position]
  name = label_names.canonical(text)
  if name not in classes:
    raise InputError(f"{where}: unknown class '{text}'; the classes are {tuple(classes)}")
  return classes.index(name)


def make(
  *,
  kind: str = 'none',
  rate: float = 0.0,
  seed: int = 0,
  file: str = '',
  label_order: Sequence[str] = (),
  first_label: int = 0,
):
  """Makes the label noise of the config section `noise`.

  Args:
    kind: `none`, `symmetric`, `asymmetric` or `file`.
    rate: Probability of a wrong label, 0..1.
    seed: Seed of the draw.
    file, label_order, first_label: For kind `file`; see `read`.

  Returns:
    (label int[n], names, classes, others=()) -> label int[n]; see `read` for `others`.

  Raises:
    InputError: unknown kind, a rate outside 0..1, kind `file` without `file`, or the reverse.
  """
  choose('config.noise.kind', kind, ('none', 'symmetric', 'asymmetric', 'file'))
  if not 0 <= rate <= 1:
    raise InputError(f'config.noise.rate is {rate}: it must be a share between 0 and 1')
  if (kind == 'file') != bool(file):
    raise InputError(
      'config.noise.kind=file and config.noise.file=PATH belong together: set both, or neither'
    )

  def corrupt(label, names, classes, others=()):
    if kind == 'symmetric':
      return symmetric(label, rate, len(classes), seed)
    if kind == 'asymmetric':
      return asymmetric(label, rate, classes, seed)
    if kind == 'file':
      return read(Path(file), names, label, classes, label_order, first_label, others)
    return label

  return corrupt
