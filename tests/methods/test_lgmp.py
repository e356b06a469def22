import jax
import jax.numpy as jnp
import numpy as np
import pytest
from slow_loops import slow_sample

from ferjax.methods.hrl import lgmp
from ferjax.ops import landmark_graph
from ferjax.ops.cells import PIXELS, Cells

H, W, K = 6, 7, 5


def drawn(count, seed=0):
  """A map, landmarks (some are outside of it), random walks, their graph, and clusters."""
  rng = np.random.default_rng(seed)
  feature_map = jnp.asarray(rng.normal(size=(H, W, K)), jnp.float32)
  points = jnp.asarray(rng.uniform(-2, 8, (count, 2)), jnp.float32)
  walk = jnp.asarray(rng.normal(size=(count, 2)), jnp.float32)
  graph = landmark_graph.uniform_rank(points)
  cluster = jnp.asarray(rng.integers(0, count, (H, W)))
  return feature_map, points, walk, graph, cluster


def test_point_pooling_by_a_slow_loop():
  feature_map, points, *_ = map(np.asarray, drawn(12))
  steps = [(x, y) for x in (-1, 0, 1) for y in (-1, 0, 1)]
  expected = [
    np.mean([slow_sample(feature_map, x + dx, y + dy) for dx, dy in steps], 0) for x, y in points
  ]
  np.testing.assert_allclose(lgmp.pool_points(feature_map, points), expected, atol=1e-5)


def test_cells_belong_to_the_most_similar_landmark():
  rng = np.random.default_rng(0)
  feature_map, nodes = rng.normal(size=(H, W, K)), rng.normal(size=(9, K))
  distance = np.linalg.norm(feature_map[:, :, None] - nodes, axis=-1)
  nodes[4] = nodes[2]  # of equals the lower index
  distance[..., 4] = distance[..., 2]
  cluster = jax.jit(lgmp.assign)(feature_map.astype('f4'), nodes.astype('f4'))
  np.testing.assert_array_equal(cluster, distance.argmin(-1))


@pytest.mark.parametrize('count', [9, 17, 50, 68])
def test_collapsed_propagation_is_the_literal_one(count):
  """Values and gradients by map and walks, landmarks outside the map included."""
  feature_map, points, walk, graph, cluster = drawn(count)
  cotangent = jnp.asarray(np.random.default_rng(1).normal(size=(H, W, K)), jnp.float32)

  def value_and_gradients(send):
    def call(feature_map, walk):
      return send(feature_map, points, walk, graph, cluster)

    value, vjp = jax.vjp(call, feature_map, walk)
    return value, vjp(cotangent)

  ours = jax.jit(lambda: value_and_gradients(lgmp.propagate))()
  literal = jax.jit(lambda: value_and_gradients(lgmp.propagate_literally))()
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), ours, literal)
  assert all(np.abs(g).max() > 0.1 for g in ours[1])


def test_the_literal_form_by_a_slow_loop():
  """With a walk for each landmark and with one for each receiving cell."""
  feature_map, points, walk, graph, cluster = map(np.asarray, drawn(9))
  cell_walk = np.random.default_rng(2).normal(size=(H, W, 2)).astype('f4')
  for steps, what in ((walk, 'landmark'), (cell_walk, 'pixel')):
    expected = feature_map.copy()
    for row in range(H):
      for column in range(W):
        for node in graph[cluster[row, column]]:
          step = steps[node] if what == 'landmark' else steps[row, column]
          expected[row, column] += slow_sample(feature_map, *(points[node] + step))
    found = jax.jit(lgmp.propagate_literally)(feature_map, points, steps, graph, cluster)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_merging_is_one_convolution_of_the_joined_maps():
  rng = np.random.default_rng(0)
  large = jnp.asarray(rng.normal(size=(2, 6, 6, 3)), jnp.float32)
  small = jnp.asarray(rng.normal(size=(2, 3, 3, 5)), jnp.float32)
  merge = lgmp.Merge(4, jnp.float32, jnp.float32)
  cells = [Cells(8, 3.0), Cells(16, 5.0)]
  merged, variables = merge.init_with_output(jax.random.key(0), [large, small], cells)
  kernels = variables['params']
  places = [(8 * i + 3.0 - 5) / 16 for i in range(6)]  # the cells of the large map in the small one
  enlarged = [[[slow_sample(m, x, y) for x in places] for y in places] for m in np.asarray(small)]
  joined = jnp.concatenate([large, jnp.asarray(enlarged)], -1)
  kernel = jnp.concatenate([kernels['reduce1']['kernel'], kernels['reduce2']['kernel']])
  np.testing.assert_allclose(merged, joined @ kernel, atol=1e-5)
  assert merged.shape == (2, 6, 6, 4)


def module(**options):
  kinds = {'dtype': jnp.float32, 'param_dtype': jnp.float32}
  given = {'pool_size': 3, 'offsets': 'landmark', 'normalise': True, 'pooled': False}
  return lgmp.MessagePropagation(6, **(given | options), **kinds)


def batched():
  feature_map, points, _, graph, _ = drawn(9)
  return feature_map[None], points[None], graph[None]


