"""The weights of dlib's face recognition, as arrays for `models.face_resnet29`."""

import numpy as np

from ferjax.errors import InputError
from ferjax.images.augment import MEAN, STDDEV
from ferjax.models import dlib_file
from ferjax.models.face_resnet import STAGE_SIZES
from ferjax.models.resnet import EPSILON


def arrays(content: bytes, path: str) -> dict[str, np.ndarray]:
  """The arrays of the bytes of a file, with the names and in the layout of PyTorch.

  With these arrays, the network computes on normalised pictures (see `images.augment.normalise`)
  what dlib's network computes on raw ones. BatchNorm in evaluation mode replaces dlib's affine
  layers: scale and bias are those of the affine layer, and the mean subtracts the convolution's
  bias. Kernels are scaled to the size of He's initialisation, and the variance takes the factor
  back. Otherwise they would be so small (RMS 0.017 to 0.0006) that a few steps of an optimizer that
  moves all weights by equal amounts, such as Adam, would erase them.

  `fc.weight` f32[128, 256] computes the descriptor of a face from the mean of the last map.

  Args:
    content: The bytes of `dlib_face_recognition_resnet_model_v1.dat`.
    path: The file, for errors.

  Raises:
    InputError: see `dlib_file.read`; or the file holds another network.
  """
  network = dlib_file.read(content, path)
  layers, fc = _named(network, path)
  found, channels = {}, 3
  for place, number, con, affine in layers:
    out, taps = len(affine.params) // 2, con.window[0] * con.window[1]
    size = out * channels * taps
    sizes = len(affine.params), len(con.params)
    if not out or min(con.window[:2]) < 1 or sizes != (2 * out, size + out):
      raise _another(path)
    kernel = con.params[:size].reshape(out, channels, *con.window[:2]).astype(np.float64)
    bias = con.params[size:].astype(np.float64)
    if channels == 3:
      kernel, bias = _on_normalised(kernel, bias, network.mean)
    deviation = kernel.std()
    if not 0 < deviation < np.inf:
      raise InputError(f'{path}: the kernel of {place}conv{number} has no finite deviation')
    factor = np.sqrt(2 / (out * taps)) / deviation
    found[f'{place}conv{number}.weight'] = kernel * factor
    found[f'{place}bn{number}.weight'] = affine.params[:out]
    found[f'{place}bn{number}.bias'] = affine.params[out:]
    found[f'{place}bn{number}.running_mean'] = -bias * factor
    found[f'{place}bn{number}.running_var'] = np.full(out, factor**2 - EPSILON)
    channels = out
  found['fc.weight'] = fc.params.T
  return {name: np.ascontiguousarray(value, np.float32) for name, value in found.items()}


def _named(network, path):
  """(prefix, number, convolution, affine layer) of every convolution, and the last layer."""
  prefixes = [f'layer{s + 1}.{n}.' for s, size in enumerate(STAGE_SIZES) for n in range(size)]
  names = [('', '1'), *((prefix, number) for prefix in prefixes for number in '12')]
  kinds = {kind: [x for x in network.layers if x.kind == kind] for kind in ('con', 'affine', 'fc')}
  if not len(kinds['con']) == len(kinds['affine']) == len(names) or len(kinds['fc']) != 1:
    raise _another(path)
  pairs = zip(names, kinds['con'], kinds['affine'], strict=True)
  return [(*name, con, affine) for name, con, affine in pairs], kinds['fc'][0]


def _another(path):
  return InputError(f'{path} holds another network than dlib_face_recognition_resnet_model_v1.dat')


def _on_normalised(kernel, bias, mean):
  """The first kernel and its bias for normalised pictures: dlib subtracts `mean` from RGB values
  0..255 and divides by 256. They are equal on pictures; there is no padding."""
  ours, scale = 255 * np.array(MEAN), 255 * np.array(STDDEV)
  bias = bias + kernel.sum((2, 3)) @ ((ours - mean) / 256)
  return kernel * (scale / 256)[:, None, None], bias
