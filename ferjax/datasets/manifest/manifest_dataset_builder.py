"""The `manifest` data set: the user's own pictures, listed in a CSV (see README.md in this
folder)."""

import re
from pathlib import Path

import tensorflow_datasets as tfds

from ferjax.datasets import builder, listing
from ferjax.datasets.catalogue import Source, refuse_protocol
from ferjax.datasets.manifest import known, parser
from ferjax.errors import InputError


class Builder(builder.FaceBuilder):
  """Copies a manifest's pictures and labels into ArrayRecord files, in the manifest's order."""


def make(data_dir: str | None, source: Source) -> tfds.core.DatasetBuilder:
  """The builder of one manifest; its name changes whenever the manifest or a picture does.

  Args:
    data_dir: Where prepared data sets lie; TFDS's own default when None.
    source: `path`, `classes` and `skip_bad` are used.

  Raises:
    InputError: see `parser.parse`. Bad rows are found when the builder prepares its data.
  """
  refuse_protocol('manifest', source)
  if not source.path:
    raise InputError('the manifest data set needs a CSV file: --config.data.path=FILE.csv')
  root, path = Path(data_dir or tfds.core.constants.DATA_DIR).expanduser(), Path(source.path)
  options = tuple(source.classes), source.skip_bad
  ready = known.find(root, path, options)
  if ready:
    prepared = root / 'manifest' / ready / str(Builder.VERSION)
    if (prepared / 'dataset_info.json').is_file():
      return tfds.builder_from_directory(prepared)
  manifest = parser.parse(path, tuple(source.classes))
  stem = re.sub(r'[^\w-]', '_', manifest.folder.resolve().name)
  suffix = '-skip_bad' if source.skip_bad else ''
  content = listing.fingerprint(manifest)
  config = builder.FaceConfig(
    name=f'{stem}-{content}{suffix}',
    description=f'Pictures listed in {manifest.source.name}',
    listing=manifest,
    fingerprint=content,
    skip_bad=source.skip_bad,
  )
  if not manifest.problems:
    known.keep(root, path, options, config.name, [row['path'] for row in manifest.rows])
  return Builder(data_dir=data_dir, config=config)
