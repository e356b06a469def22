"""Prepares the input of training: data sets, graphs, annotations, subjects, poses.

`data --name=raf_db --manual_dir=FOLDER` prepares a data set and prints its content. With
`--beam_options=runner=DirectRunner,direct_num_workers=8,direct_running_mode=multi_processing`,
Apache Beam (the extra `beam`) checks and stores its pictures; its workers may be on other machines
that see the same folders.

`duplicates --name=fer_plus --manual_dir=FOLDER --out=pairs.csv` lists near duplicates: pictures of
two splits whose perceptual hashes differ in at most `--distance` bits. `data` counts them, too.
`--config.data.drop_duplicates=True` leaves them out of a training run.

`graphs --config=configs/NAME.py` builds the graphs of neighbours for the config's sampler, and
stores them next to the prepared data. A run builds them itself if they are missing.

`annotations --format=openface --annotations=FOLDER --pictures=FOLDER --out=manifest.csv` joins the
output of another tool with pictures, into a manifest. `subjects --manifest=A.csv --out=B.csv
--embeddings=E.npz --threshold=0.6` adds the person of each face, found by clustering, and `poses
--manifest=A.csv --out=B.csv` adds the pose class.

`manifest --data=NAME --manual_dir=FOLDER --out=manifest.csv` writes a data set as a manifest, with
its pictures next to it. `ferjax annotate --data=NAME` writes one with landmarks and aligned crops.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags

from ferjax import config as configs
from ferjax import files
from ferjax.annotation import manifests, sets, tools
from ferjax.assembly import sources
from ferjax.cli import console
from ferjax.cli.flags import config_flag, key_values, parse_flags
from ferjax.data import dataset, near_duplicates
from ferjax.data.summary import summary
from ferjax.datasets import beam, catalogue
from ferjax.errors import InputError, nearest

NAME = flags.DEFINE_string('name', None, 'data, duplicates: the data set.')
DATA = flags.DEFINE_string(
  'data', '', 'manifest: the data set: NAME, NAME@PROTOCOL or manifest:FILE.csv.'
)
CLASSES = flags.DEFINE_list('classes', [], 'manifest: class names, of a manifest with other ones.')
MANUAL_DIR = flags.DEFINE_string(
  'manual_dir', '', 'data, duplicates, manifest: the folder that holds `<name>`.'
)
PATH = flags.DEFINE_string('path', '', 'data, duplicates: the CSV file of a manifest.')
DIR = flags.DEFINE_string('dir', '', "The folder of prepared data sets; TFDS's default when empty.")
PROTOCOL = flags.DEFINE_string('protocol', '', "data, duplicates: one of the data set's protocols.")
FOLD = flags.DEFINE_integer('fold', 0, 'data, duplicates: the fold to show.')
SKIP_BAD = flags.DEFINE_bool('skip_bad', False, 'data, duplicates, manifest: leave bad rows out.')
OPTION = flags.DEFINE_multi_string(
  'option', [], 'data, duplicates, manifest: an option of the data set, KEY=VALUE.'
)
BEAM_OPTIONS = flags.DEFINE_list(
  'beam_options', [], "data: Apache Beam's flags without dashes, such as runner=DirectRunner."
)
MANIFEST = flags.DEFINE_string('manifest', '', 'subjects, poses: the manifest to start from.')
OUT = flags.DEFINE_string(
  'out',
  '',
  'manifest, annotations, subjects, poses: the manifest to write; duplicates: the list of pairs.',
)
DISTANCE = flags.DEFINE_integer(
  'distance',
  near_duplicates.DISTANCE,
  f'data, duplicates: the most bits, of {near_duplicates.BITS}, in which near duplicates differ.',
)
MIRRORED = flags.DEFINE_bool('mirrored', False, 'data, duplicates: flipped pictures, too.')
FORMAT = flags.DEFINE_string(
  'format', '', f'annotations: the tool or format: {", ".join(tools.FORMATS)}.'
)
ANNOTATIONS = flags.DEFINE_string('annotations', '', 'annotations: the file, or folder of files.')
PICTURES = flags.DEFINE_string(
  'pictures', '', 'annotations: a manifest, or a folder with a sub-folder for each class.'
)
ANGLES = flags.DEFINE_string('angles', '', 'annotations, pyfeat: degrees or radians.')
MIRROR_YAW = flags.DEFINE_bool('mirror_yaw', False, 'annotations: reverse the sign of yaw.')
CONFIDENCE = flags.DEFINE_float(
  'confidence', 0.0, 'annotations: leave out faces with less confidence, 0..1.'
)
ORIGIN = flags.DEFINE_integer(
  'origin', None, "annotations: coordinate of the first pixel's centre; default: pts 1, else 0."
)
POINTS = flags.DEFINE_integer('points', 0, 'annotations, pts and points: points of each face.')
SUFFIX = flags.DEFINE_string(
  'suffix', '', "annotations: text after a picture's name in the file's name, such as _manu_attri."
)
EMBEDDINGS = flags.DEFINE_string('embeddings', '', 'subjects: .npy or .npz of face embeddings.')
PEOPLE = flags.DEFINE_integer('people', None, 'subjects: the number of people.')
THRESHOLD = flags.DEFINE_float('threshold', None, 'subjects: cosine distance between people.')
BINS = flags.DEFINE_list(
  'bins', [str(pose) for pose in manifests.DML_NET_POSES], 'poses: pose classes, degrees.'
)


def data(
  *,
  name: str,
  manual_dir: str = '',
  path: str = '',
  dir: str = '',
  protocol: str = '',
  fold: int = 0,
  skip_bad: bool = False,
  options: Mapping[str, Any] | None = None,
  beam_options: Sequence[str] = (),
  distance: int = near_duplicates.DISTANCE,
  mirrored: bool = False,
) -> str:
  """Prepares a data set. If its folder has changed, it is prepared again.

  Args:
    name: The data set; see `dataset.load` for all arguments.
    manual_dir: The folder that holds `<name>`.
    path: The CSV file of a manifest.
    dir: The folder of prepared data sets.
    protocol: One of its protocols.
    fold: The fold that the summary shows.
    skip_bad: Leave bad rows out.
    options: Further keyword arguments of its `make`.
    beam_options: `KEY=VALUE` of Apache Beam, which then prepares the data set; none for this
      process.
    distance, mirrored: Which pictures of two splits count as near duplicates; see
      `near_duplicates.find`.

  Returns:
    The summary.

  Raises:
    InputError: there is no such data set, its folder does not have the expected layout, Apache Beam
      is not installed, or the distance is not that of a hash.
  """
  near_duplicates.check_distance(distance, '--distance')
  builder, loaded = _prepared(
    name, manual_dir, path, dir, protocol, fold, skip_bad, options or {}, beam_options
  )
  text = summary(loaded, builder.info.metadata or {}, str(builder.data_path))
  found = near_duplicates.describe(loaded.splits, loaded.classes, distance, mirrored)
  return '\n'.join([text, *found])


def _prepared(
  name, manual_dir, path, dir, protocol, fold, skip_bad, options, beam_options=()
) -> tuple[Any, dataset.Dataset]:
  """Prepares a data set, again if its folder has changed: its builder, and all its rows."""
  source = catalogue.Source(path, manual_dir, protocol, skip_bad=skip_bad, refresh=True)
  builder = catalogue.make_builder(name, dir or None, source, options)
  catalogue.prepare(builder, beam.parse_options(beam_options) if beam_options else None)
  loaded = dataset.load(
    name=name,
    path=path,
    dir=dir,
    manual_dir=manual_dir,
    protocol=protocol,
    fold=fold,
    options={name: options},
    val_fraction=0.0,
    skip_bad=skip_bad,
    allow_shared_subjects=True,
  )
  return builder, loaded


def _data() -> None:
  if not NAME.value:
    raise InputError(f'give --name, one of {", ".join(catalogue.names())}')
  text = data(
    name=NAME.value,
    manual_dir=MANUAL_DIR.value,
    path=PATH.value,
    dir=DIR.value,
    protocol=PROTOCOL.value,
    fold=FOLD.value,
    skip_bad=SKIP_BAD.value,
    options=key_values(OPTION.value),
    beam_options=BEAM_OPTIONS.value,
    distance=DISTANCE.value,
    mirrored=MIRRORED.value,
  )
  print(text)


def _duplicates() -> None:
  (name,) = _needed(NAME)
  near_duplicates.check_distance(DISTANCE.value, '--distance')
  out = Path(OUT.value) if OUT.value else None
  if out:
    files.check_out(out)
  _, loaded = _prepared(
    str(name),
    MANUAL_DIR.value,
    PATH.value,
    DIR.value,
    PROTOCOL.value,
    FOLD.value,
    SKIP_BAD.value,
    key_values(OPTION.value),
  )
  if len(loaded.splits) == 1:
    raise InputError(
      f'{loaded.name} has one split only, {next(iter(loaded.splits))}: near duplicates are looked '
      'for between splits'
    )
  lines = near_duplicates.describe(
    loaded.splits, loaded.classes, DISTANCE.value, MIRRORED.value, out
  )
  print('\n'.join(lines) or f'no pictures of two splits differ in at most {DISTANCE.value} bits')


def _graphs() -> None:
  config = config_flag()
  if config is None:
    raise InputError('give a config, such as --config=configs/ldl_alsg.py')
  configs.check(config)
  if not sources.uses_graphs(config):
    raise InputError(
      f"config.sampler.name is '{config.sampler.name}', which needs no graphs: give a config with "
      'the sampler neighbour_groups, such as --config=configs/ldl_alsg.py'
    )
  data, _, _ = sources.load(config)
  if 'train' not in data.splits:
    raise InputError(f'{data.name} has no training rows (split `train`)')
  sources.make_sampler(config, data.splits['train'].table)


def _needed(*given) -> list[Path]:
  for flag in given:
    if not flag.value:
      help = flags.FLAGS[flag.name].help.partition(': ')[2]
      raise InputError(f'give --{flag.name}: {help}')
  return [Path(flag.value) for flag in given]


def _manifest() -> None:
  spec, out = _needed(DATA, OUT)
  sets.check_out(out, str(spec))
  rows = sets.load(
    str(spec),
    manual_dir=MANUAL_DIR.value,
    dir=DIR.value,
    options=key_values(OPTION.value),
    classes=tuple(CLASSES.value),
    skip_bad=SKIP_BAD.value,
  )
  print(sets.write(rows, out))


def _annotations() -> None:
  path, pictures, out, _ = _needed(ANNOTATIONS, PICTURES, OUT, FORMAT)
  found = tools.read(
    path,
    FORMAT.value,
    angles=ANGLES.value,
    mirror_yaw=MIRROR_YAW.value,
    confidence=CONFIDENCE.value,
    origin=ORIGIN.value,
    points=POINTS.value,
    suffix=SUFFIX.value,
  )
  print(manifests.annotate(pictures, out, found))


def _subjects() -> None:
  manifest, out, embeddings = _needed(MANIFEST, OUT, EMBEDDINGS)
  print(manifests.add_subjects(manifest, out, embeddings, PEOPLE.value, THRESHOLD.value))


def _poses() -> None:
  manifest, out = _needed(MANIFEST, OUT)
  try:
    poses = [int(text) for text in BINS.value]
  except ValueError as error:
    raise InputError(
      f'--bins={",".join(BINS.value)}: give whole degrees, such as --bins=-30,0,30'
    ) from error
  print(manifests.add_poses(manifest, out, poses))


TARGETS = {
  'data': _data,
  'duplicates': _duplicates,
  'graphs': _graphs,
  'manifest': _manifest,
  'annotations': _annotations,
  'subjects': _subjects,
  'poses': _poses,
}


def prepare(argv: list[str]) -> None:
  targets = argv[1:]
  for target in targets:
    if target not in TARGETS:
      raise InputError(
        f"cannot prepare '{target}'.{nearest(target, TARGETS)} There are: {', '.join(TARGETS)}"
      )
  if not targets:
    raise InputError(
      f'name what to prepare, one of {", ".join(TARGETS)}: ferjax prepare data --name=...'
    )
  console.show_messages()
  for target in targets:
    TARGETS[target]()


def run(argv: Sequence[str]) -> None:
  """Runs the command in its own process."""
  flags.FLAGS.set_gnu_getopt(True)
  app.run(prepare, ['ferjax prepare', *argv], flags_parser=parse_flags)
