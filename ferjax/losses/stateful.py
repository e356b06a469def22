"""Losses that carry something from step to step: learned parameters, or a state that they move."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jax import Array


class StatefulLoss(NamedTuple):
  """Pure functions over explicit state.

  Attributes:
    init: (rng, outputs, batch) -> params, state. From the shapes of example outputs and an example
      batch; params are {} where nothing is learned.
    apply: (params, state, outputs, batch) -> f[b]. The loss of each row; no gradient reaches the
      state.
    update: (state, outputs, batch) -> state. After the step, without gradient, over the whole
      global batch.
  """

  init: Callable[..., tuple[Any, Any]]
  apply: Callable[[Any, Any, Any, Any], Array]
  update: Callable[[Any, Any, Any], Any]
