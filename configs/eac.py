"""EAC: erasing attention consistency under label noise (Zhang et al., ECCV 2022).

`:demo` (the plain config): the embedded data set at 64 px with 30 % of its training labels wrong,
  in eight epochs.
`:paper`: the paper's recipe: 224 px, batch 32, Adam 1e-4 times 0.9 an epoch, 60 epochs.
`:smoke`: 10 steps of a narrow network, to see that everything runs.

  python -m ferjax.main --config=configs/eac.py
  python -m ferjax.main --config=configs/eac.py:paper \
      --config.data.name=manifest --config.data.path=faces/manifest.csv \
      --config.noise.kind=symmetric --config.noise.rate=0.3

The maps compared as in the authors' code, which reverses the order of the cells:
  python -m ferjax.main --config=configs/eac.py --config.method.flip=grid

The paper's accuracy on RAF-DB, 89.99 %, with 30 % noise 84.42 % (LA-Net's table 1), is that of
networks pretrained on faces, and the mean of the last five epochs.
"""

from ferjax.config import base, smoke
from ferjax.errors import InputError


def get_config(arg: str = 'demo'):
  config = smoke() if arg == 'smoke' else base()
  config.method = {
    'name': 'eac',
    'flip': 'exact',  # exact | grid
    'erasing': 1.0,  # of the rectangles; the augmentation below has none
    'erasing_scale': (0.02, 0.25),
    'erasing_ratio': (0.3, 3.3),
    'independent': True,
  }
  config.weights = {'cross_entropy': 1.0, 'consistency': 5.0}  # lambda
  if arg in ('demo', 'smoke'):
    config.model.output_stride = 32 if arg == 'demo' else 16  # more than one cell at 32 px
    config.noise.update(kind='symmetric', rate=0.3)
    return config
  if arg == 'paper':
    config.epochs = 60
    config.batch = 32
    config.data.image_size = 224
    config.augment.update(flip=0.0, crop_scale=(1.0, 1.0))  # every picture meets its mirror image
    config.optimizer.update(
      lr=1e-4,
      weight_decay=1e-4,
      schedule='step',
      boundaries=tuple(float(epoch) for epoch in range(1, 60)),
      decay=0.9,
    )
    return config
  raise InputError(f"eac has no variant '{arg}': use demo, paper or smoke")
