"""Facial expression recognition in JAX: pure functions, explicit state, one training loop."""

__version__ = '0.1.0'
