"""The `manifest` data set: a user's own pictures, listed in a CSV (see README.md beside this)."""

import dataclasses
import io
import logging
import re
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image, ImageOps

from ferjax.data.features import face_features
from ferjax.data.manifest import parser
from ferjax.errors import InputError

LOGGER = logging.getLogger(__name__)


@dataclasses.dataclass(eq=False)
class ManifestConfig(tfds.core.BuilderConfig):
  manifest: parser.Manifest | None = dataclasses.field(default=None, repr=False)
  skip_bad: bool = False


class Builder(tfds.core.GeneratorBasedBuilder):
  """Copies a manifest's pictures and labels into ArrayRecord files, in the manifest's order."""

  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES = {'1.0.0': 'First release.'}

  def _info(self):
    manifest = self.builder_config.manifest
    return self.dataset_info_from_configs(
      features=face_features(
        manifest.classes,
        subjects=manifest.subjects,
        landmarks=manifest.landmarks,
        action_units=len(manifest.action_units),
        pose=manifest.pose,
        yaw_bin=manifest.yaw_bin,
        distribution=manifest.distribution,
      ),
      disable_shuffling=True,
      metadata=tfds.core.MetadataDict(
        action_units=list(manifest.action_units),
        landmark_scheme='ibug68' if manifest.landmarks == 68 else '',
      ),
    )

  def _split_generators(self, dl_manager):
    manifest = parser.check_pictures(self.builder_config.manifest, _progress)
    if manifest.problems:
      text = f'{manifest.path} has bad rows:\n{parser.report(manifest.problems)}'
      if not self.builder_config.skip_bad:
        raise InputError(
          f'{text}\nMend these rows, or leave them out with --config.data.skip_bad=True'
        )
      LOGGER.warning('%s\nThey are left out (config.data.skip_bad=True).', text)
      self.info.metadata['bad_rows'] = parser.report(manifest.problems)
    self.info.metadata['other_classes'] = manifest.other_classes
    if not manifest.rows:
      raise InputError(f'{manifest.path} has no row that can be used')
    by_split = {}
    for row in manifest.rows:
      by_split.setdefault(row['split'], []).append(row)
    return {split: self._generate_examples(rows) for split, rows in by_split.items()}

  def _generate_examples(self, rows):
    folder = self.builder_config.manifest.path.parent
    for number, row in enumerate(rows):
      features = {k: v for k, v in row.items() if k not in ('path', 'split', 'line')}
      yield number, features | {'image': encoded(folder / row['path']), 'name': row['path']}


def encoded(path: Path) -> io.BytesIO:
  """The picture's bytes; formats that TFDS cannot store are re-encoded as PNG, without loss."""
  with Image.open(path, formats=parser.FORMATS) as picture:
    if picture.format in parser.STORED_AS_THEY_ARE:
      return io.BytesIO(path.read_bytes())
    png, picture = io.BytesIO(), ImageOps.exif_transpose(picture)
    if picture.mode.startswith('I;16'):
      picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    picture.convert('RGB').save(png, 'PNG')
    return io.BytesIO(png.getvalue())


def _progress(items, total):
  return tfds.core.utils.tqdm(items, total=total, desc='Checking pictures', unit=' pictures')


def make(
  data_dir: str | None = None,
  *,
  path: str = '',
  classes: tuple[str, ...] = (),
  skip_bad: bool = False,
) -> Builder:
  """The builder of one manifest; its name changes whenever the manifest or a picture does.

  Args:
    data_dir: Where prepared data sets lie; TFDS's own default when None.
    path: The CSV file.
    classes: Class names in label order; see `parser.parse`.
    skip_bad: Leave bad rows out instead of refusing the manifest.

  Raises:
    InputError: see `parser.parse`; bad rows are found when the builder prepares its data.
  """
  if not path:
    raise InputError('the manifest data set needs a CSV file: --config.data.path=FILE.csv')
  manifest = parser.parse(path, tuple(classes))
  stem = re.sub(r'[^\w-]', '_', manifest.path.resolve().parent.name)
  suffix = '-skip_bad' if skip_bad else ''
  config = ManifestConfig(
    name=f'{stem}-{parser.fingerprint(manifest)}{suffix}',
    description=f'Pictures listed in {manifest.path.name}',
    manifest=manifest,
    skip_bad=skip_bad,
  )
  return Builder(data_dir=data_dir, config=config)
