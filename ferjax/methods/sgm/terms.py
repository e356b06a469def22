"""What is logged of SGM's loss; the loss itself is in `losses/gaussian.py`."""

import jax.numpy as jnp
import numpy as np
from jax import Array

from ferjax.losses import gaussian

UNLIKELY = 1e-3  # a posterior of the true class below which a row has next to no gradient


def metrics(
  log_posterior: Array, subclass: Array, label: Array, num_classes: int
) -> dict[str, Array]:
  """How well the Gaussians of a batch tell its classes apart.

  Args:
    log_posterior: f[B, C L], of the sub-classes.
    subclass: i32[B], the true ones.
    label: i32[B].
    num_classes: C.

  Returns:
    f[] each: `acc`, the share of rows whose class is the likeliest, and
    `posterior/true_below_0.001`, that of rows whose true sub-class has a smaller posterior.
  """
  true = jnp.take_along_axis(log_posterior, subclass[:, None], 1)
  predicted = gaussian.of_classes(log_posterior, num_classes).argmax(-1)
  return {
    'acc': jnp.mean(predicted == label),
    f'posterior/true_below_{UNLIKELY}': jnp.mean(true < np.log(UNLIKELY)),
  }
