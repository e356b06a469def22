"""`metrics.jsonl`: its lines, and what is best among them."""

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ferjax import files

LOGGER = logging.getLogger(__name__)


def read_lines(path: Path) -> list[dict]:
  """The objects of a metrics.jsonl; a last line cut off by a crash is left out."""
  lines = []
  if path.is_file():
    for text in path.read_text(encoding='utf-8').splitlines():
      try:
        lines.append(json.loads(text))
      except json.JSONDecodeError:
        LOGGER.warning('%s: a line that was cut off is dropped', path)
  return lines


def summarise(lines: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
  """The evaluations worth naming, each {'step', 'val', 'test'}, from lines of metrics.jsonl."""
  evaluations = {}
  for line in lines:
    if line['split'] != 'train':
      values = {k: v for k, v in line.items() if k not in ('step', 'split')}
      evaluations.setdefault(line['step'], {'step': line['step']})[line['split']] = values
  found = list(evaluations.values())
  summary = {'last': found[-1] if found else None}
  for split, key in (('val', 'best_by_val'), ('test', 'best_by_test')):
    measured = [one for one in found if split in one]
    summary[key] = max(measured, key=lambda one: one[split]['acc']) if measured else None
  summary['note'] = 'best_by_test chooses on the test set, as in the literature: too good'
  return summary


def cut_back(path: Path, step: int) -> None:
  """Removes the lines after `step` from a metrics.jsonl."""
  kept = [line for line in read_lines(path) if line['step'] <= step]
  with files.replacing(path) as file:
    file.writelines(json.dumps(line) + '\n' for line in kept)
