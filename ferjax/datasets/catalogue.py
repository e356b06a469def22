"""Which data sets there are, and their builders."""

import contextlib
import importlib
import inspect
import io
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from ferjax.errors import InputError, nearest

LOGGER = logging.getLogger(__name__)


def prepare(builder: tfds.core.DatasetBuilder, beam_options: Any = None) -> None:
  """Prepares a data set, unless it is prepared already.

  Args:
    builder: See `make_builder`.
    beam_options: Of Apache Beam, to prepare it there; see `beam.parse_options`.

  Raises:
    InputError: bad rows, its place cannot be written, or it cannot be prepared on Beam.
  """
  if beam_options and isinstance(builder, tfds.core.GeneratorBasedBuilder):
    raise InputError(f'{builder.name} is drawn, not read: it cannot be prepared on Beam')
  if (Path(builder.data_path) / 'dataset_info.json').exists():
    return
  download_config = tfds.download.DownloadConfig(beam_options=beam_options)
  tfds.disable_progress_bar()  # ours is shown
  try:
    with contextlib.redirect_stdout(io.StringIO()):  # where TFDS announces downloads
      builder.download_and_prepare(file_format='array_record', download_config=download_config)
  except OSError as error:
    raise InputError(f'cannot prepare {builder.name} in {builder.data_path}: {error}') from error
  total = sum(split.num_examples for split in builder.info.splits.values())
  LOGGER.info('%s: %d pictures prepared in %s', builder.name, total, builder.data_path)


def names() -> tuple[str, ...]:
  """The data sets that exist: packages of `ferjax.datasets` with a builder."""
  here = Path(__file__).parent
  return tuple(sorted(p.parent.name for p in here.glob('*/*_dataset_builder.py')))


def make_builder(
  name: str, data_dir: str | None, given: Mapping[str, Any], options: Mapping[str, Any]
) -> tfds.core.DatasetBuilder:
  """The TFDS builder of a data set.

  Args:
    name: See `load`.
    data_dir: Where prepared data sets lie; TFDS's default when None.
    given: Keyword arguments for its `make`; those that it does not take are left out, and an empty
      `protocol`.
    options: Further ones; they must fit.

  Raises:
    InputError: no such data set, or an option or protocol that it does not have.
  """
  if name not in names():
    raise InputError(
      f"no data set '{name}'.{nearest(name, names())} There are: {', '.join(names())}"
    )
  make = importlib.import_module(f'ferjax.datasets.{name}.{name}_dataset_builder').make
  accepted = set(inspect.signature(make).parameters) - {'data_dir'}
  for key in options:
    if key not in accepted or key in given:
      raise InputError(
        f'unknown key config.data.options.{name}.{key}.{nearest(key, accepted - set(given))}'
      )
  given = {k: v for k, v in given.items() if k != 'protocol' or v}
  if 'protocol' in given and 'protocol' not in accepted:
    raise InputError(f'config.data.protocol={given["protocol"]!r}: {name} has no protocols')
  return make(data_dir, **{k: v for k, v in given.items() if k in accepted}, **options)
