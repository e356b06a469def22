"""Settings that all commands share: messages, caches, memory."""

import ctypes
import logging
import os
import platform
import sys

import jax
from absl import logging as absl_logging

from ferjax import files


def keep_programs() -> None:
  """Stores compiled programs in the cache folder, unless another cache is set. Small programs are
  stored too, because many of them are compiled at a start."""
  if not jax.config.jax_compilation_cache_dir:
    jax.config.update('jax_compilation_cache_dir', str(files.cache_folder() / 'xla'))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)


def find_modules_here() -> None:
  """Adds the working directory to Python's path, as `python -m` does, so that `config.terms` can
  name functions there."""
  here = os.getcwd()
  if not {'', here} & set(sys.path):
    sys.path.append(here)


class _StandardError(logging.StreamHandler):
  """Writes to the current `sys.stderr`. A progress bar replaces it to print messages above."""

  @property
  def stream(self):
    return sys.stderr

  @stream.setter
  def stream(self, value):
    pass


def show_messages() -> None:
  """Shows the messages of ferjax as plain lines, and only errors of the libraries that it uses."""
  absl_logging.set_verbosity(absl_logging.ERROR)
  logger = logging.getLogger('ferjax')
  if not logger.handlers:
    handler = _StandardError()
    handler.setFormatter(logging.Formatter('%(message)s'))
    logger.addHandler(handler)
  logger.setLevel(logging.INFO)
  logger.propagate = False


def keep_freed_memory() -> None:
  """Keeps freed memory in the process, with glibc.

  XLA allocates and frees its temporary memory in every step on a CPU. By default, glibc returns
  freed pages to the system, and the next step must map them again, which costs up to a fifth of a
  step. This function must be called before JAX starts its threads: with the first thread, glibc
  divides the memory into arenas, from which large arrays are not reused.
  """
  if platform.libc_ver()[0] != 'glibc':
    return
  libc = ctypes.CDLL(None)
  trim_threshold, mmap_max, arena_max = -1, -4, -8
  libc.mallopt(trim_threshold, -1)
  libc.mallopt(mmap_max, 0)
  libc.mallopt(arena_max, 1)
