"""FaceNet's triplets on embeddings of length 1: the baseline of SGM (Marrero-Fernandez, 2022).

`:demo` (the plain config): the embedded data set at 64 px.
`:paper`: as `configs/sgm.py:paper`. The paper has 128 triplets in a batch; here the batch is SGM's,
  and every pair of an anchor and a positive in it gets a semi-hard negative.
`:authors`: the recipe of the authors' public scripts: 224 px, batch 240, Adam 1e-4, embeddings of
  any length, distances that are not squared, margin 1, and 0.001 times the mean length. They draw
  160,000 triplets an epoch at random, and start from ImageNet's weights; here all active triplets
  of a batch count, and config.model.weights=FILE gives weights.
`:smoke`: 10 steps of a narrow network, to see that everything runs.

  python -m ferjax.main --config=configs/triplet.py
  python -m ferjax.main --config=configs/triplet.py:paper \
      --config.data.name=manifest --config.data.path=faces/manifest.csv

The rows of the paper's tables 1 and 2 are listed in `configs/sgm.py`.
Flags: `method.mining` (semi_hard | batch_hard | all_active), `method.margin`, `method.hinge`,
`method.normalise`, `method.centre`, `method.squared`.
Paper, FER+, 11 neighbours: 87.12 %, F1 of the macro means 73.11 %.
"""

from ferjax.config import base, smoke
from ferjax.errors import InputError


def get_config(arg: str = 'demo'):
  config = smoke() if arg == 'smoke' else base()
  config.method = {
    'name': 'triplet',
    'embedding_width': 64,
    'normalise': True,
    'centre': False,
    'squared': True,
    'margin': 0.2,
    'mining': 'semi_hard',  # semi_hard | batch_hard | all_active
    'hinge': 'relu',  # relu | softplus | none
  }
  config.weights = {'triplet': 1.0, 'norm': 0.001}
  config.sampler = {'name': 'p_by_k', 'k': 8}
  if arg == 'demo':
    config.batch = 56
    config.model.width = 32
    return config
  if arg == 'paper':
    config.sampler.k = 32
    config.batch = 256
    config.epochs = 100
    config.optimizer.update(lr=1e-4, schedule='constant')
    return config
  if arg == 'authors':
    config.method.update(normalise=False, squared=False, margin=1.0, mining='all_active')
    config.sampler.k = 30
    config.batch = 240
    config.data.image_size = 224
    config.epochs = 100
    config.optimizer.update(lr=1e-4, schedule='constant')
    return config
  if arg == 'smoke':
    config.sampler.k = 2
    return config
  raise InputError(f"triplet has no variant '{arg}': use demo, paper, authors or smoke")
