"""Both heads with weights set by hand: maps of zeros, so that the biases are what they predict."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ferjax.methods.lanet import landmark_losses as losses
from ferjax.methods.lanet.landmarks import CoordinateHead, HeatmapHead

HEIGHT, WIDTH = 20, 40  # not square, so that x and y cannot be taken for each other
POINTS = jnp.array([[[9.5, 4.5], [29.5, 14.5], [50.0, 3.0]]])  # the last one lies outside


def start(head, maps):
  return head.init(jax.random.key(0), maps, POINTS, (HEIGHT, WIDTH))['params']


def test_coordinates_are_shares_of_width_and_height():
  maps = [jnp.zeros((1, 5, 10, 4)), jnp.zeros((1, 3, 5, 6))]
  head = CoordinateHead()
  params = start(head, maps)
  params['Dense_0']['bias'] = jnp.array([0.25, 0.25, 0.75, 0.75, 7.0, 7.0])
  embedding, error = head.apply({'params': params}, maps, POINTS, (HEIGHT, WIDTH))
  assert embedding.shape == (1, 6)
  assert error == pytest.approx([0], abs=1e-12)
  params['Dense_0']['bias'] = params['Dense_0']['bias'].at[1].add(0.2)
  _, error = head.apply({'params': params}, maps, POINTS, (HEIGHT, WIDTH))
  assert error == pytest.approx([0.2**2 / 2 / 2], rel=1e-5)


def test_heatmaps_have_their_peaks_where_the_points_lie():
  """Stride 4: pixel centre x lies at cell (x + 0.5) / 4 - 0.5."""
  cells = jnp.array([[2.0, 0.75], [7.0, 3.25], [12.125, 0.375]])
  target = losses.gaussian_heatmaps(cells, HEIGHT // 4, WIDTH // 4, 1.5)
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
  embedding, error = head.apply({'params': params}, maps, POINTS, (HEIGHT, WIDTH))
  np.testing.assert_allclose(embedding, jnp.full((1, count), 1 / count), rtol=1e-6)
  assert error == pytest.approx([0], abs=1e-8)
  for axis in (1, 2):
    moved = jnp.roll(target.reshape(3, HEIGHT // 4, WIDTH // 4), 1, axis).reshape(3, count).T
    params['heatmaps']['kernel'] = moved
    _, error = head.apply({'params': params}, maps, POINTS, (HEIGHT, WIDTH))
    assert error[0] > 0.1
  params['heatmaps']['kernel'] = kernel
  params['lateral2']['bias'] = jnp.ones(count)  # the coarser map reaches the path
  embedding, _ = head.apply({'params': params}, maps, POINTS, (HEIGHT, WIDTH))
  np.testing.assert_allclose(embedding, jnp.full((1, count), 1 / count + 1), rtol=1e-6)
