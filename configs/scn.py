"""SCN: a self-cure network under label noise (Wang et al., CVPR 2020).

`:demo` (the plain config): the embedded data set at 64 px with 30 % of its training labels wrong,
  in eight epochs; new labels after a quarter of them, as in the paper.
`:paper`: the paper's recipe: 224 px, batch 1024 on eight GPUs, SGD 0.1 divided by 10 after 15 and
  30 of 40 epochs, new labels from the tenth on; no augmentation but flips is named.
`:authors`: the recipe of the authors' code, which differs from the paper's: batch 64, Adam 1e-3
  times 0.9 an epoch, 70 epochs, both terms with weight 1, new labels for any row, erasing.
`:smoke`: 10 steps of a narrow network, to see that everything runs.

  python -m ferjax.main --config=configs/scn.py
  python -m ferjax.main --config=configs/scn.py:paper \
      --config.data.name=manifest --config.data.path=faces/manifest.csv \
      --config.noise.kind=symmetric --config.noise.rate=0.3

The paper's accuracy on RAF-DB, 88.14 %, with 30 % noise 77.46 % (LA-Net's table 1), is that of a
ResNet-18 pretrained on MS-Celeb-1M.
"""

from ferjax.config import base, smoke
from ferjax.errors import InputError


def get_config(arg: str = 'demo'):
  config = smoke() if arg == 'smoke' else base()
  config.method = {
    'name': 'scn',
    'high_share': 0.7,  # beta
    'rank_margin': 0.15,  # delta1
    'relabel_from': 10,  # epoch, counted from 1
    'relabel_margin': 0.2,  # delta2
    'relabel_group': 'low',  # low | any
  }
  config.weights = {
    'cross_entropy': 0.5,  # 1 - gamma
    'rank': 0.5,  # gamma
  }
  if arg == 'paper':
    config.epochs = 40
    config.batch = 1024
    config.data.image_size = 224
    config.augment.crop_scale = (1.0, 1.0)
    config.optimizer.update(name='sgd', lr=0.1, schedule='step', boundaries=(15.0, 30.0), decay=0.1)
    return config
  if arg == 'authors':
    config.epochs = 70
    config.batch = 64
    config.weights = {'cross_entropy': 1.0, 'rank': 1.0}
    config.method.relabel_group = 'any'
    config.data.image_size = 224
    config.augment.update(crop_scale=(1.0, 1.0), erasing=0.5, erasing_scale=(0.02, 0.25))
    config.optimizer.update(
      weight_decay=1e-4,
      schedule='step',
      boundaries=tuple(float(epoch) for epoch in range(1, 70)),
      decay=0.9,
    )
    return config
  if arg in ('demo', 'smoke'):
    config.method.relabel_from = 3 if arg == 'demo' else 1
    config.noise.update(kind='symmetric', rate=0.3)
    return config
  raise InputError(f"scn has no variant '{arg}': use demo, paper, authors or smoke")
