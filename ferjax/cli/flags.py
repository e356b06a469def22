"""The flag `--config`, of the commands that have it."""

import ml_collections
from absl import flags
from ml_collections import config_flags

from ferjax.errors import InputError

CONFIG = config_flags.DEFINE_config_file('config', None, 'The config: configs/NAME.py[:VARIANT].')


def parse_flags(argv: list[str]) -> list[str]:
  """Reads the flags.

  Raises:
    InputError: an unknown flag, a value that does not fit, or a `--config.KEY` that the config does
      not have; names the nearest.
  """
  try:
    return flags.FLAGS(argv)
  except flags.Error as error:
    raise InputError(str(error).rpartition('ferjax.errors.InputError: ')[2]) from error
  except (AttributeError, KeyError) as error:
    cause = error.args[0]
    text = cause.args[0] if isinstance(cause, KeyError) else cause
    raise InputError(f'the config has no key {text}') from error


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
    raise InputError(str(error).partition(': ')[2]) from error
  return config
