"""Facial expression recognition in JAX: pure functions, explicit state, one training loop."""

__version__ = '0.1.0'


def __getattr__(name):
  if name == 'load':  # imported when it is asked for, so that `import ferjax` is quick
    from ferjax.prediction.predictor import load

    return load
  raise AttributeError(f"module 'ferjax' has no attribute '{name}'")
