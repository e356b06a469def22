"""The documentation builds without a network, and its links lead to files."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

ROOT = Path(__file__).parent.parent
FETCHED = {'link': 'href', 'script': 'src', 'img': 'src', 'iframe': 'src', 'source': 'src'}


class Fetches(HTMLParser):
  """What a browser fetches for a page."""

  def __init__(self):
    super().__init__()
    self.found = []

  def handle_starttag(self, tag, attrs):
    self.found += [value for name, value in attrs if value and name == FETCHED.get(tag)]


def fetched(text: str) -> list[str]:
  parser = Fetches()
  parser.feed(text)
  return parser.found


def away(address: str) -> bool:
  """Whether an address is on another host."""
  return re.match(r'([a-z]+:)?//', address) is not None


def test_what_a_page_fetches_is_found():
  page = '<link href="//a.org/x.css"><script src="https://a.org/x.js"></script><img src="x.png">'
  assert fetched(page) == ['//a.org/x.css', 'https://a.org/x.js', 'x.png']
  assert [away(address) for address in fetched(page)] == [True, True, False]


def test_builds_without_a_warning_and_needs_no_other_host(tmp_path):
  command = [sys.executable, '-m', 'sphinx', '-W', '-q', 'docs', str(tmp_path)]
  built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert built.returncode == 0, built.stderr
  pages = [*tmp_path.rglob('*.html')]
  assert len(pages) > 40
  for page in pages:
    text = page.read_text()
    assert not [address for address in fetched(text) if away(address)], page
  for style in tmp_path.rglob('*.css'):
    addresses = re.findall(r'(?:url\(|@import\s)["\']?([^"\')\s]+)', style.read_text())
    assert not [address for address in addresses if away(address)], style
  assert '<math' in (tmp_path / 'methods' / 'lanet.html').read_text()
  assert '--workdir' in (tmp_path / 'reference' / 'commands.html').read_text()


def test_relative_links_lead_to_files():
  pages = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *(ROOT / 'docs').rglob('*.md')]
  for page in pages:
    text = re.sub(r'```(?!\{).*?```', '', page.read_text(), flags=re.DOTALL)
    targets = re.findall(r'\]\(([^)\s#]+)', text)
    targets += re.findall(r'^```\{(?:include|image|literalinclude)\} (\S+)', text, re.MULTILINE)
    for target in targets:
      if not away(target):
        assert (page.parent / target).exists(), f'{page}: {target}'


def test_the_readme_is_short():
  assert len((ROOT / 'README.md').read_text().splitlines()) <= 150
