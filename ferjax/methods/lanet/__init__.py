"""LA-Net: landmark-aware learning under label noise.

Two branches see each face: expressions and landmarks. Each example's label distribution is
estimated from its neighbours in both spaces (LDE) and averaged over epochs; a contrastive loss (EL)
pulls the expression features of a face to landmark features of faces with the same pseudo-label.
At inference only the expression branch remains.

Reference: Wu and Cui, "LA-Net: Landmark-Aware Learning for Reliable Facial Expression Recognition
under Label Noise", ICCV 2023.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from ferjax.core import Method
from ferjax.errors import InputError, nearest
from ferjax.losses.cross_entropy import cross_entropy
from ferjax.losses.divergence import kl_divergence
from ferjax.methods.lanet import contrast, estimation, memory
from ferjax.methods.lanet.landmarks import CoordinateHead, HeatmapHead
from ferjax.methods.lanet.networks import EMBEDDINGS, Networks

HEADS = {'coordinates': CoordinateHead, 'heatmap': HeatmapHead}
STOPS = ('none', 'neighbours', 'targets')


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
) -> Method:
  """Factory; the first four arguments are the columns of the paper's table 2.

  Terms: `cross_entropy`, `landmarks`, `label_distribution`, `contrastive`, unweighted; 0 when off.

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
    landmark_head: `coordinates` or `heatmap`, whose error starts some thirty times as high: give it
      a smaller weight.
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

  Raises:
    InputError: an unknown name, a number out of range, or `landmarks` or `pseudo_labels` without
      `label_distribution`.
  """
  for name, value, choices in (
    ('landmark_head', landmark_head, tuple(HEADS)),
    ('stop_gradient', stop_gradient, STOPS),
    ('key_view', key_view, ('same', 'other')),
  ):
    if value not in choices:
      raise InputError(
        f"config.method.{name} is '{value}'.{nearest(value, choices)} Use {' or '.join(choices)}"
      )
  for name, value in {'decay': decay, 'threshold': threshold, 'momentum': momentum}.items():
    if not 0 <= value <= 1:
      raise InputError(f'config.method.{name}={value} lies outside 0..1')
  for name, value in {'neighbours': neighbours, 'queue_size': queue_size}.items():
    if value < 1:
      raise InputError(f'config.method.{name}={value}: at least 1')
  if temperature <= 0:
    raise InputError(f'config.method.temperature={temperature}: it must be above 0')
  if landmarks and not label_distribution:
    raise InputError(
      'landmarks help to estimate label distributions: set '
      'config.method.label_distribution=True or config.method.landmarks=False'
    )
  if contrastive and pseudo_labels and not label_distribution:
    raise InputError(
      'pseudo-labels come from label distributions: set config.method.label_distribution=True or '
      'config.method.pseudo_labels=False'
    )

  two_branches = landmarks or contrastive
  dtype = model.param_dtype
  shared, first = (model.clone(last=1), 1) if shared_stem and two_branches else (None, 0)
  network = Networks(
    shared=shared,
    expression=model.clone(first=first),
    landmark=model.clone(first=first) if two_branches else None,
    landmark_head=HEADS[landmark_head](dtype=model.dtype, param_dtype=dtype),
    num_classes=num_classes,
    dtype=dtype,
  )
  trained_by_key = {'shared', 'expression', 'landmark', 'landmark_head'}
  trained_by_key |= {'expression_projection', 'landmark_projection'}
  needs = frozenset({'landmarks'} if two_branches else ())
  spaces = ('expression', 'landmark')[: 1 + landmarks] if label_distribution else ()

  def init(rng, batch, table):
    seen = batch.get('landmarks')
    initialise = functools.partial(
      network.init, method='initialise', scored=spaces, projects=contrastive
    )
    variables = jax.jit(initialise)(rng, batch['image'], seen)
    params, extra = variables['params'], {'batch_stats': variables['batch_stats']}
    if label_distribution:
      extra['bank'] = memory.empty_bank(len(table['label']), num_classes, dtype)
    if contrastive:
      followed = {name: part for name, part in params.items() if name in trained_by_key}
      extra['momentum'] = jax.tree.map(jnp.copy, followed)
      dim = params['expression_projection']['Dense_1']['bias'].shape[0]
      extra['queue'] = memory.empty_queue(queue_size, dim, dtype)
    return params, extra

  def forward(params, extra, batch, keys):
    def run(params, view, what):
      image, points = batch['image'], batch.get('landmarks')
      if key_view == 'other' and contrastive:
        image, points = image[:, view], points[:, view]
      variables = {'params': params, 'batch_stats': extra['batch_stats']}
      return network.apply(variables, image, points, True, method=what, mutable=['batch_stats'])

    if not contrastive:
      return run(params, 0, 'both')
    outputs, carry = run(params, 0, 'queries')
    made, _ = run(extra['momentum'], 1, 'keys')
    return outputs | made, carry

  def estimate(params, extra, outputs, batch):
    """f[B, C]: the stored label distributions, moved towards those of the neighbours."""
    probabilities, fresh = jax.nn.softmax(outputs['logits']), 0
    held = lax.stop_gradient if stop_gradient == 'neighbours' else lambda x: x
    for space in spaces:
      features = outputs[EMBEDDINGS[space]]
      found, exists = estimation.nearest_neighbours(features, batch['index'], neighbours)
      score = network.apply(
        {'params': params}, space, features, held(features)[found], method='score'
      )
      shares = held(probabilities)[found]
      fresh += estimation.neighbour_distribution(score, shares, exists) / len(spaces)
    stored = memory.recall(extra['bank'], batch['index'], batch['label'])
    estimated = decay * stored + (1 - decay) * fresh
    estimated = jnp.where(exists.any(-1, keepdims=True), estimated, stored)
    return lax.stop_gradient(estimated) if stop_gradient == 'targets' else estimated

  def contrast_term(extra, outputs, label):
    queue, losses = extra['queue'], 0
    for query, key in (('expression', 'landmark'), ('landmark', 'expression')):
      losses += contrast.cross_view_contrast(
        outputs[f'{query}_query'],
        outputs[f'{key}_key'],
        label,
        getattr(queue, key),
        queue.label,
        queue.filled,
        temperature,
        in_batch_negatives,
      ).mean()
    return losses

  def loss(params, extra, outputs, batch, step):
    zero = jnp.zeros((), dtype)
    terms = {
      'cross_entropy': cross_entropy(outputs['logits'], batch['label']).mean(),
      'landmarks': outputs['landmark_error'].mean() if two_branches else zero,
      'label_distribution': zero,
      'contrastive': zero,
    }
    aux = {'label': batch['label']}
    if label_distribution:
      estimated = estimate(params, extra, outputs, batch)
      log_probabilities = jax.nn.log_softmax(outputs['logits'])
      terms['label_distribution'] = kl_divergence(estimated, log_probabilities).mean()
      aux['distribution'] = lax.stop_gradient(estimated)
      if pseudo_labels:
        aux['label'] = contrast.pseudo_labels(aux['distribution'], batch['index'], threshold)
    if contrastive:
      terms['contrastive'] = contrast_term(extra, outputs, aux['label'])
    return terms, aux

  def update(extra, params, carry, outputs, batch, aux):
    extra = extra | {'batch_stats': carry['batch_stats']}
    if label_distribution:
      extra['bank'] = memory.store(extra['bank'], batch['index'], aux['distribution'])
    if contrastive:
      extra['momentum'] = jax.tree.map(
        lambda slow, fast: (momentum * slow + (1 - momentum) * fast).astype(slow.dtype),
        extra['momentum'],
        {name: params[name] for name in extra['momentum']},
      )
      extra['queue'] = memory.push(
        extra['queue'], outputs['expression_key'], outputs['landmark_key'], aux['label']
      )
    return extra

  def predict(params, extra, batch, delta=None):
    variables = {'params': params, 'batch_stats': extra['batch_stats']}
    return network.apply(variables, batch['image'], False, delta, method='classify')

  def estimates(extra, label):
    return memory.recall(extra['bank'], jnp.arange(len(label)), jnp.asarray(label))

  return Method(
    needs=needs,
    predict_needs=frozenset(),
    init=init,
    forward=forward,
    loss=loss,
    update=update,
    predict=predict,
    estimates=estimates if label_distribution else None,
    views=2 if contrastive and key_view == 'other' else 1,
  )
