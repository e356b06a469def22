import jax
import jax.numpy as jnp
import numpy as np
import pytest
from device_counts import check_ten_steps_in_float64

from ferjax.distributed.parallel import AXIS, example_keys
from ferjax.errors import InputError
from ferjax.methods import eac, softmax
from ferjax.models import resnet
from ferjax.ops.cells import Cells

CLASSES, BATCH = 3, 4


def narrow(dtype=jnp.float32):
  """Maps of 8x8 and 4x4 cells at 32 px."""
  return resnet.ResNet(resnet.BasicBlock, (1, 1), 4, dtype=dtype, param_dtype=dtype)


def started(**options):
  method = eac.make(narrow(), num_classes=CLASSES, **options)
  return method, *method.init(jax.random.key(0), {'image': jnp.zeros((1, 33, 33, 3))}, {})


def forward(method, params, extra, image):
  def run(image, keys):
    return method.forward(params, extra, {'image': image}, keys)

  keys = example_keys(jax.random.key(1), jnp.arange(len(image)))
  found = jax.jit(jax.vmap(run, axis_name=AXIS))(image[None], keys[None])
  return jax.tree.map(lambda x: x[0], found)


def pictures(size=33):
  return jnp.asarray(np.random.default_rng(0).normal(size=(BATCH, size, size, 3)), jnp.float32)


def test_the_disagreement_by_a_slow_loop():
  rng = np.random.default_rng(0)
  seen, other = (rng.normal(size=(2, 2, 4, CLASSES)).astype('f4') for _ in range(2))
  by_grid = eac.disagreement(jnp.asarray(seen), jnp.asarray(other), None, 32)
  np.testing.assert_allclose(by_grid, np.square(seen - other[:, :, ::-1]).mean((1, 2, 3)), 1e-5)
  cells = Cells(8, 0.0)  # cells at pixels 0, 8, 16, 24; their mirror images at 31, 23, 15, 7
  found = eac.disagreement(jnp.asarray(seen), jnp.asarray(other), cells, 32)
  squares = []
  for x, left, share in ((1, 2, 0.875), (2, 1, 0.875), (3, 0, 0.875)):
    back = (1 - share) * other[:, :, left] + share * other[:, :, left + 1]
    squares.append(np.square(seen[:, :, x] - back))  # column 0 has none: 31 is past cell 3.5
  np.testing.assert_allclose(found, np.mean(squares, (0, 2, 3)), rtol=1e-5)


def test_a_mirrored_network_is_consistent_but_for_the_erasing():
  """With 33 px, cells lie symmetrically: a picture equal to its mirror image has equal maps."""
  symmetric = pictures()
  symmetric = symmetric + symmetric[:, :, ::-1]
  method, params, extra = started(erasing=0.0)
  outputs, _ = forward(method, params, extra, symmetric)
  mirrored_params = jax.tree.map(  # kernels that are their own mirror images
    lambda x: (x + x[:, ::-1]) / 2 if x.ndim == 4 else x, params
  )
  outputs_of_mirrored, _ = forward(method, mirrored_params, extra, symmetric)
  assert (outputs['consistency'] > 1e-4).all()
  np.testing.assert_allclose(outputs_of_mirrored['consistency'], 0, atol=1e-9)
  any_face, _ = forward(method, mirrored_params, extra, pictures())
  np.testing.assert_allclose(any_face['consistency'], 0, atol=1e-9)
  erased = eac.make(narrow(), num_classes=CLASSES)
  outputs, _ = forward(erased, mirrored_params, extra, pictures())
  assert (outputs['consistency'] > 1e-5).all()
  same = eac.make(narrow(), num_classes=CLASSES, independent=False)
  outputs, _ = forward(same, mirrored_params, extra, pictures())
  np.testing.assert_allclose(outputs['consistency'], 0, atol=1e-9)


def test_the_classifier_gets_no_gradient_of_the_consistency():
  method, params, extra = started()

  def consistency(params):
    return forward(method, params, extra, pictures())[0]['consistency'].mean()

  grads = jax.grad(consistency)(params)
  assert not np.any(grads['Dense_0']['kernel']) and np.any(grads['model']['conv1']['kernel'])


def test_the_statistics_move_with_the_pictures_and_then_with_their_mirror_images():
  method, params, extra = started(erasing=0.0)
  baseline = softmax.make(narrow(), num_classes=CLASSES)
  _, first = forward(baseline, params, extra, pictures())
  _, both = forward(baseline, params, first, pictures()[:, :, ::-1])
  _, carry = forward(method, params, extra, pictures())
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), carry, both)


def test_the_same_on_any_number_of_devices():
  def make(dtype):
    return eac.make(narrow(dtype), num_classes=7)

  weights = {'consistency': 5.0}
  metrics, _ = check_ten_steps_in_float64([(8, 'pmap'), (4, 'shard_map')], make, weights)
  assert metrics[-1]['consistency'] > 0


@pytest.mark.parametrize(
  'options, message',
  [
    ({'flip': 'exakt'}, "Did you mean 'exact'"),
    ({'erasing': 1.2}, 'config.method.erasing=1.2 lies outside'),
    ({'erasing_scale': (0.3, 0.1)}, 'give \\(low, high\\)'),
    ({'erasing_scale': (0.02,)}, 'give \\(low, high\\)'),
    ({'erasing_scale': (0.1, 1.5)}, 'at most the whole picture'),
  ],
)
def test_options_that_cannot_work_are_refused(options, message):
  with pytest.raises(InputError, match=message):
    started(**options)


def test_the_only_cell_of_a_map_is_its_own_counterpart():
  seen, other = jnp.array([[[[1.0, 2.0]]]]), jnp.array([[[[4.0, 2.0]]]])
  for size in (32, 64, 96):
    assert eac.disagreement(seen, other, Cells(64, 33.0), size).tolist() == [4.5]
