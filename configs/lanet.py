"""LA-Net: landmark-aware learning under label noise (Wu and Cui, ICCV 2023).

`:demo` (the plain config): the embedded data set at 64 px with 30 % of its training labels wrong,
  in eight epochs.
`:paper`: the paper's recipe: 224 px, batch 128, Adam 1e-3 to 0 over 80 epochs, four GPUs, all
  training rows.
`:smoke`: 10 steps of a narrow network, to see that everything runs.

  python -m ferjax.main --config=configs/lanet.py
  python -m ferjax.main --config=configs/lanet.py:paper \
      --config.data.name=manifest --config.data.path=faces/manifest.csv \
      --config.noise.kind=symmetric --config.noise.rate=0.3

The paper's accuracy on RAF-DB, 90.81 %, with 30 % noise 85.33 %, is that of a ResNet-18 pretrained
on MS-Celeb-1M: --config.model.weights=resnet18_msceleb.pth (see ferjax/models/pretrained.py). From
random weights, as here, expect less.
"""

from ferjax.config import base, smoke
from ferjax.errors import InputError


def get_config(arg: str = 'demo'):
  config = smoke() if arg == 'smoke' else base()
  config.method = {
    'name': 'lanet',
    'label_distribution': True,  # LD of the paper's table 2
    'landmarks': True,  # LM
    'contrastive': True,  # EL
    'pseudo_labels': True,  # PL
    'shared_stem': True,
    'landmark_head': 'coordinates',  # coordinates | heatmap
    'neighbours': 8,  # K
    'decay': 0.9,  # omega
    'stop_gradient': 'none',  # none | neighbours | targets
    'threshold': 0.7,  # delta
    'temperature': 0.1,  # tau
    'momentum': 0.999,  # its half-life, 693 steps, is 9 % of the paper's run on RAF-DB
    'queue_size': 8192,  # 64 batches of the paper's 128
    'in_batch_negatives': False,
    'key_view': 'same',  # same | other
    'centre': False,
  }
  config.weights = {
    'cross_entropy': 1.0,
    'landmarks': 1.0,
    'label_distribution': 1.0,  # alpha
    'contrastive': 0.1,  # beta
  }
  if arg == 'demo':
    # The paper's shares: 8 neighbours of a batch of 128, a queue of 64 batches, and a half-life of
    # the momentum of 9 % of the steps (77 of 872).
    config.method.update(neighbours=2, queue_size=2048, momentum=0.991, centre=True)
    config.weights.landmarks = 100.0  # of coordinates; 1 for heatmaps: docs/methods/lanet.md
    config.noise.update(kind='symmetric', rate=0.3)
    return config
  if arg == 'paper':
    config.epochs = 80
    config.batch = 128
    config.data.val_fraction = 0.0  # all rows train; no result is the best by validation
    config.data.image_size = 224
    config.sampler.name = 'progressively_balanced'
    config.augment.update(brightness=0.4, contrast=0.4, saturation=0.4, erasing=0.2)
    return config
  if arg == 'smoke':
    config.method.queue_size = 64
    config.noise.update(kind='symmetric', rate=0.3)
    return config
  raise InputError(f"lanet has no variant '{arg}': use demo, paper or smoke")
