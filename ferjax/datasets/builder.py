"""Makes a TFDS builder from a parser: checks rows, then stores them in order in ArrayRecord."""

import contextlib
import dataclasses
import functools
import inspect
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import tensorflow_datasets as tfds

from ferjax import labels
from ferjax.datasets import listing as listings
from ferjax.datasets.catalogue import Source, refuse_protocol
from ferjax.datasets.features import face_features
from ferjax.errors import InputError
from ferjax.terminal import progress

LOGGER = logging.getLogger(__name__)

SHARD_BYTES = 64 * 2**20


@dataclasses.dataclass(eq=False)
class FaceConfig(tfds.core.BuilderConfig):
  """The rows to store, and whether bad rows are left out; otherwise they are an error."""

  listing: listings.Listing | None = dataclasses.field(default=None, repr=False)
  fingerprint: str = ''
  skip_bad: bool = False


class FaceBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):
  """Stores a listing, in order; see `listing.Listing`.

  TFDS's GeneratorBasedBuilder sorts splits above 1000 MiB on disk, for which it needs TensorFlow.
  """

  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES = {'1.0.0': 'First release.'}

  def _info(self):
    found = self.builder_config.listing
    first = found.rows[0] if found.rows else {}
    whole = {name for name in first if all(name in row for row in found.rows)}
    landmarks = len(first['landmarks']) if 'landmarks' in whole else 0
    return self.dataset_info_from_configs(
      features=face_features(
        found.classes,
        subjects=sorted({row['subject'] for row in found.rows}) if 'subject' in whole else (),
        landmarks=landmarks,
        action_units=len(found.action_units) if 'au' in whole else 0,
        pose={'yaw', 'pitch', 'roll'} <= whole,
        yaw_bin='yaw_bin' in whole,
        distribution='distribution' in whole,
        fold='fold' in whole,
      ),
      disable_shuffling=True,
      metadata=tfds.core.MetadataDict(
        action_units=list(found.action_units),
        landmark_scheme=labels.landmark_scheme(landmarks),
        other_classes=dict(found.other_classes),
        folds=found.folds,
      ),
    )

  def _shard_iterators_per_split(self, dl_manager):
    track = functools.partial(progress.track, title=f'Checking {self.name}')
    shards = self._shards(lambda listing: listings.check_pictures(listing, track))
    total = sum(len(rows) for parts in shards.values() for rows in parts)
    storing = self._running.enter_context(progress.Progress(f'Storing {self.name}', total))
    return {
      split: [functools.partial(self._examples, rows, storing) for rows in parts]
      for split, parts in shards.items()
    }

  def _download_and_prepare(self, dl_manager, download_config=None):
    options = download_config and download_config.beam_options
    if options:
      self._prepare_on_beam(options)
      return
    with contextlib.ExitStack() as self._running:  # ends the progress of storing
      super()._download_and_prepare(dl_manager, download_config)

  def _prepare_on_beam(self, options):
    """Prepares the data set with Apache Beam. TFDS's own method confuses the lengths of more than
    ten files, and makes the files of one split again with the next split."""
    from ferjax.datasets import beam  # Apache Beam is an extra

    scratch = Path(self.data_path)
    shards = self._shards(functools.partial(beam.check_pictures, scratch=scratch, options=options))
    files, splits = {}, []
    for split, parts in shards.items():
      template = self._get_filename_template(split_name=split)
      lengths = [len(rows) for rows in parts]
      names = [
        Path(template.sharded_filepath(shard_index=n, num_shards=len(parts)))
        for n in range(len(parts))
      ]
      files |= zip(names, parts, strict=True)
      splits.append((split, template, names, lengths))
    folder = self.builder_config.listing.folder
    beam.write(files, folder, self.info.features, self._example_writer(), scratch, options)
    self.info.set_splits(
      tfds.core.SplitDict(
        tfds.core.SplitInfo(
          name=split,
          shard_lengths=lengths,
          num_bytes=sum(path.stat().st_size for path in names),
          filename_template=template,
        )
        for split, template, names, lengths in splits
      )
    )

  def _shards(self, check):
    """{split: its rows in parts, one for each file}. `check` finds the rows with broken pictures.
    Bad rows are an error, or are left out with `skip_bad`."""
    config, metadata = self.builder_config, self.info.metadata
    metadata['listing'] = config.fingerprint
    found = check(config.listing)
    source = found.source or found.folder
    if found.problems:
      text = f'{source} has bad rows:\n{listings.report(found.problems)}'
      if not config.skip_bad:
        raise InputError(
          f'{text}\nCorrect these rows, or leave them out with --config.data.skip_bad=True '
          '(ferjax prepare data --skip_bad)'
        )
      LOGGER.warning('%s\nThey are left out (config.data.skip_bad=True).', text)
      metadata['bad_rows'] = listings.report(found.problems)
    if found.other_classes:
      LOGGER.warning('rows of classes not in use, left out: %s', dict(found.other_classes))
    if not found.rows:
      raise InputError(f'{source} has no row that can be used')
    if found.skipped:
      metadata['skipped'] = listings.report(found.skipped)
    metadata['differences'] = listings.differences(found)
    for name in sorted({n for row in found.rows for n in row} - {'line', 'box', 'image', 'path'}):
      missing = sum(name not in row for row in found.rows)
      if missing and name != 'name':
        text = f'{name} left out of all rows, because {missing} of {len(found.rows)} lack it'
        metadata['differences'].append(text)
    by_split = {}
    for row in found.rows:
      by_split.setdefault(row['split'], []).append(row)
    return {split: _shards(found.folder, rows) for split, rows in by_split.items()}

  def _examples(self, rows, storing):
    for pair in listings.examples(self.builder_config.listing.folder, rows, self.info.features):
      yield pair
      storing.update()


