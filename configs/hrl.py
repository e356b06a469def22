"""HRL: harmonious representation learning (message propagation and spatial invariance, 2022).

`:demo` (the plain config): the embedded data set at 112 px, a ResNet-18 of half the width with
  maps of 7 x 7 cells.
`:paper`: the paper's recipe: ResNet-50, 224 px, SGD, 100 epochs, one GPU; the paper starts from
  ImageNet weights (--config.model.weights=FILE; see ferjax/models/pretrained.py), its batch
  size is not given (ours: 32), and it names no augmentation but the random transformations of
  SIFL, so there is none here.
`:smoke`: 10 steps of a narrow network, to see that everything runs.

  python -m ferjax.main --config=configs/hrl.py
  python -m ferjax.main --config=configs/hrl.py:paper \
      --config.data.name=manifest --config.data.path=faces/manifest.csv \
      --config.eval.distortions="('rotation','perspective','occlusion')"

Rows of the paper's table 4: `method.sifl`, `method.branch` (lgmp | dense) and `method.naive`. The
baseline (row 5) has the random transformations as augmentation instead; rows with SIFL have them
in T alone, so that no row applies them twice:
  --config.method.branch=dense --config.method.sifl=False \
      --config.augment.flip=0.5 --config.augment.rotation=30 --config.augment.perspective=0.1
Tables 6 and 7 are of `method.branch=dense`; table 6: `method.flip`, `rotation` and `perspective`,
the others 0; table 7: `eval.distortions`; table 8: `method.graph`; table 10: `acc` and `naive/acc`
of `method.sifl=False`; figure 6, L_SIFL of a model trained without it: `weights.sifl=0`; figure 7:
`weights.sifl`.

Paper, RAF-DB: 87.77 %, baseline 85.06 %.
"""

from ferjax.config import base, smoke
from ferjax.errors import InputError


def get_config(arg: str = 'demo'):
  config = smoke() if arg == 'smoke' else base()
  config.method = {
    'name': 'hrl',
    'sifl': True,  # SIFL of the paper's table 4
    'branch': 'lgmp',  # lgmp | dense | none
    'naive': True,  # B_naive
    'graph': 'uniform_rank',  # uniform_rank | random | delaunay
    'groups': 8,  # n of the graph
    'offsets': 'landmark',  # landmark | pixel
    'normalise': True,
    'pool_size': 3,  # n of the point pooling
    'widths': (1536, 2048),
    'dense_reduction': 224,
    'dense_widths': (2048, 1024),
    'naive_widths': (),
    'flip': 0.5,
    'rotation': 30.0,  # theta
    'perspective': 0.1,  # f
    'mask_outside': True,
    'sifl_scaled': False,
    'activations': False,
  }
  config.weights = {'aggregate': 1.0, 'naive': 1.0, 'sifl': 0.8}  # 1, 1, lambda
  config.data.landmarks = (*range(17, 27), *range(28, 68))  # 50: no jaw, no top of the nose
  config.data.image_size = 112
  config.model.output_stride = 16
  if arg == 'demo':
    # About equally many parameters in both branches: 207,371 of lgmp, 212,583 of dense.
    config.method.update(widths=(128, 256), dense_reduction=16, dense_widths=(224, 112))
    config.model.width = 32
    config.augment.flip = 0.0  # T flips
    config.epochs = 4
    return config
  if arg == 'paper':
    config.epochs = 100
    config.data.image_size = 224
    config.model.update(name='resnet50', output_stride=32)
    config.augment.update(flip=0.0, crop_scale=(1.0, 1.0))
    config.optimizer.update(
      name='sgd',
      lr=5e-3,
      nesterov=True,
      schedule='step',
      boundaries=(3.0,),
      decay=0.2,
      weight_decay=1e-4,
    )
    return config
  if arg == 'smoke':
    config.method.update(widths=(16, 16), dense_reduction=8, dense_widths=(16, 16))
    config.data.image_size = 64
    config.eval.distortions = ('rotation', 'perspective', 'occlusion')
    return config
  raise InputError(f"hrl has no variant '{arg}': use demo, paper or smoke")
