"""Classifies faces: `ferjax predict --workdir=RUN INPUT... --out=faces.csv`.

INPUT is a picture, a video, a folder (with all its sub-folders), a pattern such as
'faces/**/*.jpg', or a manifest (CSV); models that use landmarks get those of the manifest. Pictures
should be cropped to the face, like those that the model was trained on; --detect finds, aligns and
crops faces as `ferjax annotate` does.

The table has a row for each face, picture or frame:

  file              the picture or video
  frame, time       for a video: the number of the frame from 0, and the time in seconds
  x0 y0 x1 y1       with --detect: the face is picture[y0:y1, x0:x1]
  class, p_<class>  the most probable class, and the probability of each class
  pose              the most probable pose, yaw in degrees, if the model has poses
  error             the reason if there is no prediction

In a name that is not UTF-8, bytes are written as \\udcff. A name that a spreadsheet would read as a
formula gets the prefix ./.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2

from ferjax import files
from ferjax.annotation import detector as detectors
from ferjax.annotation import environment
from ferjax.cli import console
from ferjax.distributed.processes import available_processes
from ferjax.prediction import film as films
from ferjax.prediction import inputs, reading
from ferjax.prediction import predictor as predictors
from ferjax.prediction.predict import Outputs, predict, summary


def parse(argv: Sequence[str]) -> argparse.Namespace:
  arguments = argparse.ArgumentParser(
    prog='ferjax predict',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = arguments.add_argument
  add('inputs', nargs='+', metavar='INPUT', help='pictures, videos, folders, patterns, manifests')
  add('--workdir', '--model', type=Path, required=True, help='the folder of a run, or an export')
  add('--checkpoint', default='last', help='for a run: last, best, or a step')
  add('--out', default='-', help='the table; default: standard output')
  add('--sheet', type=Path, help='pictures with their bars: FILE.png, FILE.page2.png ... (or .jpg)')
  add('--sheet_pages', type=int, default=25, help='the largest number of pages of the sheet')
  add('--video', type=Path, help=f'the annotated video, without sound: {" ".join(films.CODECS)}')
  add('--every', type=int, default=1, help='for a video: predict every Nth frame')
  add('--detect', action='store_true', help='find faces with MediaPipe, like ferjax annotate')
  add('--small_faces', action='store_true', help='also find small faces: much slower')
  add('--size', type=int, default=112, help='with --detect: size of a crop in pixels')
  add('--margin', type=float, default=0.1, help='with --detect: margin around a face, as a share')
  add('--python', type=Path, help='with --detect: a Python that has MediaPipe')
  add('--threads', type=int, default=available_processes(), help='threads that read and find faces')
  return arguments.parse_args(argv)


def main(argv: Sequence[str]) -> None:
  """Predicts the inputs that the arguments name.

  Raises:
    InputError: there is no such run, or MediaPipe cannot be installed or started; see also
      `predict`.
  """
  options = parse(argv)
  console.keep_programs()
  inputs.find(options.inputs)  # reports a missing input before the model is loaded
  model = predictors.load(options.workdir, options.checkpoint)
  detection = None
  if options.detect:
    folder = files.cache_folder() / 'environments'
    python = options.python or environment.python(environment.MESH, folder)
    command = detectors.worker(python, None)
    detection = reading.Detection(command, options.size, options.margin, options.small_faces)
  table = None if options.out == '-' else Path(options.out)
  outputs = Outputs(table, options.sheet, options.sheet_pages, options.video)
  counts = predict(
    model,
    options.inputs,
    outputs,
    detection=detection,
    every=options.every,
    threads=options.threads,
  )
  print(summary(counts), file=sys.stdout if table else sys.stderr)


def run(argv: Sequence[str]) -> None:
  """Runs the command in its own process."""
  console.show_messages()
  console.keep_freed_memory()
  os.environ.setdefault('OPENCV_FFMPEG_LOGLEVEL', '-8')  # the table names damaged files
  cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
  main(argv)
