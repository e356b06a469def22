"""Losses of embeddings around a centre for each class. The centres are updated in every step."""

import jax.numpy as jnp
from jax import Array, lax

from ferjax.errors import InputError
from ferjax.losses import rows
from ferjax.losses.stateful import StatefulLoss
from ferjax.ops.distances import unit_length


def center(embedding: Array, label: Array, centers: Array, *, where: Array | None = None) -> Array:
  """|x - c_y|^2 / 2, half the squared distance of each row from the centre of its class.

  Reference: Wen et al., "A Discriminative Feature Learning Approach for Deep Face Recognition",
  ECCV 2016.

  Args:
    embedding: f[b, d].
    label: i32[b].
    centers: f[C, d].
    where: bool[b], rows that count; the others give 0.

  Returns:
    f[b].

  Raises:
    InputError: other shapes or types.

  Example:
    >>> import jax.numpy as jnp
    >>> centers = jnp.array([[0.0, 0.0], [1.0, 1.0]])
    >>> print(center(jnp.array([[3.0, 4.0], [1.0, 3.0]]), jnp.array([0, 1]), centers))
    [12.5  2. ]
  """
  embedding, label = rows.take(embedding, label, where)
  if centers.ndim != 2 or centers.shape[1] != embedding.shape[1]:
    raise InputError(
      f'a loss got centres {list(centers.shape)} for embeddings {list(embedding.shape)}: give '
      f'f32[C, {embedding.shape[1]}], a row for each class'
    )
  return rows.counted(jnp.square(embedding - centers[label]).sum(-1) / 2, where)


def island(
  embedding: Array,
  label: Array,
  centers: Array,
  *,
  apart: float = 10.0,
  where: Array | None = None,
) -> Array:
  """Center loss plus the similarity of the directions of the centres.

  |x - c_y|^2 / 2 + lambda_1 sum_j sum_{k != j} (cos(c_j, c_k) + 1). The second part is the same for
  every row; the paper sums the first over a batch, and adds the second once. Reference: Cai et al.,
  "Island Loss for Learning Discriminative Features in Facial Expression Recognition", FG 2018.

  Args:
    embedding: f[b, d].
    label: i32[b].
    centers: f[C, d]; the cosine with a centre goes to 0 if its length is below about 1e-6.
    apart: lambda_1, at least 0.
    where: bool[b], rows that count; the others give 0.

  Returns:
    f[b].

  Raises:
    InputError: other shapes or types.

  Example:
    >>> import jax.numpy as jnp
    >>> centers = jnp.array([[0.0, 2.0], [3.0, 0.0]])
    >>> print(island(jnp.array([[0.0, 2.0]]), jnp.array([0]), centers, apart=10.0))
    [20.]
  """
  own = center(embedding, label, centers, where=where)
  count = len(centers)
  direction = unit_length(rows.wide(centers))
  cosines = jnp.matmul(direction, direction.T, precision='highest')
  alike = jnp.where(jnp.eye(count, dtype=bool), 0, cosines + 1)
  return rows.counted(own + apart * alike.sum(), where)


def towards_rows(
  centers: Array, embedding: Array, label: Array, *, where: Array | None = None
) -> Array:
  """The update of the centres for center loss: sum over a class's n rows of (x - c) / (1 + n).

  Reference: Wen et al., 2016 (with the sign of a descent step).

  Args:
    centers: f[C, d].
    embedding: f[b, d].
    label: i32[b].
    where: bool[b], rows that count; None for all.

  Returns:
    f[C, d], zeros for a class without rows.

  Example:
    >>> import jax.numpy as jnp
    >>> print(towards_rows(jnp.zeros((2, 1)), jnp.array([[3.0], [6.0]]), jnp.array([1, 1])))
    [[0.]
     [3.]]
  """
  embedding, label = rows.take(embedding, label, where)
  member = label == jnp.arange(len(centers))[:, None]
  if where is not None:
    member &= where
  count = member.sum(1, keepdims=True)
  total = jnp.matmul(member.astype(embedding.dtype), embedding, precision='highest')
  return (total - count * centers) / (1 + count)