@pytest.mark.parametrize('offsets', ['landmark', 'pixel'])
def test_one_module_is_the_equations(offsets):
  """(own features + those of eight nodes) W / 9, with walks predicted from features."""
  inputs = batched()
  layer = module(offsets=offsets)
  variables = layer.init(jax.random.key(0), *inputs)
  walks = variables['params']['random_walk']
  assert not walks['kernel'].any() and walks['kernel'].shape == (K, 2)
  walks['kernel'] = jnp.asarray(np.random.default_rng(0).normal(size=(K, 2)), jnp.float32)
  feature_map, points, graph = (x[0] for x in inputs)

  @jax.jit
  def by_hand():
    pooled = lgmp.pool_points(feature_map, points)
    steps = (pooled if offsets == 'landmark' else feature_map) @ walks['kernel']
    cluster = lgmp.assign(feature_map, pooled)
    total = lgmp.propagate_literally(feature_map, points, steps, graph, cluster)
    return total / 9 @ variables['params']['weight']['kernel']

  @jax.jit
  def found():
    others = ({}, {'pooled': True}, {'normalise': False})
    return [module(offsets=offsets, **how).apply(variables, *inputs)[0] for how in others]

  expected, (plain, mean, summed) = by_hand(), found()
  np.testing.assert_allclose(plain, expected, atol=1e-5)
  np.testing.assert_allclose(mean, expected.mean((0, 1)), atol=1e-5)
  np.testing.assert_allclose(summed, 9 * expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('activations', [False, True])
def test_the_cascade_of_two_modules(activations):
  """Stages 2 and 3, then 4; landmarks in cells of each merged map; the classifier on the mean."""
  rng = np.random.default_rng(3)
  maps = [
    rng.normal(size=(2, *s)).astype('f4') for s in ((12, 12, 3), (6, 6, 4), (3, 3, 5), (3, 3, 6))
  ]
  landmarks = jnp.asarray(rng.uniform(-6, 54, (2, 12, 2)), jnp.float32)
  graph = jax.vmap(landmark_graph.uniform_rank)(landmarks)
  kinds = {'dtype': jnp.float32, 'param_dtype': jnp.float32}
  head = lgmp.LandmarkGraphHead(4, (7, 8), 3, 'landmark', True, activations, **kinds)
  cells = [Cells(4, 0.0), Cells(8, 0.0), Cells(16, 0.0), Cells(16, 0.0)]
  inputs = maps, cells, landmarks, graph, False
  logits, variables = jax.jit(lambda: head.init_with_output(jax.random.key(0), *inputs))()
  parts = {name: {'params': part} for name, part in variables['params'].items()}
  points = landmarks / 8
  options = {'pool_size': 3, 'offsets': 'landmark', 'normalise': True, 'pooled': False}

  def step(number, width, merged):
    strides = [Cells(8, 0.0), Cells(16, 0.0)]
    x = lgmp.Merge(width, **kinds).apply(parts[f'merge{number}'], merged, strides)
    propagation = lgmp.MessagePropagation(width, **options, **kinds)
    x = propagation.apply(parts[f'lgmp{number}'], x, points, graph)
    # a BatchNorm without a step behind it divides by the root of 1 + 1e-5
    return jnp.maximum(x, 0) * (1 + 1e-5) ** -0.5 if activations else x

  last = step(2, 8, [step(1, 7, [maps[1], maps[2]]), maps[3]]).mean((1, 2))
  classifier = variables['params']['classifier']
  expected = last @ classifier['kernel'] + classifier['bias']
  np.testing.assert_allclose(logits, expected, atol=1e-4)


@pytest.mark.parametrize('case', ['same place', 'far outside', 'flat map', 'one cell'])
def test_degenerate_faces_have_finite_gradients(case):
  feature_map, points, graph = batched()
  if case == 'same place':
    points = jnp.full_like(points, 3.0)
    graph = jax.vmap(landmark_graph.uniform_rank)(points)
  elif case == 'far outside':
    points = points + 1e6
  elif case == 'flat map':
    feature_map = jnp.zeros_like(feature_map)
  else:
    feature_map = feature_map[:, :1, :1]
  layer = module()
  variables = layer.init(jax.random.key(0), feature_map, points, graph)

  def total(variables, feature_map):
    return (layer.apply(variables, feature_map, points, graph) ** 2).sum()

  gradients = jax.jit(jax.grad(total, (0, 1)))(variables, feature_map)
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))


def parameters(head):
  maps = [
    jnp.zeros((1, size, size, c)) for size, c in ((56, 256), (28, 512), (14, 1024), (7, 2048))
  ]
  inputs = (maps, [PIXELS] * 4, jnp.zeros((1, 50, 2)), jnp.zeros((1, 50, 8), int), False)
  shapes = jax.eval_shape(lambda: head.init(jax.random.key(0), *inputs))
  return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def test_parameters_are_those_of_table_5():
  """65 MB for LGMP and 100 MB for the dense layers, on a ResNet-50 at 224 px."""
  kinds = {'dtype': jnp.float32, 'param_dtype': jnp.float32}
  graph_head = lgmp.LandmarkGraphHead(7, (1536, 2048), 3, 'landmark', True, False, **kinds)
  dense_head = lgmp.LandmarkDenseHead(7, 224, (2048, 1024), 3, **kinds)
  assert round(4 * parameters(graph_head) / 1e6) == 65
  assert 100 <= round(4 * parameters(dense_head) / 1e6) <= 104
