"""Checks and stores the pictures of a data set on Apache Beam.

`ferjax prepare data --beam_options=...` does so.

What a worker is to do lies in files, as the job itself may not grow with the data set. So workers
see pictures and prepared data under the same paths as this process.
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

PART = 256  # pictures that are checked in one go


def parse_options(texts: Sequence[str]):
  """`KEY=VALUE` or `KEY`, as Beam's flags without their dashes -> its `PipelineOptions`.

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
  """Makes files on Beam's workers, each from what it is mapped to, and each whole or not there.

  Args:
    make: (part, path) writes a file; may be called more than once.
    parts: What can be pickled, by the file that it becomes.
    scratch: An empty folder, on the disk of those files, that all workers see.
    options: See `parse_options`.

  Raises:
    InputError: whatever Beam says: of its options, or of what went wrong on a worker.
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
      f'{scratch.parent}, under the same paths as here'
    ) from error


def _make_file(make, scratch, number):
  path, part = pickle.loads((scratch / f'{number}.part').read_bytes())
  partial = scratch / uuid.uuid4().hex
  make(part, partial)
  os.replace(partial, path)


def check_pictures(listing: listings.Listing, scratch: Path, options) -> listings.Listing:
  """What `listing.check_pictures` does.

  Args:
    listing: As parsed.
    scratch: A folder that all workers see; nothing stays there.
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
  """Writes the files of a data set as TFDS does.

  Args:
    shards: The rows of each file.
    folder: Where the pictures' paths start.
    features: TFDS's.
    example_writer: Of the file format.
    scratch: A folder that all workers see; nothing stays there.
    options: See `parse_options`.
  """
  with tempfile.TemporaryDirectory(dir=scratch) as place:
    make = functools.partial(_write, folder, features, example_writer)
    make_files(make, shards, Path(place), options)


def _write(folder, features, example_writer, rows, path):
  serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
  shard = writer.ShardWriter(features, serializer, example_writer)
  shard.write(listings.examples(folder, rows, features), path)
