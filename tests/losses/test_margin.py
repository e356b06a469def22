import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ferjax.errors import InputError
from ferjax.losses import margin

RNG = np.random.default_rng(0)
X, KERNEL = RNG.normal(size=(6, 3)), RNG.normal(size=(3, 4))
LABEL = np.array([0, 3, 2, 2, 1, 3])
SOME = np.array([True, True, False, True, True, True])


def slow(x, kernel, label, scale, wide):
  """Cross-entropy of the angles in float64; `wide` moves that of the true class to a cosine."""
  cosines = [x @ w / np.linalg.norm(x) / np.linalg.norm(w) for w in kernel.T]
  logits = [scale * (wide(np.arccos(c)) if k == label else c) for k, c in enumerate(cosines)]
  return -logits[label] + np.log(np.exp(logits).sum())


def arc(by):
  return lambda angle: np.cos(angle + by) if angle + by < np.pi else np.cos(angle) - by * np.sin(by)


@pytest.mark.parametrize('by', [0.0, 0.35, 1.5])
@pytest.mark.parametrize('name', ['cosface', 'arcface'])
def test_heads_by_a_slow_loop(name, by):
  head = getattr(margin, f'{name}_head')(num_classes=4, scale=5.0, margin=by)
  batch, params = {'label': LABEL, 'where': SOME}, {'kernel': KERNEL}
  wide = arc(by) if name == 'arcface' else lambda angle: np.cos(angle) - by

  def total(params):
    losses = head.apply(params, (), {'embedding': X}, batch)
    return losses.sum(), losses

  with jax.enable_x64(True):
    (_, found), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(params)
    direction = np.random.default_rng(1).normal(size=KERNEL.shape)
    slope = (np.asarray(gradient['kernel']) * direction).sum()
  for row, value in enumerate(np.asarray(found)):
    expected = slow(X[row], KERNEL, LABEL[row], 5.0, wide) if SOME[row] else 0
    np.testing.assert_allclose(value, expected, rtol=1e-9)

  def moved(step):
    kernel = KERNEL + step * direction
    return sum(slow(X[i], kernel, LABEL[i], 5.0, wide) for i in range(6) if SOME[i])

  np.testing.assert_allclose(slope, (moved(1e-6) - moved(-1e-6)) / 2e-6, rtol=1e-6)


def test_without_a_margin_both_are_softmax_over_cosines():
  cosine = margin.cosines(jnp.asarray(X), jnp.asarray(KERNEL))
  expected = -jax.nn.log_softmax(7.0 * cosine)[jnp.arange(6), LABEL]
  for loss in (margin.cosface, margin.arcface):
    np.testing.assert_allclose(loss(cosine, LABEL, scale=7.0, margin=0.0), expected, rtol=1e-6)


def test_arcface_rises_with_the_angle_all_the_way():
  angle = jnp.linspace(0, np.pi, 400)
  cosine = jnp.stack([jnp.cos(angle), jnp.zeros(400)], 1)
  found = margin.arcface(cosine, jnp.zeros(400, jnp.int32), scale=4.0, margin=0.5)
  assert (np.diff(found) > 0).all()


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_cosines_of_1_have_finite_gradients(dtype):
  """Cosines at the ends and, by rounding, beyond them: a sine of 0 has no gradient."""
  cosine = jnp.array([[1.0, 0.0], [-1.0, 0.0], [1.01, 0.0], [-1.01, 0.0], [0.0, 0.0]], dtype)
  label = jnp.zeros(5, jnp.int32)
  total = lambda x: margin.arcface(x, label, scale=64.0).sum()  # noqa: E731
  value, gradient = jax.jit(jax.value_and_grad(total))(cosine)
  assert np.isfinite(value) and np.isfinite(gradient.astype(jnp.float32)).all()


def test_embeddings_along_their_weights_have_finite_gradients():
  kernel = jnp.asarray(KERNEL, jnp.float32)
  for sign in (1, -1):
    outputs = {'embedding': sign * 3 * kernel.T}
    head = margin.arcface_head(num_classes=4)
    total = lambda k, x, h=head: h.apply({'kernel': k}, (), x, {'label': jnp.arange(4)}).sum()  # noqa: E731
    gradient = jax.jit(jax.grad(total, (0, 1)))(kernel, outputs)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))


def test_numbers_out_of_range_are_errors():
  cosine, label = jnp.zeros((2, 3)), jnp.zeros(2, jnp.int32)
  with pytest.raises(InputError, match='scale=0 must be above 0'):
    margin.cosface(cosine, label, scale=0)
  with pytest.raises(InputError, match='margin=4 within 0..3.142'):
    margin.arcface_head(num_classes=3, margin=4)
  with pytest.raises(InputError, match='num_classes=0: it must be at least 1'):
    margin.cosface_head(num_classes=0)
