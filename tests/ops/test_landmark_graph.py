import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ferjax import labels
from ferjax.errors import InputError
from ferjax.ops import landmark_graph

FIFTY = tuple(i for i in range(17, 68) if i != 27)


def test_ranks_of_fifty_landmarks():
  """1, 7, ..., 43, for points on a line whose ranks equal their positions."""
  line = np.stack([np.arange(50.0) ** 1.5, np.zeros(50)], -1)
  graph = jax.jit(landmark_graph.uniform_rank)(line)
  assert graph.shape == (50, 8)
  np.testing.assert_array_equal(graph[0], [1, 7, 13, 19, 25, 31, 37, 43])


@pytest.mark.parametrize('count, groups', [(9, 8), (50, 8), (68, 8), (11, 3)])
def test_ranks_by_a_slow_loop(count, groups):
  landmarks = np.random.default_rng(count).integers(0, 6, (count, 2)).astype('f4')  # with many ties
  expected = []
  for i in range(count):
    others = [j for j in range(count) if j != i]
    others.sort(key=lambda j: ((landmarks[i] - landmarks[j]) ** 2).sum())  # Python sorts are stable
    step = (count - 1) // groups
    expected.append([others[step * n] for n in range(groups)])
  graph = landmark_graph.uniform_rank(jnp.asarray(landmarks), groups)
  np.testing.assert_array_equal(graph, expected)


def test_random_edges_are_distinct_and_others():
  graph = np.asarray(landmark_graph.random(jax.random.key(0), 12, 8))
  assert all(len(set(row)) == 8 and i not in row for i, row in enumerate(graph))
  again = landmark_graph.random(jax.random.key(1), 12, 8)
  assert (graph != again).any()


def test_delaunay_by_hand():
  """A square with its centre: corners are connected to two neighbours and the centre only."""
  corners = [[0, 0], [4, 0], [4, 4], [0, 4], [2, 2.5]]
  (graph,) = landmark_graph.delaunay(np.array([corners]), 4)
  real = [{int(j) for j in row if j < 5} for row in graph]
  assert real == [{1, 3, 4}, {0, 2, 4}, {1, 3, 4}, {0, 2, 4}, {0, 1, 2, 3}]
  assert [sorted(row % 5) for row in graph] == [[j for j in range(5) if j != i] for i in range(5)]
  assert graph[0, 0] == 4 and graph[0, 3] == 5 + 2  # nearest first, random fill last
  length = landmark_graph.mean_edge_length(jnp.asarray(graph), jnp.array(corners, jnp.float32))
  near, far = np.hypot(2, 1.5), np.hypot(2, 2.5)
  np.testing.assert_allclose(length, (8 * 4 + 2 * 2 * (near + far)) / 16, rtol=1e-6)


@pytest.mark.parametrize('case', ['line', 'point', 'pairs'])
def test_delaunay_of_degenerate_faces(case):
  points = {
    'line': np.stack([np.arange(12.0), 2 * np.arange(12.0)], -1),
    'point': np.full((12, 2), 3.0),
    'pairs': np.repeat(np.random.default_rng(0).uniform(0, 9, (6, 2)), 2, 0),
  }[case]
  (graph,) = landmark_graph.delaunay(points[None])
  assert all(len(set(row % 12)) == 8 and i not in row % 12 for i, row in enumerate(graph))
  assert (graph >= 12).any() and (graph < 24).all()
  assert np.isfinite(landmark_graph.mean_edge_length(jnp.asarray(graph), jnp.asarray(points)))


def test_the_graph_of_a_face_does_not_depend_on_the_others():
  landmarks = np.random.default_rng(0).uniform(0, 50, (3, 20, 2))
  graphs = landmark_graph.delaunay(landmarks)
  np.testing.assert_array_equal(landmark_graph.delaunay(landmarks[::-1]), graphs[::-1])
  assert (graphs >= 20).any()


def test_a_flip_renames_both_ends_of_an_edge():
  """The graph of a mirrored face is the graph of the face with left and right exchanged."""
  order = labels.mirrored_landmarks(FIFTY)
  landmarks = np.random.default_rng(0).uniform(0, 50, (1, 50, 2))
  mirrored = (landmarks * [-1, 1])[:, order]
  (graph,), (expected,) = map(landmark_graph.delaunay, (landmarks, mirrored))
  moved = np.asarray(landmark_graph.reorder(jnp.asarray(graph), order))
  for ours, theirs in zip(moved, expected, strict=True):
    assert [j for j in ours if j < 50] == [j for j in theirs if j < 50]
    assert sum(j >= 50 for j in ours) == sum(j >= 50 for j in theirs)
  np.testing.assert_array_equal(landmark_graph.reorder(jnp.asarray(moved), order), graph)


def test_adjacency():
  graph = jnp.array([[1, 3 + 2], [0, 2], [3 + 0, 3 + 1]])
  expected = [[0, 1, 1], [1, 0, 1], [1, 1, 0]]
  np.testing.assert_array_equal(landmark_graph.adjacency(graph), expected)


def test_too_few_landmarks_are_refused():
  with pytest.raises(InputError, match='at least 9 landmarks, not 8'):
    landmark_graph.check(8, 8)
  landmark_graph.check(9, 8)
