import importlib.metadata
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ferjax import config as configs
from ferjax import files
from ferjax.assembly import build
from ferjax.errors import InputError
from ferjax.ops import conv, onednn


@pytest.fixture(scope='module')
def loaded():
  try:
    return onednn.load(files.cache_folder() / 'onednn')
  except onednn.Unavailable as reason:
    pytest.skip(f'oneDNN is not available: {reason}')


CASES = {  # images, kernel, stride, padding, dilation
  '3x3': ((9, 8, 8, 16), (3, 3, 16, 32), 1, 1, 1),
  'stem': ((5, 33, 31, 3), (7, 7, 3, 16), 2, 3, 1),
  'dilated': ((3, 9, 9, 8), (3, 3, 8, 8), 1, 2, 2),
  'strided 1x1': ((6, 8, 8, 16), (1, 1, 16, 32), 2, 0, 1),
  'strided 1x1, few channels': ((6, 8, 8, 3), (1, 1, 3, 8), 2, 0, 1),
  'one image': ((1, 8, 8, 16), (3, 3, 16, 16), 1, 1, 1),
  'more taps than pixels': ((4, 2, 2, 16), (3, 3, 16, 16), 1, 1, 1),
}


@pytest.mark.parametrize('name', CASES)
def test_values_and_gradients_are_those_of_the_native_form(loaded, name):
  x_shape, w_shape, stride, padding, dilation = CASES[name]
  rng = np.random.default_rng(0)
  x, w = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in (x_shape, w_shape))

  def of(onednn):
    def f(x, w):
      pads = ((padding, padding), (padding, padding))
      return conv.form(onednn)(
        x,
        w,
        (stride, stride),
        pads,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=conv.LAYOUT,
      )

    y, back = jax.vjp(jax.jit(f), x, w)
    return y, *back(jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape))

  for found, wanted in zip(of(True), of(False), strict=True):
    np.testing.assert_allclose(found, wanted, atol=2e-5 * float(jnp.abs(wanted).max()))


def test_an_image_does_not_depend_on_its_batch(loaded):
  rng = np.random.default_rng(1)
  x = jnp.asarray(rng.normal(size=(7, 8, 8, 16)), jnp.float32)
  w = jnp.asarray(rng.normal(size=(3, 3, 16, 16)), jnp.float32)
  f = jax.jit(lambda x: conv.form(True)(x, w, (1, 1), 'SAME', dimension_numbers=conv.LAYOUT))
  np.testing.assert_array_equal(f(x), jnp.concatenate([f(x[i : i + 1]) for i in range(7)]))


@pytest.fixture
def missing(monkeypatch):
  def files(package):
    raise importlib.metadata.PackageNotFoundError(package)

  monkeypatch.setattr(importlib.metadata, 'files', files)
  monkeypatch.setattr('platform.system', lambda: 'Linux')
  monkeypatch.setattr('platform.machine', lambda: 'x86_64')
  for cached in (build._loaded, onednn.load):
    cached.cache_clear()
  yield
  for cached in (build._loaded, onednn.load):
    cached.cache_clear()


def test_a_missing_library_is_an_error_only_where_it_is_asked_for(missing, caplog):
  config = configs.base()
  with caplog.at_level('INFO', 'ferjax'):
    assert build.onednn_version(config) == build.onednn_version(config) == ''
  assert caplog.text.count('pip install "ferjax[onednn]"') == 1
  config.convolution = 'native'
  assert build.onednn_version(config) == '' and not build.make_model(config).onednn
  config.convolution = 'onednn'
  with pytest.raises(
    InputError, match='convolution=onednn is not possible: onednn-cpu-gomp is not'
  ):
    build.make_model(config)
  config.precision = 'float64'
  with pytest.raises(InputError, match='precision=float32'):
    build.make_model(config)
  config.convolution = 'mkl'
  with pytest.raises(InputError, match='config.convolution'):
    build.make_model(config)


def test_a_compiler_that_is_missing_or_fails(tmp_path, monkeypatch):
  monkeypatch.setattr('shutil.which', lambda name: None)
  with pytest.raises(onednn.Unavailable, match='no C.. compiler'):
    onednn._compiled(tmp_path, tmp_path, '3.2.0')
  monkeypatch.setattr('shutil.which', lambda name: '/bin/false')
  with pytest.raises(onednn.Unavailable, match='cannot compile convolution.cc: status 1'):
    onednn._compiled(tmp_path / 'new', tmp_path, '3.2.0')
  assert not list(Path(tmp_path).rglob('*.so'))
