"""The pieces of a report as HTML: text, tables, pictures, and the one page that holds them.

The HTML is in `templates/`, the style in `style.css`. Jinja2 escapes every text that is given; HTML
made here is `Markup`, which it leaves as it is. The page needs neither scripts nor network, and
its content security policy forbids both.
"""

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from ferjax.report.figures import plots

STYLE = Path(__file__).with_name('style.css')
DPI = 120  # of the pictures in a run's folder; a page has 96 points to the inch
SMALLEST = 0.66  # how far a picture shrinks on a phone before it scrolls in its box


class Cell(NamedTuple):
  """A number in a table.

  Attributes:
    text: The number as it is shown.
    below: A second number, in a smaller line.
    heat: 0..1, how strongly the cell is tinted; None for no tint.
    marked: Whether it is framed, as the diagonal of a confusion matrix is.
  """

  text: str
  below: str = ''
  heat: float | None = None
  marked: bool = False

  @property
  def tint(self) -> str:
    """Opacity of the background."""
    return f'{0.6 * min(max(self.heat, 0), 1):.3f}'


class Section(NamedTuple):
  title: str
  html: Markup | str  # '' where it has no content


def share(
  value: float | None, *, heat: bool = False, below: str = '', marked: bool = False, digits: int = 1
) -> Cell:
  """A share of 1 in per cent; an empty cell for None or NaN."""
  if value is None or value != value:
    return Cell('')
  words = f'{100 * value:.{digits}f}\N{NO-BREAK SPACE}%'
  return Cell(words, below, value if heat else None, marked)


def breakable(words: str) -> Markup:
  """Text that a browser may break after the marks within a name, as in `noise.rate` or `a/b_c`."""
  return Markup(re.sub(r'(?<=[A-Za-z])([_/.-])(?=\w)', r'\1<wbr>', str(escape(words))))


def _templates():
  environment = Environment(
    loader=PackageLoader('ferjax.report'),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.filters['breakable'] = breakable
  return environment


TEMPLATES = _templates()
PIECES = TEMPLATES.get_template('pieces.html').module


def paragraph(words: str, kind: str = '') -> Markup:
  return PIECES.paragraph(words, kind)


def notice(lines: Iterable[str]) -> Markup:
  """A framed list of what a reader must know first."""
  return PIECES.notice(lines)


def heading(words: str, level: int) -> Markup:
  return PIECES.heading(words, level)


def folded(title: str, content: Markup) -> Markup:
  """Content that is hidden until the reader opens it."""
  return PIECES.folded(title, content)


def table(
  caption: str,
  head: Sequence[str],
  rows: Iterable[Sequence[str | Cell]] | Mapping[str, Iterable[Sequence[str | Cell]]],
  *,
  above: str = '',
  note: str = '',
  kind: str = '',
) -> Markup:
  """A table that scrolls in its own box where it is too wide.

  Args:
    caption: What it shows.
    head: A name for every column.
    rows: The first cell of each is its header; strings are text and cells are numbers. In groups,
      {name of the group: its rows}.
    above: A name for all columns but the first.
    note: Below it.
    kind: Its CSS class.
  """
  groups = rows if isinstance(rows, Mapping) else {'': rows}
  groups = {group: [(name, cells) for name, *cells in found] for group, found in groups.items()}
  numbers = {
    column
    for found in groups.values()
    for _, cells in found
    for column, cell in enumerate(cells, 1)
    if isinstance(cell, Cell)
  }
  return PIECES.table(caption, head, numbers, groups, above, note, kind)


def facts(caption: str, rows: Iterable[tuple[str, str]]) -> Markup:
  """A table of names and their values."""
  return PIECES.facts(caption, rows)


def picture(caption: str, alt: str, kind: str, size: tuple[int, int], content: bytes) -> Markup:
  """A picture that scrolls in its own box where it would be too small.

  Args:
    caption: What it shows.
    alt: A description for readers who cannot see it.
    kind: `png` or `jpeg`.
    size: Width and height, pixels.
    content: The file.
  """
  shown = round(size[0] * 96 / DPI)
  source = f'data:image/{kind};base64,{base64.b64encode(content).decode()}'
  return PIECES.picture(caption, alt, size, shown, round(SMALLEST * shown), source)


def curves(panels: Sequence[plots.Panel], prefix: str) -> Markup | str:
  """Drawings of curves side by side where there is room, each with the names of its lines.

  Args:
    panels: What to draw; those without lines are left out.
    prefix: Of the ids in them, another one for every call.
  """
  drawings = [
    _drawing(panel, f'{prefix}{number}') for number, panel in enumerate(panels) if panel.lines
  ]
  return PIECES.curves(drawings) if drawings else ''


def _drawing(panel, prefix):
  names = [line.name for line in panel.lines]
  legend = []
  for number, name in enumerate(names):
    colour, dashes = plots.style(number)
    legend.append((name, colour, ' '.join(str(1.6 * length) for length in dashes)))
  return {
    'caption': panel.caption,
    'label': f'{panel.caption}: {panel.y_label} by {panel.x_label}; lines: {", ".join(names)}',
    'svg': Markup(
      plots.svg(panel.lines, x_label=panel.x_label, y_label=panel.y_label, prefix=prefix)
    ),
    'legend': legend if any(names) else (),
  }


def page(title: str, lead: Markup, sections: Sequence[Section]) -> str:
  """The whole page.

  Args:
    title: Of the page.
    lead: HTML that stands before the table of contents.
    sections: Those without content are left out.
  """
  sections = [section for section in sections if section.html]
  return TEMPLATES.get_template('page.html').render(
    title=title,
    lead=lead,
    style=Markup(STYLE.read_text(encoding='utf-8')),
    sections=[
      {'id': f's{number}-{_slug(section.title)}', **section._asdict()}
      for number, section in enumerate(sections, 1)
    ],
  )


def _slug(title):
  return re.sub(r'[^a-z0-9]+', '-', title.lower()).strip('-')
