"""Converts a JAX function to an ONNX graph, node by node, from its jaxpr.

It supports the operations of this project's networks and methods, for any number of pictures. No
maintained converter fits: jax2onnx needs orbax-checkpoint < 0.11.37 and ferjax needs 0.12.8; others
need TensorFlow.

Constants are computed while the graph is built. Broadcasts and transpositions are delayed. An array
of n equal rows may be stored as one row, because ONNX's elementwise operators broadcast like NumPy.
Between convolutions, feature maps keep the order of ONNX's convolutions, [n, c, h, w].
"""

import hashlib
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import onnx
from jax import lax
from jax.extend.core import Literal
from onnx import helper, numpy_helper

from ferjax.errors import InputError

OPSET, IR_VERSION = 18, 8  # from late 2022; nearly every runtime reads them
BATCH = 'b'


class Value(NamedTuple):
  """An array of the graph.

  Attributes:
    shape: The stored shape: of the same rank as the array, or () for any rank. Axes of size 1 may
      represent longer axes.
    name: Name of a node's output or of an input of the graph; for a constant, a name to use.
    array: The value of a constant, else None.
    order: Where the axes are transposed: for each axis of the array, the axis of the tensor `name`.
  """

  shape: tuple[Any, ...]
  name: str = ''
  array: Any = None
  order: tuple[int, ...] | None = None


def model(
  function: Callable[[Any, dict[str, jax.Array]], dict[str, jax.Array]],
  variables: Any,
  inputs: Mapping[str, jax.ShapeDtypeStruct],
) -> onnx.ModelProto:
  """The graph of a function of a batch, checked by `onnx.checker`.

  Args:
    function: (variables, inputs) -> outputs by name. The first axis of every output is the batch.
    variables: A pytree of arrays, which are stored in the graph under their paths.
    inputs: Shapes and dtypes of one row, [1, ...]. The first axis is free in the graph.

  Raises:
    InputError: a primitive has no ONNX node here, or none for arrays of such shapes or dtypes. The
      message gives its name.
  """
  (batch,) = jax.export.symbolic_shape(BATCH)
  specs = {k: jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype) for k, x in inputs.items()}
  jaxpr, found = jax.make_jaxpr(function, return_shape=True)(variables, specs)
  graph = _Graph(batch, next(iter(inputs)))
  flat, _ = jax.tree_util.tree_flatten_with_path(variables)
  given = [
    Value(np.shape(x), jax.tree_util.keystr(path, simple=True, separator='/'), x)
    for path, x in flat
  ]
  given += [Value(specs[name].shape, name) for name in sorted(specs)]
  results = graph.run(jaxpr.jaxpr, jaxpr.consts, given)
  for name, value, out in zip(sorted(found), results, jaxpr.jaxpr.outvars, strict=True):
    graph.nodes.append(
      helper.make_node('Identity', [graph.name(graph.full(value, out.aval))], [name], name)
    )

  def described(specs):
    return [
      helper.make_tensor_value_info(name, _type(x.dtype), [_dimension(d) for d in x.shape])
      for name, x in specs.items()
    ]

  made = helper.make_graph(
    graph.nodes,
    'predict',
    described(specs),
    described({name: found[name] for name in sorted(found)}),
    list(graph.initialisers.values()),
  )
  made = helper.make_model(
    made,
    opset_imports=[helper.make_opsetid('', OPSET)],
    ir_version=IR_VERSION,
    producer_name='ferjax',
  )
  try:
    onnx.checker.check_model(made, full_check=True)
  except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
    raise _unsupported(f'values of invalid types ({str(error).splitlines()[0][:200]})') from error
  return made


def _dimension(size):
  return size if isinstance(size, int) else 'batch'


def _type(dtype):
  return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


def _unsupported(what):
  return InputError(
    f'the model computes {what}, which ferjax/export/onnx.py does not support: export without ONNX '
    '(--onnx=no)'
  )


