import re

import numpy as np
import pytest

from ferjax.report.figures import plots


@pytest.mark.parametrize('rows', [1, 7, 45])
def test_running_mean(rows):
  values = np.random.default_rng(rows).normal(size=rows)
  width = max(1, rows // 20)
  slow = [np.mean(values[max(0, i + 1 - width) : i + 1]) for i in range(rows)]
  np.testing.assert_allclose(plots.running_mean(values), slow)


def test_forty_lines_look_different():
  assert len({plots.style(number) for number in range(40)}) == 40
  assert plots.style(0)[1] == ()


def test_a_drawing_is_text_and_names_no_network():
  lines = [
    plots.Line('a', [1, 2, 4], [0.1, 0.2, 0.3], low=[0, 0.1, 0.2], high=[0.2, 0.3, 0.4]),
    plots.Line('b', [1], [0.25], low=[0.2], high=[0.3]),
  ]
  drawn = plots.svg(lines, x_label='step', y_label='loss (nats)', prefix='p')
  assert drawn.startswith('<svg viewBox="0 0 ') and drawn.endswith('</svg>')
  texts = re.findall('>([^<>]+)</text>', drawn)
  assert {'step', 'loss (nats)', '1', '2', '4'} <= set(texts)
  ids = re.findall(r'\bid="([^"]+)"', drawn)
  assert len(ids) == len(set(ids)) and all(name.startswith('p-') for name in ids)
  assert set(re.findall(r'(?:href="|url\()#([^")]+)', drawn)) <= set(ids)
  assert '://' not in drawn and '<style' not in drawn and 'xmlns' not in drawn
  again = plots.svg(lines, x_label='step', y_label='loss (nats)', prefix='p')
  assert again == drawn
  colours = [plots.style(number)[0].lower() for number in range(2)]
  assert all(colour in drawn for colour in colours)
