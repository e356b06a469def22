"""The `manifest` data set: the user's own pictures, listed in a CSV (see README.md in this
folder)."""

import re

from ferjax.datasets import builder, listing
from ferjax.datasets.manifest import parser
from ferjax.errors import InputError


class Builder(builder.FaceBuilder):
  """Copies a manifest's pictures and labels into ArrayRecord files, in the manifest's order."""


def make(
  data_dir: str | None = None,
  *,
  path: str = '',
  classes: tuple[str, ...] = (),
  skip_bad: bool = False,
) -> Builder:
  """The builder of one manifest. Its name changes if the manifest or a picture changes.

  Args:
    data_dir: The folder of prepared data sets; None for TFDS's default.
    path: The CSV file.
    classes: Class names in label order; see `parser.parse`.
    skip_bad: Whether bad rows are left out. If False, they are an error.

  Raises:
    InputError: see `parser.parse`. Bad rows are found when the builder prepares its data.
  """
  if not path:
    raise InputError('the manifest data set needs a CSV file: --config.data.path=FILE.csv')
  manifest = parser.parse(path, tuple(classes))
  stem = re.sub(r'[^\w-]', '_', manifest.folder.resolve().name)
  suffix = '-skip_bad' if skip_bad else ''
  content = listing.fingerprint(manifest)
  config = builder.FaceConfig(
    name=f'{stem}-{content}{suffix}',
    description=f'Pictures listed in {manifest.source.name}',
    listing=manifest,
    fingerprint=content,
    skip_bad=skip_bad,
  )
  return Builder(data_dir=data_dir, config=config)