class _Graph:
  """Nodes and initialisers of a graph under construction."""

  def __init__(self, batch, source):
    self.batch, self.source = batch, source
    self.nodes, self.initialisers, self.transposed = [], {}, {}

  def run(self, jaxpr, consts, given):
    """Adds nodes for the equations of a jaxpr; returns its outputs."""
    known = dict(zip(jaxpr.constvars, (Value(np.shape(c), '', c) for c in consts), strict=True))
    known |= dict(zip(jaxpr.invars, given, strict=True))

    def read(atom):
      if isinstance(atom, Literal):
        return Value(np.shape(atom.val), '', np.asarray(atom.val, atom.aval.dtype))
      return known[atom]

    for equation in jaxpr.eqns:
      results = self._equation(equation, [read(atom) for atom in equation.invars])
      known.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]

  def _equation(self, equation, values):
    name, params = equation.primitive.name, equation.params
    for key in ('jaxpr', 'call_jaxpr'):
      if key in params:
        inner = params[key]
        consts = getattr(inner, 'consts', ())
        return self.run(getattr(inner, 'jaxpr', inner), consts, values)
    if name == 'platform_index':
      return [Value((), '', np.int32(params['platforms'].index(None)))]
    if name == 'cond' and values[0].array is not None:
      branch = params['branches'][int(values[0].array)]
      return self.run(branch.jaxpr, branch.consts, values[1:])
    if name == 'broadcast_in_dim':
      return [self._broadcast(equation, values)]
    constant = all(value.array is not None for value in values)
    if constant and all(_is_static(v.aval.shape) for v in (*equation.invars, *equation.outvars)):
      return _computed(equation, values)
    if name in ELEMENTWISE:
      return [self.elementwise(ELEMENTWISE[name], values)]
    if name in WRITTEN:
      return [WRITTEN[name](self, values, equation)]
    if name not in OPERATIONS:
      raise _unsupported(f"the primitive '{name}'")
    whole = [self.full(v, atom.aval) for v, atom in zip(values, equation.invars, strict=True)]
    results = OPERATIONS[name](self, whole, equation)
    return results if isinstance(results, list) else [results]

  def _broadcast(self, equation, values):
    """Inserts axes of size 1 at the right places. No values are repeated."""
    (value, *_), params = values, equation.params
    held = [1] * len(params['shape'])
    if value.shape:
      for axis, size in zip(params['broadcast_dimensions'], value.shape, strict=True):
        held[axis] = size
    return self.reshape(value, held)

  def node(self, kind, values, shape, **attributes):
    """Adds a node and returns its output; the inputs are used as stored."""
    names = [self.name(value) for value in values]
    out = f'{kind}_{len(self.nodes)}'
    self.nodes.append(helper.make_node(kind, names, [out], out, **attributes))
    return Value(tuple(shape), out)

  def elementwise(self, kind, values, **attributes):
    """As `node`; if all inputs have the same order of axes, the output keeps it."""
    shape = _joint_shape(values)
    orders = {value.order for value in values if value.array is None and value.shape}
    order = orders.pop() if len(orders) == 1 else None
    if order is None:
      return self.node(kind, values, shape, **attributes)
    held = np.argsort(order)
    given = [
      self.transpose(value, held) if len(value.shape) == len(order) else value for value in values
    ]
    return self.transpose(self.node(kind, given, [shape[i] for i in held], **attributes), order)

  def integers(self, *numbers):
    return Value((len(numbers),), '', np.array(numbers, np.int64))

  def name(self, value):
    """The name of a value in the graph. A constant becomes an initialiser; equal constants share
    one."""
    if value.array is None and value.order is None:
      return value.name
    if value.array is None:
      key = (value.name, value.order)
      if key not in self.transposed:
        held = Value(value.shape, value.name)
        node = self.node('Transpose', [held], value.shape, perm=value.order)
        self.transposed[key] = node.name
      return self.transposed[key]
    array = np.asarray(value.array)
    array = np.ascontiguousarray(array).reshape(array.shape)
    digest = hashlib.sha256(array.tobytes()).hexdigest()
    key = (digest, array.shape, str(array.dtype))
    if key not in self.initialisers:
      taken = {tensor.name for tensor in self.initialisers.values()}
      name = f'constant_{len(taken)}'
      if value.name:
        name = value.name if value.name not in taken else f'{value.name}_{len(taken)}'
      self.initialisers[key] = numpy_helper.from_array(array, name)
    return self.initialisers[key].name

  def reshape(self, value, shape):
    shape = tuple(shape)
    if shape == value.shape:
      return value
    if value.array is not None:
      return Value(shape, value.name, np.asarray(value.array).reshape(shape))
    sizes = [size if isinstance(size, int) else -1 for size in shape]
    if sizes.count(-1) > 1:
      raise _unsupported(f'an array of the shape {shape}')
    return self.node('Reshape', [value, self.integers(*sizes)], shape)

  def transpose(self, value, order):
    order, shape = [int(i) for i in order], [value.shape[i] for i in order]
    if value.array is not None:
      return Value(tuple(shape), value.name, np.asarray(value.array).transpose(order))
    if value.order is not None:
      order = [value.order[i] for i in order]
    same = order == list(range(len(order)))
    return Value(tuple(shape), value.name, None, None if same else tuple(order))

  def full(self, value, aval):
    """The value with all rows of its abstract value; nothing is left to broadcast."""
    shape = tuple(aval.shape)
    if value.shape == shape:
      return value
    value = self.reshape(value, value.shape or (1,) * len(shape))
    if value.array is not None and _is_static(shape):
      return Value(shape, value.name, np.broadcast_to(np.asarray(value.array), shape))
    if value.shape == shape:
      return value
    wanted = [1 if a == b else b for a, b in zip(value.shape, shape, strict=True)]
    return self.node('Expand', [value, self._sizes(wanted)], shape)

  def _sizes(self, shape):
    """i64[rank]: a shape. If it contains the batch size, it is computed in the graph."""
    if _is_static(shape):
      return self.integers(*shape)
    source = Value((), self.source)
    batch = self.node('Shape', [source], (1,), start=0, end=1)
    parts = []
    for size in shape:
      if isinstance(size, int):
        parts.append(self.integers(size))
        continue
      times = size // self.batch
      if not isinstance(times, int) or times * self.batch != size:
        raise _unsupported(f'an array of the shape {tuple(shape)}')
      parts.append(batch if times == 1 else self.node('Mul', [batch, self.integers(times)], (1,)))
    return self.node('Concat', parts, (len(shape),), axis=0)

  def cast(self, value, dtype):
    return self.elementwise('Cast', [value], to=_type(dtype))


