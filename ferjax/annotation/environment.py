"""Virtual environments for MediaPipe, which needs other versions of packages than ferjax."""

import hashlib
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ferjax.errors import InputError

LOGGER = logging.getLogger(__name__)


class Requirements(NamedTuple):
  """The packages of an environment.

  Attributes:
    name: The main package.
    alone: Packages to install without their dependencies.
    packages: Packages to install with their dependencies.
    pythons: The oldest and the newest Python (3.x) with wheels of these packages.
  """

  name: str
  alone: tuple[str, ...]
  packages: tuple[str, ...]
  pythons: tuple[int, int]


# mediapipe 0.10.21 also depends on jax and on packages for sound and text, which faces do not need.
# Without them, the environment has 400 MB instead of 1 GB.
MESH = Requirements(
  'mediapipe==0.10.21',
  ('mediapipe==0.10.21',),
  (
    'absl-py>=2,<3',
    'attrs>=19.1',
    'flatbuffers>=2',
    'matplotlib>=3.8,<4',
    'numpy>=1.26,<2',
    'opencv-python-headless>=4.8,<4.11',
    'protobuf>=4.25.3,<5',
  ),
  (9, 12),
)
LANDMARKER = Requirements('mediapipe==1.2.3', (), ('mediapipe==1.2.3',), (10, 13))


def python(requirements: Requirements, folder: Path) -> Path:
  """The Python of an environment with these packages. The environment is made at its first use.

  It is made in a temporary folder and renamed when it is complete, so that an interrupted
  installation is never used. pip downloads the packages, after a message.

  Args:
    requirements: The packages.
    folder: The folder of environments.

  Raises:
    InputError: there is no Python with wheels of these packages, or they cannot be installed.
  """
  base, minor = _base(requirements)
  home = folder / f'{_stem(requirements)}{minor}'
  if not _python_of(home).exists():
    _make(requirements, base, home)
  return _python_of(home)


def made(requirements: Requirements, folder: Path) -> Path | None:
  """The Python of an existing environment with these packages, or None."""
  found = sorted(folder.glob(f'{_stem(requirements)}[0-9]*[0-9]'))
  return _python_of(found[0]) if found else None


def _stem(requirements: Requirements) -> str:
  key = hashlib.sha256(repr(requirements).encode()).hexdigest()[:8]
  return f'{requirements.name.replace("==", "-")}-{key}-python3.'


def _python_of(home: Path) -> Path:
  return home / ('Scripts/python.exe' if os.name == 'nt' else 'bin/python')


def _base(requirements: Requirements) -> tuple[str, int]:
  """A Python of a suitable version, and its minor version: this one, or the newest on the PATH."""
  oldest, newest = requirements.pythons
  for candidate in _candidates(oldest, newest):
    try:
      result = subprocess.run(
        [candidate, '-c', 'import sys, venv, ensurepip; print(*sys.version_info[:2])'],
        capture_output=True,
        text=True,
        timeout=60,
      )
    except (OSError, subprocess.TimeoutExpired):
      continue
    version = result.stdout.split()
    if result.returncode == 0 and version[0] == '3' and oldest <= int(version[1]) <= newest:
      return candidate, int(version[1])
  raise InputError(
    f'{requirements.name} runs on Python 3.{oldest} to 3.{newest}; this is '
    f'3.{sys.version_info.minor}, and none of those is on the PATH. Install one, or give a Python '
    'that has it with --python=PYTHON'
  )


def _candidates(oldest: int, newest: int) -> Iterator[str]:
  yield sys.executable
  for minor in range(newest, oldest - 1, -1):
    found = shutil.which(f'python3.{minor}')
    if found:
      yield found


def _make(requirements: Requirements, base: str, home: Path) -> None:
  LOGGER.info(
    'installing %s with pip in its own environment, only once: %s', requirements.name, home
  )
  partial = home.with_name(f'{home.name}.{os.getpid()}.partial')
  try:
    home.parent.mkdir(parents=True, exist_ok=True)
    _run([base, '-m', 'venv', '--clear', str(partial)], requirements)
    pip = [str(_python_of(partial)), '-m', 'pip', 'install', '--disable-pip-version-check']
    if requirements.alone:
      _run([*pip, '--no-deps', *requirements.alone], requirements)
    _run([*pip, *requirements.packages], requirements)
    _run([str(_python_of(partial)), '-I', '-c', 'import mediapipe'], requirements)
    try:
      os.rename(partial, home)
    except OSError:
      if not _python_of(home).exists():
        raise
  except OSError as error:
    raise InputError(f'cannot make {home}: {error.strerror}') from error
  finally:
    shutil.rmtree(partial, ignore_errors=True)


def _run(command: list[str], requirements: Requirements) -> None:
  done = subprocess.run(command, capture_output=True, text=True, env=clean_environment())
  if done.returncode:
    log = '\n'.join(f'  {line}' for line in (done.stderr or done.stdout).strip().splitlines()[-8:])
    raise InputError(
      f'cannot install {requirements.name}:\n{log}\npip needs the network, or a local index '
      '(PIP_INDEX_URL, PIP_FIND_LINKS). Or give a Python that has it with --python=PYTHON'
    )


def clean_environment() -> dict[str, str]:
  """The environment variables of this process, without those that would make another Python use
  the packages of this one."""
  return {
    name: value
    for name, value in os.environ.items()
    if name not in ('PYTHONPATH', 'PYTHONHOME', 'VIRTUAL_ENV', '__PYVENV_LAUNCHER__')
  }