def _shards(folder, rows):
  """Rows in parts of about SHARD_BYTES. TFDS holds one part in memory at a time."""
  parts, size = [[]], 0
  for row in rows:
    own = len(row['image']) if 'image' in row else os.stat(f'{folder}/{row["path"]}').st_size
    if parts[-1] and size + own > SHARD_BYTES:
      parts.append([])
      size = 0
    parts[-1].append(row)
    size += own
  return parts


def maker(
  builder: type[FaceBuilder], parse: Callable[..., listings.Listing], by_content: bool = False
) -> Callable[..., tfds.core.DatasetBuilder]:
  """Makes the function `make` of a data set that is read from a folder.

  Args:
    builder: Its builder; errors contain its MANUAL_DOWNLOAD_INSTRUCTIONS.
    parse: (folder, **options) -> listing; its keyword arguments are the options of the data set.
    by_content: Whether the prepared data are identified by the content of the folder, which is then
      parsed each time. Otherwise the options alone identify them.

  Returns:
    (data_dir, source, **options) -> the builder.
  """
  name = builder.__module__.split('.')[-2]
  keyword = inspect.Parameter.KEYWORD_ONLY
  known = [p for p in inspect.signature(parse).parameters.values() if p.kind is keyword]
  defaults = {option.name: option.default for option in known}

  def make(data_dir: str | None, source: Source, **options):
    """The builder of one variant of the data set. Once prepared, it does not need the pictures.

    Args:
      data_dir: The folder of prepared data sets; TFDS's default when None.
      source: `manual_dir`, `protocol`, `skip_bad` and `refresh` are used.
      **options: Options of the parser.

    Raises:
      InputError: there is no such folder, it does not hold the data set, or an option is unknown.
    """
    root = Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()
    if 'protocol' not in defaults:
      refuse_protocol(name, source)
    elif source.protocol:
      options['protocol'] = source.protocol

    def parsed():
      return parse(_folder(name, root, source.manual_dir, builder), **options)

    parts = [str(value) for value in (defaults | options).values()]
    parts += ['skip_bad'] * source.skip_bad
    found = parsed() if by_content or source.refresh else None
    content = listings.fingerprint(found) if found else ''
    if by_content:
      parts += [found.folder.resolve().name, content]
    key = '-'.join(''.join(c if c.isalnum() else '_' for c in part) for part in parts)
    prepared = root / name / key / str(builder.VERSION)
    if (prepared / 'dataset_info.json').exists():
      ready = tfds.builder_from_directory(prepared)
      if not source.refresh or ready.info.metadata['listing'] == content:
        return ready
      LOGGER.info('%s has changed: %s is prepared again', found.folder, name)
      shutil.rmtree(prepared)
    found = found or parsed()
    content = content or listings.fingerprint(found)
    config = FaceConfig(
      name=key, description=key, listing=found, fingerprint=content, skip_bad=source.skip_bad
    )
    return builder(data_dir=root, config=config)

  ours = [p for n, p in inspect.signature(make).parameters.items() if n != 'options']
  own = [option for option in known if option.name != 'protocol']
  make.__signature__ = inspect.Signature([*ours, *own])
  return make


def _folder(name, root: Path, manual_dir: str, builder: type[FaceBuilder]) -> Path:
  given = Path(manual_dir).expanduser() if manual_dir else root / 'downloads' / 'manual'
  try:
    for folder in (given / name, *([given] if manual_dir else [])):
      if folder.is_dir():
        return folder
  except OSError as error:
    raise InputError(f'cannot read {error.filename}: {error.strerror}') from error
  raise InputError(
    f'there is no folder {given / name}: give the folder of {name} with --config.data.manual_dir='
    f'FOLDER.\n{inspect.cleandoc(builder.MANUAL_DOWNLOAD_INSTRUCTIONS or "")}'
  )
