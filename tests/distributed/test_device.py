"""Training steps on the device that JAX runs on by default. `launch/gpu.py` runs this on a GPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from device_counts import batch_hard_method, run

from ferjax.benchmark import step

METHOD = (batch_hard_method, {'triplet': 0.7})


@pytest.fixture(scope='module')
def first():
  """Metrics and state of two steps on the device."""
  return run(1, 'pmap', jnp.float32, 2, *METHOD)


def test_a_step_is_that_of_a_cpu_with_native_convolutions(first, monkeypatch):
  cpus = jax.devices('cpu')
  monkeypatch.setattr(jax, 'devices', lambda: cpus)
  with step.native_convolutions():
    (expected,), _ = run(1, 'pmap', jnp.float32, 1, *METHOD)
  found = first[0][0]
  assert expected['loss'] > 1 and expected['l2_grads'] > 0
  for name in ('loss', 'ce', 'triplet', 'l2_grads'):
    np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, err_msg=name)


def test_the_same_steps_give_the_same_bits(first):
  again = run(1, 'pmap', jnp.float32, 2, *METHOD)
  jax.tree.map(np.testing.assert_array_equal, again, first)
