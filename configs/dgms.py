"""DGMS: deep Gaussian mixture sub-spaces, SGM with sub-classes (Marrero-Fernandez et al., 2022).

`:demo` (the plain config): the embedded data set at 64 px, two sub-classes a class from the middle
  of the run on; sigma and `leave_one_out` as in `configs/sgm.py`.
`:paper`: the recipe of the paper's figures 7 and 8: ResNet-18, Adam 1e-4, batch 640, 500 epochs, up
  to five sub-classes a class; 64 px. Every 100 epochs (ours) each class is split anew. A batch has
  40 places of 16 rows for the classes (five or six each), later for the sub-classes.
`:smoke`: 10 steps of a narrow network, to see that everything runs.

  python -m ferjax.main --config=configs/dgms.py
  python -m ferjax.main --config=configs/dgms.py:paper \
      --config.data.name=manifest --config.data.path=faces/manifest.csv

`report/subclasses_<split>_<class>.png` are the pictures nearest each sub-class's medoid (figure 8).
Figure 9, the medoids of a folder of pictures:
  ferjax album FOLDER --workdir=RUN --n=40
The paper gives no numbers for DGMS.
"""

from ferjax.config import base, smoke
from ferjax.errors import InputError


def get_config(arg: str = 'demo'):
  config = smoke() if arg == 'smoke' else base()
  config.method = {
    'name': 'sgm',
    'embedding_width': 64,
    'embedding_gain': 1.0,
    'normalise': False,
    'centre': False,
    'cross_entropy': False,
    'sigma': 0.5,
    'gradient_through_means': True,
    'leave_one_out': False,
    'levels': 5,  # L
    'level_epochs': 100,  # R
    'component_rows': 10,
    'least_rows': 100,
    'seed': 0,
  }
  config.sampler = {'name': 'p_by_k', 'k': 8}
  if arg == 'demo':
    config.method.update(leave_one_out=True, sigma=2.0, levels=2, level_epochs=4)
    config.batch = 56
    config.model.width = 32
    return config
  if arg == 'paper':
    config.sampler.k = 16
    config.batch = 640
    config.epochs = 500
    config.optimizer.update(lr=1e-4, schedule='constant')
    return config
  if arg == 'smoke':
    config.method.update(levels=2, level_epochs=1, component_rows=3, least_rows=6)
    config.sampler.k = 2
    return config
  raise InputError(f"dgms has no variant '{arg}': use demo, paper or smoke")
