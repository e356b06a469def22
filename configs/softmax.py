"""Softmax baseline: a ResNet-18 and cross-entropy.

`:demo` (the plain config): the embedded data set at 64 px.
`:paper`: the recipe that papers train their baselines with: 224 px, batch 128, Adam 1e-3 to 0.
`:smoke`: 10 steps of a narrow network, to see that everything runs.

  python -m ferjax.main --config=configs/softmax.py
  python -m ferjax.main --config=configs/softmax.py:paper \
      --config.data.name=manifest --config.data.path=faces/manifest.csv
"""

from ferjax.config import base, smoke
from ferjax.errors import InputError


def get_config(arg: str = 'demo'):
  config = smoke() if arg == 'smoke' else base()
  if arg in ('demo', 'smoke'):
    return config
  if arg == 'paper':
    config.epochs = 80
    config.batch = 128
    config.data.image_size = 224
    config.augment.update(brightness=0.4, contrast=0.4, saturation=0.4, erasing=0.2)
    return config
  raise InputError(f"softmax has no variant '{arg}': use demo, paper or smoke")
