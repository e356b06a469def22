"""Exported programs: ONNX and StableHLO give JAX's outputs, for every method and network."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from onnx_sessions import needs_onnx

from ferjax import config, core
from ferjax.assembly import build
from ferjax.errors import InputError
from ferjax.export import programs
from ferjax.images import augment


def made(name, *, precision='float32', features=(), network=None, **options):
  """The model of a method with a narrow network and random parameters."""
  network = {'name': 'resnet10', 'width': 8, 'output_stride': 32} | (network or {})
  settings = config.base()
  settings.precision = precision
  settings.convolution = 'native'  # as `writer.export` restores a model
  settings.model = network
  settings.method = ml_collections.ConfigDict({'name': name} | options)
  method = build.make_method(settings, 7, 5)
  record = {'config': {'data': {'image_size': 32}}, 'landmarks': 20}
  shapes = {'image': jax.ShapeDtypeStruct((1, 32, 32, 3), np.uint8)}
  shapes['landmarks'] = jax.ShapeDtypeStruct((1, 20, 2), np.float32)
  table = programs.random_inputs(shapes, 1)
  table |= {key: derive(table) for key, derive in method.derived.items()}
  dtype = build.picture_dtype(settings)
  batch = augment.evaluation(jax.tree.map(jnp.asarray, table), dtype)
  rng = np.random.default_rng(0)

  def draw(x):
    if not jnp.issubdtype(x.dtype, jnp.floating):
      return np.ones(x.shape, x.dtype)
    if len(x.shape) < 2:
      return (0.05 + np.abs(rng.normal(0, 0.2, x.shape))).astype(x.dtype)
    return rng.normal(0, np.prod(x.shape[:-1]) ** -0.5, x.shape).astype(x.dtype)

  labels = {'label': np.arange(7)}
  state = jax.eval_shape(lambda: method.init(jax.random.key(0), batch, labels))
  params, extra = jax.tree.map(draw, state)
  state = core.TrainState(0, params, (), extra, None)
  return programs.describe(method, state, record, dtype, features)


HRL = {'groups': 4, 'widths': (8, 8), 'features': ('landmarks',)}
MODELS = {
  'softmax-mobilenet': ('softmax', {'network': {'name': 'mobilenet_v2', 'output_stride': 8}}),
  'triplet-vgg': ('triplet', {'network': {'name': 'vgg13'}}),
  'ldl_alsg-alexnet': ('ldl_alsg', {'network': {'name': 'alexnet'}}),
  'sgm-preact': ('sgm', {'network': {'name': 'preact_resnet18'}}),
  'softmax-face_resnet': ('softmax', {'network': {'name': 'face_resnet29'}}),
  'dgms': ('sgm', {'levels': 3, 'normalise': True}),
  'lanet': ('lanet', {'network': {'output_stride': 8}}),
  'dmlnet': ('dmlnet', {'region_resize': True, 'heads_on': 'embedding'}),
  'rul': ('rul', {}),
  'scn': ('scn', {}),
  'hrl-naive': ('hrl', HRL | {'features': ()}),
  'hrl-dense': ('hrl', HRL | {'branch': 'dense', 'dense_widths': (8, 8), 'naive': False}),
  'hrl-rank': ('hrl', HRL),
  'hrl-random': ('hrl', HRL | {'graph': 'random'}),
  'hrl-delaunay-pixel': ('hrl', HRL | {'graph': 'delaunay', 'offsets': 'pixel'}),
}


@needs_onnx
@pytest.mark.parametrize('name', MODELS)
def test_onnx_is_jax_for_every_method_and_network(name):
  from ferjax.export import onnx

  method, options = MODELS[name]
  model = made(method, **options)
  graph = onnx.model(model.function, model.variables, model.inputs)
  found = programs.check_onnx(graph.SerializeToString(), model)
  assert found['pictures'] == found['same_class'] == 8
  assert set(found['largest_difference']) >= {'logits', 'probabilities', 'embedding'}
  names = {tensor.name for tensor in graph.graph.initializer}
  assert any(name.startswith('params/') for name in names)


@needs_onnx
def test_an_onnx_file_that_differs_from_jax_is_refused():
  from ferjax.export import onnx

  model = made('softmax')
  graph = onnx.model(model.function, model.variables, model.inputs)
  bias = dict(model.variables)
  bias['params/Dense_0/bias'] = bias['params/Dense_0/bias'] + np.float32(3e-4)
  with pytest.raises(InputError, match=r'differs from JAX by 0.0003 in logits'):
    programs.check_onnx(graph.SerializeToString(), model._replace(variables=bias))


@pytest.mark.parametrize('precision', ['float64', 'bfloat16'])
def test_other_precisions(precision):
  with jax.enable_x64(precision == 'float64'):
    model = made('softmax', precision=precision)
    batch = programs.random_inputs(model.inputs, 3)
    wanted = jax.jit(lambda batch: model.function(model.variables, batch))(batch)
    content = bytes(programs.lower(model).serialize())
    found = jax.jit(jax.export.deserialize(bytearray(content)).call)(batch)
    assert found['logits'].dtype == ('float64' if precision == 'float64' else 'float32')
    for name, value in wanted.items():
      np.testing.assert_allclose(found[name], value, rtol=1e-6, atol=1e-6)


def test_the_platform_chooses_the_convolutions():
  """On a CPU, convolutions of 1x1 pixels and of small maps are matrix products."""
  model = made('softmax')
  assert '_platform_index' in programs.lower(model).mlir_module()
  (batch,) = jax.export.symbolic_shape('b')
  inputs = {'image': jax.ShapeDtypeStruct((batch, 32, 32, 3), np.uint8)}
  predict = jax.jit(lambda inputs: model.function(model.variables, inputs))
  native, fast = (
    jax.export.export(predict, platforms=[platform])(inputs).mlir_module()
    for platform in ('cuda', 'cpu')
  )
  assert native.count('stablehlo.convolution(') == 12 > fast.count('stablehlo.convolution(') > 0
