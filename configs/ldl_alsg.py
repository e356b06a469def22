"""LDL-ALSG."""

from ferjax.config import base, smoke
from ferjax.errors import InputError


def get_config(arg: str = 'demo'):
  config = smoke() if arg == 'smoke' else base()
  config.method = {'name': 'ldl_alsg', 'neighbours': 'joint'}  # joint | separate
  config.weights = {'cross_entropy': 1.0, 'guidance': 0.0005}  # 1, lambda
  config.sampler = {
    'name': 'neighbour_groups',
    'graphs': ('au', 'landmarks'),
    'neighbours': 4,  # of each graph
    'au_sigma': 1.0,
    'landmark_sigma': 68.0,  # pixels of a face at 224 px
  }
  if arg == 'demo':
    config.method.neighbours = 'separate'
    config.noise.update(kind='symmetric', rate=0.3)
    config.epochs = 4
    return config
  if arg == 'paper':
    config.epochs = 10
    config.data.image_size = 224
    config.model.name = 'resnet50'
    config.augment.crop_scale = (1.0, 1.0)
    config.optimizer.update(
      name='sgd', lr=1e-3, schedule='cosine', warmup_epochs=1.0, weight_decay=4e-4
    )
    return config
  if arg == 'smoke':
    config.noise.update(kind='symmetric', rate=0.3)
    return config
  raise InputError(f"ldl_alsg has no variant '{arg}': use demo, paper or smoke")
