"""The built-in data set, read by TFDS."""

import numpy as np
import pytest
import tensorflow_datasets as tfds

from ferjax.datasets import catalogue, synthetic_faces
from ferjax.datasets.synthetic_faces import synthetic_faces_dataset_builder as module
from ferjax.datasets.synthetic_faces.drawing import sample
from ferjax.datasets.synthetic_faces.drawing.action_units import ACTION_UNITS
from ferjax.errors import InputError
from ferjax.labels import CLASSES


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  builder = synthetic_faces.make(
    tmp_path_factory.mktemp('tfds'), num=40, size=32, subjects=10, processes=1
  )
  builder.download_and_prepare()
  return builder


def test_two_processes_prepare_it_at_once(tmp_path, monkeypatch):
  options = {'num': 40, 'size': 32, 'subjects': 10, 'processes': 1}
  slower, faster = (synthetic_faces.make(tmp_path, **options) for _ in range(2))
  download = tfds.core.GeneratorBasedBuilder._download_and_prepare

  def overtaken(self, *args, **kwargs):
    monkeypatch.setattr(tfds.core.GeneratorBasedBuilder, '_download_and_prepare', download)
    catalogue.prepare(faster)
    download(self, *args, **kwargs)

  monkeypatch.setattr(tfds.core.GeneratorBasedBuilder, '_download_and_prepare', overtaken)
  catalogue.prepare(slower)
  for builder in (slower, faster):
    assert len(builder.as_data_source('train')) == builder.info.splits['train'].num_examples == 28


def test_splits_and_order(prepared):
  counts = {name: split.num_examples for name, split in prepared.info.splits.items()}
  assert counts == {'train': 28, 'val': 4, 'test': 8}
  config = sample.Config(40, 32, 0, 0.5, 10)
  names = [row.name for row in sample.rows(config)]
  read = [
    example['name'].decode()
    for split in module.SPLITS
    for example in prepared.as_data_source(split)
  ]
  assert read == names


def test_people_are_in_one_split_only(prepared):
  people = [{e['subject'] for e in prepared.as_data_source(split)} for split in module.SPLITS]
  assert sum(map(len, people)) == len(set.union(*people)) == 10


def test_features(prepared):
  source = prepared.as_data_source('test')
  config = sample.Config(40, 32, 0, 0.5, 10)
  row = sample.rows(config)[32]
  example, drawn = source[0], sample.draw(config, row)
  assert example['image'].shape == (32, 32, 3) and example['image'].dtype == np.uint8
  assert np.abs(example['image'].astype(float) - drawn.image).mean() < 12
  assert CLASSES[example['label']] == row.label == CLASSES[np.argmax(example['distribution'])]
  assert example['yaw_bin'] == row.yaw_bin
  assert example['subject'] == row.subject
  np.testing.assert_array_equal(example['landmarks'], drawn.landmarks)
  np.testing.assert_array_equal(example['au'], drawn.au)
  pose = [example[name] for name in ('yaw', 'pitch', 'roll')]
  np.testing.assert_array_equal(np.float32(pose), drawn.pose)
  assert prepared.info.metadata['action_units'] == list(ACTION_UNITS)
  assert prepared.info.metadata['landmark_scheme'] == 'ibug68'
  assert prepared.info.features['label'].names == list(CLASSES)


def test_a_second_preparation_reuses_the_first(prepared):
  again = synthetic_faces.make(
    prepared.data_dir.split('/synthetic_faces/')[0], num=40, size=32, subjects=10
  )
  assert again.data_dir == prepared.data_dir
  assert again.info.splits['train'].num_examples == 28


def test_each_option_has_its_own_place():
  names = {
    module.faces_config(**options).name
    for options in (
      {},
      {'num': 200},
      {'size': 64},
      {'seed': 1},
      {'difficulty': 0.51},
      {'subjects': 50},
      {'ict_face_model': 'somewhere'},
      {'ict_face_model': 'elsewhere'},
    )
  }
  assert len(names) == 8
  assert module.faces_config(num=200).subjects == 10
  assert module.faces_config().subjects == 100


@pytest.mark.parametrize(
  'option', [{'size': 8}, {'difficulty': 2}, {'num': 3}, {'subjects': 1}, {'seed': -1}]
)
def test_options_out_of_range(option):
  with pytest.raises(InputError, match='give a value from'):
    synthetic_faces.make(**option)
