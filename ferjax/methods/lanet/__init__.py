"""LA-Net: landmark-aware learning under label noise.

Two branches see each face: expressions and landmarks. Each example's label distribution is
estimated from its neighbours in both spaces (LDE) and averaged over epochs; a contrastive loss (EL)
pulls the expression features of a face to landmark features of faces with the same pseudo-label.
At inference only the expression branch remains.

Reference: Wu and Cui, "LA-Net: Landmark-Aware Learning for Reliable Facial Expression Recognition
under Label Noise", ICCV 2023.
"""

from functools import partial

import flax.linen as nn
from jax import lax

from ferjax.core import Method
from ferjax.methods.lanet import checks, contrast, estimation, networks, state, terms


def make(
  model: nn.Module,
  *,
  num_classes: int,
  num_poses: int = 0,
  label_distribution: bool = True,
  landmarks: bool = True,
  contrastive: bool = True,
  pseudo_labels: bool = True,
  shared_stem: bool = True,
  landmark_head: str = 'coordinates',
  neighbours: int = 8,
  decay: float = 0.9,
  stop_gradient: str = 'none',
  threshold: float = 0.7,
  temperature: float = 0.1,
  momentum: float = 0.999,
  queue_size: int = 8192,
  in_batch_negatives: bool = False,
  key_view: str = 'same',
  centre: bool = False,
) -> Method:
  """Factory; the first four switches are the columns of the paper's table 2.

  Terms: `cross_entropy`, `landmarks`, `label_distribution`, `contrastive`, unweighted; 0 when off.
  With the last, `query_cosine`, `sure_share` and `age_gap` are logged; see `terms.py`.

  Args:
    model: pictures f[b, h, w, 3], train -> feature maps of every stage; can be cloned with `first`
      and `last` to hold some stages only.
    num_classes: C.
    num_poses: Not used.
    label_distribution: LD, learn from estimated label distributions too.
    landmarks: LM, estimate label distributions with neighbours in landmark space too.
    contrastive: EL, the expression-landmark contrastive loss.
    pseudo_labels: PL, pair by estimated labels; without it by the given ones.
    shared_stem: Whether both branches have the stem and first stage in common.
    landmark_head: `coordinates` or `heatmap`. At equal weights the error of coordinates, on [0, 1],
      has a gradient far below that of the cross-entropy, the error of heatmaps one of its order.
    neighbours: K in each space.
    decay: omega, share of the stored label distribution that each visit keeps.
    stop_gradient: What of the estimated distributions carries no gradient: `none`, `neighbours`
      (their features and distributions), `targets` (all; contribution scores stay untrained).
    threshold: delta, least probability of a pseudo-label; rows below are ambiguous.
    temperature: tau of the contrastive loss.
    momentum: m of the encoder that makes the keys.
    queue_size: Keys that the queue holds.
    in_batch_negatives: Whether keys of the batch are negatives too.
    key_view: `same`, or `other` for keys from a second augmented view.
    centre: Whether queries and keys pass a BatchNorm without scale and shift before they get
      length 1 (ours).

  Raises:
    InputError: an unknown name, a number out of range, or `landmarks` or `pseudo_labels` without
      `label_distribution`.
  """
  checks.names(landmark_head, stop_gradient, key_view)
  checks.numbers(neighbours, decay, threshold, temperature, momentum, queue_size)
  checks.switches(label_distribution, landmarks, contrastive, pseudo_labels)
  two_branches = landmarks or contrastive
  network = networks.make(model, num_classes, landmark_head, two_branches, shared_stem, centre)
  spaces = ('expression', 'landmark')[: 1 + landmarks] if label_distribution else ()
  views = 2 if contrastive and key_view == 'other' else 1
  estimate = partial(estimation.estimate, network, spaces, neighbours, decay, stop_gradient)

  def loss(params, extra, outputs, batch, step):
    logits, aux = outputs['logits'], {'label': batch['label']}
    values = terms.supervised(outputs, batch['label'], two_branches)
    if label_distribution:
      estimated = estimate(params, extra['bank'], outputs, batch)
      values['label_distribution'] = terms.label_distribution(estimated, logits)
      aux['distribution'] = lax.stop_gradient(estimated)
      if pseudo_labels:
        aux['label'] = contrast.pseudo_labels(aux['distribution'], batch['index'], threshold)
    if contrastive:
      values['contrastive'] = terms.contrastive(
        outputs, aux['label'], extra['queue'], temperature, in_batch_negatives
      )
      aux['metrics'] = terms.contrast_metrics(outputs, aux['label'], extra['queue'])
    return values, aux

  return Method(
    needs=frozenset({'landmarks'} if two_branches else ()),
    predict_needs=frozenset(),
    init=partial(state.init, network, spaces, queue_size if contrastive else 0),
    forward=partial(networks.forward, network, views),
    loss=loss,
    update=partial(state.update, momentum),
    predict=partial(networks.predict, network),
    estimates=state.estimates if label_distribution else None,
    views=views,
    encoder=('shared', 'expression'),
    classifier='classifier',
  )
