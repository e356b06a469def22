"""Ranks the training rows of a run by how likely their label is wrong: `ferjax relabel
--workdir=RUN --out=suspects.csv`.

Any method with a classifier will do; those against label noise (LA-Net, SCN, RUL, EAC) find more.
The table has a row for each training row, the most suspicious first:

  name               the picture
  given, proposed    its label, and the class that the run proposes
  suspicion          the highest probability less that of the given class
  predicted, predicted_given    the class that the model predicts, and the probability of the given
  estimated, estimated_given    the same of the distribution that the method has estimated in
                     training; then the suspicion is the mean of both, and the proposed class is
                     that of the higher one
  importance, uncertainty    of the row, where the method has one
  wrong              1 if the given label is wrong, where the run added label noise

--by=predicted and --by=estimated take one of both distributions alone.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from ferjax.cli import console
from ferjax.errors import InputError
from ferjax.evaluation import relabel


def parse(argv: Sequence[str]) -> argparse.Namespace:
  arguments = argparse.ArgumentParser(
    prog='ferjax relabel',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = arguments.add_argument
  add('--workdir', type=Path, required=True, help='the folder of a run')
  add('--checkpoint', default='last', help='last, best, or a step')
  add(
    '--by',
    default='auto',
    help='auto (default: both, if there are estimates), estimated, predicted',
  )
  add('--out', type=Path, required=True, help='the table, FILE.csv')
  return arguments.parse_args(argv)


def main(argv: Sequence[str]) -> None:
  """Writes the table, and prints how many rows have another class, and how many are wrong among the
  first if that is known.

  Raises:
    InputError: the table cannot be written; see `relabel.rank`.
  """
  options = parse(argv)
  if options.out.suffix.lower() != '.csv':
    raise InputError(f'--out={options.out} is not a CSV file: its name must end in .csv')
  found = relabel.rank(options.workdir, options.checkpoint, options.by)
  try:
    relabel.write(options.out, found)
  except OSError as error:
    raise InputError(f'cannot write to {options.out}: {error}') from error
  print('\n'.join(summary(found)))
  print(f'written to {options.out}')


def summary(found: relabel.Suspects) -> list[str]:
  """What the command prints about the ranking, in lines."""
  given, proposed = found.columns['given'], found.columns['proposed']
  other, count = int((given != proposed).sum()), len(given)
  lines = [
    f'{other} of {count} training rows have another most probable class ({" and ".join(found.by)})'
  ]
  if found.wrong is not None and found.wrong.any():
    for first in dict.fromkeys((min(100, count), int(found.wrong.sum()))):
      share = 100 * relabel.precision(found.wrong, first)
      lines.append(f'of the first {first} rows, {share:.1f} % have a wrong label')
    lines.append(f'of all rows, {100 * found.wrong.mean():.1f} % have')
  return lines


def run(argv: Sequence[str]) -> None:
  """Runs the command in its own process."""
  flags.FLAGS.mark_as_parsed()  # grain reads absl flags
  console.show_messages()
  console.keep_freed_memory()
  main(argv)