def apart_from_others(centers: Array) -> Array:
  """The update of the centres for the second part of island loss: each turns away from the others.

  -1 / (C - 1) times the sum over k != j of the gradient of cos(c_j, c_k) in c_j, which is
  (u_k - cos(c_j, c_k) u_j) / |c_j| with directions u. Reference: Cai et al., 2018, the update of
  its centres.

  Args:
    centers: f[C, d].

  Returns:
    f[C, d], zeros for a centre at 0.

  Example:
    >>> import jax.numpy as jnp, numpy as np
    >>> print(np.asarray(apart_from_others(jnp.array([[0.0, 2.0], [3.0, 0.0]]))).round(4) + 0.0)
    [[-0.5     0.    ]
     [ 0.     -0.3333]]
  """
  largest = jnp.abs(centers).max(-1, keepdims=True)
  direction = unit_length(centers / jnp.where(largest > 0, largest, 1))
  others = direction.sum(0) - direction
  along = (others * direction).sum(-1, keepdims=True)
  turn = (others - along * direction) * lax.rsqrt(_squares(centers) + 1e-12)
  return jnp.where(largest > 0, -turn, 0) / max(len(centers) - 1, 1)


def centers(*, num_classes: int, rate: float = 0.5) -> StatefulLoss:
  """Makes center loss with its centres, which start at 0 and are updated in every step.

  The update is c += rate * `towards_rows`. The loss is `center`; the state is the centres, f[C, d].

  Args:
    num_classes: C.
    rate: alpha, the step size of the centres, within 0..1.

  Raises:
    InputError: a number is out of range.
  """
  return _following(num_classes, rate, center, towards_rows)


def islands(*, num_classes: int, rate: float = 0.5, apart: float = 10.0) -> StatefulLoss:
  """Makes island loss with its centres, which start at 0 and are updated in every step.

  The update is c += rate * (`towards_rows` + apart * `apart_from_others`). The second part is
  proportional to 1 / |c|. Its length is limited to |c| (ours): without the limit, small embeddings
  push their centres ever farther away. It has no gradient for the network; it acts only through the
  centres. The loss is `island`; the state is the centres, f[C, d].

  Args:
    num_classes: C.
    rate: alpha, within 0..1.
    apart: lambda_1, at least 0.

  Raises:
    InputError: a number is out of range.
  """
  if apart < 0:
    raise InputError(f'island loss with apart={apart}: it must be at least 0')

  def loss(embedding, label, centers, *, where=None):
    return island(embedding, label, centers, apart=apart, where=where)

  def move(centers, embedding, label, *, where=None):
    near = towards_rows(centers, embedding, label, where=where)
    turn = apart * apart_from_others(centers)
    too_long = _squares(turn) > _squares(centers)
    longest = jnp.sqrt(_squares(centers) / jnp.where(too_long, _squares(turn), 1))
    return near + turn * jnp.where(too_long, longest, 1)

  return _following(num_classes, rate, loss, move)


def _following(num_classes, rate, loss, move):
  if num_classes < 1 or not 0 <= rate <= 1:
    raise InputError(
      f'centres with num_classes={num_classes} and rate={rate}: give num_classes of at least 1, '
      'and a rate within 0..1'
    )

  def init(rng, outputs, batch):
    embedding = outputs['embedding']
    dtype = jnp.promote_types(embedding.dtype, jnp.float32)
    return {}, jnp.zeros((num_classes, embedding.shape[-1]), dtype)

  def apply(params, state, outputs, batch):
    return loss(outputs['embedding'], batch['label'], state, where=batch.get('where'))

  def update(state, outputs, batch):
    embedding = lax.stop_gradient(outputs['embedding'])
    return state + rate * move(state, embedding, batch['label'], where=batch.get('where'))

  return StatefulLoss(init, apply, update)


def _squares(x):
  return jnp.square(x).sum(-1, keepdims=True)
