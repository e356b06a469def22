"""Draws predictions: classes and probability bars on frames of a video or next to pictures."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

from ferjax import files
from ferjax.errors import InputError

ACCENT, BAR = (230, 126, 34), (130, 140, 150)  # the most probable class, the other classes
PAPER, INK, WRONG = (255, 255, 255), (30, 30, 30), (190, 30, 30)
PANEL, PANEL_INK, PANEL_BAR = (0, 0, 0), (245, 245, 245), (170, 175, 180)
COLUMNS, LINES = 4, 8  # numbers of cells on a page
THUMB, WORDS, GAP, TITLE = 144, 150, 8, 18  # sizes in a cell, in pixels


class Shown(NamedTuple):
  """A face to draw.

  Attributes:
    probabilities: f32[C], or None without a prediction.
    box: x0, y0, x1, y1 in pixels of the picture, or None.
    text: The text to show without a prediction.
  """

  probabilities: np.ndarray | None
  box: tuple[int, int, int, int] | None = None
  text: str = ''


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
  return ImageFont.truetype(font_manager.findfont('DejaVu Sans'), size)


def _bars(draw, place, classes, probabilities, size, ink, bar, chosen=None) -> None:
  """Draws the names and bars of classes, one per line, in a rectangle x0, y0, x1, y1."""
  x0, y0, x1, y1 = place
  chosen = range(len(classes)) if chosen is None else chosen
  font, high = _font(size), (y1 - y0) / len(chosen)
  left = x0 + max(font.getlength(classes[c]) for c in chosen) + size / 2
  right = x1 - font.getlength('100 %') - size / 2
  for number, c in enumerate(chosen):
    likeliest = c == np.argmax(probabilities)
    middle = y0 + (number + 0.5) * high
    share = float(probabilities[c])
    draw.text((x0, middle), classes[c], ink, font, anchor='lm')
    end = left + share * max(right - left, 0)
    colour = ACCENT if likeliest else bar
    draw.rectangle((left, middle - 0.3 * high, max(end, left + 1), middle + 0.3 * high), colour)
    draw.text((x1, middle), f'{100 * share:.0f} %', ink, font, anchor='rm')


def frame(image: np.ndarray, faces: Sequence[Shown], classes: Sequence[str]) -> np.ndarray:
  """Draws boxes and classes on a frame, with bars if it has one face.

  If the frame is too small for the bars of all classes, it shows the most probable ones.

  Args:
    image: u8[h, w, 3], RGB.
    faces: The faces to draw; those without a prediction are left out.
    classes: Class names.

  Returns:
    u8[h, w, 3].
  """
  height, width = image.shape[:2]
  size = int(np.clip(min(height, width) / 32, 9, 28))
  line = round(1.4 * size)
  picture = Image.fromarray(image)
  draw = ImageDraw.Draw(picture, 'RGBA')
  faces = [face for face in faces if face.probabilities is not None]
  for face in faces:
    if face.box:
      draw.rectangle(face.box, outline=ACCENT, width=max(1, size // 7))
  if len(faces) == 1:
    (face,) = faces
    count = int(np.clip(0.36 * height / line, 1, len(classes)))
    likeliest = np.sort(np.argsort(-face.probabilities, kind='stable')[:count])
    wide, high = min(width, 17 * size), count * line + size // 2
    left, top = _corner(face.box, (wide, high), (width, height))
    draw.rectangle((left, top, left + wide, top + high), (*PANEL, 150))
    place = (left + size / 2, top + size / 4, left + wide - size / 2, top + high - size / 4)
    _bars(draw, place, classes, face.probabilities, size, PANEL_INK, PANEL_BAR, likeliest)
  for face in faces if len(faces) > 1 else ():
    best = int(np.argmax(face.probabilities))
    text = f'{classes[best]} {100 * face.probabilities[best]:.0f} %'
    x, y = (face.box[0], face.box[1] - line) if face.box else (0, 0)
    wide = _font(size).getlength(text) + size
    x, y = min(max(x, 0), max(width - wide, 0)), max(y, 0)
    draw.rectangle((x, y, x + wide, y + line), (*PANEL, 150))
    draw.text((x + size / 2, y + line / 2), text, PANEL_INK, _font(size), anchor='lm')
  return np.asarray(picture)


def _corner(box, panel, frame) -> tuple[int, int]:
  """The corner of a frame where a panel hides the smallest part of a box. Without a box, it is the
  upper left, because the forehead is less informative than the mouth."""
  corners = [(x, y) for y in (0, frame[1] - panel[1]) for x in (0, frame[0] - panel[0])]
  if not box:
    return corners[0]

  def hidden(corner):
    low = np.maximum(corner, box[:2])
    high = np.minimum(np.add(corner, panel), box[2:])
    return np.maximum(high - low, 0).prod()

  return min(corners, key=hidden)


def thumbnail(image: np.ndarray, box: Sequence[int] | None) -> np.ndarray:
  """u8[THUMB, THUMB, 3]: the picture in a white square, with the box of a face if it is given."""
  height, width = image.shape[:2]
  scale = THUMB / max(height, width)
  shape = max(round(scale * width), 1), max(round(scale * height), 1)
  method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
  picture = Image.fromarray(cv2.resize(image, shape, interpolation=method))
  if box:
    ImageDraw.Draw(picture).rectangle([scale * value for value in box], outline=ACCENT, width=2)
  square = Image.new('RGB', (THUMB, THUMB), PAPER)
  square.paste(picture, ((THUMB - shape[0]) // 2, (THUMB - shape[1]) // 2))
  return np.asarray(square)


class Cell(NamedTuple):
  """A face on a page: `thumb` u8[THUMB, THUMB, 3] or None, a title, and the face."""

  thumb: np.ndarray | None
  title: str
  face: Shown


class Sheet:
  """Pages of cells: `path`, then `<stem>.page2` and so on. A page is written when it is full.

  Args:
    path: The file of the first page, `.png` or `.jpg`.
    classes: Class names.
    most: The largest number of pages; later cells are only counted.
  """

  def __init__(self, path: Path, classes: Sequence[str], most: int):
    self._path, self._classes, self._most = path, classes, most
    self._cells, self.pages, self.left_out = [], 0, 0

  @property
  def wants(self) -> bool:
    """Whether there is room for another cell."""
    return self.pages < self._most

  def add(self, cell: Cell) -> None:
    if not self.wants:
      self.left_out += 1
      return
    self._cells.append(cell)
    if len(self._cells) == COLUMNS * LINES:
      self._write()

  def close(self) -> None:
    """Writes the last page, which may not be full."""
    if self._cells:
      self._write()

  def _write(self) -> None:
    self.pages += 1
    name = self._path if self.pages == 1 else self._numbered()
    kind = {'.png': 'PNG'}.get(name.suffix.lower(), 'JPEG')
    try:
      with files.replacing(name, 'wb') as file:
        page(self._cells, self._classes).save(file, kind, quality=80)
    except OSError as error:
      raise InputError(f'cannot write {name}: {error.strerror}') from error
    self._cells = []

  def _numbered(self) -> Path:
    return self._path.with_name(f'{self._path.stem}.page{self.pages}{self._path.suffix}')


def page(cells: Sequence[Cell], classes: Sequence[str]) -> Image.Image:
  """Draws cells in lines: each has a picture, a title above it, and bars of classes next to it."""
  wide, high = THUMB + GAP + WORDS, TITLE + THUMB + GAP
  columns = min(COLUMNS, len(cells))
  lines = -(-len(cells) // columns)
  sheet = Image.new('RGB', (columns * (wide + 2 * GAP), lines * high + GAP), PAPER)
  draw = ImageDraw.Draw(sheet)
  for number, cell in enumerate(cells):
    left = GAP + number % columns * (wide + 2 * GAP)
    top = GAP + number // columns * high
    draw.text((left, top + TITLE / 2 - 2), _fitting(cell.title, wide), INK, _font(11), anchor='lm')
    place = (left + THUMB + GAP, top + TITLE, left + wide, top + TITLE + THUMB)
    if cell.thumb is None:
      draw.rectangle((left, place[1], left + THUMB, place[3]), (240, 240, 240))
    else:
      sheet.paste(Image.fromarray(cell.thumb), (left, place[1]))
    if cell.face.probabilities is None:
      draw.multiline_text(place[:2], _wrapped(cell.face.text, WORDS), WRONG, _font(11), spacing=2)
    else:
      size = int(np.clip(THUMB / len(classes) / 1.4, 7, 11))
      _bars(draw, place, classes, cell.face.probabilities, size, INK, BAR)
  return sheet


def _fitting(text: str, width: int) -> str:
  """The text; if it is too long for a line, its beginning is left out."""
  text = ' '.join(text.split())
  if _font(11).getlength(text) <= width:
    return text
  text = text[-200:]
  while _font(11).getlength('…' + text) > width:
    text = text[1:]
  return '…' + text


def _wrapped(text: str, width: int) -> str:
  lines = ['']
  for word in text.split():
    longer = f'{lines[-1]} {word}'.strip()
    if lines[-1] and _font(11).getlength(longer) > width:
      lines.append(_cut(word, width))
    else:
      lines[-1] = _cut(longer, width)
  return '\n'.join(lines[:9])


def _cut(text: str, width: int) -> str:
  text = text[:200]
  while _font(11).getlength(text) > width:
    text = text[:-1]
  return text
