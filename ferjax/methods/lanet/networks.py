"""LA-Net's networks."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from ferjax.ops.distances import unit_length


class Projection(nn.Module):
  """Two layers, then length 1."""

  dtype: Any

  @nn.compact
  def __call__(self, x, features):
    """f[b, d] -> f[b, features]."""
    x = nn.relu(nn.Dense(x.shape[-1], dtype=self.dtype, param_dtype=self.dtype)(x))
    x = nn.Dense(features, dtype=self.dtype, param_dtype=self.dtype)(x)
    return unit_length(x)


class ContributionScore(nn.Module):
  """How much a neighbour says about an example, before the sigmoid (equation 3)."""

  dtype: Any

  @nn.compact
  def __call__(self, x, neighbour):
    """Features f[B, d] and f[B, K, d] -> f[B, K]."""
    width = x.shape[-1]

    def dense(features, name):
      return nn.Dense(features, dtype=self.dtype, param_dtype=self.dtype, name=name)

    own = dense(width // 2, 'g1')(x)[:, None]
    other = dense(width // 2, 'g2')(neighbour)
    pair = jnp.concatenate([jnp.broadcast_to(own, other.shape), other], -1)
    hidden = nn.relu(dense(width // 2, 'f1')(pair))
    hidden = nn.relu(dense(width // 4, 'f2')(hidden))
    return dense(1, 'f3')(hidden)[..., 0]


class Networks(nn.Module):
  """All networks of LA-Net.

  Attributes:
    shared: The stem and first stage of both branches, or None.
    expression: The rest of the expression branch.
    landmark: The rest of the landmark branch, or None.
    landmark_head: What finds the landmarks on it.
    num_classes: C.
    dtype: Type of everything behind the encoders.
  """

  shared: nn.Module | None
  expression: nn.Module
  landmark: nn.Module | None
  landmark_head: nn.Module | None
  num_classes: int
  dtype: Any

  def setup(self):
    self.classifier = nn.Dense(self.num_classes, dtype=self.dtype, param_dtype=self.dtype)
    self.expression_projection = Projection(self.dtype)
    self.landmark_projection = Projection(self.dtype)
    self.expression_score = ContributionScore(self.dtype)
    self.landmark_score = ContributionScore(self.dtype)

  def stem(self, image, train):
    return [image] if self.shared is None else self.shared(image, train)

  def pooled(self, last_map):
    return last_map.mean((1, 2), dtype=self.dtype)

  def encode(self, image, landmarks, train):
    """Features of both branches; landmarks f[b, k, 2] in pixels."""
    stem = self.stem(image, train)
    features = {'embedding': self.pooled(self.expression(stem[-1], train)[-1])}
    if self.landmark is None:
      return features
    maps = [*(stem if self.shared is not None else ()), *self.landmark(stem[-1], train)]
    embedding, error = self.landmark_head(maps, landmarks, image.shape[1:3])
    return features | {'landmark_embedding': embedding, 'landmark_error': error}

  def classify(self, image, train, delta=None):
    """The expression branch alone."""
    last_map = self.expression(self.stem(image, train)[-1], train)[-1]
    if delta is not None:
      last_map = last_map + delta
    embedding = self.pooled(last_map)
    outputs = {'logits': self.classifier(embedding), 'embedding': embedding}
    return outputs if delta is None else outputs | {'last_map': last_map}

  def both(self, image, landmarks, train):
    features = self.encode(image, landmarks, train)
    return features | {'logits': self.classifier(features['embedding'])}

  def project(self, outputs):
    """f[b, e] of both spaces; e is 64 for the 512 features of a ResNet-18, 256 for 2048."""
    u, v = outputs['embedding'], outputs['landmark_embedding']
    features = max(1, u.shape[-1] // 8)
    return {
      'expression': self.expression_projection(u, features),
      'landmark': self.landmark_projection(v, features),
    }

  def queries(self, image, landmarks, train):
    outputs = self.both(image, landmarks, train)
    return outputs | {f'{space}_query': q for space, q in self.project(outputs).items()}

  def keys(self, image, landmarks, train):
    projected = self.project(self.encode(image, landmarks, train))
    return {f'{space}_key': k for space, k in projected.items()}

  def initialise(self, image, landmarks, scored, projects):
    """Calls once every module that is trained: the scores of the spaces `scored`, and projections
    where it `projects`."""
    outputs = self.both(image, landmarks, False)
    for space in scored:
      features = outputs[EMBEDDINGS[space]]
      self.score(space, features, features[:, None])
    if projects:
      self.project(outputs)

  def score(self, space, features, neighbour):
    """Contribution scores before the sigmoid, f[b, K], in the space `expression` or `landmark`."""
    return getattr(self, f'{space}_score')(features, neighbour)


EMBEDDINGS = {'expression': 'embedding', 'landmark': 'landmark_embedding'}
