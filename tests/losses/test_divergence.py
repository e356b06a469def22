import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ferjax.errors import InputError
from ferjax.losses.divergence import (
  distribution_divergence,
  jensen_shannon,
  kl_divergence,
  neighbour_guidance,
)


def test_kl_by_hand():
  target = jnp.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
  prediction = jnp.array([[0.25, 0.5, 0.25], [0.5, 0.25, 0.25]])
  expected = [0.5 * np.log(2), np.log(2)]
  np.testing.assert_allclose(kl_divergence(target, jnp.log(prediction)), expected, rtol=1e-6)


def test_jensen_shannon_is_0_if_equal_and_ln_2_if_disjoint():
  p, q = jnp.array([[1.0, 0.0], [0.3, 0.7]]), jnp.array([[0.0, 1.0], [0.3, 0.7]])
  np.testing.assert_allclose(jensen_shannon(p, q), [np.log(2), 0], atol=1e-6)
  a, b = jnp.array([1.0, 0.0]), jnp.array([0.5, 0.5])
  by_hand = 0.5 * np.log(4 / 3) + 0.5 * (0.5 * np.log(2 / 3) + 0.5 * np.log(2))
  np.testing.assert_allclose(jensen_shannon(a, b), by_hand, rtol=1e-5)
  np.testing.assert_allclose(jensen_shannon(b, a), by_hand, rtol=1e-5)


def test_gradients_are_finite_at_zero_and_one():
  grad = jax.grad(lambda target: kl_divergence(target, jnp.log(jnp.array([0.5, 0.5]))))
  assert np.isfinite(grad(jnp.array([1.0, 0.0]))).all()


def test_guidance_by_a_slow_loop_and_none_of_its_gradient_reaches_a_neighbour():
  rng = np.random.default_rng(0)
  logits, others = rng.normal(size=(3, 5)), rng.normal(size=(3, 4, 5))
  affinity = rng.random((3, 4))

  def softmax(x):
    return np.exp(x) / np.exp(x).sum()

  expected = np.zeros(3)
  for i in range(3):
    p = softmax(logits[i])
    for j in range(4):
      q = softmax(others[i, j])
      for c in range(5):
        expected[i] += affinity[i, j] * q[c] * np.log(q[c] / p[c])
  np.testing.assert_allclose(neighbour_guidance(logits, others, affinity), expected, rtol=1e-5)

  total = lambda *args: neighbour_guidance(*args).sum()  # noqa: E731
  of_logits, of_others = jax.grad(total, (0, 1))(jnp.array(logits), jnp.array(others), affinity)
  assert not of_others.any()
  by_hand = sum(
    affinity[0, j] * (softmax(logits[0]) - softmax(others[0, j])) for j in range(4)
  )  # of the cross-entropy with each neighbour
  np.testing.assert_allclose(of_logits[0], by_hand, rtol=1e-4, atol=1e-6)


def test_guidance_of_extreme_neighbours_is_finite():
  logits, others = jnp.array([[1e4, -1e4]]), jnp.array([[[-1e4, 1e4], [0.0, 0.0]]])
  value, gradient = jax.value_and_grad(lambda x: neighbour_guidance(x, others, 1.0).sum())(logits)
  assert np.isfinite(value) and np.isfinite(gradient).all()


def test_divergence_from_known_distributions_by_a_slow_loop():
  rng = np.random.default_rng(0)
  logits, shares = rng.normal(size=(5, 4)), rng.dirichlet(np.ones(4), 5)
  where = np.arange(5) != 1
  with jax.enable_x64(True):
    found = jax.jit(distribution_divergence)(logits, shares, where=where)
  for i in range(5):
    p = np.exp(logits[i]) / np.exp(logits[i]).sum()
    expected = sum(shares[i, c] * np.log(shares[i, c] / p[c]) for c in range(4)) * where[i]
    np.testing.assert_allclose(found[i], expected, rtol=1e-9)


@pytest.mark.parametrize('shape', [(1, 4), (5, 1), (4,)])
def test_distributions_of_another_shape_are_errors(shape):
  with pytest.raises(InputError, match=r'for logits \[5, 4\]: give both as f32\[b, C\]'):
    distribution_divergence(jnp.zeros((5, 4)), jnp.ones(shape))


def test_guidance_of_rows_that_count():
  logits, others = jnp.array([[1.0, 0.0], [0.0, 2.0]]), jnp.zeros((2, 3, 2))
  found = neighbour_guidance(logits, others, 1.0, where=jnp.array([False, True]))
  np.testing.assert_allclose(found, [0, neighbour_guidance(logits, others, 1.0)[1]])
