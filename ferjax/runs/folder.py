"""Reads and checks the files in the folder of a run. Errors name the damaged file."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ferjax import config as configs
from ferjax.errors import InputError
from ferjax.runs import history
from ferjax.runs import record as records

AGAIN = 'Remove it, and give the command that wrote it again'
NESTED = ('embeddings', 'training_labels', 'sets', 'averages')  # of summary.json


class Run(NamedTuple):
  """A run, finished or not.

  Attributes:
    workdir: Its folder.
    record: Its `config.json`; `config` has all current keys.
    lines: The lines of its `metrics.jsonl`.
    summary: Its `summary.json`; empty if there is none yet.
    results: `last mean_last_5 best_by_val best_by_test`, each {'step', 'val', 'test', ...} or
      None; see `history.summarise`.
  """

  workdir: Path
  record: dict[str, Any]
  lines: list[dict[str, Any]]
  summary: dict[str, Any]
  results: dict[str, Any]

  @property
  def name(self) -> str:
    return self.workdir.resolve().name

  @property
  def step(self) -> int:
    """The last step that the run has recorded."""
    return max([line['step'] for line in self.lines], default=self.summary.get('step', 0))

  @property
  def finished(self) -> bool:
    """Whether the run reached its end; False if it was lengthened afterwards."""
    ended = self.summary.get('step', -1)
    early = self.summary.get('stopped_early', False)
    return ended >= self.step and (ended >= self.record['steps'] or early)

  @property
  def splits(self) -> list[str]:
    """The names of its evaluations, such as `test`, `test/rotation`, `val`; tests first."""
    names = dict.fromkeys(line['split'] for line in self.lines if line['split'] != 'train')
    names |= dict.fromkeys(f'test/{name}' for name in self.summary.get('sets', ()))
    return sorted(names, key=tests_first)


def read(workdir: Path) -> Run:
  """Reads the files of a run. An incomplete last line of `metrics.jsonl` is left out.

  Raises:
    InputError: the folder is not a run, or a file is damaged.
  """
  record, path = records.read(workdir), workdir / 'config.json'
  kinds = {'config': dict, 'classes': list, 'steps': int, 'fingerprint': str}
  for key, kind in kinds.items():
    _require(isinstance(record[key], kind), path, f"'{key}' is {record[key]!r:.60}")
  _require(
    all(isinstance(name, str) for name in record['classes']), path, "'classes' are not names"
  )
  defaults = configs.flat(configs.plain(configs.base()))
  record = record | {'config': defaults | configs.flat(record['config'])}
  lines = history.read_lines(workdir / 'metrics.jsonl')
  summary = read_summary(workdir / 'summary.json')
  return Run(workdir, record, lines, summary, history.summarise(lines))


def read_summary(path: Path) -> dict[str, Any]:
  """The `summary.json` of a run or of an evaluation; empty if there is none.

  Raises:
    InputError: it is damaged.
  """
  if not path.is_file():
    return {}
  try:
    summary = json.loads(_text(path))
  except ValueError as error:
    raise InputError(f'{path} is damaged ({error}). {AGAIN}') from error
  _require(isinstance(summary, dict) and isinstance(summary.get('step'), int), path, 'no step')
  for key in NESTED:
    values = summary.get(key, {})
    whole = isinstance(values, dict) and all(isinstance(value, dict) for value in values.values())
    _require(whole, path, f"'{key}' is {values!r:.60}")
  return summary


def tests_first(split: str) -> tuple[bool, bool]:
  """A key that sorts the names of splits: tests, validation, training rows."""
  return not split.startswith('test'), split == 'train'


def table(path: Path, first: str, widths: Sequence[int] = ()) -> tuple[list[str], list[list[str]]]:
  """The header and the rows of a CSV file. All rows are as long as the header.

  Args:
    path: The file.
    first: The name of its first column.
    widths: Allowed numbers of columns; any number when empty.

  Raises:
    InputError: it is damaged.
  """
  try:
    head, *rows = csv.reader(io.StringIO(_text(path)), strict=True)
  except (ValueError, csv.Error) as error:
    raise InputError(f'{path} is damaged ({error}). {AGAIN}') from error
  _require(head[:1] == [first], path, f'its first column is not {first}')
  _require(not widths or len(head) in widths, path, f'it has {len(head)} columns')
  for number, row in enumerate(rows, 2):
    _require(len(row) == len(head), path, f'line {number} has {len(row)} columns')
  return head, rows


def value(path: Path, cell: str) -> float | None:
  """The number in a cell of a CSV file; None if the cell is empty.

  Raises:
    InputError: the cell is not a number.
  """
  try:
    return float(cell) if cell else None
  except ValueError:
    raise InputError(f'{path} is damaged: {cell!r:.60} is not a number') from None


def classes_of_rows(
  path: Path, classes: Sequence[str], columns: Sequence[str] = ('label', 'prediction')
) -> list[np.ndarray]:
  """The classes in columns of `predictions/*.csv` or `noise.csv`, as indices.

  Args:
    path: The file.
    classes: Class names in label order.
    columns: Names of columns that hold class names.

  Returns:
    int[n] for each column.

  Raises:
    InputError: the file is damaged.
  """
  head, rows = table(path, 'name')
  _require(set(columns) <= set(head), path, f'it lacks the column {" or ".join(columns)}')
  place = {name: number for number, name in enumerate(classes)}
  found = [[row[head.index(column)] for row in rows] for column in columns]
  unknown = sorted({name for column in found for name in column} - set(place))
  _require(not unknown, path, f'{(unknown or [""])[0]!r:.60} is not a class of the model')
  return [np.array([place[name] for name in column], int) for column in found]


def confusion(
  path: Path, classes: Sequence[str], given: str = 'label', predicted: str = 'prediction'
) -> np.ndarray:
  """The confusion matrix of two columns of a CSV file.

  Args:
    path: The file; see `classes_of_rows`.
    classes: Class names in label order.
    given, predicted: Names of the columns.

  Returns:
    int[C, C]: the number of rows with class i in `given` and class j in `predicted`.

  Raises:
    InputError: the file is damaged.
  """
  counts = np.zeros((len(classes), len(classes)), int)
  np.add.at(counts, tuple(classes_of_rows(path, classes, (given, predicted))), 1)
  return counts


def _text(path):
  try:
    return path.read_text(encoding='utf-8')
  except (OSError, ValueError) as error:
    raise InputError(f'{path} cannot be read ({error})') from error


def _require(holds, path, trouble):
  if not holds:
    raise InputError(f'{path} is damaged: {trouble}. {AGAIN}')
