"""LDL-ALSG: label distributions guided by neighbours in auxiliary label spaces (CVPR 2020).

`:demo` (the plain config): the embedded data set at 64 px with 30 % of its training labels wrong,
  in four epochs, neighbours apart.
`:paper`: the paper's recipe: ResNet-50, 224 px, batches of 32 groups (288 pictures), SGD 1e-3 with
  an epoch of warm-up and nine of cosine decay, two GPUs. Size and flips are not given (ours). The
  paper starts from a network pretrained on the same rows; here the weights are random, for which
  this rate is low: give --config.optimizer.lr=0.05 or so, and more epochs.
`:smoke`: 10 steps of a narrow network, to see that everything runs.

  python -m ferjax.main --config=configs/ldl_alsg.py
  python -m ferjax.main --config=configs/ldl_alsg.py:paper \
      --config.data.name=manifest --config.data.path=faces/manifest.csv

`config.batch` counts centres, the examples that pay a loss: 32 of them come with 8 x 32 neighbours,
and an epoch, as for the baseline, is every row once as a centre. images/s counts centres too. The
graphs are built on first use and kept beside the prepared data; ahead of it by
  ferjax prepare graphs --config=configs/ldl_alsg.py [the same --config.data flags]

Experiments, each with the flags of the data, --config.seed=SEED --config.noise.seed=SEED, and the
baseline configs/softmax.py with the same epochs, optimizer and augmentation:
  table 1:  --config.data.manual_dir=FOLDER --config.data.sets="('affectnet','raf_db')"
            --config.eval.sets="('affectnet','raf_db','sfew','ck_plus@ldl_alsg','cfee@ldl_alsg',
                'mmi@ldl_alsg','oulu_casia@ldl_alsg')"
            --config.eval.groups="(('wild',('affectnet','raf_db','sfew')),
                ('lab',('ck_plus','cfee','mmi','oulu_casia')))"
            with both graphs, as it is, or one:
            --config.sampler.graphs="('au',)" --config.weights.guidance=0.001
            --config.sampler.graphs="('landmarks',)" --config.weights.guidance=0.001
  table 2:  --config.noise.kind=symmetric --config.noise.rate=0.05 (0.1, 0.15)
  table 4:  --config.model.name=resnet18 (mobilenet_v2, resnet50)
  table 5:  one graph as above, --config.sampler.neighbours=2 (4, 8)
  tables 6 and 7:  --config.weights.guidance=0.0001 (0.0005, 0.001, 0.01, 0.1, 1)
  the recipe without guidance, but with the neighbours in the pass: --config.weights.guidance=0
  neighbours in one pass or apart:  --config.method.neighbours=joint (separate)
Figures 1, 3 and 4 are `predicted_test.png` and `auxiliary_spaces.png` of the report.

Paper, mean of seven test sets after training on AffectNet and RAF-DB: 72.13 %, baseline 69.33 %.
"""

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
    'landmark_alignment': 'procrustes',  # procrustes | none
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
