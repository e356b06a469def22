"""HRL's networks: an encoder and two branches, in training and at inference.

Reference: HRL (2022), section 3.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from ferjax.core import Batch, PyTree
from ferjax.methods.hrl.sifl import deviation, spatial_invariance
from ferjax.ops import landmark_graph


class Networks(nn.Module):
  """Encoder and branches; either branch may be missing.

  Attributes:
    encoder: pictures f[b, h, w, 3], train -> feature maps of every stage.
    branch: maps, their cells, landmarks, graph, train -> f[b, C], or None.
    naive: f[b, d] -> f[b, C], or None.
    dtype: Type of the embedding.
  """

  encoder: nn.Module
  branch: nn.Module | None
  naive: nn.Module | None
  dtype: Any

  def __call__(self, image, landmarks, graph, train, transformed=None, delta=None):
    """Scores of the pictures, and the last maps of both.

    Args:
      image: f[b, h, w, 3].
      landmarks: f[b, k, 2] in pixels; None leaves the naive scores.
      graph: i32[b, k, d], or None where no branch needs it.
      train: Whether BatchNorm uses the statistics of the batch: of both kinds of pictures.
      transformed: T(I), like `image`, or None.
      delta: Added to the last map, or None.

    Returns:
      `logits` f[b, C], `embedding` f[b, d], `last_map` f[b, h', w', d], and where they exist
      `naive_logits` f[b, C] and `transformed_map`, like `last_map`.
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
      cells = self.encoder.cells(image.shape[1])
      scores.append(self.branch(maps, cells, landmarks, graph, train))
    if len(scores) > 1:
      outputs['naive_logits'] = scores[0]
    return outputs | {'logits': sum(scores)}


def init(
  network: Networks, edges: Callable, rng: Array, batch: Batch, table
) -> tuple[PyTree, PyTree]:
  """Parameters, and `batch_stats` as the other state.

  Args:
    network: HRL's networks.
    edges: batch -> i32[b, k, d] or None; see `graphs.edges`.
    rng: key[].
    batch: `image` f[b, h, w, 3], and where a branch needs them `landmarks` f[b, k, 2] (pixels).
    table: Not used.
  """
  initialise = jax.jit(network.init, static_argnums=4)
  variables = initialise(rng, batch['image'], batch.get('landmarks'), edges(batch), False)
  return variables['params'], {'batch_stats': variables['batch_stats']}


def forward(
  network: Networks,
  edges: Callable,
  transform: Callable | None,
  mask_outside: bool,
  scaled: bool,
  params: PyTree,
  extra: PyTree,
  batch: Batch,
  keys: Array,
) -> tuple[PyTree, PyTree]:
  """The training pass: the pictures, and with SIFL as many transformed ones.

  Args:
    network: HRL's networks.
    edges: batch, keys -> i32[b, k, d] or None; see `graphs.edges`.
    transform: keys, image -> T(I), its matrices; see `sifl.transform`. None without SIFL.
    mask_outside: See `sifl.spatial_invariance`.
    scaled: Whether both maps are divided by the `sifl.deviation` of both before.
    params: Of the networks.
    extra: `batch_stats`.
    batch: `image` f[b, h, w, 3], and where a branch needs them `landmarks` f[b, k, 2] (pixels).
    keys: key[b].

  Returns:
    `logits`, `embedding`, `naive_logits` as of `Networks`, and `sifl` f[b], the distance of both
    maps (0 without SIFL); and the `batch_stats` that moved.
  """
  keys = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, 1)))(keys)
  image, transformed = batch['image'], None
  if transform is not None:
    transformed, output_to_input = transform(keys[:, 0], image)
  outputs, carry = network.apply(
    {'params': params, **extra},
    image,
    batch.get('landmarks'),
    edges(batch, keys[:, 1]),
    True,
    transformed,
    mutable=['batch_stats'],
  )
  last_map = outputs.pop('last_map').astype(network.dtype)
  outputs['sifl'] = jnp.zeros(len(image), network.dtype)
  if transform is not None:
    other = outputs.pop('transformed_map').astype(network.dtype)
    if scaled:
      unit = deviation(jnp.concatenate([last_map, other]))
      last_map, other = last_map / unit, other / unit
    size = image.shape[1:3]
    distance = jax.vmap(spatial_invariance, (0, 0, 0, None, None, None))
    last_cells = network.encoder.cells(size[0])[-1]
    outputs['sifl'] = distance(last_map, other, output_to_input, last_cells, size, mask_outside)
  return outputs, carry


def predict(
  network: Networks,
  edges: Callable,
  params: PyTree,
  extra: PyTree,
  batch: Batch,
  delta: Array | None = None,
) -> dict[str, Array]:
  """`logits`, `embedding` and, where there are two branches, `naive_logits`; without landmarks the
  naive scores alone are the `logits`.

  Of a graph also `edge_length` f[b], the mean over its edges in pixels; with `delta`, which is
  added to it, also the `last_map`.
  """
  graph, points = edges(batch), batch.get('landmarks')
  variables = {'params': params, **extra}
  outputs = network.apply(variables, batch['image'], points, graph, False, delta=delta)
  if delta is None:
    del outputs['last_map']
  if graph is not None:
    outputs['edge_length'] = jax.vmap(landmark_graph.mean_edge_length)(graph, points)
  return outputs
