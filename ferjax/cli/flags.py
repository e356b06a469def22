"""The flag `--config`, and the parsing and `--help` of commands with absl's flags."""

import ast
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_flags

from ferjax.errors import InputError

CONFIG = config_flags.DEFINE_config_file(
  'config',
  None,
  'The config: configs/NAME.py[:VARIANT]. --config.KEY=VALUE sets a key of it, such as '
  '--config.optimizer.lr=0.01.',
)


def parse_flags(argv: list[str]) -> list[str]:
  """Reads the flags. `--help` prints those of the command and ends the process.

  Raises:
    InputError: a flag is unknown, a value is not valid, or the config lacks a `--config.KEY`. The
      message names the most similar key.
  """
  if {'-h', '-help', '--help'} & set(argv[1:]):
    print(usage(argv[0]))
    sys.exit()
  try:
    return flags.FLAGS(argv)
  except flags.Error as error:
    raise InputError(str(error).rpartition('ferjax.errors.InputError: ')[2]) from error
  except (AttributeError, KeyError) as error:
    cause = error.args[0]
    text = cause.args[0] if isinstance(cause, KeyError) else cause
    raise InputError(f'the config has no key {text}') from error


def usage(program: str) -> str:
  """The help text of a command, with its own flags but without those of the libraries.

  Args:
    program: Its name, such as `ferjax train`.
  """
  modules = flags.FLAGS.flags_by_module_dict()
  ours = sorted(name for name in modules if name.startswith('ferjax.') and name != __name__)
  lines = [f'usage: {program} [FLAGS]']
  for name in ours:
    lines += ['', sys.modules[name].__doc__.strip()]
  lines.append('')
  for name in (__name__, *ours):
    for flag in modules[name]:
      if flag.name == 'mode' and program.startswith('ferjax '):
        continue  # `ferjax train` and `ferjax eval` are the modes
      default = f' Default: {flag.default}.' if flag.default else ''
      text = f'--{flag.name}  {" ".join(flag.help.split())}{default}'
      lines.append(textwrap.fill(text, 100, initial_indent='  ', subsequent_indent=' ' * 6))
  lines += ['', 'Further flags, of the libraries: --helpfull']
  return '\n'.join(lines)


def key_values(texts: Sequence[str], flag: str = 'option') -> dict[str, Any]:
  """The values of a flag that is given as `KEY=VALUE`, any number of times.

  A value is a Python literal, such as 3 or (1, 2), or else a text.

  Raises:
    InputError: a text has no `=`.
  """
  found = {}
  for text in texts:
    key, equals, value = text.partition('=')
    if not equals:
      raise InputError(f'--{flag}={text}: give KEY=VALUE')
    try:
      found[key] = ast.literal_eval(value)
    except (ValueError, SyntaxError):
      found[key] = value
  return found


def config_flag() -> ml_collections.ConfigDict | None:
  """The value of `--config`.

  Raises:
    InputError: there is no such file, or it cannot be read.
  """
  config = CONFIG.value
  try:
    if config is not None:
      config.to_dict()  # a config that could not be loaded raises at its first use
  except OSError as error:
    path = config_flags.get_config_filename(flags.FLAGS['config']).partition(':')[0]
    if not Path(path).is_file():
      raise InputError(f'--config={path}: there is no such file') from error
    raise InputError(str(error).partition(': ')[2]) from error
  return config
