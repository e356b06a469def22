"""Values by row that batches overwrite."""

import jax.numpy as jnp
from jax import Array


def store(bank: Array, index: Array, values: Array) -> Array:
  """The bank [N, ...] with values [b, ...] at rows i32[b]. Of a repeated row the last counts; rows
  from N on are left out."""
  later = index[:, None] == index[None]
  later &= jnp.arange(len(index))[:, None] < jnp.arange(len(index))[None]
  rows = jnp.where(later.any(1), len(bank), index)
  return bank.at[rows].set(values.astype(bank.dtype), mode='drop')
