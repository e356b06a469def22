import jax.numpy as jnp
import numpy as np
from slow_loops import slow_sample

from ferjax.ops.cells import PIXELS, Cells, mirror, resample


def test_layers_move_the_first_centre_and_multiply_the_stride():
  assert PIXELS.after(7, 2) == Cells(2, 0.0)
  assert PIXELS.after(7, 2, padding=0) == Cells(2, 3.0)
  assert Cells(2, 3.0).after(3, 2, padding=0) == Cells(4, 5.0)
  assert Cells(4, 5.0).after(2, 2, padding=0) == Cells(8, 7.0)
  assert Cells(4, 5.0).after(3, dilation=2) == Cells(4, 5.0)
  assert Cells(4, 5.0).after(3, 2, dilation=2, padding=0) == Cells(8, 13.0)


def test_pixels_and_cells_are_inverse():
  cells, points = Cells(16, 7.0), np.array([7.0, 23.0, 3.0])
  np.testing.assert_array_equal(cells.at(points), [0, 1, -0.25])
  np.testing.assert_array_equal(cells.pixels(cells.at(points)), points)


def test_maps_at_other_cells_by_a_slow_loop():
  feature_map = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype('f4')
  old, new = Cells(8, 3.0), Cells(2, -4.0)
  found = resample(jnp.asarray(feature_map), old, (15, 16), new)
  for one, own in zip(found, feature_map, strict=True):
    expected = [
      [slow_sample(own, (2 * x - 4 - 3) / 8, (2 * y - 4 - 3) / 8) for x in range(16)]
      for y in range(15)
    ]
    np.testing.assert_allclose(one, expected, atol=1e-5)
  np.testing.assert_array_equal(resample(feature_map, old, (3, 4), old), feature_map)


def test_maps_of_a_mirrored_picture_return_by_a_slow_loop():
  feature_map = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype('f4')
  for cells, width in ((Cells(8, 3.5), 32), (Cells(8, 0.0), 32), (Cells(16, 2.0), 62)):
    found, valid = mirror(jnp.asarray(feature_map), cells, width)
    for x in range(4):
      pixel = width - 1 - (cells.first + cells.stride * x)  # of the mirror image
      place = (pixel - cells.first) / cells.stride
      assert valid[x] == (-0.5 <= place <= 3.5)
      left = min(max(int(np.floor(place)), 0), 3)
      right, share = min(left + 1, 3), min(max(place, 0), 3) - left
      expected = (1 - share) * feature_map[:, :, left] + share * feature_map[:, :, right]
      np.testing.assert_allclose(found[:, :, x], expected, atol=1e-6)
  centred, valid = mirror(jnp.asarray(feature_map), Cells(8, 3.5), 32)
  assert valid.all()
  np.testing.assert_allclose(centred, feature_map[:, :, ::-1], atol=1e-6)
