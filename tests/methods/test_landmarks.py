"""Errors of landmarks by hand, and both heads with weights set by hand. Their maps are zeros, so
that they predict their biases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ferjax.methods.lanet import landmarks
from ferjax.methods.lanet.landmarks import CoordinateHead, HeatmapHead
from ferjax.ops.cells import Cells

HEIGHT, WIDTH = 20, 40  # not square, so that x and y cannot be taken for each other
POINTS = jnp.array([[[9.5, 4.5], [29.5, 14.5], [50.0, 3.0]]])  # the last one lies outside
CELLS = Cells(4, 1.5)


def start(head, maps):
  return head.init(jax.random.key(0), maps, POINTS, (HEIGHT, WIDTH), CELLS)['params']


def test_coordinates_are_shares_of_width_and_height():
  maps = [jnp.zeros((1, 5, 10, 4)), jnp.zeros((1, 3, 5, 6))]
  head = CoordinateHead()
  params = start(head, maps)
  params['Dense_0']['bias'] = jnp.array([0.25, 0.25, 0.75, 0.75, 7.0, 7.0])
  embedding, error = head.apply({'params': params}, maps, POINTS, (HEIGHT, WIDTH), CELLS)
  assert embedding.shape == (1, 6)
  assert error == pytest.approx([0], abs=1e-12)
  params['Dense_0']['bias'] = params['Dense_0']['bias'].at[1].add(0.2)
  _, error = head.apply({'params': params}, maps, POINTS, (HEIGHT, WIDTH), CELLS)
  assert error == pytest.approx([0.2**2 / 2 / 2], rel=1e-5)


def test_heatmaps_have_their_peaks_at_the_points():
  """With stride 4 and the first cell at pixel 1.5, x is at cell (x - 1.5) / 4."""
  cells = jnp.array([[2.0, 0.75], [7.0, 3.25], [12.125, 0.375]])
  target = landmarks.gaussian_heatmaps(cells, HEIGHT // 4, WIDTH // 4, 1.5)
  # A path that is as wide as there are cells lets the last layer write any map.
  count = (HEIGHT // 4) * (WIDTH // 4)
  one_hot = jnp.eye(count).reshape(1, HEIGHT // 4, WIDTH // 4, count)
  maps = [one_hot, jnp.zeros((1, 3, 5, 6))]
  head = HeatmapHead(width=count)
  params = start(head, maps)
  params['lateral1'] = {'kernel': jnp.eye(count), 'bias': jnp.zeros(count)}
  params['lateral2'] = jax.tree.map(jnp.zeros_like, params['lateral2'])
  kernel = target.reshape(3, count).T
  params['heatmaps'] = {'kernel': kernel.at[:, 2].set(5.0), 'bias': jnp.zeros(3)}
  embedding, error = head.apply({'params': params}, maps, POINTS, (HEIGHT, WIDTH), CELLS)
  np.testing.assert_allclose(embedding, jnp.full((1, count), 1 / count), rtol=1e-6)
  assert error == pytest.approx([0], abs=1e-8)
  for axis in (1, 2):
    moved = jnp.roll(target.reshape(3, HEIGHT // 4, WIDTH // 4), 1, axis).reshape(3, count).T
    params['heatmaps']['kernel'] = moved
    _, error = head.apply({'params': params}, maps, POINTS, (HEIGHT, WIDTH), CELLS)
    assert error[0] > 0.1
  params['heatmaps']['kernel'] = kernel
  params['lateral2']['bias'] = jnp.ones(count)  # the coarser map reaches the path
  embedding, _ = head.apply({'params': params}, maps, POINTS, (HEIGHT, WIDTH), CELLS)
  np.testing.assert_allclose(embedding, jnp.full((1, count), 1 / count + 1), rtol=1e-6)


def test_points_outside_the_picture_are_not_visible():
  points = jnp.array([[0.0, 0.0], [-0.6, 3.0], [19.4, 9.4], [19.6, 0.0], [3.0, 9.6]])
  assert landmarks.visible(points, 10, 20).tolist() == [True, False, True, False, False]


def test_coordinate_error_by_hand():
  target = jnp.array([[[0.5, 0.5], [0.2, 0.2]], [[0.0, 0.0], [0.0, 0.0]]])
  predicted = target + jnp.array([[[0.1, 0.3], [9.0, 9.0]], [[1.0, 1.0], [1.0, 1.0]]])
  seen = jnp.array([[True, False], [False, False]])
  error = landmarks.coordinate_error(predicted, target, seen)
  np.testing.assert_allclose(error, [(0.01 + 0.09) / 2, 0], rtol=1e-5)
  gradient = jax.grad(lambda p: landmarks.coordinate_error(p, target, seen).sum())(predicted)
  np.testing.assert_allclose(gradient[0, 0], [0.1, 0.3], rtol=1e-5)
  assert not gradient[0, 1].any() and not gradient[1].any()


def test_gaussians_peak_at_their_points():
  maps = landmarks.gaussian_heatmaps(jnp.array([[3.0, 1.0], [0.5, 2.0]]), 4, 6, 1.5)
  assert maps.shape == (2, 4, 6) and maps[0, 1, 3] == 1
  np.testing.assert_allclose(maps[0, 2, 4], np.exp(-2 / 4.5), rtol=1e-6)
  np.testing.assert_allclose(maps[1, 2, 0], maps[1, 2, 1], rtol=1e-6)


def test_adaptive_wing_by_hand_and_continuous():
  """target 0: 14 ln(1 + 0.3^2.1); the branches meet at theta in value and slope."""
  np.testing.assert_allclose(landmarks.adaptive_wing(0.3, 0.0), 14 * np.log1p(0.3**2.1), rtol=1e-5)
  with jax.enable_x64(True):
    for target in (0.0, 0.4, 1.0):
      near, far = (landmarks.adaptive_wing(target + 0.5 + d, target) for d in (-1e-7, 1e-7))
      np.testing.assert_allclose(near, far, atol=1e-4)
      slope = jax.grad(landmarks.adaptive_wing)
      np.testing.assert_allclose(
        slope(target + 0.5 - 1e-7, target), slope(target + 0.5 + 1e-7, target), rtol=1e-4
      )
  assert jax.grad(landmarks.adaptive_wing)(0.0, 0.0) == 0
  assert np.isfinite(jax.grad(landmarks.adaptive_wing)(1e4, 1.0))


def test_heatmap_error_weighs_near_pixels_ten_times():
  points, seen = jnp.array([[[2.0, 2.0], [0.0, 0.0]]]), jnp.array([[True, False]])
  target = landmarks.gaussian_heatmaps(points, 5, 5, 1.5)
  exact = jnp.moveaxis(target, 1, -1)
  np.testing.assert_allclose(landmarks.heatmap_error(exact, points, seen), [0], atol=1e-6)
  zeros = jnp.zeros((1, 5, 5, 2))
  one = target[0, 0]
  weight = np.where(one >= 0.2, 10, 1)
  expected = (weight * landmarks.adaptive_wing(jnp.zeros((5, 5)), one)).mean()
  np.testing.assert_allclose(landmarks.heatmap_error(zeros, points, seen), [expected], rtol=1e-5)
  assert landmarks.heatmap_error(zeros, points, jnp.zeros((1, 2), bool)) == 0
