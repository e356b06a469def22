import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from loss_rows import check_rows as check

from ferjax.errors import InputError
from ferjax.losses.cross_entropy import cross_entropy, focal, label_smoothing


def test_hand_computed_and_finite_for_extreme_logits():
  logits = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]], np.float32))
  loss = cross_entropy(logits, np.array([0, 1]))
  np.testing.assert_allclose(loss, [np.log(2), np.log(10)], rtol=1e-6)
  far = np.array([[1e4, -1e4]], np.float32)
  value, slope = jax.value_and_grad(lambda z: cross_entropy(z, np.array([1])).sum())(far)
  assert value == 2e4
  np.testing.assert_allclose(slope, [[1.0, -1.0]])


def test_small_losses_of_large_logits_are_not_rounded_away():
  logits = np.array([[1e4, 1e4 - 8]], np.float32)
  np.testing.assert_allclose(cross_entropy(logits, np.array([0])), [np.log1p(np.exp(-8))], 1e-4)


def test_cross_entropy_by_a_slow_loop():
  check(cross_entropy, lambda p, y: -np.log(p[y]))


@pytest.mark.parametrize('smoothing', [0.0, 0.1, 1.0])
def test_label_smoothing_by_a_slow_loop(smoothing):
  def slow(p, y):
    return sum(-((1 - smoothing) * (c == y) + smoothing / 5) * np.log(p[c]) for c in range(5))

  check(label_smoothing, slow, smoothing=smoothing)


@pytest.mark.parametrize('gamma', [0.0, 0.5, 2.0])
def test_focal_by_a_slow_loop(gamma):
  weights = (1.0, 2.0, 3.0, 0.5, 0.0)
  slow = lambda p, y: -weights[y] * (1 - p[y]) ** gamma * np.log(p[y])  # noqa: E731
  check(focal, slow, gamma=gamma, class_weights=weights)


def test_focal_of_two_classes_is_the_sigmoid_one():
  score = jnp.linspace(-9, 9, 7)
  logits = jnp.stack([jnp.zeros(7), score], 1)
  for label in (0, 1):
    expected = optax.sigmoid_focal_loss(score, jnp.full(7, label), gamma=2.0)
    found = focal(logits, jnp.full(7, label), gamma=2.0)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-9)


def test_one_class_alone():
  logits, label = jnp.array([[3.0], [-2.0]]), jnp.array([0, 0])
  for loss in (cross_entropy, label_smoothing, focal):
    value, gradient = jax.value_and_grad(lambda x, loss=loss: loss(x, label).sum())(logits)
    assert value == 0 and not gradient.any()


def test_numbers_out_of_range_are_errors():
  logits, label = jnp.zeros((2, 3)), jnp.zeros(2, jnp.int32)
  with pytest.raises(InputError, match='smoothing of 1.5: it must be within 0..1'):
    label_smoothing(logits, label, smoothing=1.5)
  with pytest.raises(InputError, match='gamma=-1 of the focal loss'):
    focal(logits, label, gamma=-1)
  with pytest.raises(InputError, match='2 class_weights for 3 classes'):
    focal(logits, label, class_weights=(1.0, 2.0))
