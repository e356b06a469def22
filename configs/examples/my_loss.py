"""A loss of your own in ten lines, and a config that trains with it.

Copy this file to a folder of yours and go there; nothing else of ferjax is needed but the package:
  ferjax check-loss my_loss.island --apart=0.5
  python -m ferjax.main --config=my_loss.py

The loss beside any other method's, with other settings:
  python -m ferjax.main --config=FERJAX/configs/lanet.py \
      --config.terms="{'island': {'path': 'my_loss.island', 'weight': 0.02, 'apart': 0.5}}"

`:smoke`: 10 steps of a narrow network, to see that everything runs.
"""

import jax
import jax.numpy as jnp

from ferjax.config import base, smoke
from ferjax.errors import InputError


def island(outputs, batch, num_classes, apart=1.0):
  """Embeddings come close to the mean of their class, and the means turn away from each other."""
  z, label = outputs['embedding'], batch['label']
  member = jax.nn.one_hot(label, num_classes)
  means = member.T @ z / jnp.maximum(member.sum(0), 1)[:, None]
  direction = means * jax.lax.rsqrt((means**2).sum(1, keepdims=True) + 1e-6)
  alike = (direction @ direction.T)[label].mean(1)
  return ((z - means[label]) ** 2).mean(1) + apart * alike


def get_config(arg: str = 'demo'):
  config = smoke() if arg == 'smoke' else base()
  if arg not in ('demo', 'smoke'):
    raise InputError(f"my_loss has no variant '{arg}': use demo or smoke")
  config.terms = {'island': {'path': 'my_loss.island', 'weight': 0.01}}
  return config
