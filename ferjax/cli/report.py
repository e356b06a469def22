"""`ferjax report --workdir=RUN`: one page, `RUN/report/report.html`, with all of a run.

Several runs, `--workdir=A --workdir=B --out=FILE.html` or `--workdir=A,B`, are compared. The page
holds its pictures itself, and needs neither script nor network.
"""

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

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
  """The folders that `--workdir` names, each a path or several with commas between them.

  Raises:
    InputError: one is named twice.
  """
  found = []
  for text in given:
    names = [text] if Path(text).is_dir() else next(csv.reader([text]), [])
    found += [Path(name) for name in names if name]
  places = [path.resolve() for path in found]
  for place, path in zip(places, found, strict=True):
    if places.count(place) > 1:
      raise InputError(f'--workdir={path} is named twice')
  if not found:
    raise InputError("--workdir names nothing: give a run's folder")
  return found


def main(argv: Sequence[str]) -> None:
  """Writes the report that the arguments ask for.

  Raises:
    InputError: several runs without `--out`; see `write`.
  """
  options = parse(argv)
  workdirs = folders(options.workdir)
  if len(workdirs) > 1 and options.out is None:
    raise InputError('a comparison of runs needs --out=FILE.html')
  out = options.out or workdirs[0] / 'report' / 'report.html'
  if out.suffix.lower() not in ('.html', '.htm'):
    raise InputError(f'--out={out}: its ending must be .html or .htm')
  write(workdirs, out)
  print(f'written to {out}')


def run(argv: Sequence[str]) -> None:
  """The command, in a process of its own."""
  main(argv)
