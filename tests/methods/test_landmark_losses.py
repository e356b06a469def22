import jax
import jax.numpy as jnp
import numpy as np

from ferjax.methods.lanet import landmark_losses as losses


def test_points_outside_the_picture_are_not_visible():
  points = jnp.array([[0.0, 0.0], [-0.6, 3.0], [19.4, 9.4], [19.6, 0.0], [3.0, 9.6]])
  assert losses.visible(points, 10, 20).tolist() == [True, False, True, False, False]


def test_coordinate_error_by_hand():
  target = jnp.array([[[0.5, 0.5], [0.2, 0.2]], [[0.0, 0.0], [0.0, 0.0]]])
  predicted = target + jnp.array([[[0.1, 0.3], [9.0, 9.0]], [[1.0, 1.0], [1.0, 1.0]]])
  seen = jnp.array([[True, False], [False, False]])
  error = losses.coordinate_error(predicted, target, seen)
  np.testing.assert_allclose(error, [(0.01 + 0.09) / 2, 0], rtol=1e-5)
  gradient = jax.grad(lambda p: losses.coordinate_error(p, target, seen).sum())(predicted)
  np.testing.assert_allclose(gradient[0, 0], [0.1, 0.3], rtol=1e-5)
  assert not gradient[0, 1].any() and not gradient[1].any()


def test_gaussians_peak_at_their_points():
  maps = losses.gaussian_heatmaps(jnp.array([[3.0, 1.0], [0.5, 2.0]]), 4, 6, 1.5)
  assert maps.shape == (2, 4, 6) and maps[0, 1, 3] == 1
  np.testing.assert_allclose(maps[0, 2, 4], np.exp(-2 / 4.5), rtol=1e-6)
  np.testing.assert_allclose(maps[1, 2, 0], maps[1, 2, 1], rtol=1e-6)


def test_adaptive_wing_by_hand_and_continuous():
  """target 0: 14 ln(1 + 0.3^2.1); the branches meet at theta in value and slope."""
  np.testing.assert_allclose(losses.adaptive_wing(0.3, 0.0), 14 * np.log1p(0.3**2.1), rtol=1e-5)
  with jax.enable_x64(True):
    for target in (0.0, 0.4, 1.0):
      near, far = (losses.adaptive_wing(target + 0.5 + d, target) for d in (-1e-7, 1e-7))
      np.testing.assert_allclose(near, far, atol=1e-4)
      slope = jax.grad(losses.adaptive_wing)
      np.testing.assert_allclose(
        slope(target + 0.5 - 1e-7, target), slope(target + 0.5 + 1e-7, target), rtol=1e-4
      )
  assert jax.grad(losses.adaptive_wing)(0.0, 0.0) == 0
  assert np.isfinite(jax.grad(losses.adaptive_wing)(1e4, 1.0))


def test_heatmap_error_weighs_what_is_near_ten_times():
  points, seen = jnp.array([[[2.0, 2.0], [0.0, 0.0]]]), jnp.array([[True, False]])
  target = losses.gaussian_heatmaps(points, 5, 5, 1.5)
  exact = jnp.moveaxis(target, 1, -1)
  np.testing.assert_allclose(losses.heatmap_error(exact, points, seen), [0], atol=1e-6)
  zeros = jnp.zeros((1, 5, 5, 2))
  one = target[0, 0]
  weight = np.where(one >= 0.2, 10, 1)
  expected = (weight * losses.adaptive_wing(jnp.zeros((5, 5)), one)).mean()
  np.testing.assert_allclose(losses.heatmap_error(zeros, points, seen), [expected], rtol=1e-5)
  assert losses.heatmap_error(zeros, points, jnp.zeros((1, 2), bool)) == 0
