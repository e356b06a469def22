"""Writes a page with everything about a run: `ferjax report --workdir=RUN`.

The page is `RUN/report/report.html`. `--workdir=A --workdir=B --out=FILE.html` or `--workdir=A,B`
compares several runs. The page contains its pictures, and needs neither scripts nor network.
"""

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

from ferjax.cli import console
from ferjax.errors import InputError
from ferjax.report.single import write


def parse(argv: Sequence[str]) -> argparse.Namespace:
  arguments = argparse.ArgumentParser(prog='ferjax report', description=__doc__)
  arguments.add_argument(
    '--workdir',
    action='append',
    required=True,
    help="a run's folder; give several, or a list with commas, to compare runs",
  )
  arguments.add_argument('--out', type=Path, help='default: RUN/report/report.html')
  return arguments.parse_args(argv)


def folders(given: Sequence[str]) -> list[Path]:
  """The folders in the values of `--workdir`: each is a path, or several separated by commas.

  Raises:
    InputError: a folder is given twice, or there is none.
  """
  found = []
  for text in given:
    names = [text] if Path(text).is_dir() else next(csv.reader([text]), [])
    found += [Path(name) for name in names if name]
  places = [path.resolve() for path in found]
  for place, path in zip(places, found, strict=True):
    if places.count(place) > 1:
      raise InputError(f'--workdir={path} is given twice: give each run once')
  if not found:
    raise InputError("--workdir is empty: give a run's folder")
  return found


def main(argv: Sequence[str]) -> None:
  """Writes the report of the runs in the arguments.

  Raises:
    InputError: several runs without `--out`; see `write`.
  """
  options = parse(argv)
  workdirs = folders(options.workdir)
  if len(workdirs) > 1 and options.out is None:
    raise InputError('a comparison of runs needs --out=FILE.html')
  out = options.out or workdirs[0] / 'report' / 'report.html'
  if out.suffix.lower() not in ('.html', '.htm'):
    raise InputError(f'--out={out} is not an HTML file: its name must end in .html or .htm')
  write(workdirs, out)
  print(f'written to {out}')


def run(argv: Sequence[str]) -> None:
  """Runs the command in its own process."""
  console.show_messages()
  main(argv)
