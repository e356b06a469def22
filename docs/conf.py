"""Sphinx's settings: `sphinx-build -W docs docs/_build`, without a network.

Formulas become MathML when the pages are built. The directives below take what a page says of
flags, switches and configs from the code.
"""

import ast
import contextlib
import html
import importlib
import importlib.util
import inspect
import io
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util.docutils import SphinxDirective

import ferjax

ROOT = Path(__file__).parent.parent

project = 'ferjax'
author = 'the authors of ferjax'
copyright = author
version = release = ferjax.__version__
extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon']
exclude_patterns = ['_build']
default_role = 'code'

html_theme = 'furo'
html_title = 'ferjax'
html_static_path = ['_static']
html_css_files = ['ferjax.css']
html_show_copyright = False
html_math_renderer = 'mathml'

myst_enable_extensions = ['dollarmath', 'colon_fence', 'deflist']
myst_heading_anchors = 3
autodoc_member_order = 'bysource'
autodoc_typehints = 'none'
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_custom_sections = [('Example', 'Example')]

# The page that shows a file of the repository.
PAGES = {
  'CHANGELOG.md': 'changes.md',
  'CONTRIBUTING.md': 'project/contributing.md',
  'ferjax/benchmark/README.md': 'speed/index.md',
  'ferjax/benchmark/RESULTS.md': 'speed/results.md',
  'ferjax/datasets/manifest/README.md': 'guides/faces-and-annotations.md',
}


def links_of_included(app, path, docname, content):
  """An included file's relative links, as the page that includes it must write them."""
  folder = (Path(app.srcdir) / path).parent

  def rewrite(match):
    target, hash_, anchor = match[1].partition('#')
    if not target or re.match('[a-z]+:', target):
      return match[0]
    place = os.path.relpath((folder / target).resolve(), ROOT)
    page = PAGES.get(place) or os.path.relpath(ROOT / place, app.srcdir)
    return f'](/{page}{hash_}{anchor})'

  content[0] = re.sub(r'\]\(([^)\s]+)\)', rewrite, content[0])


def bars_of_docstring(app, what, name, found, options, lines):
  """A docstring's |x| is no substitution."""
  for number, line in enumerate(lines):
    outside = enumerate(line.split('`'))
    lines[number] = '`'.join(text if i % 2 else text.replace('|', r'\|') for i, text in outside)


def inline_formula(translator, node):
  translator.body.append(tex2mathml(node.astext()))
  raise nodes.SkipNode


def block_formula(translator, node):
  translator.body.append(f'<div class="math">{tex2mathml(node.astext(), as_block=True)}</div>\n')
  raise nodes.SkipNode


class Text(SphinxDirective):
  """A block of text as it is, made by `text` from the directive's argument."""

  required_arguments = 1

  def run(self):
    block = nodes.literal_block(text := self.text(self.arguments[0]), text)
    block['language'] = 'text'
    return [block]


class Command(Text):
  """What `ferjax COMMAND --help` prints."""

  def text(self, command):
    if command in ('train', 'prepare'):  # of which absl's flags are of the whole process
      program = [sys.executable, '-m', 'ferjax', command, '--help']
      return subprocess.run(program, capture_output=True, text=True, check=True).stdout.strip()
    os.environ['COLUMNS'] = '96'
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
      importlib.import_module(f'ferjax.cli.{command.replace("-", "_")}').parse(['--help'])
    return printed.getvalue().strip()


class Commands(SphinxDirective):
  """The list of all commands."""

  def run(self):
    from ferjax.__main__ import usage

    return [nodes.literal_block(text := usage(), text, language='text')]


class Floors(SphinxDirective):
  """The floors of `[tool.importlinter]` in pyproject.toml, drawn.

  The body has a line `package: what it is` for each package there.
  """

  has_content = True

  def run(self):
    path = ROOT / 'pyproject.toml'
    self.env.note_dependency(str(path))
    layers = tomllib.loads(path.read_text())['tool']['importlinter']['contracts'][0]['layers']
    floors = [layer.split(' | ') for layer in layers]
    meaning = dict(line.split(': ', 1) for line in self.content if line.strip())
    if differs := meaning.keys() ^ {name for floor in floors for name in floor}:
      raise self.error(f'pyproject.toml and this page name different packages: {differs}')
    return [nodes.raw('', drawing(floors, meaning), format='html')]


