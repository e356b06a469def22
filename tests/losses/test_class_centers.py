import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ferjax.errors import InputError
from ferjax.losses import class_centers

CLASSES, WIDTH = 4, 3
RNG = np.random.default_rng(0)
CENTERS, X = RNG.normal(size=(CLASSES, WIDTH)), RNG.normal(size=(7, WIDTH))
LABEL = np.array([0, 0, 1, 0, 2, 1, 2])  # class 3 is absent
SOME = np.array([True, True, False, True, True, True, False])


def cosine(a, b):
  lengths = np.linalg.norm(a) * np.linalg.norm(b)
  return a @ b / lengths if lengths else 0.0


def slow_center(centers):
  return np.array([SOME[i] * ((X[i] - centers[LABEL[i]]) ** 2).sum() / 2 for i in range(len(X))])


def alike(centers):
  pairs = [(j, k) for j in range(CLASSES) for k in range(CLASSES) if j != k]
  return sum(cosine(centers[j], centers[k]) + 1 for j, k in pairs)


@jax.jit
def center_and_island(x, centers):
  def total(x, centers):
    return class_centers.island(x, jnp.asarray(LABEL), centers, apart=3.0).sum()

  near = class_centers.center(x, LABEL, centers, where=SOME)
  island = class_centers.island(x, LABEL, centers, apart=3.0, where=SOME)
  return near, island, jax.grad(total, (0, 1))(x, centers)


@pytest.mark.parametrize('case', ['all away', 'one at 0', 'all at 0'])
def test_losses_by_a_slow_loop(case):
  centers = {'all away': CENTERS, 'one at 0': CENTERS.copy(), 'all at 0': 0 * CENTERS}[case]
  if case == 'one at 0':
    centers[1] = 0
  with jax.enable_x64(True):
    near, island, gradient = center_and_island(X, centers)
  expected = slow_center(centers)
  np.testing.assert_allclose(near, expected, rtol=1e-12)
  np.testing.assert_allclose(island, expected + SOME * 3 * alike(centers), rtol=1e-12)
  np.testing.assert_allclose(gradient[0], X - centers[LABEL], rtol=1e-12)
  assert np.isfinite(gradient[1]).all()


def slow_step(centers, rate, apart):
  """The update of both papers, class by class; no turn is longer than the centre."""
  moved = centers.copy()
  for j in range(CLASSES):
    rows = [i for i in range(len(X)) if LABEL[i] == j and SOME[i]]
    delta = sum((centers[j] - X[i] for i in rows), np.zeros(WIDTH)) / (1 + len(rows))
    apart_from = np.zeros(WIDTH)
    for k in range(CLASSES):
      if k != j and apart:
        a, b = centers[j], centers[k]
        lengths = np.linalg.norm(a) * np.linalg.norm(b)
        turn = b / lengths - (a @ b) / (lengths * (a @ a)) * a
        apart_from += apart / (CLASSES - 1) * turn
    long, longest = np.linalg.norm(apart_from), np.linalg.norm(centers[j])
    delta = delta + apart_from * (longest / long if long > longest else 1)
    moved[j] -= rate * delta
  return moved


@pytest.mark.parametrize('apart', [0, 0.5, 10.0])
def test_updates_of_centres_by_a_slow_loop(apart):
  made = class_centers.islands(num_classes=CLASSES, rate=0.3, apart=apart)
  if not apart:
    made = class_centers.centers(num_classes=CLASSES, rate=0.3)
  outputs, batch = {'embedding': X}, {'label': LABEL, 'where': SOME}
  with jax.enable_x64(True):
    params, state = made.init(jax.random.key(0), outputs, batch)
    assert params == {} and state.dtype == np.float64 and not state.any()
    update = jax.jit(made.update)
    found, first = (update(start, outputs, batch) for start in (jnp.asarray(CENTERS), state))
    losses = jax.jit(made.apply)(params, found, outputs, batch)
  expected = slow_step(CENTERS, 0.3, apart)
  np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
  np.testing.assert_allclose(first, slow_step(0 * CENTERS, 0.3, 0), rtol=1e-12)  # none at 0 turns
  near = slow_center(expected)
  np.testing.assert_allclose(losses, near + SOME * apart * alike(expected), rtol=1e-9)


def test_centres_move_against_the_gradient_of_their_similarity():
  with jax.enable_x64(True):
    slope = np.zeros_like(CENTERS)
    for place in np.ndindex(CENTERS.shape):
      step = np.zeros_like(CENTERS)
      step[place] = 1e-6
      slope[place] = (alike(CENTERS + step) - alike(CENTERS - step)) / 2e-6
    found = class_centers.apart_from_others(jnp.asarray(CENTERS))
  np.testing.assert_allclose(found, -slope / 2 / (CLASSES - 1), rtol=1e-7, atol=1e-9)


def test_centres_reach_the_means_and_move_apart():
  """With fixed embeddings, the centres become the means; the second part moves them apart."""
  outputs, batch = {'embedding': jnp.array([[2.0, 0.1], [2.0, -0.1]])}, {'label': jnp.array([0, 1])}
  angles = {}
  for name in ('centers', 'islands'):
    made = getattr(class_centers, name)(num_classes=2)
    _, state = made.init(jax.random.key(0), outputs, batch)
    update = jax.jit(made.update)
    for _ in range(40):
      state = update(state, outputs, batch)
    angles[name] = np.degrees(np.arccos(cosine(*np.asarray(state, float))))
    if name == 'centers':
      np.testing.assert_allclose(state, outputs['embedding'], atol=1e-4)
  assert angles['centers'] < 6 and angles['islands'] > 90


@pytest.mark.parametrize('scale', [1e-30, 1e-12, 1e-4, 1.0, 1e3])
def test_centres_of_islands_stay_as_near_as_the_embeddings(scale):
  x = jnp.asarray(scale * X, jnp.float32)
  outputs, batch = {'embedding': x}, {'label': jnp.asarray(LABEL, jnp.int32)}
  made = class_centers.islands(num_classes=CLASSES)
  update = jax.jit(made.update)
  params, state = made.init(jax.random.key(0), outputs, batch)
  for _ in range(30):
    state = update(state, outputs, batch)
    assert np.abs(state).max() < 4 * max(np.abs(x).max(), 1e-30)
  loss, gradient = jax.value_and_grad(lambda c: class_centers.island(x, batch['label'], c).sum())(
    state
  )
  assert np.isfinite(loss) and np.abs(gradient).max() < 1e9


def test_centres_of_another_width_are_errors():
  for centers in (jnp.zeros((CLASSES, 1)), jnp.zeros(WIDTH)):
    with pytest.raises(InputError, match=r'for embeddings \[7, 3\]: give f32\[C, 3\]'):
      class_centers.center(jnp.asarray(X), LABEL, centers)


def test_numbers_out_of_range_are_errors():
  for options in ({'num_classes': 0}, {'num_classes': 3, 'rate': 1.5}):
    with pytest.raises(
      InputError, match='num_classes=. and rate=.*: give num_classes of at least 1'
    ):
      class_centers.centers(**options)
  with pytest.raises(InputError, match='apart=-1: it must be at least 0'):
    class_centers.islands(num_classes=3, apart=-1)
