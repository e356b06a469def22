"""Figures as files, and panels of curves as PNG for a folder or as SVG for a page.

In SVG, text stays text. Lines differ in their dashes too where there are more of them than colours.
"""

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ferjax import files

# Okabe and Ito's colours, which colour-blind people can distinguish.
COLOURS = ('#0072B2', '#E69F00', '#009E73', '#CC79A7', '#56B4E9', '#D55E00', '#F0E442', '#000000')
DASHES = ((), (5, 1.6), (1.6, 1.2), (6, 1.4, 1.4, 1.4), (9, 2.5))
SIZE = (4.3, 2.7)  # inches, so that 9 points are read well at the width of a phone


class Line(NamedTuple):
  """A curve.

  Attributes:
    name: For the legend; '' for none.
    x, y: f[n].
    low, high: f[n], the edges of a band around it, or None.
    raw: f[n], the values before `y` smoothed them, drawn faintly, or None.
    points: Whether to mark every point.
  """

  name: str
  x: Sequence[float]
  y: Sequence[float]
  low: Sequence[float] | None = None
  high: Sequence[float] | None = None
  raw: Sequence[float] | None = None
  points: bool = False


class Panel(NamedTuple):
  """Curves over the same axes.

  Attributes:
    caption: What they show.
    lines: The curves, in the order of `style`.
    x_label, y_label: Names of the axes, with their units.
  """

  caption: str
  lines: Sequence[Line]
  x_label: str
  y_label: str


def style(number: int) -> tuple[str, tuple[float, ...]]:
  """Colour and dashes (points of line and gap; empty for a solid line) of line n; the first 40 are
  different."""
  return COLOURS[number % len(COLOURS)], DASHES[number // len(COLOURS) % len(DASHES)]


def save(path: Path, figure: Figure) -> None:
  """Writes a figure as PNG, and makes the folders above it."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with files.replacing(path, 'wb') as file:
    figure.savefig(file, format='png', dpi=120, bbox_inches='tight')


def running_mean(values: np.ndarray) -> np.ndarray:
  """f[n]: the mean of each value and those before it, in windows of a twentieth of all values."""
  width = max(1, len(values) // 20)
  sums = np.cumsum(np.concatenate([[0.0], values]))
  ends = np.arange(1, len(values) + 1)
  starts = np.maximum(0, ends - width)
  return (sums[ends] - sums[starts]) / (ends - starts)


def save_panels(path: Path, panels: Sequence[Panel], title: str) -> None:
  """Writes panels side by side as PNG, each with its legend below it."""
  figure = Figure(figsize=(SIZE[0] * len(panels), SIZE[1] + 1), layout='constrained')
  figure.suptitle(title)
  for number, panel in enumerate(panels, 1):
    axes = figure.add_subplot(1, len(panels), number)
    _draw(axes, panel.lines, panel.x_label, panel.y_label)
    axes.set_title(panel.caption, fontsize=10)
    if any(line.name for line in panel.lines):
      below = {'loc': 'upper center', 'bbox_to_anchor': (0.5, -0.2)}
      axes.legend(**below, ncols=3, fontsize=8, frameon=False)
  save(path, figure)


def svg(lines: Sequence[Line], *, x_label: str, y_label: str, prefix: str) -> str:
  """An `<svg>` element of lines without a legend.

  Args:
    lines: The curves.
    x_label, y_label: Names of the axes, with their units; the project's own words.
    prefix: Of the ids in it, another one for every figure of a page.
  """
  figure = Figure(figsize=SIZE, layout='constrained')
  _draw(figure.add_subplot(), lines, x_label, y_label)
  text = io.StringIO()
  with matplotlib.rc_context({'svg.fonttype': 'none', 'svg.hashsalt': prefix}):
    nothing = dict.fromkeys(('Creator', 'Date', 'Format', 'Type'))
    figure.savefig(text, format='svg', metadata=nothing, transparent=True)
  return _inline(text.getvalue(), prefix)


def _draw(axes, lines, x_label, y_label):
  for number, line in enumerate(lines):
    colour, dashes = style(number)
    if line.raw is not None:
      axes.plot(line.x, line.raw, color=colour, alpha=0.3, linewidth=0.7)
    if line.low is not None:
      axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.18, linewidth=0)
      if len(line.x) == 1:
        axes.vlines(line.x, line.low, line.high, color=colour, linewidth=1)
    marker = '.' if line.points or len(line.x) == 1 else ''
    axes.plot(
      line.x,
      line.y,
      color=colour,
      linewidth=1.4,
      marker=marker,
      dashes=dashes or (1, 0),
      label=line.name,
    )
  axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
  axes.set_xlabel(x_label, fontsize=9)
  axes.set_ylabel(y_label, fontsize=9)
  axes.tick_params(labelsize=9, color='#999999')
  axes.spines[['top', 'right']].set_visible(False)
  axes.spines[['left', 'bottom']].set_color('#999999')
  axes.grid(color='#e4e4e4', linewidth=0.6)


def _inline(text, prefix):
  """The `<svg>` of a file, without addresses of the network, and with ids of its own."""
  text = text[text.index('<svg') :]
  text = re.sub(r'\s*<style.*?</style>', '', text, flags=re.DOTALL)
  text = re.sub(r'\s*<!--.*?-->', '', text, flags=re.DOTALL)
  text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', '', text)
  text = text.replace('xlink:href="#', 'href="#')
  text = re.sub(r'(\bid="|href="#|url\(#)', rf'\g<1>{prefix}-', text)
  text = re.sub(r'(?<=<svg) [^>]*?(viewBox="[^"]*")[^>]*>', r' \1 aria-hidden="true">', text)
  return text.strip()
