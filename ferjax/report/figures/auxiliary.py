"""Auxiliary label spaces in the plane: where faces alike in action units or landmarks lie.

References: LDL-ALSG (Chen et al., CVPR 2020), figures 3 and 4; t-SNE, van der Maaten and Hinton,
"Visualizing Data using t-SNE", 2008.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ferjax.data import graphs
from ferjax.metrics.embeddings import drawn
from ferjax.report.figures import embeddings, plots

TITLES = {'au': 'action units', 'landmarks': 'landmarks'}


def write(
  path: Path,
  table: Mapping[str, np.ndarray],
  label: np.ndarray,
  classes: Sequence[str],
  image_size: int,
  count: int = 1000,
) -> None:
  """PNG of t-SNE of the spaces that a table has, coloured by class.

  Args:
    path: The file.
    table: Columns of n rows.
    label: i32[n], the classes to colour them by.
    classes: Class names.
    image_size: See `graphs.coordinates`.
    count: Rows at most, drawn at random, always the same.
  """
  rows = drawn(len(label), count)
  spaces = [space for space in graphs.SPACES if space in table]
  figure = Figure(figsize=(5.4 * len(spaces), 6))
  figure.suptitle(f't-SNE of the auxiliary label spaces: {len(rows)} of {len(label)} training rows')
  for number, space in enumerate(spaces):
    places = embeddings.plane(graphs.coordinates(table, space, image_size)[rows])
    axes = figure.add_subplot(1, len(spaces), number + 1)
    for place, name in enumerate(classes):
      of_class = places[label[rows] == place]
      axes.scatter(*of_class.T, s=9, color=f'C{place}', label=f'{name} ({len(of_class)})')
    axes.set_title(TITLES[space], fontsize=10)
    axes.set_xticks(())
    axes.set_yticks(())
    axes.legend(loc='upper center', bbox_to_anchor=(0.5, -0.01), ncols=3, fontsize=8, frameon=False)
  figure.tight_layout()
  plots.save(path, figure)