def _is_static(shape):
  return all(isinstance(size, int) for size in shape)


def _computed(equation, values):
  """The outputs of an equation with constant inputs, computed by JAX."""
  arrays = []
  for value, atom in zip(values, equation.invars, strict=True):
    array = value.array
    if value.shape != atom.aval.shape:
      array = np.broadcast_to(array, atom.aval.shape)
    keys = jax.dtypes.issubdtype(atom.aval.dtype, jax.dtypes.prng_key)
    arrays.append(array if keys else jax.numpy.asarray(array, atom.aval.dtype))
  results = equation.primitive.bind(*arrays, **equation.params)
  results = results if equation.primitive.multiple_results else [results]
  return [Value(tuple(result.shape), '', result) for result in results]


def _joint_shape(values):
  rank = max(len(value.shape) for value in values)
  shapes = [value.shape for value in values if len(value.shape) == rank]
  return tuple(next((s for s in sizes if s != 1), 1) for sizes in zip(*shapes, strict=True))


ELEMENTWISE = {
  'abs': 'Abs',
  'add': 'Add',
  'add_any': 'Add',
  'ceil': 'Ceil',
  'cos': 'Cos',
  'copy': 'Identity',
  'copy_p': 'Identity',
  'div': 'Div',
  'eq': 'Equal',
  'erf': 'Erf',
  'exp': 'Exp',
  'floor': 'Floor',
  'ge': 'GreaterOrEqual',
  'gt': 'Greater',
  'le': 'LessOrEqual',
  'log': 'Log',
  'logistic': 'Sigmoid',
  'lt': 'Less',
  'min': 'Min',
  'mul': 'Mul',
  'neg': 'Neg',
  'pow': 'Pow',
  'sign': 'Sign',
  'sin': 'Sin',
  'sqrt': 'Sqrt',
  'stop_gradient': 'Identity',
  'tanh': 'Tanh',
}


def _logical(kind):
  def write(graph, values, equation):
    if equation.outvars[0].aval.dtype != bool:
      raise _unsupported(f"the primitive '{equation.primitive.name}' of integers")
    return graph.elementwise(kind, values)

  return write


