from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from slow_loops import slow_sample

from ferjax.ops import bilinear, homography


def test_samples_match_a_slow_loop_inside_and_outside():
  rng = np.random.default_rng(0)
  image = rng.normal(size=(5, 7, 3)).astype('f4')
  points = rng.uniform(-2, 9, (40, 2)).astype('f4')
  fast = jax.jit(bilinear.sample)(image, points)
  slow = [slow_sample(image, *point) for point in points]
  np.testing.assert_allclose(fast, slow, atol=1e-5)


def test_pixel_centres_give_the_pixels_and_one_pixel_maps_work():
  image = jnp.arange(24.0).reshape(3, 4, 2)
  np.testing.assert_allclose(bilinear.sample(image, bilinear.grid(3, 4)), image)
  np.testing.assert_allclose(bilinear.sample(image[:1, :1], jnp.array([3.0, -2.0])), [0.0, 1.0])


def test_gradient_of_points_is_the_slope_of_the_picture():
  ramp = 3.0 * bilinear.grid(4, 5)[..., :1] + 10.0 * bilinear.grid(4, 5)[..., 1:]
  slope = jax.grad(lambda p: bilinear.sample(ramp, p)[0])(jnp.array([1.3, 2.6]))
  np.testing.assert_allclose(slope, [3.0, 10.0], rtol=1e-5)


def test_warp_by_a_shift_repeats_the_border():
  image = jnp.arange(12.0).reshape(3, 4, 1)
  shift = jnp.array([[1.0, 0, 1], [0, 1, 0], [0, 0, 1]])
  warped = bilinear.warp(image, shift)[..., 0]
  np.testing.assert_allclose(warped, [[1, 2, 3, 3], [5, 6, 7, 7], [9, 10, 11, 11]])


def test_warp_agrees_with_pytorch():
  """Golden arrays of a strong perspective and a flip, made with PyTorch 2 by

  y, x = meshgrid((2 * arange(5) + 1) / 5 - 1, (2 * arange(7) + 1) / 7 - 1, indexing='ij')
  moved = einsum('nij,hwj->nhwi', matrices, stack([x, y, ones_like(x)], -1))
  warped = grid_sample(
    image, moved[..., :2] / moved[..., 2:], padding_mode='border', align_corners=False)
  """
  with np.load(Path(__file__).parents[1] / 'fixtures' / 'grid_sample.npz') as stored:
    image, matrices, expected = (stored[name] for name in ('image', 'matrices', 'warped'))

  @jax.jit
  @jax.vmap
  def warped(image, matrix):
    return bilinear.warp(image, homography.in_pixels(matrix, 5, 7))

  np.testing.assert_allclose(warped(image, matrices), expected, atol=5e-6)
  assert np.abs(expected - image).max() > 0.5
