import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ferjax.errors import InputError
from ferjax.losses.pairs import contrastive_pair

LABEL = np.array([0, 1, 1, 0, 2, 1, 0])


def slow(x, label, where, margin):
  found = np.zeros(len(x))
  for i in np.flatnonzero(where):
    losses = []
    for j in np.flatnonzero(where):
      distance = np.linalg.norm(x[i] - x[j])
      if i != j:
        losses.append(distance**2 if label[i] == label[j] else max(0, margin - distance) ** 2)
    found[i] = sum(losses) / 2 / max(len(losses), 1)
  return found


@pytest.mark.parametrize('margin', [0.5, 3.0])
def test_by_a_double_loop(margin):
  x = np.random.default_rng(0).normal(size=(7, 2))
  with jax.enable_x64(True):
    loss = jax.jit(lambda x, where: contrastive_pair(x, LABEL, margin=margin, where=where))
    for where in (np.ones(7, bool), np.arange(7) != 3, np.arange(7) == 0):
      np.testing.assert_allclose(loss(x, where), slow(x, LABEL, where, margin), rtol=1e-10)


def test_copies_with_different_labels_have_the_margin_as_loss_and_no_gradient():
  x, label = jnp.full((2, 3), 0.7), jnp.array([0, 1])
  value, gradient = jax.value_and_grad(lambda x: contrastive_pair(x, label, margin=2.0).sum())(x)
  np.testing.assert_allclose(value, 2 * 2**2 / 2)
  assert not gradient.any()


def test_a_margin_of_0_is_an_error():
  with pytest.raises(InputError, match='margin=0: it must be above 0'):
    contrastive_pair(jnp.zeros((2, 3)), jnp.zeros(2, jnp.int32), margin=0)
