"""Summarises a folder of faces in n pictures: `ferjax album FOLDER --workdir=RUN --n=40`.

The embeddings of all pictures are grouped by a mixture of n Gaussians. Each group is represented by
its medoid, the picture nearest to its mean (Marrero-Fernandez et al., 2022, figure 9). Pictures
should be cropped to the face, like those that the model was trained on.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from ferjax.cli import console
from ferjax.prediction.album import summarise


def parse(argv: Sequence[str]) -> argparse.Namespace:
  arguments = argparse.ArgumentParser(prog='ferjax album', description=__doc__)
  arguments.add_argument('folder', type=Path, help='the folder of pictures')
  arguments.add_argument('--workdir', type=Path, required=True, help='the run of a trained model')
  arguments.add_argument('--checkpoint', default='last', help='last, best, or a step')
  arguments.add_argument('--n', type=int, default=40, help='pictures that represent the folder')
  arguments.add_argument('--seed', type=int, default=0, help='the seed of the mixture')
  arguments.add_argument('--out', type=Path, help='default: RUN/album/<name of the folder>')
  return arguments.parse_args(argv)


def main(argv: Sequence[str]) -> None:
  """Summarises the folder that the arguments name.

  Raises:
    InputError: n is below 1; see `summarise`.
  """
  options = parse(argv)
  out = options.out or options.workdir / 'album' / options.folder.resolve().name
  summarise(
    options.folder, options.workdir, options.n, out, which=options.checkpoint, seed=options.seed
  )
  print(f'written to {out}')


def run(argv: Sequence[str]) -> None:
  """Runs the command in its own process."""
  flags.FLAGS.mark_as_parsed()  # grain reads absl flags
  console.show_messages()
  console.keep_freed_memory()
  main(argv)
