import jax.numpy as jnp

from ferjax.ops.scatter import store


def test_of_a_repeated_row_the_last_one_is_stored():
  values = jnp.array([1.0, 2, 3, 4, 5])[:, None]
  stored = store(jnp.zeros((4, 1)), jnp.array([2, 0, 2, 0, 3]), values)
  assert stored[:, 0].tolist() == [4, 0, 3, 5]
  labels = store(jnp.arange(3), jnp.array([1, 1, 3]), jnp.array([7, 8, 9]))
  assert labels.tolist() == [0, 8, 2] and labels.dtype == jnp.int32
