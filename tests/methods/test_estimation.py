import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ferjax.errors import InputError
from ferjax.methods.lanet import estimation


def by_loop(features, index, score, probabilities, count):
  """Equations 1 to 5, example by example; `score` (i, j) -> the sigmoid's argument."""
  estimated = []
  for i, row in enumerate(features):
    cosine = {
      j: row @ other / np.sqrt((row @ row) * (other @ other))
      for j, other in enumerate(features)
      if index[j] != index[i]
    }
    nearest = sorted(cosine, key=lambda j: -cosine[j])[:count]
    weights = [1 / (1 + np.exp(-score(i, j))) for j in nearest]
    total = sum(w * probabilities[j] for w, j in zip(weights, nearest, strict=True))
    estimated.append(total / sum(weights) if nearest else np.zeros(len(probabilities[0])))
  return np.array(estimated)


@pytest.mark.parametrize('rows', [12, 6, 1])
def test_neighbours_and_their_mean_as_in_a_slow_loop(rows):
  rng = np.random.default_rng(0)
  with jax.enable_x64(True):
    features, probabilities = rng.normal(size=(12, 5)), rng.dirichlet(np.ones(3), 12)
    index, scores = rng.integers(0, rows, 12), 3 * rng.normal(size=(12, 12))
    expected = by_loop(features, index, lambda i, j: scores[i, j], probabilities, 4)
    found, exists = estimation.nearest_neighbours(jnp.asarray(features), jnp.asarray(index), 4)
    score = jnp.take_along_axis(jnp.asarray(scores), found, 1)
    shares = jnp.asarray(probabilities)[found]
    estimated = estimation.neighbour_distribution(score, shares, exists)
  np.testing.assert_allclose(estimated, expected, atol=1e-12)


def test_far_scores_are_not_0_by_0():
  score = jnp.array([[-500.0, -501.0]])
  probabilities = jnp.array([[[1.0, 0.0], [0.0, 1.0]]])
  exists = jnp.ones((1, 2), bool)
  share = 1 / (1 + np.exp(-1))
  estimated = estimation.neighbour_distribution(score, probabilities, exists)
  np.testing.assert_allclose(estimated, [[share, 1 - share]], rtol=1e-5)


def test_a_batch_that_is_too_small_is_refused():
  with pytest.raises(InputError, match='config.batch=8 .* above 8'):
    estimation.nearest_neighbours(jnp.ones((8, 2)), jnp.arange(8), 8)


def test_the_choice_of_neighbours_has_no_gradient():
  features = jnp.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])

  def total(features):
    found, _ = estimation.nearest_neighbours(features, jnp.arange(3), 1)
    return features[found].sum()

  np.testing.assert_array_equal(jax.grad(total)(features), [[1, 1], [2, 2], [0, 0]])
