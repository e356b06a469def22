import jax.numpy as jnp
import numpy as np

from ferjax.ops import homography


def test_inverse_matches_numpy():
  matrix = np.random.default_rng(0).normal(size=(3, 3)).astype('f4')
  np.testing.assert_allclose(homography.inverse(matrix), np.linalg.inv(matrix), rtol=1e-4)


def test_quadrilateral_maps_the_corners_to_the_given_points():
  square = jnp.array([[-1.0, -1], [1, -1], [1, 1], [-1, 1]])
  corners = jnp.array([[-0.9, -0.8], [0.7, -1], [1, 0.95], [-0.75, 0.9]])
  matrix = homography.square_to_quadrilateral(corners)
  np.testing.assert_allclose(homography.apply(matrix, square), corners, atol=1e-6)
  assert abs(float(matrix[2, 0])) > 1e-3  # a true perspective, not an affine map


def test_rotation_turns_from_x_towards_y():
  turned = homography.apply(homography.rotation(jnp.float32(np.pi / 2)), jnp.array([[1.0, 0.0]]))
  np.testing.assert_allclose(turned, [[0.0, 1.0]], atol=1e-6)


def test_pixels_are_centred_on_integers():
  mirror = homography.scaling(jnp.float32(-1), jnp.float32(1))
  moved = homography.apply(homography.in_pixels(mirror, 4, 6), jnp.array([[0.0, 2.0], [4.0, 1.0]]))
  np.testing.assert_allclose(moved, [[5.0, 2.0], [1.0, 1.0]], atol=1e-6)


def test_flips_are_whole_numbers_in_pixels():
  mirror = homography.scaling(jnp.float32(-1), jnp.float32(1))
  matrix = homography.in_pixels(mirror, 7, 7)
  np.testing.assert_array_equal(matrix, [[-1, 0, 6], [0, 1, 0], [0, 0, 1]])


def test_corners_move_inwards_by_their_shares():
  inwards = jnp.array([[0.1, 0.2], [0.0, 0.0], [0.3, 0.0], [0.0, 0.4]])
  square = jnp.array([[-1.0, -1], [1, -1], [1, 1], [-1, 1]])
  moved = homography.apply(homography.perspective(inwards), square)
  np.testing.assert_allclose(moved, [[-0.9, -0.8], [1, -1], [0.7, 1], [-1, 0.6]], atol=1e-6)
