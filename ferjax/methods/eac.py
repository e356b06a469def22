"""EAC: erasing attention consistency. A face and its mirror image shall be seen alike.

Of either picture a rectangle is erased. The maps of where a class is seen, which the weights of the
classifier make of the last feature map, must be mirror images of each other. A network that has
learned a wrong label by heart from one part of the picture violates this. At inference only the
classifier remains.

Reference: Zhang et al., "Learn From All: Erasing Attention Consistency for Noisy Label Facial
Expression Recognition", ECCV 2022.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ferjax.core import Method
from ferjax.errors import choose
from ferjax.methods import softmax
from ferjax.ops import erasing as erasings
from ferjax.ops.cells import Cells, mirror

FLIPS = ('exact', 'grid')


def make(
  model: nn.Module,
  *,
  num_classes: int,
  num_poses: int = 0,
  flip: str = 'exact',
  erasing: float = 1.0,
  erasing_scale: Sequence[float] = (0.02, 0.25),
  erasing_ratio: Sequence[float] = (0.3, 3.3),
  independent: bool = True,
) -> Method:
  """Factory.

  Terms: `cross_entropy` of the picture, and `consistency`, the mean over rows, classes and cells of
  the squared difference of both attention maps.

  Args:
    model: pictures f[b, h, w, 3], train -> feature maps of every stage.
    num_classes: C.
    num_poses: Not used.
    flip: How maps of the mirrored picture return: `exact`, by where cells look, without cells that
      have no counterpart; or `grid`, the cells in reverse order (the authors' code).
    erasing: Probability that a rectangle is erased.
    erasing_scale, erasing_ratio: Its area as a share of the picture, and width / height.
    independent: Whether each of both pictures loses a rectangle of its own (the paper's choice for
      noisy labels), or both the same.

  Raises:
    InputError: an unknown name, or a range that is reversed or too large.
  """
  choose('config.method.flip', flip, FLIPS)
  erasings.check('config.method', erasing, erasing_scale, erasing_ratio)
  classifier = softmax.make(model, num_classes=num_classes)
  network = softmax.Classifier(model, num_classes, model.param_dtype)

  def erase(key, image):
    draws = jax.random.uniform(key, (5,), image.dtype)
    return erasings.erase(draws, image, erasing, erasing_scale, erasing_ratio)

  def maps(params, batch_stats, image, kernel):
    """The outputs, attention maps f[b, h, w, C], and the statistics that moved."""
    variables = {'params': params, 'batch_stats': batch_stats}
    outputs, carry = network.apply(variables, image, True, 0.0, mutable=['batch_stats'])
    last_map = outputs.pop('last_map').astype(kernel.dtype)
    return outputs, last_map @ kernel, carry

  def forward(params, extra, batch, keys):
    keys = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, 1)))(keys)
    image, kernel = batch['image'], lax.stop_gradient(params['Dense_0']['kernel'])
    first = jax.vmap(erase)(keys[:, 0], image)
    second = jax.vmap(erase)(keys[:, 1], image) if independent else first
    outputs, seen, carry = maps(params, extra['batch_stats'], first, kernel)
    _, other, carry = maps(params, carry['batch_stats'], second[:, :, ::-1], kernel)
    cells = model.cells(image.shape[2])[-1] if flip == 'exact' else None
    outputs['consistency'] = disagreement(seen, other, cells, image.shape[2])
    return outputs, carry

  def loss(params, extra, outputs, batch, step):
    terms, aux = classifier.loss(params, extra, outputs, batch, step)
    return terms | {'consistency': outputs['consistency'].mean()}, aux

  return classifier._replace(forward=forward, loss=loss)


def disagreement(seen: Array, mirrored: Array, cells: Cells | None, width: int) -> Array:
  """The mean squared difference of attention maps over classes and cells.

  Args:
    seen: f[b, h, w, C], of the pictures.
    mirrored: f[b, h, w, C], of their mirror images.
    cells: Where the cells look; None to reverse their order.
    width: Of the pictures, in pixels.

  Returns:
    f[b], over the columns of cells that have a counterpart.
  """
  valid = np.ones(seen.shape[2], bool)
  if cells is None:
    back = mirrored[:, :, ::-1]
  else:
    back, valid = mirror(mirrored, cells, width)
  difference = jnp.square(seen - back)[:, :, np.flatnonzero(valid)]
  return difference.mean((1, 2, 3))
