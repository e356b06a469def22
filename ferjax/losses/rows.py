"""Functions that all losses share: the precision of the computation, and the rows that count."""

import jax.numpy as jnp
from jax import Array

from ferjax.errors import InputError


def wide(x: Array) -> Array:
  """Converts any float narrower than float32 to float32; float64 is unchanged."""
  x = jnp.asarray(x)
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def take(x: Array, label: Array, where: Array | None = None) -> tuple[Array, Array]:
  """Checks rows and labels, and sets rows that do not count to zeros.

  Args:
    x: f[b, d], logits or embeddings of any float type.
    label: i[b].
    where: bool[b], rows that count; None for all.

  Returns:
    f[b, d] in the precision of `wide`, and i[b].

  Raises:
    InputError: a shape or type is wrong.
  """
  x, label = jnp.asarray(x), jnp.asarray(label)
  if x.ndim != 2 or not jnp.issubdtype(x.dtype, jnp.floating):
    raise InputError(
      f'a loss got {_named(x)}: give logits or an embedding f32[b, d], a row for each face'
    )
  if label.shape != x.shape[:1] or not jnp.issubdtype(label.dtype, jnp.integer):
    raise InputError(
      f'a loss got labels {_named(label)} for {_named(x)}: give class numbers i32[{len(x)}]'
    )
  x = wide(x)
  if where is None:
    return x, label
  check_where(where, len(x))
  return jnp.where(where[:, None], x, 0), jnp.where(where, label, 0)


def check_where(where: Array, count: int) -> None:
  """Checks that a mask is bool[count].

  Raises:
    InputError: it is not. The message gives its type and shape.
  """
  if where.shape != (count,) or where.dtype != bool:
    raise InputError(
      f'a loss got where={_named(where)}: give bool[{count}], True for rows that count'
    )


def counted(losses: Array, where: Array | None = None) -> Array:
  """The losses f[b], with 0 for rows that do not count."""
  return losses if where is None else jnp.where(where, losses, 0)


def pairs(label: Array, where: Array | None = None) -> tuple[Array, Array]:
  """Masks of pairs of different rows, with the same label and with different labels.

  Args:
    label: i[b].
    where: bool[b], rows that count; None for all.

  Returns:
    same, other: bool[b, b]; a row forms no pair with itself or with a row that does not count.

  Example:
    >>> import jax.numpy as jnp
    >>> same, other = pairs(jnp.array([0, 0, 1, 1]), jnp.array([True, True, True, False]))
    >>> print(same.sum(1), other.sum(1))
    [1 1 0 0] [1 1 2 0]
  """
  pair = ~jnp.eye(len(label), dtype=bool)
  if where is not None:
    pair &= where[:, None] & where[None]
  same = label[:, None] == label[None]
  return pair & same, pair & ~same


def _named(x):
  return f'{x.dtype}{list(x.shape)}'
