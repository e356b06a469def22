"""Finds, aligns and crops faces, and writes a manifest: `ferjax annotate FOLDER`.

Each face gets 68 landmarks and its pose. With --model=face_landmarker.task, a file from MediaPipe's
site, it also gets estimates of action units. The output folder contains:

  faces/            the crops, in the folders of the pictures
  manifest.csv      a row for each crop, for --config.data.name=manifest
  left_out.csv      the pictures without a crop, and the reasons
  annotate.jsonl    the progress; the same command continues from there
  annotate.lock     locked while a command runs, so that a second command ends with an error

Further columns of the manifest are `source`, the path of the picture in FOLDER; `face`, 0 for the
largest face of a picture; and `crop_00 ... crop_12`, the 2x3 matrix that maps (x, y, 1) of the
upright picture to the crop, in pixels whose centres are whole numbers. Landmarks and pose are those
of the crop. `split` is the name of the first folder if that is train, val or test, else train.
`label` is the innermost folder with the name of a class. The first run makes an environment for
MediaPipe with pip.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ferjax import files
from ferjax.annotation import detector as detectors
from ferjax.annotation import environment
from ferjax.annotation.faces import _check, annotate
from ferjax.cli import console
from ferjax.distributed.processes import available_processes
from ferjax.errors import InputError


def parse(argv: Sequence[str]) -> argparse.Namespace:
  arguments = argparse.ArgumentParser(
    prog='ferjax annotate',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  arguments.add_argument('folder', type=Path, help='the folder of pictures')
  arguments.add_argument('--out', type=Path, help='default: FOLDER_faces, next to FOLDER')
  arguments.add_argument('--size', type=int, default=112, help='size of a crop in pixels')
  arguments.add_argument(
    '--margin', type=float, default=0.1, help='margin on each side of a face, as a share of a crop'
  )
  arguments.add_argument(
    '--faces', choices=('largest', 'all'), default='largest', help='faces of a picture to crop'
  )
  arguments.add_argument('--model', type=Path, help='a face_landmarker.task, for action units')
  arguments.add_argument(
    '--workers', type=int, default=available_processes(), help='number of processes'
  )
  arguments.add_argument(
    '--python', type=Path, help='a Python that has MediaPipe, instead of installing it'
  )
  return arguments.parse_args(argv)


def main(argv: Sequence[str]) -> None:
  """Annotates the folder that the arguments name.

  Raises:
    InputError: there is no such model, or MediaPipe cannot be installed or started; see also
      `annotate`.
  """
  options = parse(argv)
  folder = options.folder.resolve()
  out = options.out or folder.with_name(f'{folder.name}_faces')
  _check(folder, out, options.size, options.margin, options.workers)
  if options.model and not options.model.is_file():
    raise InputError(f'--model={options.model}: no such file')
  requirements = environment.LANDMARKER if options.model else environment.MESH
  python = options.python or environment.python(requirements, files.cache_folder() / 'environments')
  text = annotate(
    folder,
    out,
    detectors.worker(python, options.model),
    size=options.size,
    margin=options.margin,
    all_faces=options.faces == 'all',
    workers=options.workers,
  )
  print(text)


def run(argv: Sequence[str]) -> None:
  """Runs the command in its own process."""
  console.show_messages()
  main(argv)