def _rsqrt(graph, values, equation):
  root = graph.elementwise('Sqrt', values)
  return graph.elementwise('Reciprocal', [root])


def _square(graph, values, equation):
  return graph.elementwise('Mul', values * 2)


def _integer_pow(graph, values, equation):
  if equation.params['y'] == 2:
    return _square(graph, values, equation)
  power = Value((), '', np.float32(equation.params['y']))
  return graph.elementwise('Pow', [values[0], power])


def _ne(graph, values, equation):
  equal = graph.elementwise('Equal', values)
  return graph.elementwise('Not', [equal])


def _is_finite(graph, values, equation):
  bad = [graph.elementwise(kind, values) for kind in ('IsInf', 'IsNaN')]
  return graph.elementwise('Not', [graph.elementwise('Or', bad)])


def _rem(graph, values, equation):
  return graph.elementwise('Mod', values, fmod=1)


def _clamp(graph, values, equation):
  low, x, high = values
  x = graph.elementwise('Max', [x, low])
  return graph.elementwise('Min', [x, high])


def _select(graph, values, equation):
  which, no, *yes = values
  if len(yes) != 1:
    raise _unsupported('a choice among more than two arrays')
  if equation.outvars[0].aval.dtype != bool:
    return graph.elementwise('Where', [which, yes[0], no])
  numbers = [graph.cast(value, np.int32) for value in (yes[0], no)]
  return graph.cast(graph.elementwise('Where', [which, *numbers]), bool)


def _convert(graph, values, equation):
  return graph.cast(values[0], equation.params['new_dtype'])


def _max(graph, values, equation):
  constants = [value.array for value in values if value.array is not None]
  if constants and not np.any(np.asarray(constants[0])):
    if jax.numpy.issubdtype(equation.outvars[0].aval.dtype, jax.numpy.floating):
      return graph.elementwise('Relu', [value for value in values if value.array is None])
  return graph.elementwise('Max', values)


def _sub(graph, values, equation):
  """A subtraction of a constant becomes an addition, which runtimes can merge into the convolution
  before it."""
  x, y = values
  if y.array is None or not jax.numpy.issubdtype(y.array.dtype, jax.numpy.floating):
    return graph.elementwise('Sub', values)
  return graph.elementwise('Add', [x, y._replace(array=-np.asarray(y.array), name='')])


WRITTEN = {  # further elementwise functions: (graph, values as stored, equation) -> value
  'and': _logical('And'),
  'clamp': _clamp,
  'convert_element_type': _convert,
  'integer_pow': _integer_pow,
  'is_finite': _is_finite,
  'max': _max,
  'ne': _ne,
  'not': _logical('Not'),
  'or': _logical('Or'),
  'rem': _rem,
  'rsqrt': _rsqrt,
  'select_n': _select,
  'square': _square,
  'sub': _sub,
}


def _reshape(graph, values, equation):
  return graph.reshape(values[0], equation.outvars[0].aval.shape)


def _transpose(graph, values, equation):
  return graph.transpose(values[0], equation.params['permutation'])


def _concatenate(graph, values, equation):
  shape, axis = equation.outvars[0].aval.shape, int(equation.params['dimension'])
  return graph.node('Concat', values, shape, axis=axis)


def _slice(graph, values, equation):
  (x,), params = values, equation.params
  steps = params['strides'] or (1,) * len(x.shape)
  places = zip(params['start_indices'], params['limit_indices'], steps, x.shape, strict=True)
  cut = [(i, *place[:3]) for i, place in enumerate(places) if place != (0, place[3], 1, place[3])]
  if not cut:
    return x
  if not all(_is_static(place) for place in cut):
    raise _unsupported('a part of the batch')
  axes, starts, ends, steps = zip(*cut, strict=True)
  given = [graph.integers(*numbers) for numbers in (starts, ends, axes, steps)]
  return graph.node('Slice', [x, *given], equation.outvars[0].aval.shape)


def _reverse(graph, values, equation):
  (x,), axes = values, equation.params['dimensions']
  starts, ends = [-1] * len(axes), [np.iinfo(np.int64).min] * len(axes)
  given = [graph.integers(*numbers) for numbers in (starts, ends, axes, starts)]
  return graph.node('Slice', [x, *given], x.shape)


