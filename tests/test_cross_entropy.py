import jax
import numpy as np

from ferjax.losses.cross_entropy import cross_entropy


def test_hand_computed_and_finite_for_hopeless_logits():
  logits = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]], np.float32))
  loss = cross_entropy(logits, np.array([0, 1]))
  np.testing.assert_allclose(loss, [np.log(2), np.log(10)], rtol=1e-6)
  far = np.array([[1e4, -1e4]], np.float32)
  value, slope = jax.value_and_grad(lambda z: cross_entropy(z, np.array([1])).sum())(far)
  assert value == 2e4
  np.testing.assert_allclose(slope, [[1.0, -1.0]])
