"""Which data sets there are, and their builders."""

import contextlib
import importlib
import inspect
import io
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow_datasets as tfds

from ferjax.errors import InputError, nearest

LOGGER = logging.getLogger(__name__)


class Source(NamedTuple):
  """What `config.data` says of any data set; a builder reads what it knows.

  Attributes:
    path: For `manifest`: the CSV file.
    manual_dir: For data sets that lie in a folder: `<manual_dir>/<name>`, or the data set's own
      folder; `downloads/manual` where prepared data sets lie when empty.
    protocol: Which of the data set's protocols; its first when empty.
    classes: For `manifest`: class names in label order; see `manifest.parser.parse`.
    skip_bad: Leave bad rows out instead of refusing the data set.
    refresh: Read the folder again, and prepare it again if it has changed.
  """

  path: str = ''
  manual_dir: str = ''
  protocol: str = ''
  classes: tuple[str, ...] = ()
  skip_bad: bool = False
  refresh: bool = False


def refuse_protocol(name: str, source: Source) -> None:
  """For data sets without protocols.

  Raises:
    InputError: a protocol is given.
  """
  if source.protocol:
    raise InputError(f'config.data.protocol={source.protocol!r}: {name} has no protocols')


def prepare(builder: tfds.core.DatasetBuilder, beam_options: Any = None) -> None:
  """Prepares a data set, unless it is prepared already.

  Args:
    builder: See `make_builder`.
    beam_options: Of Apache Beam, to prepare it there; see `beam.parse_options`.

  Raises:
    InputError: bad rows, the folder cannot be written, or it cannot be prepared on Beam.
  """
  if beam_options and isinstance(builder, tfds.core.GeneratorBasedBuilder):
    raise InputError(f'{builder.name} is drawn, not read: it cannot be prepared on Beam')
  done = Path(builder.data_path) / 'dataset_info.json'
  if done.exists():
    return
  download_config = tfds.download.DownloadConfig(beam_options=beam_options)
  tfds.disable_progress_bar()  # ours is shown
  try:
    with contextlib.redirect_stdout(io.StringIO()):  # where TFDS announces downloads
      builder.download_and_prepare(file_format='array_record', download_config=download_config)
  except OSError as error:
    if not done.exists():
      raise InputError(f'cannot prepare {builder.name} in {builder.data_path}: {error}') from error
    builder.info.read_from_directory(builder.data_path)  # of another process, which was faster
  total = sum(split.num_examples for split in builder.info.splits.values())
  LOGGER.info('%s: %d pictures prepared in %s', builder.name, total, builder.data_path)


def names() -> tuple[str, ...]:
  """The data sets that exist: packages of `ferjax.datasets` with a builder."""
  here = Path(__file__).parent
  return tuple(sorted(p.parent.name for p in here.glob('*/*_dataset_builder.py')))


def make_builder(
  name: str, data_dir: str | None, source: Source, options: Mapping[str, Any]
) -> tfds.core.DatasetBuilder:
  """The TFDS builder of a data set: `make(data_dir, source, **options)` of its builder's module.

  Args:
    name: One of `names`.
    data_dir: Where prepared data sets lie; TFDS's default when None.
    source: What `config.data` says.
    options: `config.data.options.<name>`.

  Raises:
    InputError: no such data set, or an option or protocol that it does not have.
  """
  if name not in names():
    raise InputError(
      f"no data set '{name}'.{nearest(name, names())} There are: {', '.join(names())}"
    )
  make = importlib.import_module(f'ferjax.datasets.{name}.{name}_dataset_builder').make
  known = set(inspect.signature(make).parameters) - {'data_dir', 'source'}
  for key in options:
    if key not in known:
      raise InputError(f'unknown key config.data.options.{name}.{key}.{nearest(key, known)}')
  return make(data_dir, source, **options)
