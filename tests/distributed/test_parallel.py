"""The result of a run does not depend on the number of devices: a hard method, both back ends."""

import jax.numpy as jnp
import numpy as np
import pytest
from device_counts import (
  RUNS,
  batch_hard_method,
  check_ten_steps_in_float64,
  run,
)

from ferjax.distributed import parallel
from ferjax.errors import InputError
from ferjax.training.step import weighted_sum


def test_ten_steps_in_float64_agree_to_1e_8():
  metrics, _ = check_ten_steps_in_float64(RUNS, batch_hard_method, {'triplet': 0.7})
  assert metrics[0]['triplet'] > 0


def test_first_step_in_float32_agrees_to_1e_5():
  method = (batch_hard_method, {'triplet': 0.7})
  (ours,), _ = run(1, 'pmap', jnp.float32, 1, *method)
  (theirs,), _ = run(8, 'shard_map', jnp.float32, 1, *method)
  for name in ('loss', 'ce', 'triplet', 'l2_grads'):
    np.testing.assert_allclose(theirs[name], ours[name], rtol=1e-5, err_msg=name)


def test_batches_must_divide():
  parallel.check_batch(16, 8)
  with pytest.raises(InputError, match='16 and 24'):
    parallel.check_batch(20, 8)
  with pytest.raises(InputError, match='sizes are 8$'):
    parallel.check_batch(3, 8)


@pytest.mark.parametrize('options', [{'devices': 9}, {'backend': 'pjit'}])
def test_impossible_settings_are_refused(options):
  with pytest.raises(InputError):
    parallel.make(**options)


def test_weights_apply_in_one_place_and_must_name_a_term():
  terms = {'a': jnp.float32(2), 'b': jnp.float32(3)}
  assert weighted_sum(terms, {'b': 0.5}) == 3.5
  with pytest.raises(InputError, match="Did you mean 'b'|names 'bb'"):
    weighted_sum(terms, {'bb': 1.0})