def drawing(floors, meaning, width=860, height=46, gap=8):
  """The floors as SVG, the highest on top; its colours are those of the page."""
  parts = []
  for number, floor in enumerate(floors):
    side = (width - gap * (len(floor) - 1)) / len(floor)
    for place, name in enumerate(floor):
      x, y = place * (side + gap), number * (height + gap)
      lines = (name, 18, 'name'), (meaning[name], 36, 'what')
      parts.append(f'<rect x="{x:.1f}" y="{y}" width="{side:.1f}" height="{height}" rx="6"/>')
      parts += [
        f'<text x="{x + side / 2:.1f}" y="{y + down}" class="{kind}">{html.escape(text)}</text>'
        for text, down, kind in lines
      ]
  whole = len(floors) * (height + gap) - gap
  title = 'The packages of ferjax, floor by floor'
  head = f'<svg class="floors" role="img" viewBox="-1 -1 {width + 2} {whole + 2}">'
  return '\n'.join([head, f'<title>{title}</title>', *parts, '</svg>'])


class Docstring(Text):
  """The docstring of a file of the repository."""

  def text(self, path):
    self.env.note_dependency(str(ROOT / path))
    source = (ROOT / path).read_text()
    quoted = ast.get_source_segment(source, ast.parse(source).body[0])
    return inspect.cleandoc(quoted.strip('"')).replace(r'\\', '\\')


class Files(SphinxDirective):
  """A table of files of the repository and the first line of their docstrings.

  Each line of the body names a Python file without its ending, or a folder of them.
  """

  has_content = True

  def run(self):
    rows = ['| file | |', '|---|---|']
    for name in self.content:
      folder = ROOT / name
      for path in sorted(folder.glob('*.py')) or [folder.with_suffix('.py')]:
        place = path.relative_to(ROOT)
        self.env.note_dependency(str(path))
        first = ast.get_docstring(ast.parse(path.read_text())).partition('\n\n')[0]
        link = f'[{place}](/{os.path.relpath(path, self.env.srcdir)})'.replace('__', r'\_\_', 2)
        rows.append(f'| {link} | {" ".join(first.split())} |')
    return self.parse_text_to_nodes('\n'.join(rows))


class Switches(SphinxDirective):
  """A table of the keys of `config.method` in `configs/NAME.py`, as `ferjax.methods` explains them.

  The first argument is the config, the second the method's module where its name is another.
  """

  required_arguments = 1
  optional_arguments = 1

  def run(self):
    config = self.arguments[0]
    method = importlib.import_module(f'ferjax.methods.{self.arguments[-1]}')
    self.env.note_dependency(str(ROOT / 'configs' / f'{config}.py'))
    get_config = module_of(f'configs/{config}.py').get_config
    demo, paper = get_config('demo').method, get_config('paper').method
    meanings = arguments_of(method.make)
    if unexplained := paper.keys() - meanings.keys() - {'name'}:
      raise self.error(f'{method.__name__}.make does not explain {unexplained}')
    rows = [('`config.method.`', '`:demo`', '`:paper`', 'meaning')]
    rows += [
      (f'`{name}`', f'`{demo[name]!r}`', f'`{paper[name]!r}`', meaning)
      for name, meaning in meanings.items()
      if name in paper
    ]
    lines = ['| ' + ' | '.join(row) + ' |' for row in rows]
    return self.parse_text_to_nodes('\n'.join([lines[0], '|---|---|---|---|', *lines[1:]]))


def module_of(path):
  """The module of a Python file of the repository."""
  spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def arguments_of(function):
  """{argument: what the section `Args` of the docstring says of it}."""
  section = re.search(r'^Args:\n((?:  .*\n|\n)+)', inspect.getdoc(function) + '\n', re.M)[1]
  entries = re.findall(r'^  (\w[\w, ]*): (.*\n(?:    .*\n)*)', section, re.M)
  return {name: ' '.join(text.split()) for names, text in entries for name in names.split(', ')}


def setup(app):
  app.connect('include-read', links_of_included)
  app.connect('autodoc-process-docstring', bars_of_docstring)
  app.add_html_math_renderer('mathml', (inline_formula, None), (block_formula, None))
  app.add_directive('command', Command)
  app.add_directive('commands', Commands)
  app.add_directive('docstring', Docstring)
  app.add_directive('files', Files)
  app.add_directive('floors', Floors)
  app.add_directive('switches', Switches)
