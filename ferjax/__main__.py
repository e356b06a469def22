"""`ferjax COMMAND`, and the same `python -m ferjax COMMAND`."""

import importlib
import os
import sys

from ferjax.errors import InputError, nearest

COMMANDS = {
  'train': 'trains a model, or goes on where a run stopped',
  'eval': 'evaluates a trained model, on its own or on other data',
  'predict': 'classifies pictures, folders and videos, and writes a table',
  'report': 'shows one run, or compares several, on one HTML page',
  'export': 'writes a trained model that works without its run',
  'annotate': 'finds, aligns and crops faces, and writes a manifest',
  'relabel': 'ranks the training rows of a run by how likely their label is wrong',
  'prepare': 'prepares data sets, graphs of neighbours, annotations, people and poses',
  'album': 'sums up a folder of faces in a few pictures',
  'check-loss': 'checks a loss of your own before you train with it',
  'benchmark': 'measures speed, and that of PyTorch if you like',
}


def usage() -> str:
  """The list of all commands."""
  width = max(map(len, COMMANDS))
  lines = [f'  {name:{width}}  {what}' for name, what in COMMANDS.items()]
  return '\n'.join(
    ['usage: ferjax COMMAND [FLAGS]', '', *lines, '', "'ferjax COMMAND --help' lists its flags."]
  )


def run(command: str, arguments: list[str]) -> None:
  """Runs one command.

  Raises:
    InputError: there is no such command, or the command refuses its input.
  """
  if command not in COMMANDS:
    raise InputError(f"there is no command '{command}'.{nearest(command, COMMANDS)}\n\n{usage()}")
  if command in ('train', 'eval'):
    from ferjax import main

    main.run([f'ferjax {command}', *arguments, f'--mode={command}'])
    return
  module = command.replace('-', '_')
  importlib.import_module(f'ferjax.cli.{module}').run(arguments)


def main() -> None:
  """The console script: what a user can correct is one line on stderr, without a traceback."""
  command, *arguments = sys.argv[1:] or ['--help']
  if command in ('-h', '--help', 'help'):
    print(usage())
    return
  try:
    run(command, arguments)
  except InputError as error:
    sys.exit(f'ferjax: {error}')
  except KeyboardInterrupt:
    sys.exit('ferjax: interrupted')
  except BrokenPipeError:  # the reader of the output has closed the pipe
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == '__main__':
  main()
