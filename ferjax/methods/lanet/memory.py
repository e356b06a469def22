"""Memories that outlive a batch, as values: a queue of keys and a bank of label distributions."""

import flax.struct
import jax.numpy as jnp
from jax import Array

from ferjax.errors import InputError


@flax.struct.dataclass
class Queue:
  """A ring of the latest keys.

  Attributes:
    expression: f[n, e], keys of expression features.
    landmark: f[n, e], keys of landmark features.
    label: i32[n], (pseudo-)labels; negative ones match only themselves.
    pushed: i32[], how many keys were ever pushed, at most n.
    next: i32[], the slot that is written next.
  """

  expression: Array
  landmark: Array
  label: Array
  pushed: Array
  next: Array

  @property
  def filled(self) -> Array:
    """bool[n]: which slots hold a key."""
    return jnp.arange(len(self.label)) < self.pushed


def empty_queue(size: int, dim: int, dtype=jnp.float32) -> Queue:
  """A queue of `size` slots for keys of `dim` numbers."""
  return Queue(
    expression=jnp.zeros((size, dim), dtype),
    landmark=jnp.zeros((size, dim), dtype),
    label=jnp.zeros(size, jnp.int32),
    pushed=jnp.zeros((), jnp.int32),
    next=jnp.zeros((), jnp.int32),
  )


def push(queue: Queue, expression: Array, landmark: Array, label: Array) -> Queue:
  """The queue with a batch of keys f[b, e] and labels i32[b] in place of its oldest.

  Raises:
    InputError: the batch is larger than the queue.
  """
  size, batch = len(queue.label), len(label)
  if batch > size:
    raise InputError(
      f'config.method.queue_size={size} is smaller than the batch ({batch}): a batch of keys must '
      f'fit into it. Set config.method.queue_size={batch} or more'
    )
  slots = (queue.next + jnp.arange(batch, dtype=jnp.int32)) % size
  return Queue(
    expression=queue.expression.at[slots].set(expression),
    landmark=queue.landmark.at[slots].set(landmark),
    label=queue.label.at[slots].set(label),
    pushed=jnp.minimum(queue.pushed + batch, size).astype(jnp.int32),
    next=((queue.next + batch) % size).astype(jnp.int32),
  )


def empty_bank(rows: int, num_classes: int, dtype=jnp.float32) -> Array:
  """A bank f[N, C] of label distributions; rows of zeros were never stored."""
  return jnp.zeros((rows, num_classes), dtype)


def recall(bank: Array, index: Array, label: Array) -> Array:
  """f[b, C]: the stored distributions of rows i32[b]; the one-hot label i32[b] where none is."""
  stored = bank[index]
  one_hot = jnp.eye(bank.shape[1], dtype=bank.dtype)[label]
  return jnp.where(stored.any(-1, keepdims=True), stored, one_hot)
