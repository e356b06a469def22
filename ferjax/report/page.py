"""The pieces of a report in HTML: text, tables, pictures, and the one page that holds them.

All that is given as text is escaped here; what is called `html` is not. The page needs neither
script nor network, and its policy forbids both.
"""

import base64
import html
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from ferjax.report.figures import plots

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'"
DPI = 120  # of the pictures in a run's folder; a page has 96 points to the inch
SMALLEST = 0.66  # how far a picture shrinks on a phone before it scrolls in its box


class Cell(NamedTuple):
  """A number in a table.

  Attributes:
    text: The number as it is shown.
    below: A second number, in a smaller line.
    heat: 0..1, how strongly the cell is tinted; None for not at all.
    marked: Whether it is framed, such as the diagonal of a confusion matrix.
  """

  text: str
  below: str = ''
  heat: float | None = None
  marked: bool = False


class Section(NamedTuple):
  title: str
  html: str


def share(
  value: float | None, *, heat: bool = False, below: str = '', marked: bool = False, digits: int = 1
) -> Cell:
  """A share of 1 in per cent; an empty cell for None or NaN."""
  if value is None or value != value:
    return Cell('')
  words = f'{100 * value:.{digits}f}\N{NO-BREAK SPACE}%'
  return Cell(words, below, value if heat else None, marked)


def text(words: str) -> str:
  return html.escape(words)


def breakable(words: str) -> str:
  """Text that may be broken after the marks within a name, such as `noise.rate` or `a/b_c`."""
  return re.sub(r'(?<=[A-Za-z])([_/.-])(?=\w)', r'\1<wbr>', text(words))


def paragraph(words: str, kind: str = '') -> str:
  return f'<p{_class(kind)}>{text(words)}</p>\n'


def bullets(lines: Iterable[str]) -> str:
  return '<ul>\n' + ''.join(f'<li>{text(line)}</li>\n' for line in lines) + '</ul>\n'


def heading(words: str, level: int) -> str:
  return f'<h{level}>{text(words)}</h{level}>\n'


def folded(title: str, content: str) -> str:
  """HTML that opens at a touch."""
  return f'<details><summary>{text(title)}</summary>\n{content}</details>\n'


def table(
  caption: str,
  head: Sequence[str],
  rows: Iterable[Sequence[str | Cell]] | Mapping[str, Iterable[Sequence[str | Cell]]],
  *,
  above: str = '',
  note: str = '',
  kind: str = '',
) -> str:
  """A table that scrolls in its own box where it is too wide.

  Args:
    caption: What it shows.
    head: A name for every column.
    rows: The first cell of each is its header; strings are text and cells are numbers. In groups,
      {name of the group: its rows}.
    above: A name for all columns but the first.
    note: Below it.
    kind: A class of its own for the style.
  """
  groups = rows if isinstance(rows, Mapping) else {'': rows}
  groups = {name: [list(row) for row in found] for name, found in groups.items()}
  every = [row for found in groups.values() for row in found]
  numbers = [
    any(isinstance(row[place], Cell) for row in every if place < len(row))
    for place in range(len(head))
  ]
  lines = []
  if above:
    lines.append(
      f'<tr><td></td><th scope="colgroup" colspan="{len(head) - 1}">{text(above)}</th></tr>'
    )
  names = ''.join(
    f'<th scope="col"{_class("number" if number else "")}>{breakable(name)}</th>'
    for name, number in zip(head, numbers, strict=True)
  )
  body = ''
  for group, found in groups.items():
    title = f'<tr><th scope="rowgroup" colspan="{len(head)}">{text(group)}</th></tr>\n'
    body += f'<tbody>\n{title if group else ""}'
    body += ''.join(f'<tr>{_row(row)}</tr>\n' for row in found)
    body += '</tbody>\n'
  return _figure(
    caption,
    f'<table{_class(kind)}>\n<thead>\n{"".join(lines)}<tr>{names}</tr>\n</thead>\n{body}</table>\n',
    note,
    region=True,
  )


def facts(caption: str, rows: Iterable[tuple[str, str]]) -> str:
  """A table of names and what they are."""
  lines = ''.join(
    f'<tr><th scope="row">{text(name)}</th><td>{text(value)}</td></tr>\n' for name, value in rows
  )
  return _figure(
    caption, f'<table class="facts">\n<tbody>\n{lines}</tbody>\n</table>\n', region=True
  )


def _row(row):
  name, *cells = row
  head = name.text if isinstance(name, Cell) else name
  return f'<th scope="row">{breakable(head)}</th>' + ''.join(map(_cell, cells))


