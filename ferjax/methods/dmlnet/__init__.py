"""DML-Net: expressions whatever the pose and the person, by metric learning on fused regions.

Three networks see face, eyes and mouth (MFE). On their fused features stand a classifier of
expressions, one of poses (HPE), and an embedding (JEFL) in which faces of an expression come
together across poses and across people.

Reference: Liu et al., "Dynamic multi-channel metric network for joint pose-aware and
identity-invariant facial expression recognition", Information Sciences, 2021.
"""

from functools import partial

import flax.linen as nn

from ferjax.core import Method
from ferjax.losses.cross_entropy import cross_entropy
from ferjax.methods.dmlnet import checks, networks
from ferjax.methods.dmlnet.regions import RegionFeatures
from ferjax.methods.dmlnet.terms import triplets


def make(
  model: nn.Module,
  *,
  num_classes: int,
  num_poses: int,
  regions: bool = True,
  pose_head: bool = True,
  pose_triplets: bool = True,
  identity_triplets: bool = True,
  region_boxes: str = 'picture',
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
  mining: str = 'batch_hard',
  warmup_steps: int = 0,
  dense_stddev: float = 0.04,
  softmax_stddev: float = 1 / 512,
) -> Method:
  """Factory; the first four switches are the rows of the paper's table 8 (MFE, HPE, JEFL).

  Terms, of those that are on: `expression` and `pose` (cross-entropies), `triplet` (equation 6:
  pose-based and identity-based triplets together). With triplets `mean_distance` is logged, the
  mean squared distance of the batch's embeddings.

  Args:
    model: pictures f[b, h, w, 3], train -> feature maps of every stage.
    num_classes: C.
    num_poses: Pose classes.
    regions: MFE, networks for eyes and mouth in addition to the one for the whole face.
    pose_head: HPE, a classifier of poses.
    pose_triplets: JEFL, triplets whose positive has another pose.
    identity_triplets: JEFL, triplets whose positive is another person.
    region_boxes: Where eyes and mouth are: in thirds of the `picture` (the paper's; for crops that
      the face fills), or in the upper and lower part of the box around the `landmarks`, which go
      from the brows to the chin or the lower lip; five points are too few. Without landmarks,
      prediction takes the first.
    region_resize: Whether eyes and mouth are enlarged to the size of the picture.
    fusion_width: Of the fusion layers.
    head_width: Of the heads' hidden layers.
    heads_on: What the heads get: `fused` features, or the `embedding`.
    embedding_width: Of the embedding.
    normalise: Whether the embedding has length 1.
    pose_margin: m of pose-based triplets.
    identity_margin: m of identity-based triplets.
    hinge: `relu`, `softplus` (a soft hinge) or `none` (the paper's equations) of margin + D+ - D-.
    reduction: `sum` or `mean` over the anchors.
    anchors: `all` rows of the batch, or the anchors of five-tuples only (`tuple`).
    mining: Which triplets count: of each anchor the hardest (`batch_hard`, the paper's), of each
      positive the `semi_hard`, or `all_active`; see `losses/triplet.py`.
    warmup_steps: In the steps before this one, all active triplets count.
    dense_stddev: Standard deviation of the first weights of dense layers.
    softmax_stddev: The same of the layers before a softmax.

  Raises:
    InputError: an unknown name or a number out of range; from the functions: anchors of tuples,
      and a sampler that forms none.
  """
  checks.names(heads_on, anchors, hinge, reduction, mining, region_boxes)
  checks.warmup(warmup_steps)
  checks.widths(fusion_width, head_width, embedding_width)
  checks.deviations(dense_stddev, softmax_stddev)
  margins = {'pose': pose_margin} if pose_triplets else {}
  margins |= {'subject': identity_margin} if identity_triplets else {}
  dtype = model.param_dtype
  dense_init, scores_init = map(nn.initializers.normal, (dense_stddev, softmax_stddev))
  inits = {'hidden_init': dense_init, 'scores_init': scores_init}
  head = partial(networks.Head, width=head_width, dtype=dtype, **inits)
  embedding = nn.Dense(embedding_width, kernel_init=dense_init, dtype=dtype, param_dtype=dtype)
  network = networks.Networks(
    features=RegionFeatures(
      model, regions, region_boxes, region_resize, fusion_width, dense_init, dtype
    ),
    expression_head=head(num_classes),
    pose_head=head(num_poses) if pose_head else None,
    embedding=embedding if margins or heads_on == 'embedding' else None,
    normalise=normalise,
    heads_on=heads_on,
  )

  landmarks = frozenset({'landmarks'} if regions and region_boxes == 'landmarks' else ())
  mined = partial(triplets, margins, hinge, reduction, anchors, mining, warmup_steps)

  def loss(params, extra, outputs, batch, step):
    terms = {'expression': cross_entropy(outputs['logits'], batch['label']).mean()}
    if pose_head:
      terms['pose'] = cross_entropy(outputs['pose_logits'], batch['pose']).mean()
    if not margins:
      return terms, None
    terms['triplet'], distance = mined(outputs['embedding'], batch, step)
    return terms, {'metrics': {'mean_distance': distance}}

  def update(extra, params, carry, outputs, batch, aux):
    return {'batch_stats': carry['batch_stats']}

  return Method(
    needs=frozenset(margins) | ({'pose'} if pose_head else set()) | landmarks,
    predict_needs=frozenset(),
    predict_uses=landmarks,
    init=partial(networks.init, network),
    forward=partial(networks.forward, network),
    loss=loss,
    update=update,
    predict=partial(networks.predict, network),
    encoder=('features/face',),
  )
