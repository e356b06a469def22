"""Augmentation on the device, example by example: one homography, one bilinear sampling.

Flip, crop, rotation, scaling, translation and perspective compose to a single matrix, which also
moves the landmarks; colour jitter and erasing follow. Each example draws from its own key, so the
result does not depend on the number of devices.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ferjax.errors import InputError
from ferjax.ops import bilinear, homography, landmark_graph

MEAN = (0.485, 0.456, 0.406)  # of ImageNet's RGB values, which pretrained networks expect
STDDEV = (0.229, 0.224, 0.225)


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
  ranges = {
    'crop_scale': crop_scale,
    'crop_ratio': crop_ratio,
    'scale': scale,
    'erasing_scale': erasing_scale,
    'erasing_ratio': erasing_ratio,
  }
  for name, (low, high) in ranges.items():
    if not 0 < low <= high:
      raise InputError(f'config.augment.{name}={(low, high)}: give (low, high), 0 < low <= high')
  if crop_scale[1] > 1:
    raise InputError(
      f'config.augment.crop_scale={tuple(crop_scale)}: a crop is at most the picture'
    )
  for name, value in {'flip': flip, 'erasing': erasing}.items():
    if not 0 <= value <= 1:
      raise InputError(f'config.augment.{name}={value} lies outside 0..1')
  if not 0 <= perspective < 2 / 3:  # above that, corners can leave no convex picture
    raise InputError(f'config.augment.perspective={perspective}: it must lie within 0..2/3')
  if views < 1:
    raise InputError(f'config.augment.views={views}: at least one view')

  def one_view(key, image, points):
    draws = jax.random.uniform(key, (25,), dtype)
    flip_draw, zoom_draw, angle_draw, area_draw, ratio_draw = draws[:5]
    flipped, one = flip_draw < flip, jnp.ones((), dtype)
    output_to_input = homography.scaling(jnp.where(flipped, -one, one), one)
    if tuple(scale) != (1.0, 1.0):
      zoom = 1 / _between(zoom_draw, scale)
      output_to_input = homography.compose(homography.scaling(zoom, zoom), output_to_input)
    if rotation:
      radians = jnp.deg2rad(_between(angle_draw, (-rotation, rotation)))
      output_to_input = homography.compose(homography.rotation(radians), output_to_input)
    if translation:
      x, y = 2 * _between(draws[5:7], (-translation, translation))
      output_to_input = homography.compose(homography.translation(x, y), output_to_input)
    if perspective:
      inwards = homography.perspective(perspective * draws[7:15].reshape(4, 2))
      back = homography.inverse(inwards)
      output_to_input = homography.compose(back, output_to_input)
    if crop_scale[0] < 1:
      area, ratio = _between(area_draw, crop_scale), _log_between(ratio_draw, crop_ratio)
      width = jnp.minimum(jnp.sqrt(area * ratio), 1)
      height = jnp.minimum(jnp.sqrt(area / ratio), 1)
      x, y = (2 * draws[15:17] - 1) * (1 - jnp.stack([width, height]))
      crop = homography.compose(homography.translation(x, y), homography.scaling(width, height))
      output_to_input = homography.compose(crop, output_to_input)
    output_to_input = homography.in_pixels(output_to_input, *image.shape[:2])
    image = bilinear.warp(image.astype(dtype), output_to_input) / 255
    image = _jitter(draws[17:20], image, brightness, contrast, saturation)
    image = (image - jnp.array(MEAN, dtype)) / jnp.array(STDDEV, dtype)
    if erasing:
      image = _erase(draws[20:25], image, erasing, erasing_scale, erasing_ratio)
    seen = {'image': image}
    if 'landmarks' in points:
      input_to_output = homography.inverse(output_to_input)
      seen['landmarks'] = homography.apply(input_to_output, points['landmarks'].astype(dtype))
      if flip:
        mirrored = seen['landmarks'][flip_order]
        seen['landmarks'] = jnp.where(flipped, mirrored, seen['landmarks'])
    if 'landmark_graph' in points:
      graph = points['landmark_graph']
      mirrored = landmark_graph.reorder(graph, flip_order) if flip else graph
      seen['landmark_graph'] = jnp.where(flipped, mirrored, graph)
    if 'pose' in points:
      pose = points['pose']
      seen['pose'] = (
        jnp.where(flipped & (pose >= 0), jnp.asarray(flip_poses)[pose], pose) if flip else pose
      )
    return seen

  def augment(keys, batch):
    moved = ('landmarks', 'landmark_graph', 'pose')
    points = {name: batch[name] for name in moved if name in batch}
    if points.keys() - {'pose'} and flip and flip_order is None:
      raise InputError('landmarks cannot be flipped without flip_order: set config.augment.flip=0')
    if 'pose' in points and flip and flip_poses is None:
      raise InputError('poses cannot be flipped without flip_poses: set config.augment.flip=0')

    def example(key, image, points):
      if views == 1:
        return one_view(key, image, points)
      return jax.vmap(one_view, (0, None, None))(jax.random.split(key, views), image, points)

    def neighbours(key, images):
      keys = jax.random.split(jax.random.fold_in(key, 2), len(images))
      return jax.vmap(one_view, (0, 0, None))(keys, images, {})['image']

    seen = jax.vmap(example)(keys, batch['image'], points)
    if 'neighbour_image' in batch:
      seen['neighbour_image'] = jax.vmap(neighbours)(keys, batch['neighbour_image'])
    return batch | seen

  return augment


def _between(draw, limits):
  """Draws from [0, 1) carried over to [low, high)."""
  return limits[0] + (limits[1] - limits[0]) * draw


def _log_between(draw, limits):
  return jnp.exp(_between(draw, np.log(limits)))


def _jitter(draws, image, brightness, contrast, saturation):
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


def _erase(draws, image, probability, area_range, ratio_range):
  height, width = image.shape[:2]
  area, ratio = _between(draws[0], area_range), _log_between(draws[1], ratio_range)
  box_width = jnp.minimum(jnp.sqrt(area * ratio), 1) * width
  box_height = jnp.minimum(jnp.sqrt(area / ratio), 1) * height
  left, top = draws[2] * (width - box_width), draws[3] * (height - box_height)
  points = bilinear.grid(height, width, image.dtype) + 0.5
  inside = (points[..., 0] >= left) & (points[..., 0] < left + box_width)
  inside &= (points[..., 1] >= top) & (points[..., 1] < top + box_height)
  return jnp.where((inside & (draws[4] < probability))[..., None], 0, image)