def _cell(cell):
  if isinstance(cell, str):
    return f'<td>{breakable(cell)}</td>'
  kind = ' '.join(['number', *(['marked'] if cell.marked else [])])
  tint = ''
  if cell.heat is not None:
    tint = f' style="background:rgba(0,114,178,{0.6 * min(max(cell.heat, 0), 1):.3f})"'
  below = f'<small>{text(cell.below)}</small>' if cell.below else ''
  return f'<td class="{kind}"{tint}>{text(cell.text)}{below}</td>'


def _figure(caption, content, note='', *, region=False, alone=True):
  box = ''
  if region:
    box = f' tabindex="0" role="region" aria-label="{text(caption)}"'
  below = paragraph(note, 'note') if note else ''
  return (
    f'<figure>\n<figcaption>{text(caption)}</figcaption>\n'
    f'<div class="scroll"{box}>\n{content}</div>\n{below}</figure>\n'
  )


def picture(caption: str, alt: str, kind: str, size: tuple[int, int], content: bytes) -> str:
  """A picture that scrolls in its own box where it would be too small.

  Args:
    caption: What it shows.
    alt: What is to be seen, for those who cannot see it.
    kind: `png` or `jpeg`.
    size: Width and height, pixels.
    content: The file.
  """
  width, height = size
  shown = round(width * 96 / DPI)
  data = base64.b64encode(content).decode()
  image = (
    f'<img alt="{text(alt)}" width="{width}" height="{height}" '
    f'style="min-width:{round(SMALLEST * shown)}px;max-width:min(100%,{shown}px)" '
    f'src="data:image/{kind};base64,{data}">\n'
  )
  return _figure(caption, image, region=True)


class Curves(NamedTuple):
  """A drawing of curves; see `plots.svg`."""

  caption: str
  lines: Sequence[plots.Line]
  x_label: str
  y_label: str


def curves(drawings: Sequence[Curves], prefix: str) -> str:
  """Drawings side by side where there is room, each with the names of its lines.

  Args:
    drawings: What to draw; those without lines are left out.
    prefix: Of the ids in them, another one for every call.
  """
  parts = []
  for number, drawing in enumerate(drawings):
    if not drawing.lines:
      continue
    drawn = plots.svg(
      drawing.lines,
      x_label=drawing.x_label,
      y_label=drawing.y_label,
      prefix=f'{prefix}{number}',
    )
    names = ', '.join(line.name for line in drawing.lines)
    label = f'{drawing.caption}: {drawing.y_label} by {drawing.x_label}; lines: {names}'
    parts.append(
      f'<figure>\n<figcaption>{text(drawing.caption)}</figcaption>\n'
      f'<div role="img" aria-label="{text(label)}">{drawn}</div>\n'
      f'{_legend(drawing.lines) if any(line.name for line in drawing.lines) else ""}</figure>\n'
    )
  return f'<div class="curves">\n{"".join(parts)}</div>\n' if parts else ''


def _legend(lines):
  items = []
  for number, line in enumerate(lines):
    colour, dashes = plots.style(number)
    dashed = f' stroke-dasharray="{" ".join(str(1.6 * x) for x in dashes)}"' if dashes else ''
    swatch = (
      '<svg class="swatch" viewBox="0 0 28 8" aria-hidden="true">'
      f'<path d="M0 4H28" stroke="{colour}" stroke-width="3" fill="none"{dashed}/></svg>'
    )
    items.append(f'<li>{swatch}{text(line.name)}</li>')
  return f'<ul class="legend">{"".join(items)}</ul>\n'


def page(title: str, lead: str, sections: Sequence[Section]) -> str:
  """The whole page.

  Args:
    title: Of the page.
    lead: HTML that stands before the contents.
    sections: Those without content are left out.
  """
  sections = [section for section in sections if section.html]
  ids = [f's{number}-{_slug(section.title)}' for number, section in enumerate(sections, 1)]
  contents = ''.join(
    f'<li><a href="#{name}">{text(section.title)}</a></li>\n'
    for name, section in zip(ids, sections, strict=True)
  )
  body = ''.join(
    f'<section id="{name}">\n<h2>{text(section.title)}</h2>\n{section.html}</section>\n'
    for name, section in zip(ids, sections, strict=True)
  )
  return (
    '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    '<meta name="referrer" content="no-referrer">\n'
    f'<title>{text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n'
    f'<header>\n<h1>{text(title)}</h1>\n{lead}</header>\n'
    f'<nav aria-label="Contents">\n<ol>\n{contents}</ol>\n</nav>\n'
    f'<main>\n{body}</main>\n</body>\n</html>\n'
  )


def _slug(title):
  return re.sub(r'[^a-z0-9]+', '-', title.lower()).strip('-')


def _class(kind):
  return f' class="{kind}"' if kind else ''


