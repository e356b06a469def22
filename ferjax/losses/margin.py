"""Softmax over cosines with a margin for the true class (CosFace, ArcFace)."""

import math

import jax
import jax.numpy as jnp
from jax import Array

from ferjax.errors import InputError
from ferjax.losses import rows
from ferjax.losses.cross_entropy import log_likelihood
from ferjax.losses.stateful import StatefulLoss
from ferjax.ops.distances import unit_length


def cosines(embedding: Array, kernel: Array) -> Array:
  """cos of the angles between embeddings f[b, d] and the columns of a kernel f[d, C]: f[b, C].

  The cosine with a zero vector is 0.

  Example:
    >>> import jax.numpy as jnp, numpy as np
    >>> found = cosines(jnp.array([[3.0, 4.0]]), jnp.array([[2.0, 0.0], [0.0, 1.0]]))
    >>> print(np.asarray(found).round(4))
    [[0.6 0.8]]
  """
  embedding, kernel = rows.wide(embedding), rows.wide(kernel)
  return jnp.matmul(unit_length(embedding), unit_length(kernel.T).T, precision='highest')


def cosface(
  cosine: Array,
  label: Array,
  *,
  scale: float = 64.0,
  margin: float = 0.35,
  where: Array | None = None,
) -> Array:
  """Cross-entropy of s cos(theta_c), with s (cos(theta_y) - m) for the true class.

  Reference: Wang et al., "CosFace: Large Margin Cosine Loss for Deep Face Recognition", CVPR 2018.

  Args:
    cosine: f[b, C], see `cosines`.
    label: i32[b].
    scale: s, above 0. With a large margin and a small scale, no row can be classified well.
    margin: m, at least 0.
    where: bool[b], rows that count; the others give 0.

  Returns:
    f[b], nats.

  Raises:
    InputError: a number out of range, or other shapes or types.

  Example:
    >>> import jax.numpy as jnp, numpy as np
    >>> found = cosface(jnp.array([[0.5, 0.2]]), jnp.array([0]), scale=10.0, margin=0.3)
    >>> print(np.asarray(found).round(4))
    [0.6931]
  """
  _check(scale, margin, math.inf)
  return _of_moved(lambda true: true - margin, cosine, label, scale, where)


def arcface(
  cosine: Array,
  label: Array,
  *,
  scale: float = 64.0,
  margin: float = 0.5,
  where: Array | None = None,
) -> Array:
  """Cross-entropy of s cos(theta_c), with s cos(theta_y + m) for the true class.

  If theta_y + m is pi or more, where its cosine would rise again, it is replaced by
  cos(theta_y) - m sin(m), as in the authors' code. So the loss always grows with the angle.
  Reference: Deng et al., "ArcFace: Additive Angular Margin Loss for Deep Face Recognition", CVPR
  2019.

  Args:
    cosine: f[b, C], see `cosines`.
    label: i32[b].
    scale: s, above 0.
    margin: m, radians within 0..pi.
    where: bool[b], rows that count; the others give 0.

  Returns:
    f[b], nats.

  Raises:
    InputError: a number out of range, or other shapes or types.

  Example:
    >>> import jax.numpy as jnp, numpy as np
    >>> cosine = jnp.cos(jnp.array([[0.4, 0.9]]))
    >>> print(np.asarray(arcface(cosine, jnp.array([0]), scale=10.0, margin=0.5)).round(4))
    [0.6931]
  """
  _check(scale, margin, math.pi)

  def moved(true):
    squared_sine = 1 - jnp.square(true)
    off_axis = squared_sine > 0
    sine = jnp.where(off_axis, jnp.sqrt(jnp.where(off_axis, squared_sine, 1)), 0)
    farther = true * math.cos(margin) - sine * math.sin(margin)
    return jnp.where(true > -math.cos(margin), farther, true - margin * math.sin(margin))

  return _of_moved(moved, cosine, label, scale, where)


def cosface_head(*, num_classes: int, scale: float = 64.0, margin: float = 0.35) -> StatefulLoss:
  """Makes `cosface` on the embedding, with its own class weights {'kernel': f[d, C]}.

  Args:
    num_classes: C.
    scale, margin: See `cosface`.

  Raises:
    InputError: a number is out of range.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> head = cosface_head(num_classes=3)
    >>> outputs, batch = {'embedding': jnp.ones((2, 5))}, {'label': jnp.array([0, 2])}
    >>> params, state = head.init(jax.random.key(0), outputs, batch)
    >>> params['kernel'].shape, head.apply(params, state, outputs, batch).shape
    ((5, 3), (2,))
  """
  _check(scale, margin, math.inf)
  return _head(num_classes, cosface, scale, margin)


def arcface_head(*, num_classes: int, scale: float = 64.0, margin: float = 0.5) -> StatefulLoss:
  """Makes `arcface` on the embedding, with its own class weights {'kernel': f[d, C]}.

  Args:
    num_classes: C.
    scale, margin: See `arcface`.

  Raises:
    InputError: a number is out of range.
  """
  _check(scale, margin, math.pi)
  return _head(num_classes, arcface, scale, margin)


def _head(num_classes, loss, scale, margin):
  if num_classes < 1:
    raise InputError(f'a margin head with num_classes={num_classes}: it must be at least 1')

  def init(rng, outputs, batch):
    embedding = outputs['embedding']
    dtype = jnp.promote_types(embedding.dtype, jnp.float32)
    shape = (embedding.shape[-1], num_classes)
    return {'kernel': jax.nn.initializers.glorot_normal()(rng, shape, dtype)}, ()

  def apply(params, state, outputs, batch):
    where = batch.get('where')
    embedding, label = rows.take(outputs['embedding'], batch['label'], where)
    cosine = cosines(embedding, params['kernel'])
    return loss(cosine, label, scale=scale, margin=margin, where=where)

  def update(state, outputs, batch):
    return state

  return StatefulLoss(init, apply, update)


def _of_moved(move, cosine, label, scale, where):
  """Cross-entropy of the scaled cosines, where `move` changes that of the true class."""
  cosine, label = rows.take(cosine, label, where)
  true = jnp.take_along_axis(cosine, label[:, None], axis=-1)
  is_true = label[:, None] == jnp.arange(cosine.shape[1])
  logits = scale * jnp.where(is_true, move(true), cosine)
  return rows.counted(-log_likelihood(logits, label), where)


def _check(scale, margin, most):
  if scale <= 0 or not 0 <= margin <= most:
    raise InputError(
      f'softmax with a margin: scale={scale} must be above 0, margin={margin} within 0..{most:.4g}'
    )
