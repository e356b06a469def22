"""Convolutions on a CPU by oneDNN, which XLA calls through its foreign function interface.

oneDNN comes with the extra `onednn`, for Linux on x86-64. `load` compiles the calls once for each
version of oneDNN and of jaxlib; after that, `value`, `input_gradient` and `kernel_gradient` can be
traced and compiled like any operation, but not exported. Each is float32, and does not depend on
the number of cores: images are computed one by one, and a kernel gradient is the sum of a fixed
number of parts of the batch.
"""

import ctypes
import functools
import hashlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import jax
import numpy as np
from jax import Array

SOURCE = Path(__file__).with_name('convolution.cc')
PACKAGES = ('onednn-cpu-gomp', 'onednn-devel-cpu-gomp')
MAJOR = 3  # the version of oneDNN whose interface the source uses
AVX2 = 7  # dnnl_cpu_isa_avx2: the least instruction set with which oneDNN was measured to be faster
PARTS = 8  # of the batch in a kernel gradient
TARGETS = {
  'ferjax_onednn_value': 'FerjaxValue',
  'ferjax_onednn_input_gradient': 'FerjaxInputGradient',
  'ferjax_onednn_kernel_gradient': 'FerjaxKernelGradient',
}


class Unavailable(Exception):
  """oneDNN cannot be used here. The message says why, and what helps."""


@functools.cache
def load(folder: Path) -> str:
  """Compiles the calls if `folder` does not have them, and registers them with XLA.

  Args:
    folder: Where compiled calls are kept; only this user may be able to write there.

  Returns:
    oneDNN's version.

  Raises:
    Unavailable: the platform, the packages, their versions, a C++ compiler or the processor's
      instructions do not fit, or the compiler fails.
  """
  if (platform.system(), platform.machine()) != ('Linux', 'x86_64'):
    raise Unavailable('its package is for Linux on x86-64 only')
  library, include = _files()
  try:
    # Global, so that the compiled calls find its functions.
    onednn = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    version = _version(onednn)
    if onednn.dnnl_get_effective_cpu_isa() < AVX2:
      raise Unavailable('the processor does not have AVX2')
    calls = ctypes.CDLL(str(_compiled(Path(folder), include, version)))
  except (OSError, AttributeError) as error:
    raise Unavailable(f'it cannot be loaded ({error}): install ferjax[onednn] again') from error
  for name, symbol in TARGETS.items():
    handler = jax.ffi.pycapsule(getattr(calls, symbol))
    jax.ffi.register_ffi_target(name, handler, platform='cpu')
  return version


def _files():
  """The library, and the folder of its headers."""
  found = []
  for package, name in zip(PACKAGES, ('libdnnl.so.3', 'dnnl.hpp'), strict=True):
    try:
      files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
      raise Unavailable(f'{package} is not installed: pip install "ferjax[onednn]"') from None
    paths = [Path(file.locate()) for file in files if file.name == name]
    paths = sorted((path for path in paths if path.is_file()), key=lambda path: len(path.parts))
    if not paths:
      raise Unavailable(f'{package} lacks {name}: install ferjax[onednn] again')
    found.append(paths[0])
  return found[0], found[1].parent


def _version(onednn):
  class Version(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in ('major', 'minor', 'patch')]

  onednn.dnnl_version.restype = ctypes.POINTER(Version)
  found = onednn.dnnl_version().contents
  version = f'{found.major}.{found.minor}.{found.patch}'
  if found.major != MAJOR:
    raise Unavailable(f'its version is {version}, but {MAJOR}.x is needed')
  return version


def _compiled(folder, include, version):
  """The shared object of the calls in `folder`."""
  source = SOURCE.read_bytes()
  jaxlib = importlib.metadata.version('jaxlib')
  key = hashlib.sha256(b'\0'.join([source, version.encode(), jaxlib.encode()])).hexdigest()[:16]
  path = folder / f'convolution-{key}.so'
  if path.is_file():
    return path
  compiler = shutil.which(os.environ.get('CXX') or 'c++') or shutil.which('g++')
  if compiler is None:
    raise Unavailable('there is no C++ compiler: install g++, or give one with CXX')
  folder.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=folder) as temporary:
    made = Path(temporary) / path.name
    flags = ['-std=c++17', '-O2', '-fPIC', '-shared', '-fopenmp', '-isystem', jax.ffi.include_dir()]
    command = [compiler, *flags, f'-I{include}', str(SOURCE), '-o', str(made)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
      reason = (done.stderr.strip() or f'status {done.returncode}').splitlines()[0]
      raise Unavailable(f'{compiler} cannot compile {SOURCE.name}: {reason}')
    made.replace(path)
  return path


def _call(name, a, b, shape, window, parts=0):
  (strides, ((top, bottom), (left, right)), dilation) = window[1:]
  numbers = np.array([*strides, top, bottom, left, right, *dilation], np.int64)
  result = jax.ShapeDtypeStruct(shape, a.dtype)
  call = jax.ffi.ffi_call(name, result, vmap_method='sequential')
  return call(a, b, window=numbers, parts=np.int64(parts))


def value(x: Array, w: Array, window, y_shape: tuple[int, ...]) -> Array:
  """The convolution f32[n, h', w', o] of images f32[n, h, w, c] by a kernel f32[kh, kw, c, o].

  Args:
    x: The images.
    w: The kernel.
    window: A `conv.Window`.
    y_shape: The shape of the result.
  """
  return _call('ferjax_onednn_value', x, w, y_shape, window)


def input_gradient(w: Array, dy: Array, window, x_shape: tuple[int, ...]) -> Array:
  """The gradient f32[n, h, w, c] by the images, of the cotangent f32[n, h', w', o]; see `value`."""
  return _call('ferjax_onednn_input_gradient', dy, w, x_shape, window)


def kernel_gradient(x: Array, dy: Array, window, w_shape: tuple[int, ...]) -> Array:
  """The gradient f32[kh, kw, c, o] by the kernel, of the cotangent f32[n, h', w', o]; see
  `value`."""
  parts = min(PARTS, len(x))
  return _call('ferjax_onednn_kernel_gradient', x, dy, w_shape, window, parts)
