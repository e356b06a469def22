"""Augmentation on the device, example by example: one homography, one bilinear sampling.

Flip, crop, rotation, scaling, translation and perspective compose to a single matrix, which also
moves the landmarks; colour jitter and erasing follow. Each example draws from its own key, so the
result does not depend on the number of devices.
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ferjax.errors import InputError
from ferjax.ops import bilinear, homography, landmark_graph
from ferjax.ops.erasing import check as check_erasing
from ferjax.ops.erasing import erase

MEAN = (0.485, 0.456, 0.406)  # of ImageNet's RGB values, which pretrained networks expect
STDDEV = (0.229, 0.224, 0.225)
MOVED = ('landmarks', 'landmark_graph', 'pose')  # what changes with a picture besides its pixels


def normalise(image: Array, dtype=jnp.float32) -> Array:
  """u8[..., 3] -> f[..., 3]: RGB scaled to [0, 1], less ImageNet's mean, over its deviation."""
  return (image.astype(dtype) / 255 - jnp.array(MEAN, dtype)) / jnp.array(STDDEV, dtype)


def evaluation(batch: dict[str, Array], dtype=jnp.float32) -> dict[str, Array]:
  """The same pictures, normalised only."""
  images = {name for name in batch if name.endswith('image')}
  return batch | {name: normalise(batch[name], dtype) for name in images}


def make(
  *,
  flip: float = 0.5,
  crop_scale: Sequence[float] = (1.0, 1.0),
  crop_ratio: Sequence[float] = (3 / 4, 4 / 3),
  rotation: float = 0.0,
  scale: Sequence[float] = (1.0, 1.0),
  translation: float = 0.0,
  perspective: float = 0.0,
  brightness: float = 0.0,
  contrast: float = 0.0,
  saturation: float = 0.0,
  erasing: float = 0.0,
  erasing_scale: Sequence[float] = (0.02, 0.2),
  erasing_ratio: Sequence[float] = (0.3, 3.3),
  views: int = 1,
  flip_order: np.ndarray | None = None,
  flip_poses: np.ndarray | None = None,
  dtype=jnp.float32,
) -> Callable[[Array, dict[str, Array]], dict[str, Array]]:
  """Factory: config section `augment` -> (keys, batch) -> batch.

  Args:
    flip: Probability of a horizontal flip.
    crop_scale: Range of the crop's area, as a share of the picture's.
    crop_ratio: Range of the crop's width / height, drawn on a log scale; used when it crops.
    rotation: Largest angle, degrees, either way.
    scale: Range of the zoom factor (1.2 enlarges).
    translation: Largest shift along x and y, as a share of the picture.
    perspective: Each corner moves inwards by up to this share of half the side.
    brightness, contrast, saturation: Factors from [1 - v, 1 + v].
    erasing: Probability that a rectangle is erased (set to the mean colour).
    erasing_scale, erasing_ratio: Its area as a share of the picture, and width / height.
    views: How many views of each picture.
    flip_order: int[k], the landmark order after a flip; needed when a batch has landmarks.
    flip_poses: int[p], the pose class after a flip; needed when a batch has poses.
    dtype: Floating-point type of the pictures and of every draw.

  Returns:
    A function of keys [b] and a batch with `image` u8[b, h, w, 3] and perhaps `landmarks`
    f32[b, k, 2] (pixels), `landmark_graph` i32[b, k, d] (see `ops/landmark_graph.py`) and `pose`
    i32[b]. It returns the batch with `image` f[b, h, w, 3], normalised, and the others moved along;
    with `views` > 1 they have an axis [b, views, ...]. The pictures of neighbours,
    `neighbour_image` u8[b, m, h, w, 3], are changed each by draws of its own, whatever `views`.

  Raises:
    InputError: a range is reversed or a probability lies outside 0..1.
  """
  limits = {'crop_scale': crop_scale, 'crop_ratio': crop_ratio, 'scale': scale}
  _check(limits, flip, perspective, views)
  check_erasing('config.augment', erasing, erasing_scale, erasing_ratio)
  draw_matrix = partial(
    _output_to_input, flip, scale, rotation, translation, perspective, crop_scale, crop_ratio
  )
  jitter = partial(_jitter, brightness, contrast, saturation)

  def one_view(key, image, points):
    draws = jax.random.uniform(key, (25,), dtype)
    output_to_input, flipped = draw_matrix(draws)
    output_to_input = homography.in_pixels(output_to_input, *image.shape[:2])
    image = bilinear.warp(image.astype(dtype), output_to_input) / 255
    image = jitter(draws[17:20], image)
    image = (image - jnp.array(MEAN, dtype)) / jnp.array(STDDEV, dtype)
    if erasing:
      image = erase(draws[20:25], image, erasing, erasing_scale, erasing_ratio)
    if flip == 0:
      return {'image': image} | _moved(points, output_to_input)
    mirrored = _mirrored(_moved(points, output_to_input), flipped, flip_order, flip_poses)
    return {'image': image} | mirrored

  def views_of(key, image, points):
    if views == 1:
      return one_view(key, image, points)
    return jax.vmap(one_view, (0, None, None))(jax.random.split(key, views), image, points)

  def neighbours_of(key, images):
    keys = jax.random.split(jax.random.fold_in(key, 2), len(images))
    return jax.vmap(one_view, (0, 0, None))(keys, images, {})['image']

  def augment(keys, batch):
    points = {name: batch[name] for name in MOVED if name in batch}
    if flip:
      _check_flips(points, flip_order, flip_poses)
    seen = jax.vmap(views_of)(keys, batch['image'], points)
    if 'neighbour_image' in batch:
      seen['neighbour_image'] = jax.vmap(neighbours_of)(keys, batch['neighbour_image'])
    return batch | seen

  return augment


