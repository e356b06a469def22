import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loss_rows import LABEL, LOGITS
from loss_rows import check_rows as check

from ferjax.errors import InputError
from ferjax.losses.cross_entropy import cross_entropy
from ferjax.losses.noise_robust import generalised_cross_entropy, symmetric_cross_entropy


@pytest.mark.parametrize('q', [0.3, 0.7, 1.0])
def test_generalised_cross_entropy_by_a_slow_loop(q):
  check(generalised_cross_entropy, lambda p, y: (1 - p[y] ** q) / q, q=q)


def test_generalised_cross_entropy_between_cross_entropy_and_mean_absolute_error():
  logits, label = jnp.asarray(LOGITS, jnp.float32), jnp.asarray(LABEL)
  near_0 = generalised_cross_entropy(logits, label, q=1e-6)
  np.testing.assert_allclose(near_0, cross_entropy(logits, label), rtol=1e-4)
  error = jnp.abs(jax.nn.softmax(logits) - jax.nn.one_hot(label, 5)).sum(1)
  at_1 = generalised_cross_entropy(logits, label, q=1.0)
  np.testing.assert_allclose(at_1, error / 2, rtol=1e-5)


def test_symmetric_cross_entropy_by_a_slow_loop():
  def slow(p, y):
    log_truth = [0.0 if c == y else -4.0 for c in range(5)]
    return -0.1 * np.log(p[y]) - 0.7 * sum(p[c] * log_truth[c] for c in range(5))

  check(symmetric_cross_entropy, slow, alpha=0.1, beta=0.7)


def test_the_loss_of_a_wrong_row_is_bounded_except_for_its_cross_entropy():
  logits, label = jnp.array([[1e4, -1e4]]), jnp.array([1])
  np.testing.assert_allclose(generalised_cross_entropy(logits, label, q=0.5), [2])
  np.testing.assert_allclose(symmetric_cross_entropy(logits, label), [0.1 * 2e4 + 4], rtol=1e-6)


def test_numbers_out_of_range_are_errors():
  logits, label = jnp.zeros((2, 3)), jnp.zeros(2, jnp.int32)
  with pytest.raises(InputError, match='q=0 of generalised'):
    generalised_cross_entropy(logits, label, q=0)
  with pytest.raises(InputError, match='log_zero=4.0 below 0'):
    symmetric_cross_entropy(logits, label, log_zero=4.0)
