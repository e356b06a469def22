"""What a run's folder holds, read and checked: what is damaged is told by its name."""

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

NESTED = ('embeddings', 'training_labels', 'sets', 'averages')  # of summary.json


class Run(NamedTuple):
  """A run, finished or not.

  Attributes:
    workdir: Its folder.
    record: Its `config.json`; `config` has every key of today's.
    lines: Of its `metrics.jsonl`.
    summary: Its `summary.json`; empty while there is none.
    results: `last best_by_val best_by_test`, each {'step', 'val', 'test', ...} or None.
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
    """The last step that the run tells of."""
    return max([line['step'] for line in self.lines], default=self.summary.get('step', 0))

  @property
  def finished(self) -> bool:
    """Whether it went to its end; one that was lengthened since did not."""
    ended = self.summary.get('step', -1)
    early = self.summary.get('stopped_early', False)
    return ended >= self.step and (ended >= self.record['steps'] or early)

  @property
  def splits(self) -> list[str]:
    """What it is evaluated on, such as `test`, `test/rotation`, `val`: tests first."""
    names = dict.fromkeys(line['split'] for line in self.lines if line['split'] != 'train')
    names |= dict.fromkeys(f'test/{name}' for name in self.summary.get('sets', ()))
    return sorted(names, key=tests_first)


def read(workdir: Path) -> Run:
  """Reads what there is of a run; a last line of `metrics.jsonl` that was cut off is left out.

  Raises:
    InputError: the folder is no run, or a file is damaged.
  """
  record, path = records.read(workdir), workdir / 'config.json'
  kinds = {'config': dict, 'classes': list, 'steps': int, 'fingerprint': str}
  for key, kind in kinds.items():
    _require(isinstance(record[key], kind), path, f"'{key}' is {record[key]!r:.60}")
  _require(all(isinstance(name, str) for name in record['classes']), path, "'classes' are no names")
  defaults = configs.flat(configs.plain(configs.base()))
  record = record | {'config': defaults | configs.flat(record['config'])}
  lines = history.read_lines(workdir / 'metrics.jsonl')
  summary = read_summary(workdir / 'summary.json')
  return Run(workdir, record, lines, summary, history.summarise(lines))


def read_summary(path: Path) -> dict[str, Any]:
  """The `summary.json` of a run or of an evaluation; empty where there is none.

  Raises:
    InputError: it is damaged.
  """
  if not path.is_file():
    return {}
  try:
    summary = json.loads(_text(path))
  except ValueError as error:
    raise InputError(f'{path} is damaged ({error}): evaluate the run again') from error
  _require(isinstance(summary, dict) and isinstance(summary.get('step'), int), path, 'no step')
  for key in NESTED:
    values = summary.get(key, {})
    whole = isinstance(values, dict) and all(isinstance(value, dict) for value in values.values())
    _require(whole, path, f"'{key}' is {values!r:.60}")
  return summary


def tests_first(split: str) -> tuple[bool, bool]:
  """A key to sort names of splits by: tests, validation, training rows."""
  return not split.startswith('test'), split == 'train'


def table(path: Path, first: str, widths: Sequence[int] = ()) -> tuple[list[str], list[list[str]]]:
  """Head and rows of a CSV file, all as long as the head.

  Args:
    path: The file.
    first: The name of its first column.
    widths: How many columns it may have; any number when empty.

  Raises:
    InputError: it is damaged.
  """
  try:
    head, *rows = csv.reader(io.StringIO(_text(path)), strict=True)
  except (ValueError, csv.Error) as error:
    raise InputError(f'{path} is damaged ({error})') from error
  _require(head[:1] == [first], path, f'its first column is not {first}')
  _require(not widths or len(head) in widths, path, f'it has {len(head)} columns')
  for number, row in enumerate(rows, 2):
    _require(len(row) == len(head), path, f'line {number} has {len(row)} columns')
  return head, rows


def value(path: Path, cell: str) -> float | None:
  """The number in a cell of a CSV file, None where it is empty.

  Raises:
    InputError: it is no number.
  """
  try:
    return float(cell) if cell else None
  except ValueError:
    raise InputError(f'{path} is damaged: {cell!r:.60} is no number') from None


def classes_of_rows(
  path: Path, classes: Sequence[str], columns: Sequence[str] = ('label', 'prediction')
) -> list[np.ndarray]:
  """int[n] of each of some columns of class names, of `predictions/*.csv` or `noise.csv`.

  Raises:
    InputError: the file is damaged.
  """
  head, rows = table(path, 'name')
  _require(set(columns) <= set(head), path, f'it lacks the column {" or ".join(columns)}')
  place = {name: number for number, name in enumerate(classes)}
  found = [[row[head.index(column)] for row in rows] for column in columns]
  unknown = sorted({name for column in found for name in column} - set(place))
  _require(not unknown, path, f'{(unknown or [""])[0]!r:.60} is no class of the model')
  return [np.array([place[name] for name in column], int) for column in found]


def confusion(
  path: Path, classes: Sequence[str], given: str = 'label', said: str = 'prediction'
) -> np.ndarray:
  """int[C, C]: how many rows are of class i (row) in the first and of class j (column) in the
  second of two columns; see `classes_of_rows`."""
  counts = np.zeros((len(classes), len(classes)), int)
  np.add.at(counts, tuple(classes_of_rows(path, classes, (given, said))), 1)
  return counts


def _text(path):
  try:
    return path.read_text(encoding='utf-8')
  except (OSError, ValueError) as error:
    raise InputError(f'{path} cannot be read ({error})') from error


def _require(holds, path, trouble):
  if not holds:
    raise InputError(f'{path} is damaged: {trouble}')
