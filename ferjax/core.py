"""The type of a method, and the training state."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import flax.struct
import jax
from jax import Array

from ferjax.distributed.parallel import AXIS, example_keys

PyTree = Any
Batch = dict[str, Array]

LEARNED = 'weighting'  # key of learned weights in the parameters

# Keys of a training step in metrics.jsonl other than the terms of its loss.
NO_TERMS = {'step', 'split', 'loss', 'acc', 'l2_grads', 'l2_params', 'l2_updates'}
NO_TERMS |= {'lr', 'images_per_s'}


class Method(NamedTuple):
  """A method: pure functions over explicit state. Only these functions change `extra`.

  Attributes:
    needs: Features for training, beyond image and label; checked before anything is built.
    predict_needs: Features that prediction needs.
    predict_uses: Features that improve prediction if the data set has them.
    derived: {name: (table) -> array of n rows}: further features of a batch. They are made on the
      host from the table of a split, if it has all that the method needs.
    init: (rng, batch, table) -> params, extra. `table` holds host columns of the training rows,
      with label noise.
    forward: (params, extra, batch, keys) -> outputs, carry. Runs the networks on this device's
      share of the batch; one key for each local example. `outputs` are per example and hold
      `logits` f32[b, C] (if there is a classifier) and `embedding` f32[b, d].
    loss: (params, extra, outputs, batch, step) -> terms, aux. Over the global batch, pure;
      terms {name: f32[]}, unweighted. If aux is a dict, its `metrics` {name: f32[]} are logged.
    update: (extra, params, carry, outputs, batch, aux) -> extra. After the optimizer, no gradient.
    predict: (params, extra, batch, delta=None) -> {'logits', 'embedding', ...}, rows of the batch.
      Other scores `<name>_logits` are measured too, against the table's column `<name>` if it
      exists, else against the label; numbers f32[b] are averaged. `delta` is added to the last
      feature map, which is then among the predictions as `last_map` f[b, h, w, d].
    refresh: (epoch, params, extra, table, embed) -> extra. On the host, with NumPy arrays, before
      the plan of an epoch is made; embed() -> f[N, d] predicts the embeddings of the training rows.
    enroll: (params, extra, table, embed) -> extra. Like `refresh`, before every evaluation and
      save: stores what prediction needs from the training rows, such as class means.
    columns: (extra) -> {name: array of N rows}. Further columns for the sampler's table.
    estimates: (extra, label) -> f32[N, C]. The label distributions that the method has estimated
      for the training rows, whose labels are i32[N]; None if it estimates none.
    views: Number of augmented views of each picture in training; above 1, they are the second axis
      of `image` and `landmarks`.
    encoder: Paths in `params` of the parts of the network that sees the whole face, such as
      `features/face`. If it is empty, `params` hold only one network.
    classifier: Path in `params` of the linear layer that makes `logits` of the network's pooled
      last map, such as `Dense_0`; '' if there is none.
  """

  needs: frozenset[str]
  predict_needs: frozenset[str]
  init: Callable[..., tuple[PyTree, PyTree]]
  forward: Callable[..., tuple[PyTree, PyTree]]
  loss: Callable[..., tuple[dict[str, Array], PyTree]]
  update: Callable[..., PyTree]
  predict: Callable[..., dict[str, Array]]
  refresh: Callable[..., PyTree] | None = None
  estimates: Callable[..., Array] | None = None
  views: int = 1
  predict_uses: frozenset[str] = frozenset()
  derived: Mapping[str, Callable[[Mapping[str, Any]], Any]] = MappingProxyType({})
  enroll: Callable[..., PyTree] | None = None
  columns: Callable[..., dict[str, Array]] | None = None
  encoder: tuple[str, ...] = ()
  classifier: str = ''


@flax.struct.dataclass
class TrainState:
  """Everything that changes in training. Checkpoints hold all of it."""

  step: Array  # i32[]
  params: PyTree
  opt_state: PyTree
  extra: PyTree
  rng: Array  # key[]
  weighting: PyTree = ()  # see `terms/weighting.py`


def own(params: PyTree) -> PyTree:
  """The parameters of the method: all except the learned weights of its terms."""
  return {name: value for name, value in params.items() if name != LEARNED}


def labels(batch: Batch) -> Batch:
  """The part of a batch that the loss gets: all except the pictures."""
  return {name: value for name, value in batch.items() if not name.endswith('image')}


def example_outputs(
  method: Method,
  augment: Callable[[Array, Batch], Batch],
  params: PyTree,
  extra: PyTree,
  batch: Batch,
) -> tuple[dict[str, jax.ShapeDtypeStruct], dict[str, jax.ShapeDtypeStruct]]:
  """Names, shapes and types of the outputs and labels that the loss gets, for a global batch.

  Nothing is computed; `params`, `extra` and `batch` may be shapes themselves.
  """

  def run(params, extra, batch):
    keys = example_keys(jax.random.key(0), batch['position'])
    batch = augment(keys, batch)
    outputs, _ = method.forward(params, extra, batch, keys)
    return outputs, labels(batch)

  one_device = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), batch)
  mapped = jax.vmap(run, (None, None, 0), axis_name=AXIS)
  found = jax.eval_shape(mapped, params, extra, one_device)
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), found)


def inside(
  method: Method,
  params_of: Callable[[PyTree], PyTree],
  extra_of: Callable[[PyTree], PyTree],
  with_extra: Callable[[PyTree, PyTree], PyTree],
) -> Method:
  """A method inside a wrapper that stores more in `params` and `extra`.

  Every function except `init` gets the method's own part of them, and its changes are put back. A
  wrapper then replaces the functions that it implements differently. Functions that the method
  lacks stay None.

  Args:
    method: Any method.
    params_of: (params) -> the method's own.
    extra_of: (extra) -> the method's own.
    with_extra: (extra, inner) -> extra with `inner` as the method's own.
  """

  def forward(params, extra, batch, keys):
    return method.forward(params_of(params), extra_of(extra), batch, keys)

  def loss(params, extra, outputs, batch, step):
    return method.loss(params_of(params), extra_of(extra), outputs, batch, step)

  def update(extra, params, carry, outputs, batch, aux):
    inner = method.update(extra_of(extra), params_of(params), carry, outputs, batch, aux)
    return with_extra(extra, inner)

  def predict(params, extra, batch, delta=None):
    return method.predict(params_of(params), extra_of(extra), batch, delta)

  def refresh(epoch, params, extra, table, embed):
    inner = method.refresh(epoch, params_of(params), extra_of(extra), table, embed)
    return with_extra(extra, inner)

  def estimates(extra, label):
    return method.estimates(extra_of(extra), label)

  def enroll(params, extra, table, embed):
    return with_extra(extra, method.enroll(params_of(params), extra_of(extra), table, embed))

  def columns(extra):
    return method.columns(extra_of(extra))

  functions = (forward, loss, update, predict, refresh, estimates, enroll, columns)
  return method._replace(**{f.__name__: f for f in functions if getattr(method, f.__name__)})
