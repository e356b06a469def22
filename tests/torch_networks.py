"""PyTorch's networks with weights that NumPy draws, and what they make of two pictures.

`python tests/torch_networks.py` writes `torch_networks.npz` anew; it needs torch, torchvision and
timm. Of each network the file has the names and shapes of its state_dict, the pooled features and
the logits: the weights are drawn again, from the names and shapes alone.
"""

from pathlib import Path

import numpy as np

FILE = Path(__file__).with_suffix('.npz')
SHAPE = (2, 3, 64, 50)
CLASSES = 10


def pictures() -> np.ndarray:
  """f32[2, 3, 64, 50], as if normalised."""
  return np.random.RandomState(1).normal(size=SHAPE).astype(np.float32)


def draw(layout) -> dict[str, np.ndarray]:
  """Weights in the layout of a state_dict; `layout` has lines such as `conv1.weight 64,3,7,7`."""
  chance, drawn = np.random.RandomState(0), {}
  for line in layout:
    name, _, shape = line.partition(' ')
    shape = tuple(map(int, shape.split(','))) if shape else ()
    if name.endswith('num_batches_tracked'):
      drawn[name] = np.array(7)
    elif name.endswith('running_var'):
      drawn[name] = chance.uniform(0.5, 1.0, shape).astype(np.float32)
    elif name.endswith('weight') and len(shape) == 1:
      least = 0.35 if name.startswith('layer') else 0.5  # ResNets add up what their blocks find
      drawn[name] = chance.uniform(least, 2 * least, shape).astype(np.float32)
    elif len(shape) == 1:
      drawn[name] = chance.normal(scale=0.1, size=shape).astype(np.float32)
    else:
      scale = np.sqrt(2 / np.prod(shape[1:]))
      drawn[name] = chance.normal(scale=scale, size=shape).astype(np.float32)
  return drawn


def main() -> None:
  import timm
  import torch
  import torchvision.models as vision

  def pooled(model):
    return lambda x: model.features(x).mean((2, 3))

  def without_classifier(model):
    return torch.nn.Sequential(*list(model.children())[:-1], torch.nn.Flatten())

  dilated = [False, False, True]
  makers = {
    'resnet18': (vision.resnet18(num_classes=CLASSES), without_classifier),
    'resnet34': (vision.resnet34(num_classes=CLASSES), without_classifier),
    'resnet50': (vision.resnet50(num_classes=CLASSES), without_classifier),
    'resnet50_dilated': (
      vision.resnet50(num_classes=CLASSES, replace_stride_with_dilation=dilated),
      without_classifier,
    ),
    'mobilenet_v2': (vision.mobilenet_v2(num_classes=CLASSES), pooled),
    'mobilenet_v2_timm': (
      timm.create_model('mobilenetv2_100', num_classes=CLASSES),
      lambda model: lambda x: model.forward_features(x).mean((2, 3)),
    ),
    'resnet18_timm': (
      timm.create_model('resnet18', num_classes=CLASSES),
      lambda model: lambda x: model.forward_features(x).mean((2, 3)),
    ),
  }
  stored = {}
  for name, (model, features) in makers.items():
    layout = [
      f'{key} {",".join(map(str, value.shape))}'.strip()
      for key, value in model.state_dict().items()
    ]
    drawn = {key: torch.from_numpy(value) for key, value in draw(layout).items()}
    model.load_state_dict(drawn)
    model.eval()
    with torch.no_grad():
      x = torch.from_numpy(pictures())
      stored[f'{name}/layout'] = np.array(layout)
      stored[f'{name}/features'] = features(model)(x).numpy()
      stored[f'{name}/logits'] = model(x).numpy()
    found = stored[f'{name}/features']
    print(name, found.shape, 'sd', found.std(), 'between', np.abs(found[0] - found[1]).mean())
  np.savez_compressed(FILE, **stored)


if __name__ == '__main__':
  main()
