import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ferjax.errors import InputError
from ferjax.losses import triplet

FORMS = {
  'relu': lambda x: max(x, 0.0),
  'softplus': lambda x: np.log1p(np.exp(x)),
  'none': lambda x: x,
}


def drawn(seed, rows=12, classes=3, nuisances=3):
  rng = np.random.default_rng(seed)
  z = rng.normal(size=(rows, 4)).astype(np.float32)
  label, nuisance = rng.integers(0, classes, rows), rng.integers(-1, nuisances, rows)
  return z, label, nuisance


def slow_distance(z):
  return [[float(((a - b) ** 2).sum()) for b in z.astype(np.float64)] for a in z.astype(np.float64)]


def slow_batch_hard(z, label, nuisance, margin, hinge, anchor):
  """Sum of losses and number of anchors."""
  distance, losses = slow_distance(z), []
  for i in range(len(z)):
    positives, negatives = [], []
    for j in range(len(z)):
      if min(nuisance[i], nuisance[j]) < 0:
        continue
      if label[j] == label[i] and nuisance[j] != nuisance[i]:
        positives.append(distance[i][j])
      if label[j] != label[i] and nuisance[j] == nuisance[i]:
        negatives.append(distance[i][j])
    if positives and negatives and anchor[i]:
      losses.append(FORMS[hinge](margin + max(positives) - min(negatives)))
  return sum(losses), len(losses)


@pytest.mark.parametrize('hinge', FORMS)
def test_batch_hard_by_a_double_loop(hinge):
  counts = set()
  for seed in range(8):
    classes = 1 + seed % 4
    z, label, nuisance = drawn(seed, classes=classes, nuisances=1 + seed % 3)
    anchor = np.arange(len(z)) % 5 != seed % 5
    distance = triplet.squared_distances(jnp.asarray(z))
    masks = triplet.nuisance_masks(jnp.asarray(label), jnp.asarray(nuisance))
    for which in (np.ones(len(z), bool), anchor):
      total, count = slow_batch_hard(z, label, nuisance, 0.3, hinge, which)
      given = None if which.all() else jnp.asarray(which)
      for reduction, expected in (('sum', total), ('mean', total / max(count, 1))):
        found = triplet.batch_hard(
          distance, *masks, 0.3, hinge=hinge, reduction=reduction, anchor=given
        )
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
      counts.add(count)
  assert 0 in counts and len(counts) > 4


def test_batch_hard_by_hand():
  """On a line at 0, 1, 3. The first two have the same class and different poses; the third has
  another class and the pose of the first."""
  distance = triplet.squared_distances(jnp.array([[0.0], [1.0], [3.0]]))
  np.testing.assert_allclose(distance, [[0, 1, 9], [1, 0, 4], [9, 4, 0]])
  masks = triplet.nuisance_masks(jnp.array([0, 0, 1]), jnp.array([0, 1, 0]))
  found = triplet.batch_hard(distance, *masks, 0.2, hinge='none', reduction='sum')
  np.testing.assert_allclose(found, 0.2 + 1 - 9, rtol=1e-6)
  hard = triplet.batch_hard(distance, *triplet.class_masks(jnp.array([0, 0, 1])), 4.0)
  np.testing.assert_allclose(hard, (0 + 1) / 2, rtol=1e-6)  # relu(4 + 1 - 9), relu(4 + 1 - 4)


