"""LDL-ALSG: label distributions guided by neighbours in auxiliary label spaces.

Faces whose action units or landmarks are alike should have similar label distributions. Each
example comes with its nearest neighbours in both spaces (`samplers.neighbour_groups`), whose
predictions pull its own. At inference only the classifier remains.

Reference: Chen et al., "Label Distribution Learning on Auxiliary Label Space Graphs for Facial
Expression Recognition", CVPR 2020.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from ferjax.core import Method
from ferjax.errors import InputError, choose
from ferjax.losses.divergence import neighbour_guidance
from ferjax.methods import softmax

PASSES = ('joint', 'separate')


def make(
  model: nn.Module, *, num_classes: int, num_poses: int = 0, neighbours: str = 'joint'
) -> Method:
  """Factory.

  Terms: `cross_entropy` (equation 2) and `guidance` (equation 4, of all graphs), both means
  over the examples; the neighbours themselves have no loss.

  Args:
    model: pictures f[b, h, w, 3], train -> feature maps of every stage.
    num_classes: C.
    num_poses: Not used.
    neighbours: `joint`: they pass the network together with the examples, and BatchNorm sees all
      (the paper's); `separate`: they pass it apart, without gradient, by batch statistics of their
      own, which do not move the running ones. Cheaper.

  Raises:
    InputError: another name; from `forward`: the sampler plans no neighbours.
  """
  choose('config.method.neighbours', neighbours, PASSES)
  classifier = softmax.make(model, num_classes=num_classes)

  def forward(params, extra, batch, keys):
    if 'neighbour_image' not in batch:
      raise InputError('ldl_alsg trains on groups: set config.sampler.name=neighbour_groups')
    image, others = batch['image'], batch['neighbour_image']
    group = others.shape[:2]
    others = others.reshape(-1, *others.shape[2:])
    if neighbours == 'joint':
      every = {'image': jnp.concatenate([image, others])}
      every, carry = classifier.forward(params, extra, every, keys)
      outputs = jax.tree.map(lambda x: x[: len(image)], every)
      logits = every['logits'][len(image) :]
    else:
      outputs, carry = classifier.forward(params, extra, {'image': image}, keys)
      apart, _ = classifier.forward(lax.stop_gradient(params), extra, {'image': others}, keys)
      logits = apart['logits']
    return outputs | {'neighbour_logits': logits.reshape(*group, -1)}, carry

  def loss(params, extra, outputs, batch, step):
    terms, aux = classifier.loss(params, extra, outputs, batch, step)
    guidance = neighbour_guidance(outputs['logits'], outputs['neighbour_logits'], batch['affinity'])
    return terms | {'guidance': guidance.mean()}, aux

  return classifier._replace(forward=forward, loss=loss)
