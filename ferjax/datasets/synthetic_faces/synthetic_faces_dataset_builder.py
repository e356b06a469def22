"""synthetic_faces: drawn faces with known expression, action units, pose, landmarks and subject."""

import dataclasses
import itertools
import os
import zlib

import tensorflow_datasets as tfds

from ferjax.datasets.catalogue import Source, refuse_protocol
from ferjax.datasets.features import face_features
from ferjax.datasets.synthetic_faces.drawing import sample, stream
from ferjax.datasets.synthetic_faces.drawing.action_units import ACTION_UNITS
from ferjax.errors import InputError
from ferjax.labels import CLASSES
from ferjax.terminal import progress

SPLITS = ('train', 'val', 'test')


@dataclasses.dataclass(kw_only=True)
class FacesConfig(tfds.core.BuilderConfig):
  """The options of a set of drawn faces. Use `faces_config`, which checks them and makes the name.

  Attributes:
    num: Pictures in all splits together.
    size: Height and width in pixels.
    seed: Seed of all random numbers.
    difficulty: 0 (strong, pure expressions, mild light) to 1.
    subjects: Number of people.
    ict_face_model: Folder of the ICT-FaceKit model, which replaces our own head; or empty.
  """

  num: int = 5000
  size: int = 112
  seed: int = 0
  difficulty: float = 0.5
  subjects: int = 100
  ict_face_model: str = ''


def faces_config(
  *,
  num: int = 5000,
  size: int = 112,
  seed: int = 0,
  difficulty: float = 0.5,
  subjects: int | None = None,
  ict_face_model: str | os.PathLike = '',
) -> FacesConfig:
  """The configuration with these options. Its name contains all options, so each combination has a
  cache of its own.

  Args:
    num: Pictures in all splits together.
    size: Height and width in pixels, at least 32.
    seed: Seed of all random numbers, 0 or more.
    difficulty: 0 to 1.
    subjects: Number of people; by default one for every 20 pictures, at least 5, at most 100.
    ict_face_model: Folder `FaceXModel` of an ICT-FaceKit checkout, whose heads replace our own. The
      name contains a hash of its path.

  Raises:
    InputError: An option is out of range.
  """
  if subjects is None:
    subjects = min(max(num // 20, 5), 100)
  for name, value, low, high in (
    ('size', size, 32, 1024),
    ('seed', seed, 0, 2**32 - 1),
    ('difficulty', difficulty, 0, 1),
    ('subjects', subjects, 4, 1000),
    ('num', num, subjects, 10_000_000),
  ):
    if not low <= value <= high:
      raise InputError(f'synthetic_faces: {name}={value}: give a value from {low} to {high}')
  name = f'num{num}_size{size}_seed{seed}_difficulty{round(100 * difficulty):03d}_people{subjects}'
  folder = os.path.abspath(ict_face_model) if ict_face_model else ''
  if folder:
    name += f'_ict{zlib.crc32(folder.encode()):08x}'
  return FacesConfig(
    name=name,
    description=f'{num} pictures of {subjects} people, {size} x {size} pixels',
    ict_face_model=folder,
    num=num,
    size=size,
    seed=seed,
    difficulty=round(100 * difficulty) / 100,
    subjects=subjects,
  )


class Builder(tfds.core.GeneratorBasedBuilder):
  """Draws the pictures on first use; needs no download."""

  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES = {'1.0.0': 'First release.'}
  BUILDER_CONFIGS = [faces_config(), faces_config(num=200)]

  def __init__(self, *, processes: int | None = None, **kwargs):
    """Creates the builder.

    Args:
      processes: Number of processes that draw; by default one for each processor.
      **kwargs: See `tfds.core.GeneratorBasedBuilder`.
    """
    self._processes = processes
    kwargs.setdefault('file_format', 'array_record')
    super().__init__(**kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    subjects = [f'{i:03d}' for i in range(self.builder_config.subjects)]
    return self.dataset_info_from_configs(
      features=face_features(
        CLASSES,
        subjects=subjects,
        landmarks=68,
        action_units=len(ACTION_UNITS),
        pose=True,
        yaw_bin=True,
        distribution=True,
      ),
      supervised_keys=('image', 'label'),
      disable_shuffling=True,
      metadata=tfds.core.MetadataDict(
        {'action_units': list(ACTION_UNITS), 'landmark_scheme': 'ibug68'}
      ),
    )

  def _split_generators(self, dl_manager):
    del dl_manager
    options = self.builder_config
    config = sample.Config(**{name: getattr(options, name) for name in sample.Config._fields})
    drawn = progress.track(
      stream.draw_all(config, processes=self._processes), f'Drawing {self.name}', config.num
    )
    splits = itertools.groupby(
      drawn, key=lambda pair: sample.split_of(pair[0].subject, config.subjects)
    )
    return {split: self._generate_examples(split, splits) for split in SPLITS}

  def _generate_examples(self, split, splits):
    """Examples of the next split. TFDS must ask for the splits in the order of SPLITS."""
    found, rows = next(splits)
    if found != split:
      raise RuntimeError(f'synthetic_faces: {split} was requested before {found}')
    for row, drawn in rows:
      yaw, pitch, roll = drawn.pose
      yield (
        row.index,
        {
          'image': drawn.image,
          'label': row.label,
          'name': row.name,
          'subject': f'{row.subject:03d}',
          'landmarks': drawn.landmarks,
          'au': drawn.au,
          'yaw': yaw,
          'pitch': pitch,
          'roll': roll,
          'yaw_bin': row.yaw_bin,
          'distribution': drawn.distribution,
        },
      )


def make(
  data_dir: str | os.PathLike | None = None,
  source: Source | None = None,
  *,
  num: int = 5000,
  size: int = 112,
  seed: int = 0,
  difficulty: float = 0.5,
  subjects: int | None = None,
  ict_face_model: str | os.PathLike = '',
  processes: int | None = None,
) -> Builder:
  """The builder for these options. `download_and_prepare()` draws the pictures if they are missing.

  Args:
    data_dir: Where TFDS keeps its data sets; None for its own default.
    source: Not used, as these faces are drawn; a protocol is refused.
    num: Pictures in all splits together.
    size: Height and width in pixels.
    seed: Seed of all random numbers.
    difficulty: 0 (strong, pure expressions, mild light) to 1.
    subjects: Number of people; by default one for every 20 pictures, at least 5, at most 100.
    ict_face_model: Folder `FaceXModel` of an ICT-FaceKit checkout, whose heads replace our own.
    processes: Number of processes that draw. The pictures do not depend on it.

  Raises:
    InputError: An option is out of range.
  """
  if source:
    refuse_protocol('synthetic_faces', source)
  config = faces_config(
    num=num,
    size=size,
    seed=seed,
    difficulty=difficulty,
    subjects=subjects,
    ict_face_model=ict_face_model,
  )
  known = config.name in Builder.builder_configs
  return Builder(data_dir=data_dir, config=config.name if known else config, processes=processes)
