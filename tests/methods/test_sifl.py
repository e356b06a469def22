import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ferjax.methods.hrl import sifl as invariance
from ferjax.ops import bilinear, homography
from ferjax.ops.cells import PIXELS, Cells


def transform(image, matrix):
  return bilinear.warp(image, homography.in_pixels(matrix, *image.shape[:2]))


QUARTER = jnp.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
FLIP = jnp.diag(jnp.array([-1.0, 1, 1]))


@pytest.mark.parametrize('matrix', [FLIP, QUARTER, homography.compose(QUARTER, FLIP)])
@pytest.mark.parametrize('size', [7, 10])
def test_flips_and_quarter_turns_come_back_exactly(matrix, size):
  image = jnp.asarray(np.random.default_rng(0).normal(size=(size, size, 3)), jnp.float32)
  changed = transform(image, matrix)
  restored, inside = invariance.back(changed, matrix, PIXELS, (size, size))
  np.testing.assert_array_equal(restored, image)
  assert inside.all() and np.abs(changed - image).max() > 0.1
  assert invariance.spatial_invariance(image, changed, matrix, PIXELS, (size, size)) == 0


@pytest.mark.parametrize('size, perspective', [(7, 0.0), (14, 0.0), (112, 0.1), (224, 0.1)])
def test_ramps_come_back_in_the_interior(size, perspective):
  """Rotations keep ramps linear on any grid. Perspectives bend them, less on finer grids."""
  place = (2 * bilinear.grid(size, size) + 1) / size - 1
  ramp = place @ jnp.array([[0.6, -1.0], [0.8, 0.3]])
  keys = jax.random.split(jax.random.key(0), 20)

  @jax.vmap
  def restored(key):
    args = (0.5, 30.0, perspective, jnp.float32)
    matrix = invariance.random_transformation(key, *args)
    return invariance.back(transform(ramp, matrix), matrix, PIXELS, (size, size))[0]

  interior = np.linalg.norm(place, axis=-1) < min(0.8, 1 - 3 / size)  # no border is seen
  error = np.abs(restored(keys) - ramp)[:, interior]
  assert error.max() < 1e-4 and error.shape[1] > size


def test_draws_are_those_of_the_recipe():
  @jax.vmap
  def corners(key):
    matrix = invariance.random_transformation(key, 0.5, 30.0, 0.1, jnp.float32)
    square = jnp.array([[-1.0, -1], [1, -1], [1, 1], [-1, 1]])
    return homography.apply(homography.inverse(matrix), square), matrix

  where, matrix = corners(jax.random.split(jax.random.key(0), 200))
  radius = np.linalg.norm(where, axis=-1)
  assert radius.max() < np.sqrt(2) + 1e-5 and radius.min() > 0.85 * np.sqrt(2)
  flipped = np.linalg.det(matrix[:, :2, :2]) < 0
  assert 70 < flipped.sum() < 130
  middle = np.asarray(where).mean(1)
  assert np.abs(middle).max() < 0.11
  edge = np.where(flipped[:, None], where[:, 0] - where[:, 1], where[:, 1] - where[:, 0])
  angle = np.rad2deg(np.arctan2(edge[:, 1], edge[:, 0]))
  assert 20 < angle.max() < 34 and -34 < angle.min() < -20


def test_loss_by_a_slow_loop_with_and_without_the_mask():
  rng = np.random.default_rng(0)
  a, b = rng.normal(size=(2, 5, 6, 3)).astype('f4')
  key = jax.random.key(3)
  matrix = invariance.random_transformation(key, 0.5, 30.0, 0.1, jnp.float32)
  to_pixels = np.array([[3, 0, 2.5], [0, 2.5, 2], [0, 0, 1]])
  inverse = np.linalg.inv(to_pixels @ np.asarray(matrix, np.float64) @ np.linalg.inv(to_pixels))
  every, masked = [], []
  for y in range(5):
    for x in range(6):
      px, py, w = inverse @ [x, y, 1]
      px, py = px / w, py / w
      value = np.zeros(3)
      for row in range(5):
        for column in range(6):
          near_y = max(0, 1 - abs(row - np.clip(py, 0, 4)))
          near_x = max(0, 1 - abs(column - np.clip(px, 0, 5)))
          value += near_y * near_x * b[row, column]
      every.append(((a[y, x] - value) ** 2).mean())
      if -0.5 <= px <= 5.5 and -0.5 <= py <= 4.5:
        masked.append(every[-1])
  assert 15 < len(masked) < 30
  loss = invariance.spatial_invariance
  np.testing.assert_allclose(loss(a, b, matrix, PIXELS, (5, 6)), np.mean(masked), rtol=1e-4)
  np.testing.assert_allclose(loss(a, b, matrix, PIXELS, (5, 6), False), np.mean(every), rtol=1e-4)


def test_both_sides_have_a_gradient_and_a_map_of_one_cell_works():
  a, b = jax.random.normal(jax.random.key(0), (2, 1, 1, 4))

  def loss(a, b, matrix):
    return invariance.spatial_invariance(a, b, matrix, Cells(8, 3.5), (8, 8))

  gradients = jax.grad(loss, (0, 1))(a, b, FLIP)
  np.testing.assert_allclose(gradients[0], -gradients[1])
  np.testing.assert_allclose(gradients[0], 2 * (a - b) / 4, rtol=1e-6)
  far = homography.translation(jnp.float32(9), jnp.float32(0))
  assert loss(a, b, far) == 0  # nothing lies inside
