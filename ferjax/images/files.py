"""Pictures in files: which are read, and how they are stored."""

import os
import stat
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ferjax.errors import InputError

STORED_AS_THEY_ARE = ('JPEG', 'MPO', 'PNG')  # MPO: the JPEG of phones with further pictures in it


FORMATS = ('JPEG', 'PNG', 'BMP', 'TIFF')


SIGNATURES = (b'\xff\xd8\xff', b'\x89PNG\r\n')  # of these files' first bytes


ENDINGS = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff')


END_OF_JPEG = b'\xff\xd9'


def encoded_picture(path: Path) -> bytes:
  """The file's bytes; formats that TFDS cannot store become PNG without loss."""
  content = path.read_bytes()
  if content.startswith(SIGNATURES):
    return content
  with Image.open(BytesIO(content), formats=FORMATS) as picture:
    return png(ImageOps.exif_transpose(picture))


def read(path: Path) -> np.ndarray:
  """u8[h, w, 3], RGB: the pixels that training and evaluation see of a file.

  A JPEG file that does not end as one is decoded by Pillow as well, which notices a cut file.

  Raises:
    InputError: why it cannot be used, without its name.
  """
  try:
    if not stat.S_ISREG(os.stat(path).st_mode):
      raise InputError('it is no file')
    content = path.read_bytes()
    with Image.open(BytesIO(content), formats=FORMATS) as picture:
      if picture.format not in STORED_AS_THEY_ARE:
        if picture.mode in ('I', 'F'):
          raise InputError(f'{picture.mode} (32-bit) pixels: save it with 8 or 16 bits')
        content = png(ImageOps.exif_transpose(picture))
      elif picture.format != 'PNG' and not content[-64:].rstrip(b'\0').endswith(END_OF_JPEG):
        picture.load()
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)
  except InputError:
    raise
  except UnidentifiedImageError as error:
    raise InputError(f'it is no picture of these kinds: {", ".join(FORMATS)}') from error
  except OSError as error:
    raise InputError(error.strerror or str(error)) from error
  except Exception as error:  # Pillow's decoders raise many kinds; each means "cannot be read"
    raise InputError(str(error) or type(error).__name__) from error
  if image is None:
    raise InputError('the file is damaged, or larger than OpenCV reads')
  return image


def png(picture: Image.Image) -> bytes:
  """A picture as grey or RGB PNG, with 8 bits a channel."""
  if picture.mode.startswith('I;16'):
    picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
  encoded = BytesIO()
  (picture if picture.mode == 'L' else picture.convert('RGB')).save(encoded, 'PNG')
  return encoded.getvalue()


def decode(encoded: bytes) -> np.ndarray:
  """Encoded picture -> u8[h, w, 3] RGB; grey is repeated, EXIF orientation is applied."""
  return cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB)


def resize(image: np.ndarray, size: int) -> np.ndarray:
  """u8[h, w, 3] -> u8[size, size, 3]; shrinks by area averages, enlarges bilinearly."""
  if image.shape[:2] == (size, size):
    return image
  shrinks = size < min(image.shape[:2])
  method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
  return cv2.resize(image, (size, size), interpolation=method)


def rescale(points: np.ndarray, stored: np.ndarray, size: int) -> np.ndarray:
  """Where points of pictures come to lie when these are resized: the corners stay corners.

  Args:
    points: f[..., 2], pixels.
    stored: Width and height of the pictures, of a shape that broadcasts to that of the points.
    size: Of the square that they are resized to.

  Returns:
    f32[..., 2].
  """
  return ((points + 0.5) * (size / stored) - 0.5).astype(np.float32)
