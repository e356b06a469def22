"""Checks and stores the pictures of a data set with Apache Beam.

`ferjax prepare data --beam_options=...` uses it.

The tasks of the workers are in files, because the job itself must not grow with the data set. The
workers must see pictures and prepared data under the same paths as this process.
"""

import functools
import itertools
import json
import os
import pickle
import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorflow_datasets.core import example_serializer, writer

from ferjax.datasets import listing as listings
from ferjax.errors import InputError

PART = 256  # pictures that are checked in one task


def parse_options(texts: Sequence[str]):
  """Parses `KEY=VALUE` or `KEY`, Beam's flags without dashes, to Beam's `PipelineOptions`.

  Raises:
    InputError: Apache Beam is not installed.
  """
  try:
    from apache_beam.options.pipeline_options import PipelineOptions
  except ImportError as error:
    raise InputError("--beam_options needs Apache Beam: pip install 'ferjax[beam]'") from error
  return PipelineOptions([f'--{text}' for text in texts])


def make_files(
  make: Callable[[Any, Path], None], parts: Mapping[Path, Any], scratch: Path, options
) -> None:
  """Makes files on Beam's workers. A file appears when it is complete.

  Args:
    make: (part, path) writes a file. It may be called several times for the same file.
    parts: {file: the part from which it is made}. Parts must be picklable.
    scratch: An empty folder on the disk of the files, which all workers see.
    options: See `parse_options`.

  Raises:
    InputError: Beam reports an error, in its options or on a worker.
  """
  import apache_beam as beam

  for number, part in enumerate(parts.items()):
    (scratch / f'{number}.part').write_bytes(pickle.dumps(part))
  try:
    with beam.Pipeline(options=options) as pipeline:
      numbers = pipeline | beam.Create(range(len(parts))) | beam.Reshuffle()
      numbers | beam.Map(functools.partial(_make_file, make, scratch))
  except Exception as error:
    raise InputError(
      f'Apache Beam with --beam_options: {error}\nIts workers need ferjax, the pictures, and '
      f'{scratch.parent}, under the same paths as this process'
    ) from error


def _make_file(make, scratch, number):
  path, part = pickle.loads((scratch / f'{number}.part').read_bytes())
  partial = scratch / uuid.uuid4().hex
  make(part, partial)
  os.replace(partial, path)


def check_pictures(listing: listings.Listing, scratch: Path, options) -> listings.Listing:
  """`listing.check_pictures` on Beam's workers.

  Args:
    listing: The parsed data set.
    scratch: A folder that all workers see; its new files are removed at the end.
    options: See `parse_options`.
  """
  with tempfile.TemporaryDirectory(dir=scratch) as folder:
    starts = range(0, len(listing.rows), PART)
    parts = {Path(folder, f'{start}.json'): listing.rows[start : start + PART] for start in starts}
    make_files(functools.partial(_check, listing.folder), parts, Path(folder), options)
    found = [json.loads(path.read_text()) for path in parts]
  return listings.without_broken(listing, itertools.chain(*found))


def _check(folder, rows, path):
  path.write_text(json.dumps(listings.picture_troubles(folder, rows)))


def write(
  shards: Mapping[Path, Sequence[listings.Row]],
  folder: Path,
  features,
  example_writer: writer.ExampleWriter,
  scratch: Path,
  options,
) -> None:
  """Writes the files of a data set in the format of TFDS.

  Args:
    shards: The rows of each file.
    folder: The folder from which the paths of the pictures start.
    features: The `FeaturesDict` of the data set.
    example_writer: TFDS's writer for the file format.
    scratch: A folder that all workers see; its new files are removed at the end.
    options: See `parse_options`.
  """
  with tempfile.TemporaryDirectory(dir=scratch) as place:
    make = functools.partial(_write, folder, features, example_writer)
    make_files(make, shards, Path(place), options)


def _write(folder, features, example_writer, rows, path):
  serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
  shard = writer.ShardWriter(features, serializer, example_writer)
  shard.write(listings.examples(folder, rows, features), path)