def _pad(graph, values, equation):
  x, fill = values
  low, high, interior = zip(*equation.params['padding_config'], strict=True)
  if any(interior):
    raise _unsupported('padding between elements')
  pads = graph.integers(*low, *high)
  return graph.node('Pad', [x, pads, fill], equation.outvars[0].aval.shape)


def _convolution(graph, values, equation):
  (x, w), params = values, equation.params
  places = params['dimension_numbers']
  if math.prod(params['lhs_dilation']) * params['batch_group_count'] != 1:
    raise _unsupported('a convolution of dilated pictures or of groups of pictures')
  x, w = graph.transpose(x, places.lhs_spec), graph.transpose(w, places.rhs_spec)
  low, high = zip(*params['padding'], strict=True)
  if min(*low, *high) < 0:
    raise _unsupported('a convolution with negative padding')
  out, order = equation.outvars[0].aval.shape, places.out_spec
  y = graph.node(
    'Conv',
    [x, w],
    [out[i] for i in order],
    kernel_shape=w.shape[2:],
    strides=params['window_strides'],
    pads=[*low, *high],
    dilations=params['rhs_dilation'],
    group=params['feature_group_count'],
  )
  return graph.transpose(y, np.argsort(order))


def _max_pool(graph, values, equation):
  (x,), params = values, equation.params
  windows = ('window_dimensions', 'window_strides', 'window_dilation', 'base_dilation')
  size, strides, dilation, base = (params[name] for name in windows)
  ends = {params[name][i] for name in windows for i in (0, -1)}
  if len(size) != 4 or ends != {1} or math.prod(base) != 1:
    raise _unsupported('max-pooling of other axes than height and width')
  low, high = zip(*params['padding'][1:3], strict=True)
  out = equation.outvars[0].aval.shape
  y = graph.node(
    'MaxPool',
    [graph.transpose(x, (0, 3, 1, 2))],
    [out[i] for i in (0, 3, 1, 2)],
    kernel_shape=size[1:3],
    strides=strides[1:3],
    pads=[*low, *high],
    dilations=dilation[1:3],
  )
  return graph.transpose(y, (0, 2, 3, 1))


def _product(graph, values, equation):
  x, y = values
  (x_sum, y_sum), (x_batch, y_batch) = equation.params['dimension_numbers']
  shape, last = equation.outvars[0].aval.shape, len(x.shape) - 1
  if not x_batch and len(y.shape) == 2 and tuple(x_sum) == (last,) and tuple(y_sum) == (0,):
    return graph.node('MatMul', [x, y], shape)
  letters = iter('abcdefghijklmnopqrstuvwxyz')
  x_names = [next(letters) for _ in x.shape]
  y_names = [next(letters) for _ in y.shape]
  for i, j in zip((*x_sum, *x_batch), (*y_sum, *y_batch), strict=True):
    y_names[j] = x_names[i]
  out = [x_names[i] for i in x_batch]
  for names, used in ((x_names, (*x_sum, *x_batch)), (y_names, (*y_sum, *y_batch))):
    out += [name for i, name in enumerate(names) if i not in used]
  text = f'{"".join(x_names)},{"".join(y_names)}->{"".join(out)}'
  return graph.node('Einsum', [x, y], shape, equation=text)


def _reduction(kind):
  def write(graph, values, equation):
    axes = graph.integers(*map(int, equation.params['axes']))
    return graph.node(kind, [values[0], axes], equation.outvars[0].aval.shape, keepdims=0)

  return write


def _place(kind):
  def write(graph, values, equation):
    shape, (axis,) = equation.outvars[0].aval.shape, equation.params['axes']
    found = graph.node(kind, values, shape, axis=int(axis), keepdims=0)
    return graph.cast(found, equation.params['index_dtype'])

  return write


def _sort(graph, values, equation):
  """Sorts by the first operand. TopK keeps the order of equal values."""
  keys, *others = values
  axis = equation.params['dimension']
  if equation.params['num_keys'] != 1:
    raise _unsupported('a sort by several keys')
  names = [f'{kind}_{len(graph.nodes)}' for kind in ('sorted', 'order')]
  given = [graph.name(keys), graph.name(graph.integers(keys.shape[axis]))]
  graph.nodes.append(
    helper.make_node('TopK', given, names, names[0], axis=axis, largest=0, sorted=1)
  )
  order = Value(keys.shape, names[1])
  moved = [graph.node('GatherElements', [x, order], x.shape, axis=axis) for x in others]
  return [Value(keys.shape, names[0]), *moved]


