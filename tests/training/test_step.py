import jax
import jax.numpy as jnp
import numpy as np

from ferjax.training import step


def test_norms_of_parameters_and_of_their_change():
  before = {'a': jnp.array([3.0, 0.0]), 'b': jnp.array(0.0)}
  kept = step.copy(before)
  after = {'a': jnp.array([3.0, 4.0]), 'b': jnp.array(12.0)}
  found = step.norms(before, after)
  np.testing.assert_allclose(found['l2_params'], 13)
  np.testing.assert_allclose(found['l2_updates'], np.sqrt(16 + 144), rtol=1e-6)
  jax.tree.map(lambda x: x.delete(), before)  # as a step does that overwrites its state
  np.testing.assert_array_equal(kept['a'], [3, 0])
