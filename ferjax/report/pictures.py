"""Pictures of a report: read, checked, and made smaller."""

import io
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from ferjax.errors import InputError


class Picture(NamedTuple):
  """An encoded picture.

  Attributes:
    kind: `png` or `jpeg`.
    size: Width and height, pixels.
    content: The bytes.
  """

  kind: str
  size: tuple[int, int]
  content: bytes


def picture(path: Path) -> Picture:
  """A picture of a report.

  Raises:
    InputError: it is damaged.
  """
  try:
    content = path.read_bytes()
    with Image.open(io.BytesIO(content), formats=('PNG',)) as image:
      image.load()
      return Picture('png', image.size, content)
  except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
    raise InputError(
      f'{path} is damaged ({error}): remove it, or evaluate the run again'
    ) from error


def as_jpeg(picture: Picture) -> Picture:
  """A picture as JPEG of the same size, or as it was where that is smaller."""
  content = io.BytesIO()
  with Image.open(io.BytesIO(picture.content)) as image:
    image.convert('RGB').save(content, 'JPEG', quality=85)
  smaller = len(content.getvalue()) < len(picture.content)
  return Picture('jpeg', picture.size, content.getvalue()) if smaller else picture
