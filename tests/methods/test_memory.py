import jax.numpy as jnp
import numpy as np
import pytest

from ferjax.errors import InputError
from ferjax.methods.lanet import memory


def keys(*values):
  return jnp.array(values, jnp.float32)[:, None]


def test_a_queue_keeps_the_latest_keys_in_a_ring():
  queue = memory.empty_queue(5, 1)
  assert not queue.filled.any()
  queue = memory.push(queue, keys(1, 2, 3), keys(-1, -2, -3), jnp.array([1, 2, 3]))
  assert queue.filled.tolist() == [True, True, True, False, False]
  queue = memory.push(queue, keys(4, 5, 6), keys(-4, -5, -6), jnp.array([4, 5, 6]))
  assert queue.filled.all() and int(queue.next) == 1
  assert queue.label.tolist() == [6, 2, 3, 4, 5]
  assert queue.expression[:, 0].tolist() == [6, 2, 3, 4, 5]
  assert queue.landmark[:, 0].tolist() == [-6, -2, -3, -4, -5]
  full = memory.push(queue, keys(*range(5)), keys(*range(5)), jnp.arange(5))
  assert full.label.tolist() == [4, 0, 1, 2, 3]


def test_a_queue_smaller_than_the_batch_is_refused():
  with pytest.raises(InputError, match='queue_size=2 is smaller than the batch .3.'):
    memory.push(memory.empty_queue(2, 1), keys(1, 2, 3), keys(1, 2, 3), jnp.arange(3))


def test_an_empty_row_of_the_bank_counts_as_the_label():
  bank = jnp.array([[0.25, 0.75], [0, 0]])
  recalled = memory.recall(bank, jnp.array([1, 0]), jnp.array([0, 0]))
  np.testing.assert_array_equal(recalled, [[1, 0], [0.25, 0.75]])
