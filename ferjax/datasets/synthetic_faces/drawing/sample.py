"""One picture as a pure function of a configuration and a row number."""

import functools
from typing import NamedTuple

import cv2
import numpy as np

from ferjax.datasets.synthetic_faces.drawing import (
  appearance,
  creases,
  expressions,
  head,
  ict_face_model,
  render,
  resample,
)
from ferjax.datasets.synthetic_faces.drawing.model import FaceModel
from ferjax.labels import CLASSES

YAWS = (-60, -30, 0, 30, 60)
_PERSON, _PICTURE, _ORDER = 1, 2, 3  # the purposes of the streams of random numbers


class Config(NamedTuple):
  """A whole set of pictures.

  There are `num` pictures of `subjects` people, `size` pixels high and wide, drawn from `seed`. A
  higher `difficulty` 0..1 makes expressions weaker and more often blended, and light and sensor
  worse. `ict_face_model` is the folder of a checkout of that model; if it is empty, our own head is
  drawn.
  """

  num: int
  size: int
  seed: int
  difficulty: float
  subjects: int
  ict_face_model: str = ''


class Row(NamedTuple):
  """The plan of a picture."""

  index: int
  subject: int
  label: str
  yaw_bin: int
  take: int

  @property
  def name(self) -> str:
    return f'{self.subject:03d}_{self.label}_{self.yaw_bin:+03d}_{self.take}'


class Sample(NamedTuple):
  """A picture and its labels."""

  image: np.ndarray  # u8[size, size, 3], RGB
  landmarks: np.ndarray  # f32[68, 2], pixels, in steps of 1/1024
  au: np.ndarray  # f32[a], 0..5
  pose: np.ndarray  # f32[3], yaw, pitch and roll in degrees
  distribution: np.ndarray  # f32[C]


class Person(NamedTuple):
  """The appearance of a person."""

  neutral: np.ndarray  # f32[v, 3]
  look: appearance.Appearance
  lopsided: np.ndarray  # f32[a], share of the intensity that moves from the right half to the left


def rows(config: Config) -> tuple[Row, ...]:
  """The plan of all pictures, subject by subject.

  Every subject shows each label about equally often, and each label at each yaw.
  """
  result = []
  for subject in range(config.subjects):
    first = config.num * subject // config.subjects
    last = config.num * (subject + 1) // config.subjects
    rng = np.random.default_rng((config.seed, _ORDER, subject))
    labels, yaws = rng.permutation(len(CLASSES)), rng.permutation(len(YAWS))
    takes = {}
    for k in range(last - first):
      cell = labels[k % len(CLASSES)], yaws[k % len(YAWS)]
      take = takes[cell] = takes.get(cell, -1) + 1
      result.append(Row(first + k, subject, CLASSES[cell[0]], YAWS[cell[1]], take))
  return tuple(result)


def split_of(subject: int, subjects: int) -> str:
  """The split of a subject: 70, 10 and 20 % of the people are train, val and test."""
  test = max(round(0.2 * subjects), 1)
  val = max(round(0.1 * subjects), 1)
  if subject < subjects - val - test:
    return 'train'
  return 'val' if subject < subjects - test else 'test'


@functools.lru_cache(maxsize=2)
def face_model(folder: str) -> FaceModel:
  """The model of `Config.ict_face_model`. The folder is read once."""
  return ict_face_model.load(folder) if folder else head.build()


@functools.lru_cache(maxsize=8)
def person(seed: int, subject: int, folder: str = '') -> Person:
  """The person with these numbers, always the same; `folder` is `Config.ict_face_model`."""
  rng = np.random.default_rng((seed, _PERSON, subject))
  model = face_model(folder)
  shape = np.clip(rng.standard_normal(len(model.identity)), -1.9, 1.9)
  neutral = render.shape(model, shape)
  look = appearance.paint(rng)
  lopsided = np.clip(rng.normal(0, 0.08, len(model.action_units)), -0.2, 0.2)
  return Person(neutral, look, lopsided.astype(np.float32))


def _background(rng, size):
  """A background out of focus: a gradient, large patches, sometimes edges; u8[size, size, 3]."""
  full, size = size, (size + 1) // 2  # half the resolution suffices without sharp details
  base = rng.uniform(30, 220) + rng.normal(0, 22, 3)
  patches = base + rng.normal(0, rng.uniform(5, 40), (5, 5, 1)) + rng.normal(0, 9, (5, 5, 3))
  picture = np.clip(resample.enlarge(patches, size, size), 0, 255).astype(np.uint8)
  for _ in range(rng.integers(0, 5)):
    corner, extent = rng.uniform(-0.2, 1, 2) * size, rng.uniform(0.1, 0.7, 2) * size
    low, high = np.round(corner).astype(int), np.round(corner + extent).astype(int)
    colour = np.clip(base + rng.normal(0, 45) + rng.normal(0, 18, 3), 0, 255)
    cv2.rectangle(picture, low.tolist(), high.tolist(), colour.tolist(), -1)
  picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.008, 0.05) * size)
  return cv2.resize(picture, (full, full), interpolation=cv2.INTER_LINEAR_EXACT)


