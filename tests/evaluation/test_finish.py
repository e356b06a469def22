import cv2
import numpy as np

from ferjax.report.figures import curves


def line(step, **values):
  return {'step': step, 'split': 'train', 'loss': 2.0, 'acc': 0.5, **values, 'lr': 0.1}


def test_weights_are_drawn_next_to_the_terms_and_are_not_terms(tmp_path):
  lines = [line(i, pose=1 / i, triplet=0.5) for i in range(1, 6)]
  weights = [line(i, **{'weight/pose': 1.0, 'weight/triplet': i / 5}) for i in range(1, 6)]
  both = [a | b for a, b in zip(lines, weights, strict=True)]
  widths = []
  for name, drawn in (('terms', lines), ('both', both)):
    curves.terms(tmp_path / f'{name}.png', [*drawn, {'step': 5, 'split': 'test'}], 'run')
    picture = cv2.imread(str(tmp_path / f'{name}.png'))
    assert picture.std() > 5
    widths.append(picture.shape[1])
  np.testing.assert_allclose(widths[1] / widths[0], 3 / 2, rtol=0.1)
  one = [{key: value for key, value in x.items() if key != 'triplet'} for x in both]
  curves.terms(tmp_path / 'one.png', one, 'run')
  assert not (tmp_path / 'one.png').exists()
