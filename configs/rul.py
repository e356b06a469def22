"""RUL: relative uncertainty learning under label noise (Zhang, Wang and Deng, NeurIPS 2021).

`:demo` (the plain config): the embedded data set at 64 px with 30 % of its training labels wrong,
  in eight epochs.
`:paper`: the recipe of the authors' code: 224 px, batch 64, Adam 2e-4 (the classifier 2e-3), times
  0.9 an epoch, 60 epochs.
`:smoke`: 10 steps of a narrow network, to see that everything runs.

  python -m ferjax.main --config=configs/rul.py
  python -m ferjax.main --config=configs/rul.py:paper \
      --config.data.name=manifest --config.data.path=faces/manifest.csv \
      --config.noise.kind=symmetric --config.noise.rate=0.3

The paper's accuracy on RAF-DB, 88.98 %, with 30 % noise 82.06 % (LA-Net's table 1), is that of a
ResNet-18 pretrained on MS-Celeb-1M.
"""

from ferjax.config import base, smoke
from ferjax.errors import InputError


def get_config(arg: str = 'demo'):
  config = smoke() if arg == 'smoke' else base()
  config.method = {'name': 'rul', 'features': 64, 'dropout': 0.4}
  if arg in ('demo', 'smoke'):
    config.noise.update(kind='symmetric', rate=0.3)
    return config
  if arg == 'paper':
    config.epochs = 60
    config.batch = 64
    config.data.image_size = 224
    config.augment.update(crop_scale=(1.0, 1.0), erasing=0.5, erasing_scale=(0.02, 0.25))
    config.optimizer.update(
      lr=2e-4,
      lr_rules=(('classifier/.*', 10.0),),
      weight_decay=1e-4,
      schedule='step',
      boundaries=tuple(float(epoch) for epoch in range(1, 60)),
      decay=0.9,
    )
    return config
  raise InputError(f"rul has no variant '{arg}': use demo, paper or smoke")
