"""Exports a trained model, which then needs no run: `ferjax export --workdir=RUN --out=FOLDER`.

The folder contains the model for any number of pictures, with its parameters: `model.stablehlo`
(JAX on CPU, NVIDIA GPU and TPU), `model.onnx` (every program that reads ONNX),
`parameters.safetensors` (the part of the state that prediction needs), `model.json` (classes,
preprocessing, inputs, outputs, the run) and `README.md`, the model card. `ferjax.load(FOLDER)`
predicts with it; the card shows how to predict without ferjax.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from ferjax.cli import console
from ferjax.export.writer import export


def parse(argv: Sequence[str]) -> argparse.Namespace:
  arguments = argparse.ArgumentParser(
    prog='ferjax export',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  arguments.add_argument('--workdir', type=Path, required=True, help='the run of a trained model')
  arguments.add_argument('--out', type=Path, required=True, help='the folder to write')
  arguments.add_argument('--checkpoint', default='last', help='last, best, or a step')
  arguments.add_argument('--onnx', default='auto', help='write ONNX: auto, require or no')
  arguments.add_argument(
    '--features',
    default='',
    help='optional inputs of the exported model, such as landmarks',
  )
  arguments.add_argument(
    '--evaluate', action='store_true', help='measure accuracy by pose and person, for the card'
  )
  arguments.add_argument(
    '--data_licence', default='', help='the licence of the training data, for the card'
  )
  arguments.add_argument('--overwrite', action='store_true', help='replace an export')
  return arguments.parse_args(argv)


def main(argv: Sequence[str]) -> None:
  """Exports the run in the arguments.

  Raises:
    InputError: see `export`.
  """
  options = parse(argv)
  made = export(
    options.workdir,
    options.out,
    which=options.checkpoint,
    onnx=options.onnx,
    features=tuple(name for name in options.features.split(',') if name),
    evaluate=options.evaluate,
    data_licence=options.data_licence,
    overwrite=options.overwrite,
  )
  for name, file in made['files'].items():
    print(f'{file["bytes"] / 1e6:10.2f} MB  {options.out / name}')


def run(argv: Sequence[str]) -> None:
  """Runs the command in its own process."""
  flags.FLAGS.mark_as_parsed()  # grain reads absl flags
  console.show_messages()
  console.keep_freed_memory()
  main(argv)