@pytest.mark.parametrize('reduction', ['sum', 'mean'])
def test_semi_hard_by_a_triple_loop(reduction):
  fallbacks = 0
  for seed in range(6):
    z, label, _ = drawn(seed, classes=1 + seed % 4)
    distance, losses = slow_distance(z), []
    for i in range(len(z)):
      negatives = [distance[i][n] for n in range(len(z)) if label[n] != label[i]]
      for p in range(len(z)):
        if p == i or label[p] != label[i] or not negatives:
          continue
        farther = [d for d in negatives if d > distance[i][p]]
        fallbacks += not farther
        chosen = min(farther) if farther else max(negatives)
        losses.append(max(0.0, 0.5 + distance[i][p] - chosen))
    expected = sum(losses) / (1 if reduction == 'sum' else max(len(losses), 1))
    found = triplet.semi_hard(
      triplet.squared_distances(jnp.asarray(z)),
      *triplet.class_masks(jnp.asarray(label)),
      0.5,
      reduction=reduction,
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
  assert fallbacks > 5


@pytest.mark.parametrize('hinge', ['relu', 'softplus'])
def test_all_active_by_a_triple_loop(hinge):
  counts = set()
  for seed in range(8):
    z, label, nuisance = drawn(seed, classes=1 + seed % 4, nuisances=1 + seed % 3)
    masks = triplet.nuisance_masks(jnp.asarray(label), jnp.asarray(nuisance))
    positive, negative = map(np.asarray, masks)
    anchor = np.arange(len(z)) % 5 != seed % 5
    distance, losses = slow_distance(z), []
    for i in np.flatnonzero(anchor):
      for p in np.flatnonzero(positive[i]):
        for n in np.flatnonzero(negative[i]):
          if 0.3 + distance[i][p] - distance[i][n] > 0:
            losses.append(FORMS[hinge](0.3 + distance[i][p] - distance[i][n]))
    for reduction, expected in (('sum', sum(losses)), ('mean', sum(losses) / max(len(losses), 1))):
      found = triplet.all_active(
        triplet.squared_distances(jnp.asarray(z)),
        *masks,
        0.3,
        hinge=hinge,
        reduction=reduction,
        anchor=jnp.asarray(anchor),
      )
      np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    counts.add(len(losses))
  assert 0 in counts and max(counts) > 20


def test_semi_hard_counts_the_given_anchors_only():
  z, label, _ = drawn(3)
  distance = triplet.squared_distances(jnp.asarray(z))
  masks = triplet.class_masks(jnp.asarray(label))
  anchor = np.arange(len(z)) < 4
  parts = [
    triplet.semi_hard(distance, *masks, 0.5, reduction='sum', anchor=jnp.asarray(rows))
    for rows in (anchor, ~anchor)
  ]
  whole = triplet.semi_hard(distance, *masks, 0.5, reduction='sum')
  np.testing.assert_allclose(sum(parts), whole, rtol=1e-5)
  assert min(parts) > 0


def test_mean_distance_by_hand():
  distance = triplet.squared_distances(jnp.array([[0.0], [1.0], [3.0]]))
  np.testing.assert_allclose(triplet.mean_distance(distance), (1 + 9 + 4) / 3, rtol=1e-6)
  assert triplet.mean_distance(jnp.zeros((1, 1))) == 0


@pytest.mark.parametrize('where', [None, np.arange(12) % 3 > 0])
def test_distances_far_from_0_keep_their_digits(where):
  """Distances of the rows that count. The others are at 0, where losses put them."""
  z = drawn(0)[0].astype(np.float64) + 100
  rows = np.ones(12, bool) if where is None else where
  given = jnp.asarray(z * rows[:, None], jnp.float32)
  found = jax.jit(triplet.squared_distances)(given, where)
  expected = np.asarray(slow_distance(np.asarray(given)))
  np.testing.assert_allclose(found[rows][:, rows], expected[rows][:, rows], rtol=1e-5, atol=1e-5)


CASES = {
  'one class': (np.zeros(6, int), np.arange(6) % 2),
  'one pose': (np.arange(6) % 2, np.zeros(6, int)),
  'unknown poses': (np.arange(6) % 2, -np.ones(6, int)),
  'all alone': (np.arange(6), np.arange(6)),
  'all alike': (np.arange(6) % 2, np.arange(6) // 2 % 2),
}


@pytest.mark.parametrize('case', CASES)
@pytest.mark.parametrize('hinge', FORMS)
def test_degenerate_batches_have_finite_gradients(case, hinge):
  label, nuisance = map(jnp.asarray, CASES[case])
  z = jnp.zeros((6, 3)) if case == 'all alike' else jnp.asarray(drawn(0, rows=6)[0])

  def total(z):
    distance = triplet.squared_distances(z)
    hard = triplet.batch_hard(distance, *triplet.nuisance_masks(label, nuisance), 0.2, hinge=hinge)
    masks = triplet.class_masks(label)
    semi_hard = triplet.semi_hard(distance, *masks, 0.2, hinge=hinge)
    return hard + semi_hard + triplet.all_active(distance, *masks, 0.2, hinge=hinge)

  value, gradient = jax.jit(jax.value_and_grad(total))(z)
  assert np.isfinite(value) and np.isfinite(gradient).all()
  if case in ('one class', 'all alone'):
    assert value == 0 and not gradient.any()


def test_unknown_names_are_errors():
  distance = jnp.zeros((2, 2))
  masks = triplet.class_masks(jnp.arange(2))
  with pytest.raises(InputError, match="no hinge 'max': use relu or softplus or none"):
    triplet.batch_hard(distance, *masks, 0.2, hinge='max')
  with pytest.raises(InputError, match="no reduction 'none'"):
    triplet.semi_hard(distance, *masks, 0.2, reduction='none')


@pytest.mark.parametrize('hinge', FORMS)
def test_rows_of_triplets_are_those_of_the_reduced_losses(hinge):
  """Over rows that count: the sum over anchors, and the mean over the positives of each anchor."""
  z, label, _ = drawn(3)
  where = np.arange(len(z)) % 4 != 1
  few, few_label = jnp.asarray(z[where]), jnp.asarray(label[where])
  distance, masks = triplet.squared_distances(few), triplet.class_masks(few_label)
  options = {'hinge': hinge, 'where': jnp.asarray(where)}
  hard, found = jax.jit(
    lambda z: (
      triplet.batch_hard_triplet(z, label, margin=0.5, **options),
      triplet.semi_hard_triplet(z, label, margin=0.5, **options),
    )
  )(jnp.asarray(z))
  expected = triplet.batch_hard(distance, *masks, 0.5, hinge=hinge, reduction='sum')
  np.testing.assert_allclose(hard.sum(), expected, rtol=1e-5)
  reduced = jax.jit(lambda d, only: triplet.semi_hard(d, only, masks[1], 0.5, hinge=hinge))
  for place, anchor in enumerate(np.flatnonzero(where)):
    only = masks[0] & (jnp.arange(len(few)) == place)[:, None]
    np.testing.assert_allclose(found[anchor], reduced(distance, only), rtol=1e-5, atol=1e-6)
  assert not hard[~where].any() and not found[~where].any()
  with pytest.raises(InputError, match="no hinge 'max'"):
    triplet.batch_hard_triplet(few, few_label, hinge='max')
