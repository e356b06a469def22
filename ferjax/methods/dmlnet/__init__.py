"""DML-Net: expressions whatever the pose and the person, by metric learning on fused regions.

Three networks see face, eyes and mouth (MFE). On their fused features stand a classifier of
expressions, one of poses (HPE), and an embedding (JEFL) in which faces of an expression come
together across poses and across people.

Reference: Liu et al., "Dynamic multi-channel metric network for joint pose-aware and
identity-invariant facial expression recognition", Information Sciences, 2021.
"""

from typing import Any

import flax.linen as nn
import jax

from ferjax.core import Method
from ferjax.errors import InputError, nearest
from ferjax.losses import triplet
from ferjax.losses.cross_entropy import cross_entropy
from ferjax.methods.dmlnet.regions import RegionFeatures
from ferjax.ops.distances import unit_length


class Head(nn.Module):
  """A hidden layer and scores."""

  classes: int
  width: int
  hidden_init: Any
  scores_init: Any
  dtype: Any

  @nn.compact
  def __call__(self, x):
    """f[b, d] -> f[b, classes]."""
    kinds = {'dtype': self.dtype, 'param_dtype': self.dtype}
    x = nn.relu(nn.Dense(self.width, kernel_init=self.hidden_init, name='hidden', **kinds)(x))
    return nn.Dense(self.classes, kernel_init=self.scores_init, name='scores', **kinds)(x)


class Networks(nn.Module):
  """All networks of DML-Net; `pose_head` and `embedding` may be missing."""

  features: nn.Module
  expression_head: nn.Module
  pose_head: nn.Module | None
  embedding: nn.Module | None
  normalise: bool
  heads_on: str

  def __call__(self, image, train, delta=None):
    """`logits`, `embedding` (the features where there is none), `last_map`, and `pose_logits`."""
    found = self.features(image, train, delta)
    seen = embedding = found['features']
    if self.embedding is not None:
      embedding = self.embedding(seen)
      embedding = unit_length(embedding) if self.normalise else embedding
    if self.heads_on == 'embedding':
      seen = embedding
    outputs = {
      'logits': self.expression_head(seen),
      'embedding': embedding,
      'last_map': found['last_map'],
    }
    if self.pose_head is not None:
      outputs['pose_logits'] = self.pose_head(seen)
    return outputs


