import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ferjax.errors import InputError
from ferjax.losses.contrastive import supervised_contrastive
from ferjax.methods.lanet.contrast import cross_view_contrast, pseudo_labels


def test_pseudo_labels_by_hand():
  distribution = jnp.array([[0.8, 0.2], [0.3, 0.7], [0.7, 0.3], [0.1, 0.9]])
  labels = pseudo_labels(distribution, jnp.array([5, 6, 0, 7]), 0.7)
  assert labels.tolist() == [0, -7, -1, 1]


def by_loop(query, key, label, queue_key, queue_label, filled, temperature, in_batch):
  losses = []
  for i in range(len(query)):
    negatives = [
      query[i] @ queue_key[m]
      for m in range(len(queue_key))
      if filled[m] and queue_label[m] != label[i]
    ]
    if in_batch:
      negatives += [query[i] @ key[m] for m in range(len(key)) if label[m] != label[i]]
    below = sum(np.exp(s / temperature) for s in negatives)
    terms = []
    for j in range(len(key)):
      if label[j] == label[i]:
        e = np.exp(query[i] @ key[j] / temperature)
        terms.append(-np.log(e / (e + below)))
    losses.append(np.mean(terms))
  return np.array(losses)


@pytest.mark.parametrize('in_batch', [False, True])
@pytest.mark.parametrize('classes', [3, 1])
@pytest.mark.parametrize('filled', [0, 5, 9])
def test_agrees_with_a_slow_loop(in_batch, classes, filled):
  rng = np.random.default_rng(0)

  def unit(count):
    x = rng.normal(size=(count, 4))
    return x / np.linalg.norm(x, axis=1, keepdims=True)

  query, key, queue_key = unit(6), unit(6), unit(9)
  label, queue_label = rng.integers(0, classes, 6), rng.integers(0, classes, 9)
  arguments = (query, key, label, queue_key, queue_label, np.arange(9) < filled, 0.1, in_batch)
  expected = by_loop(*arguments)
  with jax.enable_x64(True):
    arrays = [jnp.asarray(a) for a in arguments[:6]]
    losses = cross_view_contrast(*arrays, *arguments[6:])
    gradient = jax.grad(lambda q: cross_view_contrast(q, *arrays[1:], *arguments[6:]).sum())
    assert np.isfinite(gradient(arrays[0])).all()
  np.testing.assert_allclose(losses, expected, rtol=1e-10, atol=1e-12)


def test_by_hand():
  """One positive at cosine 1 and one negative at 0: -log(e^1 / (e^1 + e^0)) at temperature 1."""
  x = jnp.array([[1.0, 0.0]])
  loss = cross_view_contrast(
    x, x, jnp.array([0]), jnp.array([[0.0, 1.0]]), jnp.array([1]), jnp.array([True]), 1.0
  )
  np.testing.assert_allclose(loss, [np.log(1 + np.exp(-1))], rtol=1e-6)


def test_rows_that_do_not_count_have_no_effect():
  rng = np.random.default_rng(1)
  query, key, queue = (jnp.asarray(rng.normal(size=(n, 4)), jnp.float32) for n in (6, 6, 5))
  label, queue_label = jnp.array([0, 1, 0, 2, 1, 0]), jnp.array([0, 1, 2, 0, 1])
  where = jnp.array([True, True, False, True, True, True])
  rest = (queue, queue_label, jnp.ones(5, bool), 0.5, True)
  kept = [np.asarray(x)[np.asarray(where)] for x in (query, key, label)]
  few = jax.jit(lambda *x: cross_view_contrast(*x, *rest))(*kept)
  loss = jax.jit(lambda q, where: cross_view_contrast(q, key, label, *rest, where=where))
  found = loss(query, where)
  np.testing.assert_allclose(np.asarray(found)[np.asarray(where)], few, rtol=1e-5)
  assert found[2] == 0
  value, gradient = jax.value_and_grad(lambda q: loss(q, where & False).sum())(query)
  assert value == 0 and not gradient.any()


def slow_supervised(x, label, where, temperature):
  z, rows = x / np.linalg.norm(x, axis=1, keepdims=True), np.flatnonzero(where)
  found = np.zeros(len(x))
  for i in rows:
    below = sum(np.exp(z[i] @ z[a] / temperature) for a in rows if a != i)
    positives = [p for p in rows if p != i and label[p] == label[i]]
    losses = [-np.log(np.exp(z[i] @ z[p] / temperature) / below) for p in positives]
    found[i] = np.mean(losses) if losses else 0
  return found


@pytest.mark.parametrize('temperature', [0.1, 1.0])
def test_supervised_contrast_by_a_slow_loop(temperature):
  x, label = np.random.default_rng(0).normal(size=(8, 3)), np.array([0, 1, 1, 0, 2, 1, 0, 3])
  with jax.enable_x64(True):
    loss = jax.jit(
      lambda *x: supervised_contrastive(x[0], label, temperature=temperature, where=x[1])
    )
    for where in (np.ones(8, bool), np.arange(8) != 3, np.arange(8) == 0):
      expected = slow_supervised(x, label, where, temperature)
      np.testing.assert_allclose(loss(x, where), expected, rtol=1e-9, atol=1e-12)


def test_supervised_contrast_does_not_depend_on_lengths():
  x, label = np.random.default_rng(0).normal(size=(6, 3)), np.arange(6) % 2
  lengths = np.array([1, 10, 0.1, 5, 2, 1])[:, None]
  loss = jax.jit(lambda x: supervised_contrastive(x, label))
  np.testing.assert_allclose(loss(x * lengths), loss(x), rtol=1e-4)


def test_a_temperature_of_0_is_an_error():
  with pytest.raises(InputError, match='temperature=0: it must be above 0'):
    supervised_contrastive(jnp.zeros((2, 3)), jnp.zeros(2, jnp.int32), temperature=0)
