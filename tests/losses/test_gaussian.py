import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ferjax.errors import InputError
from ferjax.losses import gaussian


def loss(embedding, label, classes, sigma=0.5, through_means=True):
  """The mean SGM loss of a batch, and its log posteriors."""
  means, rows = gaussian.class_means(embedding, label, classes)
  means = means if through_means else jax.lax.stop_gradient(means)
  posterior = gaussian.log_posterior(embedding, means, rows > 0, sigma)
  return gaussian.structured_gaussian(posterior, label).mean(), posterior


def closed_form(z, label, sigma, through_means):
  """The loss and its gradient in float64, derived by hand, with a loop over classes.

  With g_i = 2 (pi_i - y_i) / B, the gradient by the log-density of class c is
  h_ic = pi_ic (g_ic - sum_k g_ik pi_ik), and that density's by z_i is -(z_i - mu_c) / sigma^2.
  """
  z = np.asarray(z, np.float64)
  present = np.unique(label)
  means = np.stack([z[label == c].mean(0) for c in present])
  log_density = np.stack([-((z - m) ** 2).sum(1) / (2 * sigma**2) for m in means], 1)
  log_density -= log_density.max(1, keepdims=True)
  pi = np.exp(log_density) / np.exp(log_density).sum(1, keepdims=True)
  y = (label[:, None] == present).astype(float)
  g = 2 * (pi - y) / len(z)
  h = pi * (g - (g * pi).sum(1, keepdims=True))
  gradient = np.zeros_like(z)
  for c in range(len(present)):
    pull = -h[:, c : c + 1] * (z - means[c]) / sigma**2
    gradient += pull
    if through_means:
      gradient[label == present[c]] -= pull.sum(0) / (label == present[c]).sum()
  return ((pi - y) ** 2).sum(1).mean(), gradient, pi


def drawn(classes, rows, seed, spread=0.7, offset=0.0):
  """A batch in which some classes may be absent and others have one row."""
  rng = np.random.default_rng(seed)
  label = rng.integers(0, classes, rows)
  centres = rng.normal(size=(classes, 6))
  z = centres[label] + spread * rng.normal(size=(rows, 6)) + offset
  return z, label


@pytest.mark.parametrize('through_means', [True, False])
def test_loss_and_gradient_against_the_closed_form(through_means):
  """2 to 40 of 40 classes are present; if many are, some of them have one row."""
  found = jax.jit(
    lambda z, label: jax.value_and_grad(loss, has_aux=True)(z, label, 40, 0.5, through_means)
  )
  for classes in (2, 3, 7, 16, 40):
    for seed, spread in enumerate((0.1, 0.7, 3.0)):
      z, label = drawn(classes, 30, seed, spread)
      present = np.unique(label)
      assert classes < 16 or np.bincount(label).min() < 2
      value, gradient, pi = closed_form(z, label, 0.5, through_means)
      with jax.enable_x64(True):
        (ours, log_pi), slope = found(jnp.asarray(z), jnp.asarray(label))
      np.testing.assert_allclose(ours, value, rtol=1e-12)
      np.testing.assert_allclose(slope, gradient, rtol=1e-9, atol=1e-14)
      np.testing.assert_allclose(np.exp(log_pi)[:, present], pi, rtol=1e-9, atol=1e-300)
      assert not np.delete(np.exp(log_pi), present, axis=1).any()
      (ours, _), slope = found(jnp.asarray(z, jnp.float32), jnp.asarray(label))
      np.testing.assert_allclose(ours, value, rtol=1e-4, atol=1e-7)
      np.testing.assert_allclose(slope, gradient, rtol=1e-3, atol=1e-6)


def test_far_from_all_means_float32_still_distinguishes_them():
  """The squared distance at a distance of 2000 has a unit in the last place of 0.25."""
  means = jnp.array([[0.0, 0.0], [5e-4, 0.0], [50.0, 50.0]])
  z = np.array([[1234.5, -1800.0], [-900.0, 0.0], [1e4, 1e4]])
  present = jnp.array([True, True, True])
  found = gaussian.log_posterior(jnp.asarray(z, jnp.float32), means, present, 0.5)
  assert np.isfinite(found).all()
  distance = ((z[:, None] - np.asarray(means, np.float64)) ** 2).sum(-1)
  expected = -distance / (2 * 0.25)
  expected -= expected.max(1, keepdims=True)
  expected -= np.log(np.exp(expected).sum(1, keepdims=True))
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
  assert 0.5 < np.exp(found[1]).max() < 0.9 and np.exp(found[1]).min() == 0


def test_by_hand():
  """On a line, with classes at 0 and 2, sigma 1 and an absent class between them. At 1.5, the
  log-odds are (1.5^2 - 0.5^2) / 2 = 1."""
  means, present = jnp.array([[0.0], [1.0], [2.0]]), jnp.array([True, False, True])
  found = gaussian.log_posterior(jnp.array([[1.5]]), means, present, 1.0)
  share = 1 / (1 + np.e)
  np.testing.assert_allclose(np.exp(found), [[share, 0, 1 - share]], rtol=1e-6)
  np.testing.assert_allclose(
    gaussian.structured_gaussian(found, jnp.array([0])), [2 * (1 - share) ** 2], rtol=1e-6
  )
  np.testing.assert_allclose(
    gaussian.class_means(jnp.array([[1.0], [3.0], [5.0]]), jnp.array([0, 0, 2]), 4)[0],
    [[2], [0], [5], [0]],
  )