def make(
  model: nn.Module,
  *,
  num_classes: int,
  num_poses: int,
  regions: bool = True,
  pose_head: bool = True,
  pose_triplets: bool = True,
  identity_triplets: bool = True,
  region_resize: bool = False,
  fusion_width: int = 512,
  head_width: int = 512,
  heads_on: str = 'fused',
  embedding_width: int = 128,
  normalise: bool = True,
  pose_margin: float = 0.2,
  identity_margin: float = 0.2,
  hinge: str = 'relu',
  reduction: str = 'mean',
  anchors: str = 'all',
  dense_stddev: float = 0.04,
  softmax_stddev: float = 1 / 512,
) -> Method:
  """Factory; the first four switches are the rows of the paper's table 8 (MFE, HPE, JEFL).

  Terms, of those that are on: `expression` and `pose` (cross-entropies), `triplet` (equation 6:
  pose-based and identity-based triplets together).

  Args:
    model: pictures f[b, h, w, 3], train -> feature maps of every stage.
    num_classes: C.
    num_poses: Pose classes.
    regions: MFE, networks for eyes and mouth beside the one for the whole face.
    pose_head: HPE, a classifier of poses.
    pose_triplets, identity_triplets: JEFL, the two kinds of triplets.
    region_resize: Whether eyes and mouth are enlarged to the size of the picture.
    fusion_width: Of the fusion layers.
    head_width: Of the heads' hidden layers.
    heads_on: What the heads see: `fused` features, or the `embedding`.
    embedding_width: Of the embedding.
    normalise: Whether the embedding has length 1.
    pose_margin, identity_margin: m of the two kinds of triplets.
    hinge, reduction: See `losses/triplet.py`.
    anchors: `all` rows of the batch, or the anchors of five-tuples only (`tuple`).
    dense_stddev: Standard deviation of the first weights of dense layers.
    softmax_stddev: The same of the layers before a softmax.

  Raises:
    InputError: an unknown name or a number out of range; from the functions: anchors of tuples,
      and a sampler that forms none.
  """
  for name, value, choices in (
    ('heads_on', heads_on, ('fused', 'embedding')),
    ('anchors', anchors, ('all', 'tuple')),
    ('hinge', hinge, tuple(triplet.HINGES)),
    ('reduction', reduction, triplet.REDUCTIONS),
  ):
    if value not in choices:
      raise InputError(
        f"config.method.{name} is '{value}'.{nearest(value, choices)} Use {' or '.join(choices)}"
      )
  widths = {'fusion': fusion_width, 'head': head_width, 'embedding': embedding_width}
  for name, value in widths.items():
    if value < 1:
      raise InputError(f'config.method.{name}_width={value}: at least 1')
  for name, value in {'dense': dense_stddev, 'softmax': softmax_stddev}.items():
    if value <= 0:
      raise InputError(f'config.method.{name}_stddev={value}: it must be above 0')

  dtype = model.param_dtype
  dense_init = nn.initializers.normal(dense_stddev)
  kinds = {'dtype': dtype, 'param_dtype': dtype}

  def head(classes):
    return Head(classes, head_width, dense_init, nn.initializers.normal(softmax_stddev), dtype)

  embeds = pose_triplets or identity_triplets or heads_on == 'embedding'
  network = Networks(
    features=RegionFeatures(model, regions, region_resize, fusion_width, dense_init, dtype),
    expression_head=head(num_classes),
    pose_head=head(num_poses) if pose_head else None,
    embedding=nn.Dense(embedding_width, kernel_init=dense_init, **kinds) if embeds else None,
    normalise=normalise,
    heads_on=heads_on,
  )
  against = {}
  if pose_triplets:
    against['pose'] = pose_margin
  if identity_triplets:
    against['subject'] = identity_margin
  needs = frozenset(against) | ({'pose'} if pose_head else set())

  def init(rng, batch, table):
    variables = jax.jit(network.init, static_argnums=2)(rng, batch['image'], False)
    return variables['params'], {'batch_stats': variables['batch_stats']}

  def forward(params, extra, batch, keys):
    variables = {'params': params, **extra}
    outputs, carry = network.apply(variables, batch['image'], True, mutable=['batch_stats'])
    del outputs['last_map']
    return outputs, carry

  def triplet_term(embedding, batch):
    anchor = None
    if anchors == 'tuple':
      if 'role' not in batch:
        raise InputError('config.method.anchors=tuple needs config.sampler.name=five_tuples')
      anchor = batch['role'] == 0
    distance = triplet.squared_distances(embedding)
    losses = []
    for nuisance, margin in against.items():
      masks = triplet.nuisance_masks(batch['label'], batch[nuisance])
      losses.append(
        triplet.batch_hard(
          distance, *masks, margin, hinge=hinge, reduction=reduction, anchor=anchor
        )
      )
    return sum(losses)

  def loss(params, extra, outputs, batch, step):
    terms = {'expression': cross_entropy(outputs['logits'], batch['label']).mean()}
    if pose_head:
      terms['pose'] = cross_entropy(outputs['pose_logits'], batch['pose']).mean()
    if against:
      terms['triplet'] = triplet_term(outputs['embedding'], batch)
    return terms, None

  def update(extra, params, carry, outputs, batch, aux):
    return {'batch_stats': carry['batch_stats']}

  def predict(params, extra, batch, delta=None):
    outputs = network.apply({'params': params, **extra}, batch['image'], False, delta)
    if delta is None:
      del outputs['last_map']
    return outputs

  return Method(needs, frozenset(), init, forward, loss, update, predict)