def _gather(graph, values, equation):
  """Gathers whole rows, columns or elements by index, for each picture or the same for all."""
  (x, index), params = values, equation.params
  numbers, sizes = params['dimension_numbers'], params['slice_sizes']
  shape = equation.outvars[0].aval.shape
  batching = [int(i) for i in numbers.operand_batching_dims]
  indexed = [int(i) for i in numbers.start_index_map]
  if index.array is not None and len(index.shape) == 1:
    return _part(graph, x, np.asarray(index.array), indexed, sizes, shape)
  rest = [i for i in range(len(x.shape)) if i not in (*batching, *indexed)]
  places = [int(i) for i in numbers.start_indices_batching_dims]
  whole = all(sizes[i] == x.shape[i] for i in rest)
  if not whole or sorted(map(int, numbers.collapsed_slice_dims)) != sorted(indexed):
    raise _unsupported('a gather of parts of rows')
  x = graph.transpose(x, [*batching, *indexed, *rest])
  last = len(index.shape) - 1
  leading = places + [i for i in range(last) if i not in places]
  index = graph.transpose(index, [*leading, last])
  limits = np.array([x.shape[len(batching) + i] - 1 for i in range(len(indexed))], np.int64)
  index = graph.cast(index, np.int64)
  inside = graph.node('Min', [index, Value(limits.shape, '', limits)], index.shape)
  inside = graph.node('Max', [inside, Value((), '', np.int64(0))], index.shape)
  found_shape = (*index.shape[:-1], *(x.shape[len(batching) + len(indexed) :]))
  found = graph.node('GatherND', [x, inside], found_shape, batch_dims=len(batching))
  if params['mode'] == lax.GatherScatterMode.FILL_OR_DROP:
    same = graph.node('Equal', [index, inside], index.shape)
    same = [graph.cast(same, np.int32), graph.integers(-1)]
    every = graph.cast(graph.node('ReduceMin', same, index.shape[:-1], keepdims=0), bool)
    held = (*index.shape[:-1], *(1 for _ in rest))
    good = graph.reshape(every, held)
    fill = Value((), '', np.asarray(params['fill_value'], equation.outvars[0].aval.dtype))
    found = graph.node('Where', [good, found, fill], found_shape)
  offsets = [int(i) for i in numbers.offset_dims]
  others = [i for i in range(len(shape)) if i not in offsets]
  order = [others[i] for i in leading] + offsets
  return graph.transpose(found, np.argsort(order))


def _part(graph, x, starts, axes, sizes, shape):
  """A gather at one constant position: a slice."""
  ends = [int(start) + sizes[i] for start, i in zip(starts, axes, strict=True)]
  if min(starts) < 0 or any(end > x.shape[i] for end, i in zip(ends, axes, strict=True)):
    raise _unsupported('a slice that exceeds its array')
  given = [graph.integers(*map(int, numbers)) for numbers in (starts, ends, axes)]
  held = list(x.shape)
  for i in axes:
    held[i] = sizes[i]
  return graph.reshape(graph.node('Slice', [x, *given], held), shape)


OPERATIONS = {  # (graph, values with all rows, equation) -> value, or a list of values
  'argmax': _place('ArgMax'),
  'argmin': _place('ArgMin'),
  'concatenate': _concatenate,
  'conv_general_dilated': _convolution,
  'dot_general': _product,
  'expand_dims': _reshape,
  'gather': _gather,
  'pad': _pad,
  'reduce_max': _reduction('ReduceMax'),
  'reduce_min': _reduction('ReduceMin'),
  'reduce_prod': _reduction('ReduceProd'),
  'reduce_sum': _reduction('ReduceSum'),
  'reduce_window_max': _max_pool,
  'reshape': _reshape,
  'rev': _reverse,
  'slice': _slice,
  'sort': _sort,
  'squeeze': _reshape,
  'transpose': _transpose,
}
