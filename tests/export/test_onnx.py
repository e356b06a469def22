import jax
import jax.numpy as jnp
import numpy as np
import pytest
from onnx_sessions import needs_onnx, run_onnx


@needs_onnx
@pytest.mark.parametrize(
  'function',
  [
    lambda v, x: x['image'].astype(jnp.float32)[:, :, 0, 0],
    lambda v, x: x['image'][:, ::-1, 1:7:2, 0].astype(jnp.int32) % 7 - 3,
    lambda v, x: jnp.sort(x['image'].astype(jnp.float32) / 7, axis=1)[:, :, 0, 0],
    lambda v, x: jnp.take(x['image'].astype(jnp.float32), v['order'], axis=2).sum((1, 3)),
    lambda v, x: jnp.take_along_axis(x['image'][:, 0] * 1.0, x['image'][:, 0, :9] % 32, 1),
    lambda v, x: jnp.pad(x['image'][..., 0] * 1.0, ((0, 0), (1, 2), (0, 0)), constant_values=5),
    lambda v, x: jnp.where(x['image'][..., 0] > 99, jnp.inf, -1.0) * v['scale'],
    lambda v, x: jnp.isfinite(jnp.log(x['image'][..., 0] - 99.5)).astype(jnp.float32),
    lambda v, x: jnp.einsum('bhwc,hk->bkc', x['image'] / 255, v['table'][:1].repeat(32, 0)),
    lambda v, x: jnp.broadcast_to(v['table'], (x['image'].shape[0], 9, 4)).max(2),
    lambda v, x: x['image'][:, 0, :9, 0] / 9.0 @ v['table'] @ v['table'].T + v['table'].ravel()[:9],
    lambda v, x: jnp.concatenate([f(x['image'] * 1.0, (2, 3)) for f in (jnp.min, jnp.max)], 1) ** 3,
    lambda v, x: jax.nn.logsumexp(x['image'][..., 0] / 9.0, -1) + jnp.linalg.norm(v['table']),
    lambda v, x: jnp.arange(32).reshape(1, 32, 1) * (x['image'][..., 1] // 3).astype(jnp.int32),
  ],
)
def test_nodes_compute_what_jax_does(function):
  from ferjax.export import onnx

  rng = np.random.default_rng(0)
  variables = {
    'order': rng.permutation(32).astype(np.int32),
    'table': rng.normal(size=(9, 4)).astype(np.float32),
    'scale': np.float32(2),
  }
  inputs = {'image': jax.ShapeDtypeStruct((1, 32, 32, 3), np.uint8)}

  def predict(variables, batch):
    return {'y': function(variables, batch)}

  graph = onnx.model(predict, variables, inputs)
  for rows in (1, 4):
    image = rng.integers(0, 256, (rows, 32, 32, 3)).astype(np.uint8)
    found = run_onnx(graph.SerializeToString(), {'image': image})['y']
    wanted = np.asarray(predict(variables, {'image': jnp.asarray(image)})['y'])
    assert found.shape == wanted.shape and found.dtype == wanted.dtype
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
