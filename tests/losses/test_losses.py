"""Common properties of losses: types, jit, vmap, gradients, `where`, order, degenerate batches.

One program computes all losses, so that each case needs one run and each type one compilation.
"""

import doctest
import functools
import importlib
import pkgutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ferjax import losses
from ferjax.errors import InputError

ROWS = WIDTH = 8  # also the number of classes: the same rows serve as logits and as embeddings


def fixed(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def of_distribution(logits, label, *, where=None):
  shares = 0.9 * jax.nn.one_hot(label, WIDTH, dtype=fixed(1).dtype) + 0.1 / WIDTH
  return losses.distribution_divergence(logits, shares, where=where)


def of_centers(loss):
  return lambda x, label, where: loss(x, label, fixed(1, WIDTH, WIDTH), where=where)


def of_cosines(loss):
  return lambda x, label, where: loss(x / 4, label, scale=8.0, where=where)


def stateful(made):
  def apply(x, label, where):
    outputs, batch = {'embedding': x}, {'label': label}
    if where is not None:
      batch['where'] = where
    params, state = made.init(jax.random.key(0), outputs, batch)
    params = {name: fixed(2, WIDTH, WIDTH) for name in params}
    state = made.update(state, outputs, batch)
    return made.apply(params, jax.lax.stop_gradient(state), outputs, batch)

  return apply


def plain(loss, **options):
  return lambda x, label, where: loss(x, label, where=where, **options)


LOSSES = {
  'softmax_cross_entropy': plain(losses.softmax_cross_entropy),
  'label_smoothing': plain(losses.label_smoothing),
  'focal': plain(losses.focal),
  'focal, gamma 0.5': plain(losses.focal, gamma=0.5, class_weights=range(1, 1 + WIDTH)),
  'generalised_cross_entropy': plain(losses.generalised_cross_entropy),
  'symmetric_cross_entropy': plain(losses.symmetric_cross_entropy),
  'distribution_divergence': plain(of_distribution),
  'center': of_centers(losses.center),
  'island': of_centers(losses.island),
  'centers': stateful(losses.centers(num_classes=WIDTH)),
  'islands': stateful(losses.islands(num_classes=WIDTH)),
  'cosface': of_cosines(losses.cosface),
  'arcface': of_cosines(losses.arcface),
  'cosface_head': stateful(losses.cosface_head(num_classes=WIDTH, scale=8.0)),
  'arcface_head': stateful(losses.arcface_head(num_classes=WIDTH, scale=8.0)),
  'supervised_contrastive': plain(losses.supervised_contrastive, temperature=0.5),
  'batch_hard_triplet': plain(losses.batch_hard_triplet, margin=5.0),
  'semi_hard_triplet': plain(losses.semi_hard_triplet, margin=5.0, hinge='softplus'),
  'contrastive_pair': plain(losses.contrastive_pair, margin=5.0),
  'gaussian_manifold': plain(losses.gaussian_manifold, num_classes=WIDTH, sigma=2.0),
  'gaussian_manifold, others': plain(
    losses.gaussian_manifold, num_classes=WIDTH, sigma=2.0, leave_one_out=True
  ),
}

X = np.random.default_rng(0).normal(size=(ROWS, WIDTH))
LABEL = np.array([0, 1, 2, 0, 1, 0, 2, 3])
ALL, WEIGHT = np.ones(ROWS, bool), np.arange(1.0, 1 + ROWS)
SOME = np.array([1, 1, 0, 1, 1, 1, 1, 0], bool)


def both(x, label, where, weight):
  """{name: (the losses f[b], the gradient f[b, d] of their weighted sum)}."""

  def one(loss):
    def total(x):
      found = loss(x, label, where)
      return (weight * found).sum(), found

    (_, found), gradient = jax.value_and_grad(total, has_aux=True)(x)
    return found, gradient

  return {name: one(loss) for name, loss in LOSSES.items()}


compiled = jax.jit(both)


def measure(x, label=LABEL, where=ALL, weight=WEIGHT, dtype=jnp.float64):
  """Like `both`, for NumPy arrays, in float64 or by a float32 program."""
  with jax.enable_x64(dtype == jnp.float64):
    found = compiled(
      jnp.asarray(x).astype(dtype),
      jnp.asarray(label, jnp.int32),
      None if where is None else jnp.asarray(where),
      jnp.asarray(weight),
    )
    return jax.tree.map(np.asarray, found)


@functools.cache
def usual(dtype='float64'):
  return measure(X, where=SOME, dtype=jnp.dtype(dtype))


def each(test):
  return pytest.mark.parametrize('name', LOSSES)(test)


@functools.cache
def moved():
  """Losses at both ends of a short step in each of five directions f[5, b, d]."""
  steps = 1e-6 * np.random.default_rng(3).normal(size=(5, ROWS, WIDTH))
  return steps, [[measure(X + sign * step, where=SOME) for sign in (1, -1)] for step in steps]


@pytest.mark.parametrize('name', [name for name in LOSSES if name not in ('centers', 'islands')])
def test_gradient_is_that_of_finite_differences(name):
  """Without `centers` and `islands`, whose centres here move with the rows but have no gradient."""
  steps, ends = moved()
  gradient = usual()[name][1]
  for step, (ahead, behind) in zip(steps, ends, strict=True):
    slope = ((ahead[name][0] - behind[name][0]) * WEIGHT).sum()
    np.testing.assert_allclose(slope, 2 * (gradient * step).sum(), rtol=1e-5, atol=1e-12)


@each
def test_type_and_precision(name):
  """float64 is kept, float32 is close to it, bfloat16 differs by the rounding of its input."""
  exact = usual()[name]
  single, half = usual('float32')[name], usual('bfloat16')[name]
  assert exact[0].dtype == np.float64 and single[0].dtype == half[0].dtype == np.float32
  assert half[1].dtype == jnp.bfloat16 and exact[0].shape == (ROWS,)
  np.testing.assert_allclose(single[0], exact[0], rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(single[1], exact[1], rtol=1e-3, atol=1e-4)
  rounded = rounded_first()[name]
  np.testing.assert_allclose(half[0], rounded[0], rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(half[1].astype(float), rounded[1], rtol=2e-2, atol=1e-2)


@functools.cache
def rounded_first():
  return measure(np.asarray(jnp.asarray(X, jnp.bfloat16), float), where=SOME)


@functools.cache
def other_garbage():
  garbage, label = np.where(SOME[:, None], X, np.nan), np.where(SOME, LABEL, 1)
  return measure(garbage, label, SOME)


@each
def test_rows_that_do_not_count_may_hold_anything(name):
  found, gradient = other_garbage()[name]
  expected, slope = usual()[name]
  np.testing.assert_allclose(found, expected, rtol=1e-12)
  np.testing.assert_allclose(gradient, slope, rtol=1e-9, atol=1e-14)
  assert not found[~SOME].any() and not gradient[~SOME].any() and found[SOME].any()


def values(x, label, where):
  """{name: the losses f[b]}."""
  return {name: loss(x, label, where) for name, loss in LOSSES.items()}


@functools.cache
def without_where():
  with jax.enable_x64(True):
    found = jax.jit(values)(jnp.asarray(X), jnp.asarray(LABEL), None)
    return jax.tree.map(np.asarray, found)


@functools.cache
def of_all():
  return measure(X)


@each
def test_no_mask_is_a_mask_of_all(name):
  np.testing.assert_allclose(without_where()[name], of_all()[name][0], rtol=1e-12, atol=1e-14)


@functools.cache
def reordered():
  order = np.random.default_rng(4).permutation(ROWS)
  return order, measure(X[order], LABEL[order], SOME[order], WEIGHT[order])


@each
def test_order_of_the_rows_does_not_matter(name):
  order, found = reordered()
  for other, expected in zip(found[name], usual()[name], strict=True):
    np.testing.assert_allclose(other, expected[order], rtol=1e-9, atol=1e-12)


@functools.cache
def mapped():
  with jax.enable_x64(True):
    batches = [jnp.asarray(np.stack(pair)) for pair in ([X, X], [LABEL] * 2, [SOME, ALL])]
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(values))(*batches))


@each
def test_under_vmap(name):
  for found, expected in zip(mapped()[name], (usual(), of_all()), strict=True):
    np.testing.assert_allclose(found, expected[name][0], rtol=1e-9, atol=1e-12)


KERNEL = np.asarray(fixed(2, WIDTH, WIDTH))
DEGENERATE = {
  'one class': (X, np.zeros(ROWS), ALL),
  'all alone': (X, np.arange(ROWS), ALL),
  'all alike': (np.ones_like(X), LABEL, ALL),
  'zeros': (np.zeros_like(X), LABEL, ALL),
  'copies': (X[LABEL], LABEL, ALL),
  'none counts': (X, LABEL, ~ALL),
  'one counts': (X, LABEL, np.arange(ROWS) == 2),
  'large and right': (1e4 * np.eye(WIDTH)[LABEL], LABEL, ALL),
  'large and wrong': (-1e4 * np.eye(WIDTH)[LABEL], LABEL, ALL),
  'tiny': (1e-30 * X, LABEL, ALL),
  'along the weights': (KERNEL.T[LABEL], LABEL, ALL),
  'against the weights': (-KERNEL.T[LABEL], LABEL, ALL),
}


@functools.cache
def degenerate(case, dtype):
  return measure(*DEGENERATE[case], dtype=jnp.dtype(dtype))


@pytest.mark.parametrize('case', DEGENERATE)
@each
def test_degenerate_batches_have_finite_losses_and_gradients(name, case):
  where = DEGENERATE[case][2]
  for dtype in ('float64', 'float32', 'bfloat16'):
    found, gradient = degenerate(case, dtype)[name]
    assert np.isfinite(found).all() and np.isfinite(gradient.astype(float)).all(), dtype
    assert not found[~where].any() and not gradient[~where].any()
    if 'hard' not in name and name != 'distribution_divergence':
      assert (found >= 0).all()


def test_stateful_losses_keep_the_shape_of_their_state():
  """`init` needs only shapes and types, and bfloat16 gives a float32 state."""
  outputs = {'embedding': jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.bfloat16)}
  batch = {'label': jax.ShapeDtypeStruct((ROWS,), jnp.int32)}
  for make in (losses.centers, losses.islands, losses.cosface_head, losses.arcface_head):
    made = make(num_classes=5)
    params, state = made.init(jax.random.key(0), outputs, batch)
    assert {x.dtype for x in jax.tree.leaves((params, state))} == {jnp.dtype('float32')}
    after = jax.eval_shape(made.update, state, outputs, batch)
    found = jax.eval_shape(made.apply, params, state, outputs, batch)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    assert found.shape == (ROWS,) and found.dtype == jnp.float32


