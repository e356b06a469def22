"""Losses for faces: pure functions with one value for each row.

A loss is `name(logits or embedding, label, *, ..., where=None) -> f[b]`: unreduced, in float64 for
float64 and in float32 for any narrower float. Rows outside `where` give 0, do not change the
others, and may hold any value, even NaN. Use the `.mean()` of it, or divide its sum by
`where.sum()`. Labels must be within 0..C-1. This cannot be checked under `jax.jit`, and the loss of
another label is meaningless. A loss with a state or parameters is a `StatefulLoss`.

- `cross_entropy`: `softmax_cross_entropy` (there `cross_entropy`), `label_smoothing`, `focal`.
- `noise_robust`: `generalised_cross_entropy`, `symmetric_cross_entropy`.
- `divergence`: `distribution_divergence`; there also `kl_divergence`, `jensen_shannon`, and
  LDL-ALSG's `neighbour_guidance`.
- `class_centers`: `center`, `island`; with centres that follow the batches, `centers`, `islands`.
- `margin`: `cosface`, `arcface`, of `cosines`; with class weights, `cosface_head`, `arcface_head`.
- `contrastive`: `supervised_contrastive`.
- `triplet`: `batch_hard_triplet`, `semi_hard_triplet`; there also DML-Net's masks of a nuisance.
- `pairs`: `contrastive_pair`.
- `gaussian`: `gaussian_manifold` (SGM).

A loss that only one method uses is in the folder of that method: LA-Net's label distributions,
landmark errors and contrast in `methods/lanet/` (`estimation`, `landmarks`, `contrast`), HRL's
spatial invariance in `methods/hrl/sifl`. The weighting of terms is in `terms/weighting`.

Modules and functions have different names, so that `losses.triplet` is always the module. Losses
that optax provides are not repeated here: `optax.losses` has regression (`huber_loss`), NT-Xent
(`ntxent`), PolyLoss (`poly_loss_cross_entropy`), given triplets (`triplet_margin_loss`), and
several labels for each row (`sigmoid_binary_cross_entropy`, `sigmoid_focal_loss`).

Example:
  >>> import jax.numpy as jnp, numpy as np
  >>> from ferjax import losses
  >>> logits, label = jnp.array([[2.0, 0.0], [1.0, 1.0], [9.0, 9.0]]), jnp.array([0, 1, 0])
  >>> print(np.asarray(losses.focal(logits, label, gamma=2.0)).round(4))
  [0.0018 0.1733 0.1733]
  >>> print(np.asarray(losses.focal(logits, label, where=jnp.array([True, True, False]))).round(4))
  [0.0018 0.1733 0.    ]
"""

from ferjax.losses.class_centers import center, centers, island, islands
from ferjax.losses.contrastive import supervised_contrastive
from ferjax.losses.cross_entropy import cross_entropy as softmax_cross_entropy
from ferjax.losses.cross_entropy import focal, label_smoothing
from ferjax.losses.divergence import distribution_divergence
from ferjax.losses.gaussian import gaussian_manifold
from ferjax.losses.margin import arcface, arcface_head, cosface, cosface_head, cosines
from ferjax.losses.noise_robust import generalised_cross_entropy, symmetric_cross_entropy
from ferjax.losses.pairs import contrastive_pair
from ferjax.losses.stateful import StatefulLoss
from ferjax.losses.triplet import batch_hard_triplet, semi_hard_triplet

__all__ = [
  'StatefulLoss',
  'arcface',
  'arcface_head',
  'batch_hard_triplet',
  'center',
  'centers',
  'contrastive_pair',
  'cosface',
  'cosface_head',
  'cosines',
  'distribution_divergence',
  'focal',
  'gaussian_manifold',
  'generalised_cross_entropy',
  'island',
  'islands',
  'label_smoothing',
  'semi_hard_triplet',
  'softmax_cross_entropy',
  'supervised_contrastive',
  'symmetric_cross_entropy',
]
