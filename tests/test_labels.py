import numpy as np
import pytest

from ferjax.data import labels
from ferjax.errors import InputError


def test_mirror_is_its_own_inverse_and_moves_the_outer_eye_corner():
  mirrored = labels.mirrored_landmarks()
  np.testing.assert_array_equal(mirrored[mirrored], np.arange(68))
  assert mirrored[36] == 45 and mirrored[48] == 54 and mirrored[27] == 27 and mirrored[0] == 16


def test_mirror_of_subsets_counts_within_the_subset():
  inner = labels.mirrored_landmarks(range(17, 68))
  assert len(inner) == 51 and inner[36 - 17] == 45 - 17
  np.testing.assert_array_equal(labels.mirrored_landmarks((54, 30, 48)), [2, 1, 0])


@pytest.mark.parametrize(
  'indices, message', [((36,), 'add 45'), ((1, 1), 'distinct'), ((70,), '0..67')]
)
def test_subsets_without_a_mirror_image_are_refused(indices, message):
  with pytest.raises(InputError, match=message):
    labels.mirrored_landmarks(indices)


def test_common_names_become_the_canonical_ones():
  assert [labels.canonical(n) for n in ('Happy', ' anger', 'FEARFUL', 'pain')] == [
    'happiness',
    'anger',
    'fear',
    'pain',
  ]
