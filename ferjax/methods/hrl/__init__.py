"""HRL: harmonious representation learning.

Two branches see an encoder's maps, and their scores add up: a linear layer on the pooled last map
(naive), and messages along a graph of landmarks (LGMP). Spatial invariance (SIFL) asks that the
features of a flipped, turned and tilted picture are those of the picture, moved along.

Reference: "Harmonious representation learning for facial expression recognition", Elsevier, 2022.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ferjax.core import Method
from ferjax.errors import InputError, nearest
from ferjax.losses.cross_entropy import cross_entropy
from ferjax.methods.hrl import lgmp
from ferjax.methods.hrl.sifl import random_transformation, spatial_invariance
from ferjax.ops import bilinear, homography, landmark_graph

BRANCHES = ('lgmp', 'dense', 'none')
GRAPHS = ('uniform_rank', 'random', 'delaunay')


class Networks(nn.Module):
  """Encoder and branches; either branch may be missing."""

  encoder: nn.Module
  branch: nn.Module | None
  naive: nn.Module | None
  dtype: Any

  def __call__(self, image, landmarks, graph, train, transformed=None, delta=None):
    """Scores of the pictures, and the last maps of both.

    Args:
      image: f[b, h, w, 3].
      landmarks: f[b, k, 2] in pixels; None leaves the naive scores.
      graph: i32[b, k, d], or None where no branch looks at it.
      train: Whether BatchNorm uses the statistics of the batch: of both kinds of pictures.
      transformed: T(I), like `image`, or None.
      delta: Added to the last map, or None.

    Returns:
      `logits`, `embedding`, `last_map`, and where they exist `naive_logits`, `transformed_map`.
    """
    both = image if transformed is None else jnp.concatenate([image, transformed])
    both = self.encoder(both, train)
    maps = [feature_map[: image.shape[0]] for feature_map in both]
    if delta is not None:
      maps[-1] = maps[-1] + delta
    outputs = {'embedding': maps[-1].mean((1, 2), dtype=self.dtype), 'last_map': maps[-1]}
    if transformed is not None:
      outputs['transformed_map'] = both[-1][image.shape[0] :]
    scores = []
    if self.naive is not None:
      scores.append(self.naive(outputs['embedding']))
    if self.branch is not None and landmarks is not None:
      scores.append(self.branch(maps, landmarks, image.shape[1:3], graph))
    if len(scores) > 1:
      outputs['naive_logits'] = scores[0]
    return outputs | {'logits': sum(scores)}


def make(
  model: nn.Module,
  *,
  num_classes: int,
  num_poses: int = 0,
  sifl: bool = True,
  branch: str = 'lgmp',
  naive: bool = True,
  graph: str = 'uniform_rank',
  groups: int = 8,
  offsets: str = 'landmark',
  normalise: bool = True,
  pool_size: int = 3,
  widths: Sequence[int] = (1536, 2048),
  dense_reduction: int = 224,
  dense_widths: Sequence[int] = (2048, 1024),
  naive_widths: Sequence[int] = (),
  flip: float = 0.5,
  rotation: float = 30.0,
  perspective: float = 0.1,
  mask_outside: bool = True,
) -> Method:
  """Factory; the first three arguments are the columns of the paper's table 4.

  Terms: `aggregate` (cross-entropy of the summed scores, equation 16), `naive` (of the naive ones
  where there are two branches, equation 17), `sifl` (equation 14); 0 when off. SIFL with weight 0
  is measured and not trained, though BatchNorm then sees the transformed pictures too.

  Args:
    model: pictures f[b, h, w, 3], train -> feature maps of every stage.
    num_classes: C.
    num_poses: Not used.
    sifl: Whether transformed pictures pass the encoder too.
    branch: What looks at landmarks: `lgmp`, `dense` (three fully connected layers) or `none`.
    naive: Whether there is the naive branch.
    graph: `uniform_rank` (the paper's), `random` (drawn anew for each face in each step; one fixed
      draw at inference), or `delaunay` (of the landmarks before augmentation).
    groups: Edges of each landmark.
    offsets: Whose features the random walks come from: `landmark`, or `pixel` (much slower).
    normalise: Whether messages are averaged rather than summed.
    pool_size: Samples along a side of the point pooling.
    widths: Of the two LGMP modules.
    dense_reduction: Features of a landmark in the dense branch.
    dense_widths: Its hidden layers.
    naive_widths: Hidden layers of the naive branch.
    flip, rotation, perspective: The random transformation T: probability, degrees, share of half
      the side; see `losses/spatial_invariance.py`.
    mask_outside: Whether cells that T moved outside do not count.

  Raises:
    InputError: an unknown name, a number out of range, no branch at all; from the functions: too
      few landmarks.
  """
  for name, value, choices in (
    ('branch', branch, BRANCHES),
    ('graph', graph, GRAPHS),
    ('offsets', offsets, ('landmark', 'pixel')),
  ):
    if value not in choices:
      raise InputError(
        f"config.method.{name} is '{value}'.{nearest(value, choices)} Use {' or '.join(choices)}"
      )
  if not 0 <= flip <= 1:
    raise InputError(f'config.method.flip={flip} lies outside 0..1')
  if not 0 <= perspective < 2 / 3:
    raise InputError(f'config.method.perspective={perspective}: it must lie within 0..2/3')
  if groups < 1:
    raise InputError(f'config.method.groups={groups}: at least 1')
  if pool_size < 1 or pool_size % 2 == 0:
    raise InputError(f'config.method.pool_size={pool_size}: give an odd number')
  if len(widths) != 2:
    raise InputError(f'config.method.widths={tuple(widths)}: give two, one for each LGMP module')
  if branch == 'none' and not naive:
    raise InputError(
      'nothing is left to predict with: set config.method.naive=True, or config.method.branch to '
      'lgmp or dense'
    )

  dtype = model.param_dtype
  kinds = {'dtype': model.dtype, 'param_dtype': dtype}
  branches = {
    'lgmp': lgmp.LandmarkGraphHead(
      num_classes, tuple(widths), pool_size, offsets, normalise, **kinds
    ),
    'dense': lgmp.LandmarkDenseHead(
      num_classes, dense_reduction, tuple(dense_widths), pool_size, **kinds
    ),
    'none': None,
  }
  naive_head = lgmp.NaiveHead(num_classes, tuple(naive_widths), dtype) if naive else None
  network = Networks(model, branches[branch], naive_head, dtype)
  landmarks = frozenset({'landmarks'} if branch != 'none' else ())
  stored = {'landmark_graph': lambda table: landmark_graph.delaunay(table['landmarks'], groups)}

  def edges(batch, keys=None):
    """i32[b, k, groups], or None where nothing looks at it."""
    if branch != 'lgmp' or 'landmarks' not in batch:
      return None
    points = batch['landmarks']
    landmark_graph.check(points.shape[1], groups)
    if graph == 'delaunay':
      return batch['landmark_graph']
    if graph == 'uniform_rank':
      return jax.vmap(landmark_graph.uniform_rank, (0, None))(points, groups)
    if keys is None:
      drawn = landmark_graph.random(jax.random.key(0), points.shape[1], groups)
      return jnp.broadcast_to(drawn, (points.shape[0], *drawn.shape))
    draw = jax.vmap(landmark_graph.random, (0, None, None))
    return draw(keys, points.shape[1], groups)

  def init(rng, batch, table):
    initialise = jax.jit(network.init, static_argnums=4)
    variables = initialise(rng, batch['image'], batch.get('landmarks'), edges(batch), False)
    return variables['params'], {'batch_stats': variables['batch_stats']}

  def forward(params, extra, batch, keys):
    keys = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, 1)))(keys)
    image, transformed = batch['image'], None
    if sifl:
      draw = jax.vmap(random_transformation, (0, None, None, None, None))
      output_to_input = draw(keys[:, 0], flip, rotation, perspective, image.dtype)
      to_pixels = jax.vmap(homography.in_pixels, (0, None, None))
      transformed = jax.vmap(bilinear.warp)(image, to_pixels(output_to_input, *image.shape[1:3]))
    outputs, carry = network.apply(
      {'params': params, **extra},
      image,
      batch.get('landmarks'),
      edges(batch, keys[:, 1]),
      True,
      transformed,
      mutable=['batch_stats'],
    )
    last_map = outputs.pop('last_map').astype(dtype)
    outputs['sifl'] = jnp.zeros(len(image), dtype)
    if sifl:
      other = outputs.pop('transformed_map').astype(dtype)
      distance = jax.vmap(spatial_invariance, (0, 0, 0, None))
      outputs['sifl'] = distance(last_map, other, output_to_input, mask_outside)
    return outputs, carry

  def loss(params, extra, outputs, batch, step):
    terms = {
      'aggregate': cross_entropy(outputs['logits'], batch['label']).mean(),
      'naive': jnp.zeros((), dtype),
      'sifl': outputs['sifl'].mean(),
    }
    if 'naive_logits' in outputs:
      terms['naive'] = cross_entropy(outputs['naive_logits'], batch['label']).mean()
    return terms, None

  def update(extra, params, carry, outputs, batch, aux):
    return {'batch_stats': carry['batch_stats']}

  def predict(params, extra, batch, delta=None):
    """Without landmarks, the naive scores alone."""
    graphs, points = edges(batch), batch.get('landmarks')
    variables = {'params': params, **extra}
    outputs = network.apply(variables, batch['image'], points, graphs, False, delta=delta)
    if delta is None:
      del outputs['last_map']
    if graphs is not None:
      outputs['edge_length'] = jax.vmap(landmark_graph.mean_edge_length)(graphs, points)
    return outputs

  return Method(
    needs=landmarks,
    predict_needs=frozenset() if naive else landmarks,
    predict_uses=landmarks,
    derived=stored if branch == 'lgmp' and graph == 'delaunay' else {},
    init=init,
    forward=forward,
    loss=loss,
    update=update,
    predict=predict,
  )