def _check(limits, flip, perspective, views):
  for name, (low, high) in limits.items():
    if not 0 < low <= high:
      raise InputError(f'config.augment.{name}={(low, high)}: give (low, high), 0 < low <= high')
  if limits['crop_scale'][1] > 1:
    given = tuple(limits['crop_scale'])
    raise InputError(f'config.augment.crop_scale={given}: a crop is at most the picture')
  if not 0 <= flip <= 1:
    raise InputError(f'config.augment.flip={flip} lies outside 0..1')
  if not 0 <= perspective < 2 / 3:  # above that, corners can leave no convex picture
    raise InputError(f'config.augment.perspective={perspective}: it must lie within 0..2/3')
  if views < 1:
    raise InputError(f'config.augment.views={views}: at least one view')


def _check_flips(points, flip_order, flip_poses):
  if points.keys() - {'pose'} and flip_order is None:
    raise InputError('landmarks cannot be flipped without flip_order: set config.augment.flip=0')
  if 'pose' in points and flip_poses is None:
    raise InputError('poses cannot be flipped without flip_poses: set config.augment.flip=0')


def _output_to_input(
  flip, scale, rotation, translation, perspective, crop_scale, crop_ratio, draws
):
  """f[3, 3] in normalised coordinates, which maps points of the view to those of the picture, and
  bool[], whether it is flipped; of draws f[25] from [0, 1). What is off is not computed."""
  flip_draw, zoom_draw, angle_draw, area_draw, ratio_draw = draws[:5]
  flipped, one = flip_draw < flip, jnp.ones((), draws.dtype)
  matrix = homography.scaling(jnp.where(flipped, -one, one), one)
  if tuple(scale) != (1.0, 1.0):
    zoom = 1 / _between(zoom_draw, scale)
    matrix = homography.compose(homography.scaling(zoom, zoom), matrix)
  if rotation:
    radians = jnp.deg2rad(_between(angle_draw, (-rotation, rotation)))
    matrix = homography.compose(homography.rotation(radians), matrix)
  if translation:
    x, y = 2 * _between(draws[5:7], (-translation, translation))
    matrix = homography.compose(homography.translation(x, y), matrix)
  if perspective:
    inwards = homography.perspective(perspective * draws[7:15].reshape(4, 2))
    matrix = homography.compose(homography.inverse(inwards), matrix)
  if crop_scale[0] < 1:
    area, ratio = _between(area_draw, crop_scale), _log_between(ratio_draw, crop_ratio)
    width = jnp.minimum(jnp.sqrt(area * ratio), 1)
    height = jnp.minimum(jnp.sqrt(area / ratio), 1)
    x, y = (2 * draws[15:17] - 1) * (1 - jnp.stack([width, height]))
    crop = homography.compose(homography.translation(x, y), homography.scaling(width, height))
    matrix = homography.compose(crop, matrix)
  return matrix, flipped


def _moved(points, output_to_input):
  """The points of one picture at their places in the view; what has no place is left as it is."""
  if 'landmarks' not in points:
    return points
  input_to_output = homography.inverse(output_to_input)
  landmarks = points['landmarks'].astype(output_to_input.dtype)
  return points | {'landmarks': homography.apply(input_to_output, landmarks)}


def _mirrored(points, flipped, flip_order, flip_poses):
  """The points of one view; where it is flipped, in the order of the mirrored face, in which the
  left eye is what was the right one."""
  points = dict(points)
  if 'landmarks' in points:
    landmarks = points['landmarks']
    points['landmarks'] = jnp.where(flipped, landmarks[flip_order], landmarks)
  if 'landmark_graph' in points:
    graph = points['landmark_graph']
    points['landmark_graph'] = jnp.where(flipped, landmark_graph.reorder(graph, flip_order), graph)
  if 'pose' in points:
    pose = points['pose']
    points['pose'] = jnp.where(flipped & (pose >= 0), jnp.asarray(flip_poses)[pose], pose)
  return points


def _between(draw, limits):
  """Draws from [0, 1), moved to [low, high)."""
  return limits[0] + (limits[1] - limits[0]) * draw


def _log_between(draw, limits):
  return jnp.exp(_between(draw, np.log(limits)))


def _jitter(brightness, contrast, saturation, draws, image):
  grey_weights = jnp.array([0.299, 0.587, 0.114], image.dtype)
  if brightness:
    image = jnp.clip(image * _between(draws[0], (1 - brightness, 1 + brightness)), 0, 1)
  if contrast:
    mean = (image @ grey_weights).mean()
    factor = _between(draws[1], (1 - contrast, 1 + contrast))
    image = jnp.clip(mean + (image - mean) * factor, 0, 1)
  if saturation:
    grey = (image @ grey_weights)[..., None]
    factor = _between(draws[2], (1 - saturation, 1 + saturation))
    image = jnp.clip(grey + (image - grey) * factor, 0, 1)
  return image
