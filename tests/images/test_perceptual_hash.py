import cv2
import numpy as np

from ferjax.images.perceptual_hash import BITS, KEPT, SIDE, mirrored_hashes, perceptual_hash


def draw(rng, size=96):
  """u8[size, size, 3]: smooth random colours."""
  coarse = rng.integers(30, 190, (16, 16, 3), np.uint8)
  return cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)


def distance(one, other):
  return int(np.bitwise_count(one ^ other).sum())


def stored_as_jpeg(image, quality):
  encoded = cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
  return cv2.imdecode(encoded, cv2.IMREAD_COLOR)


def test_it_is_the_signs_of_the_cosine_transform():
  image = draw(np.random.default_rng(0), SIDE)
  grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(float)
  waves = np.cos(np.pi * (np.arange(SIDE) + 0.5) * np.arange(KEPT)[:, None] / SIDE)
  coefficients = waves @ grey @ waves.T
  clear = np.abs(coefficients).ravel() > 1e-2
  bits = np.unpackbits(perceptual_hash(image)).astype(bool)
  assert len(bits) == BITS and clear.mean() > 0.9
  np.testing.assert_array_equal(bits[clear], coefficients.ravel()[clear] > 0)


def test_changed_copies_stay_near_and_other_pictures_do_not():
  rng = np.random.default_rng(1)
  pictures = [draw(rng) for _ in range(20)]
  hashes = [perceptual_hash(picture) for picture in pictures]
  changes = [
    lambda picture: cv2.resize(picture, (48, 48), interpolation=cv2.INTER_AREA),
    lambda picture: cv2.resize(picture, (150, 150), interpolation=cv2.INTER_CUBIC),
    lambda picture: stored_as_jpeg(picture, 50),
    lambda picture: cv2.add(picture, np.full_like(picture, 40)),
  ]
  for change in changes:
    far = [distance(perceptual_hash(change(p)), h) for p, h in zip(pictures, hashes, strict=True)]
    assert max(far) <= 40
  others = [distance(a, b) for i, a in enumerate(hashes) for b in hashes[:i]]
  assert min(others) > 40


def test_the_hash_of_a_mirrored_picture_follows():
  image = draw(np.random.default_rng(2), 90)
  mirrored = perceptual_hash(np.ascontiguousarray(image[:, ::-1]))
  own = perceptual_hash(image)
  assert distance(mirrored_hashes(own), mirrored) <= 2 and distance(own, mirrored) > 40
  np.testing.assert_array_equal(mirrored_hashes(mirrored_hashes(own)), own)
