"""Triplets of embeddings, classified by the nearest mean of a class.

Reference: Schroff et al., "FaceNet: A Unified Embedding for Face Recognition and Clustering", CVPR
2015. The baseline of "Deep Metric Structured Learning for Facial Expression Recognition", 2022.
"""

import flax.linen as nn
import jax.numpy as jnp

from ferjax.core import Method
from ferjax.errors import choose
from ferjax.losses import triplet
from ferjax.methods import sgm


def make(
  model: nn.Module,
  *,
  num_classes: int,
  num_poses: int = 0,
  embedding_width: int = 64,
  normalise: bool = True,
  centre: bool = False,
  squared: bool = True,
  margin: float = 0.2,
  mining: str = 'semi_hard',
  hinge: str = 'relu',
  sigma: float = 0.5,
) -> Method:
  """Factory. Terms: `triplet`, over the whole batch, and `norm`, the mean length of embeddings that
  have no fixed one, else 0. `mean_distance` is logged, the mean squared distance of the embeddings.

  Args:
    model: pictures f[b, h, w, 3], train -> feature maps of every stage.
    num_classes: C.
    num_poses: Not used.
    embedding_width: d.
    normalise: Whether embeddings have length 1 (FaceNet's).
    centre: Whether they pass a BatchNorm without scale and shift before.
    squared: Whether distances are squared.
    margin: Between distances; squared ones of length 1 are within 0..4.
    mining: `semi_hard` (FaceNet's), `batch_hard` or `all_active`; see `losses/triplet.py`.
    hinge: See there.
    sigma: Of the Gaussians around the class means whose posterior is the prediction; the predicted
      class is that of the nearest mean whatever it is.

  Raises:
    InputError: an unknown name or a number out of range; from `init`: see `sgm.make`.
  """
  choose('config.method.mining', mining, triplet.MINING)
  triplet.check(hinge, 'mean')
  base = sgm.make(
    model,
    num_classes=num_classes,
    embedding_width=embedding_width,
    normalise=normalise,
    centre=centre,
    sigma=sigma,
  )

  def loss(params, extra, outputs, batch, step):
    embedding = outputs['embedding']
    squares = triplet.squared_distances(embedding)
    distance = squares if squared else triplet.distances(squares)
    masks = triplet.class_masks(batch['label'])
    terms = {'triplet': triplet.MINING[mining](distance, *masks, margin, hinge=hinge)}
    length = jnp.sqrt((embedding**2).sum(-1) + 1e-12).mean()
    terms['norm'] = jnp.zeros_like(length) if normalise else length
    return terms, {'metrics': {'mean_distance': triplet.mean_distance(squares)}}

  return base._replace(loss=loss)
