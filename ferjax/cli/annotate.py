"""Finds, aligns and crops faces, and writes a manifest: `ferjax annotate FOLDER`, or for a data set
with labels `ferjax annotate --data=NAME --manual_dir=FOLDER`.

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

With --data, the rows are those of a data set, or of a manifest. Split, label, distribution,
subject, pose class, folds and action units stay; landmarks and pose are replaced. Rows without a
face stay too: they have 0 in the column `has_face`, a crop at the median place and the median
landmarks. They are counted by class and split, and listed in without_face.csv.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ferjax import files
from ferjax.annotation import detector as detectors
from ferjax.annotation import environment, faces, sets
from ferjax.cli import console
from ferjax.cli.flags import key_values
from ferjax.data.sets import names
from ferjax.distributed.processes import available_processes
from ferjax.errors import InputError


def parse(argv: Sequence[str]) -> argparse.Namespace:
  arguments = argparse.ArgumentParser(
    prog='ferjax annotate',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  arguments.add_argument('folder', type=Path, nargs='?', help='the folder of pictures')
  arguments.add_argument(
    '--out', type=Path, help='default: FOLDER_faces, next to FOLDER; with --data, NAME_faces'
  )
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
  of_data = arguments.add_argument_group('a data set instead of a folder')
  of_data.add_argument('--data', help='NAME, NAME@PROTOCOL or manifest:FILE.csv')
  of_data.add_argument('--manual_dir', default='', help='the folder that holds NAME')
  of_data.add_argument('--dir', default='', help='the folder of prepared data sets')
  of_data.add_argument(
    '--option', action='append', default=[], help='an option of the data set, KEY=VALUE'
  )
  of_data.add_argument('--classes', default='', help='of a manifest with other classes: A,B,...')
  of_data.add_argument('--skip_bad', action='store_true', help='leave bad rows out')
  of_data.add_argument(
    '--drop_without_face', action='store_true', help='leave rows without a face out'
  )
  of_data.add_argument(
    '--most', type=int, default=0, help='the most rows of each split, spread evenly; 0 for all'
  )
  return arguments.parse_args(argv)


def main(argv: Sequence[str]) -> None:
  """Annotates the folder or the data set that the arguments name.

  Raises:
    InputError: both or none are given, there is no such model, or MediaPipe cannot be installed or
      started; see also `faces.annotate` and `sets.annotate`.
  """
  options = parse(argv)
  if (options.folder is None) == (not options.data):
    raise InputError('give a folder of pictures, or a data set with --data=NAME')
  if options.model and not options.model.is_file():
    raise InputError(f'--model={options.model}: no such file')
  print(_data_set(options) if options.data else _folder(options))


def _folder(options: argparse.Namespace) -> str:
  given = [
    f'--{name}'
    for name in ('manual_dir', 'dir', 'option', 'classes', 'skip_bad', 'drop_without_face', 'most')
    if getattr(options, name)
  ]
  if given:
    raise InputError(f'{given[0]} is for a data set: give --data=NAME instead of a folder')
  folder = options.folder.resolve()
  out = options.out or folder.with_name(f'{folder.name}_faces')
  faces.check(folder, out, options.size, options.margin, options.workers)
  return faces.annotate(
    folder,
    out,
    _command(options),
    size=options.size,
    margin=options.margin,
    all_faces=options.faces == 'all',
    workers=options.workers,
  )


def _data_set(options: argparse.Namespace) -> str:
  if options.faces == 'all':
    raise InputError('--faces=all: a row of a data set has one label, so only the largest face')
  name = next(iter(names([options.data]).values()))
  out = options.out or Path(f'{name}_faces')
  sets.check(out, options.data, options.size, options.margin, options.most, options.workers)
  rows = sets.load(
    options.data,
    manual_dir=options.manual_dir,
    dir=options.dir,
    options=key_values(options.option),
    classes=tuple(filter(None, options.classes.split(','))),
    skip_bad=options.skip_bad,
  )
  return sets.annotate(
    rows,
    out,
    _command(options),
    size=options.size,
    margin=options.margin,
    drop=options.drop_without_face,
    most=options.most,
    workers=options.workers,
  )


def _command(options: argparse.Namespace) -> list[str]:
  requirements = environment.LANDMARKER if options.model else environment.MESH
  python = options.python or environment.python(requirements, files.cache_folder() / 'environments')
  return detectors.worker(python, options.model)


def run(argv: Sequence[str]) -> None:
  """Runs the command in its own process."""
  console.show_messages()
  main(argv)
