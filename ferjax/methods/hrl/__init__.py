"""HRL: harmonious representation learning.

Two branches see an encoder's maps, and their scores add up: a linear layer on the pooled last map
(naive), and messages along a graph of landmarks (LGMP). Spatial invariance (SIFL) asks that the
features of a flipped, turned and tilted picture are those of the picture, moved along.

Reference: "Harmonious representation learning for facial expression recognition", Elsevier, 2022.
"""

from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax.numpy as jnp

from ferjax.core import Method
from ferjax.losses.cross_entropy import cross_entropy
from ferjax.methods.hrl import checks, graphs, networks
from ferjax.methods.hrl.lgmp import LandmarkDenseHead, LandmarkGraphHead, NaiveHead
from ferjax.methods.hrl.sifl import transform


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
  sifl_scaled: bool = False,
  activations: bool = False,
) -> Method:
  """Factory; the first three switches are the columns of the paper's table 4.

  Terms: `aggregate` (cross-entropy of the summed scores, equation 16), `naive` (of the naive ones
  where there are two branches, equation 17), `sifl` (equation 14); 0 when off. SIFL with weight 0
  is measured and not trained, though BatchNorm then sees the transformed pictures too.

  Args:
    model: pictures f[b, h, w, 3], train -> feature maps of every stage.
    num_classes: C.
    num_poses: Not used.
    sifl: Whether transformed pictures pass the encoder too.
    branch: What uses the landmarks: `lgmp`, `dense` (three fully connected layers) or `none`.
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
      the side; see `sifl.random_transformation`.
    mask_outside: Whether cells that T moved outside do not count.
    sifl_scaled: Whether SIFL compares maps divided by the deviation of each channel in the batch
      (ours).
    activations: Whether a BatchNorm and a ReLU follow each LGMP module (ours).

  Raises:
    InputError: an unknown name, a number out of range, no branch at all; from the functions: too
      few landmarks.
  """
  checks.names(branch, graph, offsets)
  checks.transformation(flip, perspective)
  checks.branches(branch, naive, groups, pool_size, widths)
  dtype, kinds = model.param_dtype, {'dtype': model.dtype, 'param_dtype': model.param_dtype}
  heads = {
    'lgmp': LandmarkGraphHead(
      num_classes, tuple(widths), pool_size, offsets, normalise, activations, **kinds
    ),
    'dense': LandmarkDenseHead(
      num_classes, dense_reduction, tuple(dense_widths), pool_size, **kinds
    ),
    'none': None,
  }
  naive_head = NaiveHead(num_classes, tuple(naive_widths), dtype) if naive else None
  network = networks.Networks(model, heads[branch], naive_head, dtype)
  edges = partial(graphs.edges, graph, groups) if branch == 'lgmp' else graphs.no_edges
  draw = partial(transform, flip, rotation, perspective) if sifl else None
  landmarks = frozenset({'landmarks'} if branch != 'none' else ())

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

  return Method(
    needs=landmarks,
    predict_needs=frozenset() if naive else landmarks,
    predict_uses=landmarks,
    derived=graphs.derived(graph, groups) if branch == 'lgmp' else {},
    init=partial(networks.init, network, edges),
    forward=partial(networks.forward, network, edges, draw, mask_outside, sifl_scaled),
    loss=loss,
    update=update,
    predict=partial(networks.predict, network, edges),
  )
