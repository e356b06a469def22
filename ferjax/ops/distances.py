"""Lengths of feature vectors."""

from jax import Array, lax


def unit_length(features: Array) -> Array:
  """f[..., d] scaled to length 1; zeros stay zeros."""
  return features * lax.rsqrt((features**2).sum(-1, keepdims=True) + 1e-12)