def _light(rng, difficulty, skin):
  """A light as a photographer would set it: brighter for darker skin."""
  hard = 0.35 + 0.65 * difficulty
  direction = np.array([rng.normal(0, 0.75 * hard), 0.45 + rng.normal(0, 0.45 * hard), 1.0])
  warm = rng.normal(0, 0.07 * hard)
  tint = np.array([1 + warm, 1 + 0.2 * warm, 1 - warm]) * (1 + rng.normal(0, 0.02, 3))
  ambient = rng.uniform(0.28, 0.62)
  strength = np.clip(rng.normal(1.12, 0.13 * hard), 0.7, 1.5) * (165 / skin) ** 0.32
  ambient = ambient * (165 / skin) ** 0.32
  return render.Light(
    direction.astype(np.float32),
    ((strength - ambient) * tint).astype(np.float32),
    (ambient * (1 + rng.normal(0, 0.04, 3))).astype(np.float32),
  )


def _noise(rng, shape):
  """Noise of standard deviation 1, the sum of three uniform numbers, f32[shape]."""
  count = int(np.prod(shape))
  parts = np.frombuffer(rng.bytes(3 * count), np.uint8).reshape(3, count)
  total = np.add(parts[0], parts[1], dtype=np.float32)
  total += parts[2]
  total -= np.float32(382.5)
  total *= np.float32(1 / 128)
  return total.reshape(shape)


def draw(config: Config, row: Row) -> Sample:
  """Draws a picture. The same arguments give the same bytes, in any process and order.

  Args:
    config: The set; `num` has no effect other than through `row`.
    row: One of `rows(config)`.

  Returns:
    The picture with all its labels.
  """
  rng = np.random.default_rng((config.seed, _PICTURE, row.subject, row.index))
  who = person(config.seed, row.subject, config.ict_face_model)
  model = face_model(config.ict_face_model)
  hard = config.difficulty
  expression = expressions.draw(rng, row.label, hard)
  tilt = np.clip(who.lopsided + rng.normal(0, 0.07, len(who.lopsided)), -0.35, 0.35)
  left = np.clip(expression.action_units * (1 + tilt), 0, 5).astype(np.float32)
  right = np.clip(expression.action_units * (1 - tilt), 0, 5).astype(np.float32)
  au = (left + right) / 2
  yaw = row.yaw_bin + np.clip(rng.normal(0, 4), -10, 10)
  pitch, roll = np.clip(rng.normal(0, 5.5, 2), -16, 16)
  scale = 0.52 * config.size / 112 * np.exp(np.clip(rng.normal(0, 0.06), -0.14, 0.14))
  middle = (config.size - 1) / 2
  centre = middle + config.size * np.clip(rng.normal(0, 0.022, 2), -0.05, 0.05)
  camera = render.Camera(
    float(yaw),
    float(pitch),
    float(roll),
    float(scale),
    tuple(centre.tolist()),
    float(rng.uniform(600, 1400)),
  )
  gaze = rng.normal(0, (2.2, 1.0))
  background = _background(rng, config.size)
  darkness, at = creases.draw(left, right, who.look.age)
  picture, landmarks = render.render(
    model,
    render.express(model, who.neutral, left, right),
    render.Surface(who.look.texture, darkness, at),
    camera,
    _light(rng, hard, who.look.skin),
    background,
    swell=model.hair * np.float32(who.look.hair),
    gaze=(float(gaze[0]), float(gaze[1])),
    long_hair=who.look.long_hair,
  )
  softness = rng.uniform(0, 0.25 + 0.55 * hard) * config.size / 112
  if softness > 0.3:
    picture = cv2.GaussianBlur(picture, (0, 0), softness)
  gain, bias = 1 + rng.normal(0, 0.05), rng.normal(0, 4)
  grain = rng.uniform(0.5, 1.5 + 5 * hard)
  noise = _noise(rng, picture.shape)
  noise *= np.float32(grain)
  noise += picture * np.float32(gain) + np.float32(bias + 0.5)
  return Sample(
    np.clip(noise, 0, 255, out=noise).astype(np.uint8),
    np.round(landmarks * np.float32(1024)) / np.float32(1024),
    au,
    np.array([yaw, pitch, roll], np.float32),
    expression.distribution,
  )
