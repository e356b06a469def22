import jax
import jax.numpy as jnp
import numpy as np

from ferjax.losses.divergence import jensen_shannon, kl_divergence


def test_kl_by_hand():
  target = jnp.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
  prediction = jnp.array([[0.25, 0.5, 0.25], [0.5, 0.25, 0.25]])
  expected = [0.5 * np.log(2), np.log(2)]
  np.testing.assert_allclose(kl_divergence(target, jnp.log(prediction)), expected, rtol=1e-6)


def test_jensen_shannon_is_0_for_equals_and_ln_2_for_strangers():
  p, q = jnp.array([[1.0, 0.0], [0.3, 0.7]]), jnp.array([[0.0, 1.0], [0.3, 0.7]])
  np.testing.assert_allclose(jensen_shannon(p, q), [np.log(2), 0], atol=1e-6)
  a, b = jnp.array([1.0, 0.0]), jnp.array([0.5, 0.5])
  by_hand = 0.5 * np.log(4 / 3) + 0.5 * (0.5 * np.log(2 / 3) + 0.5 * np.log(2))
  np.testing.assert_allclose(jensen_shannon(a, b), by_hand, rtol=1e-5)
  np.testing.assert_allclose(jensen_shannon(b, a), by_hand, rtol=1e-5)


def test_gradients_are_finite_at_zero_and_one():
  grad = jax.grad(lambda target: kl_divergence(target, jnp.log(jnp.array([0.5, 0.5]))))
  assert np.isfinite(grad(jnp.array([1.0, 0.0]))).all()