STYLE = """
:root { color-scheme: light; --ink: #1a1a1a; --soft: #5a5a5a; --rule: #d4d4d4; --blue: #00507d; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; max-width: 66rem; padding: 1.5rem 1rem 4rem; color: var(--ink);
  background: #fff; font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue",
  "Noto Sans", "Liberation Sans", Arial, sans-serif; overflow-wrap: break-word; }
h1, h2, h3, h4 { line-height: 1.25; font-weight: 600; }
h1 { font-size: 1.75rem; margin: 0 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; margin: 3rem 0 1rem; padding-top: .75rem; border-top: 2px solid var(--ink);
  overflow-wrap: anywhere; }
h3 { font-size: 1.05rem; margin: 2rem 0 .75rem; overflow-wrap: anywhere; }
h4 { font-size: 1rem; margin: 1.5rem 0 .5rem; color: var(--soft); }
p, ul { margin: 0 0 .75rem; max-width: 44rem; }
ul { padding-left: 1.25rem; }
a { color: var(--blue); }
.lead { color: var(--soft); }
.missing { border-left: 4px solid #b45a00; padding: .1rem 0 .1rem .9rem; margin: 1rem 0; }
.note, figcaption + .note { color: var(--soft); font-size: .875rem; margin: .4rem 0 0; }
nav ol { list-style: none; display: flex; flex-wrap: wrap; gap: .35rem 1.25rem; padding: 0;
  margin: 1.5rem 0 0; }
nav a { display: inline-block; padding: .15rem 0; }
figure { margin: 0 0 1.75rem; }
.curves figure { margin-bottom: 1.25rem; }
figcaption { font-size: .9rem; font-weight: 600; margin: 0 0 .45rem; max-width: 44rem;
  overflow-wrap: anywhere; }
.scroll { overflow-x: auto; max-width: 100%; }
.scroll:focus-visible { outline: 2px solid var(--blue); outline-offset: 2px; }
img { display: block; width: 100%; height: auto; }
table { border-collapse: collapse; font-size: .875rem; line-height: 1.35;
  font-variant-numeric: tabular-nums lining-nums; }
th, td { padding: .3rem .6rem; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--rule); }
thead th, thead td { vertical-align: bottom; border-bottom-color: var(--ink); }
tbody th { font-weight: 400; position: sticky; left: 0; background: #fff; }
th[scope=rowgroup] { font-weight: 600; padding-top: .9rem; position: static; }
th[scope=colgroup] { border-bottom: 0; font-weight: 400; color: var(--soft); text-align: center; }
th { font-weight: 600; overflow-wrap: break-word; }
.number { text-align: right; white-space: nowrap; }
thead .number { white-space: normal; }
td small { display: block; font-size: .75rem; color: #333; }
.heat td { border: 1px solid #fff; text-align: right; }
.heat thead td { border: 0; }
.heat th, .heat td { padding: .3rem .45rem; vertical-align: middle; }
.heat thead th, .heat thead td { vertical-align: bottom; }
.marked { outline: 1.5px solid var(--ink); outline-offset: -2px; }
.last-mean tbody tr:last-child > * { border-top: 1px solid var(--ink); }
.facts th { width: 13rem; min-width: 7rem; white-space: normal; color: var(--soft); }
.facts td, .keys td { overflow-wrap: anywhere; }
.keys tbody th { min-width: 9rem; }
.curves { display: grid; gap: 0 2rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); }
.curves svg { display: block; width: 100%; max-width: 31rem; height: auto; }
.curves svg * { stroke-linejoin: round; stroke-linecap: butt; }
.curves svg text { font-family: inherit !important; font-variant-numeric: tabular-nums; }
.curves p { margin: 0; }
.legend { list-style: none; padding: 0; margin: .3rem 0 0; font-size: .85rem; display: flex;
  flex-wrap: wrap; gap: .15rem 1.1rem; }
.legend li { overflow-wrap: anywhere; }
.curves svg.swatch { display: inline-block; width: 1.75rem; height: .5rem; margin-right: .4rem; }
details { margin: 0 0 1rem; }
summary { cursor: pointer; font-size: .9rem; font-weight: 600; margin-bottom: .5rem; }
@media (max-width: 40rem) {
  .heat { font-size: .78rem; }
  .heat th, .heat td { padding: .25rem .3rem; }
  th, td { padding: .3rem .45rem; }
}
@media print {
  @page { size: A4; margin: 14mm 12mm; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  h2 { margin-top: 1.5rem; }
  h2, h3, h4, figcaption { break-after: avoid; }
  figure, tr { break-inside: avoid; }
  nav a { color: inherit; text-decoration: none; }
  .scroll { overflow: visible; }
  img { min-width: 0 !important; max-height: 225mm;
    object-fit: contain; object-position: left top; }
  table { font-size: 8pt; max-width: 100%; }
  th, td { padding: .2rem .35rem; }
  td:not(.number) { overflow-wrap: anywhere; }
  tbody th { position: static; }
  .curves { grid-template-columns: 1fr 1fr; }
  details:not([open]) { display: none; }
}
"""