def test_means_without_the_row_itself_by_a_slow_loop():
  z, label = drawn(5, 14, 2)
  label[0] = 6  # alone
  z, label = jnp.asarray(z, jnp.float32), jnp.asarray(label)
  found = gaussian.leave_one_out_means(z, label, *gaussian.class_means(z, label, 8))
  z, label = np.asarray(z, float), np.asarray(label)
  for i in range(14):
    for c in range(8):
      rows = [j for j in range(14) if label[j] == c and (j != i or i == 0)]
      expected = z[rows].mean(0) if rows else np.zeros(6)
      np.testing.assert_allclose(found[i, c], expected, atol=1e-5)


def test_a_row_in_its_own_mean_finds_its_class_without_information():
  """The embeddings are independent of the class, so the expected accuracy is 1/7."""
  rng = np.random.default_rng(0)
  z = jnp.asarray(rng.normal(size=(7 * 8, 64)), jnp.float32)
  label = jnp.arange(len(z)) % 7
  means, rows = gaussian.class_means(z, label, 7)
  others = gaussian.leave_one_out_means(z, label, means, rows)
  right = [
    (gaussian.log_posterior(z, m, rows > 0, 0.5).argmax(-1) == label).mean()
    for m in (means, others)
  ]
  assert right[0] > 0.9 and right[1] < 0.3


@pytest.mark.parametrize('case', ['one class', 'all alone', 'all alike', 'very far', 'one row'])
def test_degenerate_batches_have_finite_gradients(case):
  z, label = drawn(4, 8, 0)
  z, label = {
    'one class': (z, np.zeros(8, int)),
    'all alone': (z, np.arange(8)),
    'all alike': (np.zeros_like(z), label),
    'very far': (1e6 * z, label),
    'one row': (z[:1], label[:1]),
  }[case]
  (value, _), gradient = jax.jit(
    lambda z, label: jax.value_and_grad(loss, has_aux=True)(z, label, 8)
  )(jnp.asarray(z, jnp.float32), jnp.asarray(label))
  assert np.isfinite(value) and 0 <= value <= 2 and np.isfinite(gradient).all()
  if case in ('one class', 'one row'):
    assert value == 0 and not gradient.any()


def test_sub_classes_add_up_to_their_class():
  shares = np.array([[0.1, 0.2, 0.3, 0.4]])
  found = gaussian.of_classes(jnp.log(shares), 2)
  np.testing.assert_allclose(np.exp(found), [[0.3, 0.7]], rtol=1e-6)
  absent = gaussian.of_classes(jnp.full((1, 4), gaussian.ABSENT), 2)
  assert np.isfinite(absent).all()


def test_an_absent_class_is_not_a_reference():
  """Its mean is nearer than those of the present classes, which are far away and close together."""
  means = np.array([[1000.0, 0], [1000.0005, 0], [0, 0]])
  z, sigma = np.array([[100.0, 0]]), 0.5
  squares = ((z[:, None] - means[None, :2]) ** 2).sum(-1)
  expected = 1 / (1 + np.exp(-(squares[0, 1] - squares[0, 0]) / (2 * sigma**2)))
  present = jnp.array([True, True, False])
  means, z = jnp.asarray(means, jnp.float32), jnp.asarray(z, jnp.float32)
  found = np.exp(gaussian.log_posterior(z, means, present, sigma))[0]
  apart = float(means[1, 0]) - 1000
  expected = 1 / (1 + np.exp(-apart * (apart + 1800) / (2 * sigma**2)))
  np.testing.assert_allclose(found[0], expected, rtol=2e-7)
  assert found[2] == 0


@pytest.mark.parametrize('leave_one_out', [False, True])
def test_rows_of_a_batch_by_a_slow_loop(leave_one_out):
  z, label = drawn(4, 12, 1, 0.7)
  where = np.arange(12) % 5 != 2
  with jax.enable_x64(True):
    options = {'num_classes': 5, 'sigma': 0.8, 'leave_one_out': leave_one_out}
    loss = jax.jit(lambda *x: gaussian.gaussian_manifold(*x[:2], where=x[2], **options))
    found = loss(z, label, where)
  for i in range(12):
    densities = np.zeros(5)
    for c in range(5):
      rows = [j for j in np.flatnonzero(where) if label[j] == c]
      others = [j for j in rows if j != i] if leave_one_out and len(rows) > 1 else rows
      if rows:
        densities[c] = np.exp(-((z[i] - z[others].mean(0)) ** 2).sum() / (2 * 0.8**2))
    expected = ((densities / densities.sum() - (np.arange(5) == label[i])) ** 2).sum() * where[i]
    np.testing.assert_allclose(found[i], expected, rtol=1e-9)


def test_means_without_gradient_are_constants():
  z, label = drawn(3, 8, 0)
  z, label = jnp.asarray(z, jnp.float32), jnp.asarray(label)
  options = {'num_classes': 3, 'gradient_through_means': False}
  total = lambda z: gaussian.gaussian_manifold(z, label, **options).sum()  # noqa: E731
  found = jax.jit(jax.grad(total))(z)
  means, rows = gaussian.class_means(z, label, 3)

  def of_fixed_means(z):
    posterior = gaussian.log_posterior(z, means, rows > 0, 0.5)
    return gaussian.structured_gaussian(posterior, label).sum()

  np.testing.assert_allclose(found, jax.jit(jax.grad(of_fixed_means))(z), rtol=1e-5, atol=1e-7)


def test_a_width_of_0_is_an_error():
  with pytest.raises(InputError, match='sigma=0: it must be above 0'):
    gaussian.gaussian_manifold(jnp.zeros((2, 3)), jnp.arange(2), num_classes=2, sigma=0)
