"""Reads `metrics.jsonl`, and finds its last and best evaluations."""

import contextlib
import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ferjax import files
from ferjax.errors import InputError

LOGGER = logging.getLogger(__name__)

FEW = 5  # evaluations, of which EAC and others report the mean


def read_lines(path: Path) -> list[dict[str, Any]]:
  """The lines of a metrics.jsonl; none if the file does not exist.

  An incomplete last line, which a crash leaves behind, is left out with a warning.

  Returns:
    {'step': int, 'split': str, name: number or None} for each line; evaluations have `acc`.

  Raises:
    InputError: the file cannot be read, or another line is damaged. The message names the line.
  """
  if not path.is_file():
    return []
  try:
    texts = path.read_text(encoding='utf-8').splitlines()
  except (OSError, ValueError) as error:
    raise InputError(f'{path} cannot be read ({error})') from error
  lines = []
  for number, text in enumerate(texts, 1):
    try:
      lines.append(_parsed(text))
    except ValueError as error:
      if number == len(texts) and isinstance(error, json.JSONDecodeError):
        LOGGER.warning('%s: its last line is incomplete and is left out', path)
        break
      raise InputError(
        f'{path} is damaged: line {number} is {text!r:.60}. Remove that line'
      ) from error
  return lines


def _parsed(text):
  """The line that a text holds.

  Raises:
    JSONDecodeError: the text is not JSON.
    ValueError: it is JSON, but not a line of the file.
  """
  line = json.loads(text)
  if not _is_whole(line):
    raise ValueError('not a line of metrics.jsonl')
  return line


def _is_whole(line):
  if not (isinstance(line, dict) and isinstance(line.get('split'), str)):
    return False
  values = [value for key, value in line.items() if key != 'split']
  return (
    isinstance(line.get('step'), int)
    and all(value is None or isinstance(value, int | float) for value in values)
    and (line['split'] == 'train' or isinstance(line.get('acc'), int | float))
  )


def summarise(lines: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
  """The last and the best evaluations in the lines of metrics.jsonl.

  Returns:
    `last`, `best_by_val` and `best_by_test`, each {'step', 'val', 'test', ...} or None;
    `mean_last_5`, the means over the last five evaluations or all if there are fewer, with the step
    of the last one and their number, `evaluations`; and a `note`.
  """
  evaluations = {}
  for line in lines:
    if line['split'] != 'train':
      values = {k: v for k, v in line.items() if k not in ('step', 'split', 'mean_last_5')}
      evaluations.setdefault(line['step'], {'step': line['step']})[line['split']] = values
  found = list(evaluations.values())
  summary = {'last': found[-1] if found else None}
  for split, key in (('val', 'best_by_val'), ('test', 'best_by_test')):
    measured = [one for one in found if split in one]
    summary[key] = max(measured, key=lambda one: one[split]['acc']) if measured else None
  summary['mean_last_5'] = _mean(found[-FEW:]) if found else None
  summary['note'] = 'best_by_test chooses on the test set, as in the literature: too good'
  return summary


def _mean(evaluations):
  """The means of the numbers that all evaluations have, by the splits that all have."""
  last, means = evaluations[-1], {}
  for split in set.intersection(*(set(one) for one in evaluations)) - {'step'}:
    measured = [one[split] for one in evaluations]
    means[split] = {
      key: sum(one[key] for one in measured) / len(measured)
      for key in last[split]
      if all(one.get(key) is not None for one in measured)
    }
  return {'step': last['step'], 'evaluations': len(evaluations), **dict(sorted(means.items()))}


def mean_last_5(lines: Iterable[Mapping[str, Any]], split: str, acc: float) -> float:
  """The mean of an accuracy and of those of the last four evaluations of a split in the lines."""
  earlier = [line['acc'] for line in lines if line['split'] == split]
  found = [*earlier[1 - FEW :], acc]
  return sum(found) / len(found)


def cut_back(path: Path, step: int) -> list[dict[str, Any]]:
  """Removes damaged lines and the lines after `step` from a metrics.jsonl; returns the others."""
  texts = path.read_text(encoding='utf-8', errors='replace').splitlines() if path.is_file() else []
  lines = []
  for text in texts:
    with contextlib.suppress(ValueError):
      lines.append(_parsed(text))
  if len(lines) < len(texts):
    LOGGER.warning('%s: damaged lines are removed: %d', path, len(texts) - len(lines))
  kept = [line for line in lines if line['step'] <= step]
  with files.replacing(path) as file:
    file.writelines(json.dumps(line) + '\n' for line in kept)
  return kept
