import cv2
import jax
import jax.numpy as jnp
import numpy as np

from ferjax import core
from ferjax.images import augment
from ferjax.ops.cells import PIXELS, Cells
from ferjax.report.figures import heatmaps


def linear_method():
  """The pictures are the last map, and the logits a linear layer on its mean."""

  def predict(params, extra, batch, delta=None):
    last_map = batch['image'] if delta is None else batch['image'] + delta
    outputs = {'logits': last_map.mean((1, 2)) @ params}
    return outputs if delta is None else outputs | {'last_map': last_map}

  return core.Method(frozenset(), frozenset(), *[None] * 4, predict)


def test_grad_cam_and_response_by_hand():
  rng = np.random.default_rng(0)
  batch = {'image': rng.integers(0, 256, (3, 4, 5, 3), np.uint8), 'label': np.array([0, 1, 1])}
  params = rng.normal(size=(3, 2)).astype('f4')
  views = {
    '': augment.evaluation,
    'mirrored': lambda b: augment.evaluation(b | {'image': b['image'][:, :, ::-1]}),
  }
  looks = heatmaps.look(linear_method(), params, (), batch, views, 'test', PIXELS)
  image = np.asarray(augment.normalise(batch['image']))
  predicted = (image.mean((1, 2)) @ params).argmax(-1)
  np.testing.assert_array_equal(looks.prediction, [predicted, predicted])
  # The gradient of a logit by each cell is its row of the layer over the number of cells.
  weight = params.T[predicted] / 20
  expected = np.maximum((image * weight[:, None, None]).sum(-1), 0)
  np.testing.assert_allclose(looks.maps['grad_cam'][0], expected, atol=1e-5)
  np.testing.assert_allclose(looks.maps['grad_cam'][1], expected[:, :, ::-1], atol=1e-5)
  np.testing.assert_allclose(looks.maps['response'][0], np.abs(image).mean(-1), atol=1e-5)
  np.testing.assert_allclose(looks.image[0], batch['image'] / 255, atol=1e-5)
  assert looks.views == ('', 'mirrored') and looks.image.shape == (2, 3, 4, 5, 3)


def test_a_method_without_maps_or_logits():
  batch = {'image': np.zeros((2, 4, 4, 3), np.uint8), 'label': np.zeros(2, int)}
  views = {'': augment.evaluation}
  blind = linear_method()._replace(predict=lambda *args: {'logits': jnp.zeros((2, 7))})
  assert heatmaps.look(blind, (), (), batch, views, 'test', PIXELS) is None

  def embed(params, extra, batch, delta=None):
    return {'embedding': batch['image'].mean((1, 2)), 'last_map': batch['image'] + delta}

  looks = heatmaps.look(
    linear_method()._replace(predict=embed), (), (), batch, views, 'test', PIXELS
  )
  assert set(looks.maps) == {'response'} and looks.prediction is None


def test_sheets_of_flat_and_of_lively_maps(tmp_path):
  rng = np.random.default_rng(0)
  maps = {'response': rng.random((4, 3, 7, 7)), 'grad_cam': np.zeros((4, 3, 1, 1))}
  views = ('', 'rotation', 'perspective', 'occlusion')
  image, prediction = rng.random((4, 3, 32, 32, 3)), rng.integers(0, 2, (4, 3))
  looks = heatmaps.Looks(views, image, maps, prediction, np.array([0, 1, 1]), 'test', Cells(4, 0.0))
  heatmaps.write(tmp_path, looks, ('neutral', 'fear'))
  for name in maps:
    assert cv2.imread(str(tmp_path / f'{name}.png')).std() > 5
  del maps['grad_cam']
  heatmaps.write(tmp_path / 'other', looks._replace(prediction=None), ('neutral', 'fear'))
  assert [path.name for path in (tmp_path / 'other').iterdir()] == ['response.png']


def test_rows_of_every_class():
  label = np.repeat([0, 2, 3], [50, 3, 1])
  rows = heatmaps.some_of_each_class(label, 6)
  assert sorted(label[rows[:3]]) == [0, 2, 3] and len(set(rows)) == 6
  assert sorted(label[rows]) == [0, 0, 0, 2, 2, 3] or sorted(label[rows]) == [0, 0, 2, 2, 2, 3]
  assert len(heatmaps.some_of_each_class(label, 0)) == 0
  assert len(heatmaps.some_of_each_class(label, 99)) == 54
  np.testing.assert_array_equal(rows, heatmaps.some_of_each_class(label, 6))


def test_jit_sees_each_view_once():
  """One program for all views, so a report compiles a network once."""
  seen = []

  def view(batch):
    seen.append(batch['image'].shape)
    return augment.evaluation(batch)

  batch = {'image': np.zeros((2, 4, 4, 3), np.uint8), 'label': np.zeros(2, int)}
  views = dict.fromkeys(('', 'a', 'b'), view)
  looks = heatmaps.look(linear_method(), jnp.ones((3, 2)), (), batch, views, 'test', PIXELS)
  assert seen == [(2, 4, 4, 3)] * 3 and looks.image.shape[0] == 3
  assert jax.tree.all(jax.tree.map(np.isfinite, looks.maps['response'].tolist()))
