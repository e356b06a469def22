import jax
import jax.numpy as jnp
import numpy as np

from ferjax import models
from ferjax.distributed.parallel import AXIS
from ferjax.models import batch_statistics


def correlation(a, b):
  return np.corrcoef(np.ravel(a), np.ravel(b))[0, 1]


def test_training_mode_computes_what_evaluation_mode_does():
  """With a scale and a shift for BatchNorm whose statistics are unknown: mean 0 and variance 1."""
  rng = np.random.default_rng(0)
  model = models.resnet10(width=4)
  image = jnp.asarray(rng.normal(size=(16, 32, 32, 3)), jnp.float32)
  variables = jax.jit(model.init, static_argnums=2)(jax.random.key(0), image, False)

  def moved(path, leaf):
    near_zero = path[-1].key in ('bias', 'mean')
    drawn = rng.normal(0, 0.2, leaf.shape) if near_zero else rng.uniform(0.2, 1, leaf.shape)
    return leaf if leaf.ndim > 1 else drawn.astype(np.float32)

  variables = jax.tree_util.tree_map_with_path(moved, variables)

  @jax.jit
  def run(variables):
    def train(x):
      return model.apply(variables, x, True, mutable=['batch_stats'])[0][-1]

    return model.apply(variables, image, False)[-1], jax.vmap(train, axis_name=AXIS)(image[None])[0]

  moments = batch_statistics.measure(model, variables, [image[:8], image[8:]])
  assert moments.keys() >= {'bn1', 'layer2_0/bn2', 'layer2_0/downsample_1'} and len(moments) == 12
  evaluated, trained = run(variables)
  assert correlation(evaluated, trained) < 0.9
  evaluated_then, trained_then = run(batch_statistics.install(variables, moments))
  scale = float(evaluated.max())
  np.testing.assert_allclose(evaluated_then, evaluated, atol=1e-5 * scale)
  np.testing.assert_allclose(trained_then, evaluated, atol=1e-4 * scale)


def test_moments_are_over_all_batches():
  rng = np.random.default_rng(0)
  model = models.alexnet(width=2)
  image = jnp.asarray(rng.normal(1, 2, size=(4, 32, 32, 3)), jnp.float32)
  variables = jax.jit(model.init, static_argnums=2)(jax.random.key(0), image, False)
  mean, variance = batch_statistics.measure(model, variables, [image[:2], image[2:]])['bn1']
  kernel = variables['params']['conv1']['kernel']
  seen = jax.lax.conv_general_dilated(
    image, kernel, (4, 4), ((2, 2), (2, 2)), dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )
  np.testing.assert_allclose(mean, np.asarray(seen, np.float64).mean((0, 1, 2)), rtol=1e-4)
  np.testing.assert_allclose(variance, np.asarray(seen, np.float64).var((0, 1, 2)), rtol=1e-4)
