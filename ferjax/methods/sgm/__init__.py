"""SGM and DGMS: every class, or sub-class, is a Gaussian in the space of embeddings.

The loss asks that the posterior of an embedding, from the means of the batch, be that of its class
(SGM). With several `levels` the classes are split between epochs into ever more sub-classes, each a
Gaussian of its own (DGMS). No classifier predicts, but the posterior from the means of all training
embeddings.

Reference: Marrero-Fernandez et al., "Deep Metric Structured Learning for Facial Expression
Recognition", 2022.
"""

from functools import partial

import flax.linen as nn
from jax import lax

from ferjax.core import Method
from ferjax.losses import gaussian, triplet
from ferjax.losses.cross_entropy import cross_entropy as ce
from ferjax.methods.sgm import checks, networks, state, terms


def make(
  model: nn.Module,
  *,
  num_classes: int,
  num_poses: int = 0,
  embedding_width: int = 64,
  embedding_gain: float = 1.0,
  normalise: bool = False,
  centre: bool = False,
  cross_entropy: bool = False,
  sigma: float = 0.5,
  gradient_through_means: bool = True,
  leave_one_out: bool = False,
  class_means: str = 'batch',
  means_momentum: float = 0.9,
  levels: int = 1,
  level_epochs: int = 100,
  component_rows: int = 10,
  least_rows: int = 100,
  seed: int = 0,
) -> Method:
  """Factory. Terms: `sgm` (equation 4), over the classes or sub-classes of the batch; with
  `cross_entropy` also that of a linear layer on the embeddings.

  `mean_distance` is logged, the mean squared distance of the batch's embeddings: against
  `sigma`, it tells whether posteriors are all 0 or 1, or all alike.

  `extra` holds the sub-class of every training row and the level, refitted between epochs, and the
  means of the sub-classes, computed again before every evaluation and save. The posterior of a
  class is the sum of those of its sub-classes.

  Args:
    model: pictures f[b, h, w, 3], train -> feature maps of every stage.
    num_classes: C.
    num_poses: Not used.
    embedding_width: d.
    embedding_gain: Factor on the first weights of the embedding's layer. Where the first embeddings
      are many sigma apart, the posterior is 0 or 1 and the loss has next to no gradient.
    normalise: Whether embeddings have length 1 (not in the paper).
    centre: Whether embeddings pass a BatchNorm without scale and shift (not in the paper).
    cross_entropy: Whether a classifier on the embeddings is trained beside, as in the authors' code
      (not in the paper). Its scores are measured as `classifier`; they do not predict.
    sigma: Standard deviation of every Gaussian.
    gradient_through_means: Whether the means of the batch carry gradient.
    leave_one_out: Whether a row is left out of the mean of its own class; see
      `gaussian.leave_one_out_means`.
    class_means: The means of the loss: those of the `batch` (the paper's), or `running` averages of
      them (ours), in which a row has little share of its own mean.
    means_momentum: The share of the running means that a step keeps.
    levels: L: at level l each class is split in l; 1 is SGM, more is DGMS.
    level_epochs: R, epochs of a level.
    component_rows, least_rows: See `mixtures.subclasses`.
    seed: Of the mixtures, with the epoch and the class.

  Raises:
    InputError: a number out of range; from `init`: a class without training rows.
  """
  checks.counts(embedding_width, levels, level_epochs, component_rows)
  checks.numbers(sigma, embedding_gain, seed)
  checks.means(class_means, means_momentum, leave_one_out, levels)
  network = networks.Embedder(
    model,
    embedding_width,
    embedding_gain,
    normalise,
    centre,
    num_classes if cross_entropy else 0,
    model.param_dtype,
  )
  split = partial(state.refresh, levels, level_epochs, component_rows, least_rows, seed)
  slots = num_classes * levels  # of all sub-classes, those of a class side by side

  def loss(params, extra, outputs, batch, step):
    subclass = extra['subclass'][batch['index']]
    means, rows = gaussian.class_means(outputs['embedding'], subclass, slots)
    present, aux = rows > 0, {}
    if class_means == 'running':
      means, present = state.running(extra['running'], means, present, means_momentum)
      aux['running'] = lax.stop_gradient({'means': means, 'known': present})
    if leave_one_out:
      means = gaussian.leave_one_out_means(outputs['embedding'], subclass, means, rows)
    if not gradient_through_means:
      means = lax.stop_gradient(means)
    log_posterior = gaussian.log_posterior(outputs['embedding'], means, present, sigma)
    losses = gaussian.structured_gaussian(log_posterior, subclass)
    found = {'sgm': losses.mean()}
    if cross_entropy:
      found['cross_entropy'] = ce(outputs['classifier_logits'], batch['label']).mean()
    aux['metrics'] = terms.metrics(log_posterior, subclass, batch['label'], num_classes)
    distance = triplet.squared_distances(outputs['embedding'])
    aux['metrics']['mean_distance'] = triplet.mean_distance(distance)
    return found, aux

  def predict(params, extra, batch, delta=None):
    outputs = networks.embed(network, params, extra, batch, delta)
    present = extra['rows'] > 0
    log_posterior = gaussian.log_posterior(outputs['embedding'], extra['means'], present, sigma)
    outputs['logits'] = gaussian.of_classes(log_posterior, num_classes)
    return outputs | ({'subclass_log_posterior': log_posterior} if levels > 1 else {})

  return Method(
    needs=frozenset(),
    predict_needs=frozenset(),
    init=partial(state.init, network, num_classes, levels, class_means == 'running'),
    forward=partial(networks.forward, network),
    loss=loss,
    update=state.update,
    predict=predict,
    enroll=partial(state.enroll, slots),
    refresh=split if levels > 1 else None,
    columns=state.columns if levels > 1 else None,
  )
