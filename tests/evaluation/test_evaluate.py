import types

import ml_collections
import numpy as np
import pytest

from ferjax.data import dataset
from ferjax.errors import InputError
from ferjax.evaluation import evaluate

LOOKS = types.SimpleNamespace(
  predict_needs=frozenset({'landmarks'}), predict_uses=frozenset(), needs=frozenset(), derived={}
)


def test_another_set_gets_the_landmarks_of_the_model(small_config, manifest, data_dir):
  """A model of two points of ibug51, on a set of 68 points, chosen in its config or not."""
  whole = dataset.load(name='manifest', path=str(manifest), dir=data_dir, image_size=32)
  model = types.SimpleNamespace(method=LOOKS, classes=whole.classes, poses=whole.poses)
  found = {'landmark_scheme': 'ibug51', 'landmark_indices': [3, 50]}
  config = ml_collections.ConfigDict(small_config)
  data = evaluate._data(config, model, found).data
  for name, split in whole.splits.items():
    expected = split.table['landmarks'][:, [20, 67]]
    np.testing.assert_array_equal(data.splits[name].table['landmarks'], expected)
  data = evaluate._data(config, model, {}).data  # a run of an earlier version
  assert data.splits['test'].table['landmarks'].shape[1] == 68
  with pytest.raises(InputError, match='ibug68 .68 points., and the model aflw19 .1 points.'):
    evaluate._data(config, model, {'landmark_scheme': 'aflw19', 'landmark_indices': [3]})
