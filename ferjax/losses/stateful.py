"""Losses that have a state, which changes from step to step, or parameters of their own."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jax import Array

PyTree = Any
Named = Mapping[str, Array]


class StatefulLoss(NamedTuple):
  """Pure functions over explicit state, as in an optax transformation.

  `outputs` hold `logits` f[b, C] and `embedding` f[b, d]. `batch` holds `label` i32[b] and further
  columns. If it holds `where` bool[b], only those rows count. Both are of the whole global batch.

  Attributes:
    init: (rng, outputs, batch) -> params, state. Only the shapes and types of the arguments matter
      (they may be `jax.ShapeDtypeStruct`), and not their number of rows. The optimizer changes
      params (floating arrays; {} for none), and `update` changes state (arrays; a key is stored as
      its `jax.random.key_data`).
    apply: (params, state, outputs, batch) -> f[b]. Differentiable in params and outputs.
    update: (state, outputs, batch) -> state. After a step, with its outputs; without gradient.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from ferjax import losses
    >>> loss = losses.centers(num_classes=2, rate=0.5)
    >>> outputs = {'embedding': jnp.array([[4.0, 0.0], [0.0, 2.0]])}
    >>> batch = {'label': jnp.array([0, 1])}
    >>> params, state = loss.init(jax.random.key(0), outputs, batch)
    >>> print(loss.apply(params, state, outputs, batch))
    [8. 2.]
    >>> state = loss.update(state, outputs, batch)
    >>> print(loss.apply(params, state, outputs, batch))
    [4.5   1.125]
  """

  init: Callable[[Array, Named, Named], tuple[PyTree, PyTree]]
  apply: Callable[[PyTree, PyTree, Named, Named], Array]
  update: Callable[[PyTree, Named, Named], PyTree]
