"""Perceptual hashes: bits that hardly change when a picture is resized, stored again or brightened.

The low frequencies of a small grey picture, as in pHash, each reduced to its sign. Compared with
pHash's median, the sign also tells the hash of the mirrored picture from that of the picture.

Reference: Zauner, Implementation and Benchmarking of Perceptual Image Hash Functions, 2010.
"""

import cv2
import numpy as np

SIDE = 64  # of the square whose frequencies are computed
KEPT = 16  # lowest frequencies of each direction
BITS = KEPT**2

_TURNED_BY_MIRRORING = np.packbits(np.tile(np.arange(KEPT) % 2 == 1, KEPT))


def perceptual_hash(image: np.ndarray) -> np.ndarray:
  """The hash of a picture u8[h, w, 3], RGB: u8[BITS / 8], whose bits are the signs of the lowest
  frequencies."""
  grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
  small = cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
  return np.packbits(cv2.dct(small.astype(np.float32))[:KEPT, :KEPT] > 0)


def mirrored_hashes(hashes: np.ndarray) -> np.ndarray:
  """The hashes u8[..., BITS / 8] of the pictures flipped left to right, from those of the pictures.

  A flip changes the sign of the horizontal frequencies of odd order.
  """
  return hashes ^ _TURNED_BY_MIRRORING