def test_wrong_shapes_and_types_are_errors():
  logits, label = jnp.zeros((3, 4)), jnp.zeros(3, jnp.int32)
  for wrong, message in (
    ((logits, jax.nn.one_hot(label, 4)), r'labels float32\[3, 4\] .* give class numbers i32\[3\]'),
    ((logits[0], label), r'float32\[4\]: give logits or an embedding'),
    ((jnp.zeros((3, 4), jnp.int32), label), r'int32\[3, 4\]: give logits'),
  ):
    with pytest.raises(InputError, match=message):
      losses.focal(*wrong)
  with pytest.raises(InputError, match=r'where=float32\[3\]: give bool\[3\]'):
    losses.supervised_contrastive(logits, label, where=jnp.ones(3))
  with pytest.raises(InputError, match=r'where=bool\[2\]: give bool\[3\]'):
    losses.distribution_divergence(logits, logits, where=jnp.ones(2, bool))


def test_public_names():
  modules = {module.name for module in pkgutil.iter_modules(losses.__path__)}
  assert not modules & set(losses.__all__)
  assert all(callable(getattr(losses, name)) for name in losses.__all__)


EXAMPLES = [
  'losses',
  *(f'losses.{module.name}' for module in pkgutil.iter_modules(losses.__path__)),
]
EXAMPLES += ['methods.hrl.sifl', 'methods.lanet.contrast', 'methods.lanet.estimation']
EXAMPLES += ['methods.lanet.landmarks', 'terms.weighting']


@pytest.mark.parametrize('module', EXAMPLES)
def test_examples(module):
  found = doctest.testmod(importlib.import_module(f'ferjax.{module}'))
  assert found.failed == 0 and found.attempted > 0
