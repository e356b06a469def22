"""Files of weights: what is read of them, and which are refused."""

import hashlib
import io
import json
import os
import pickle
import struct
import sys
import types
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from ferjax.errors import InputError
from ferjax.models import weight_files


def safetensors_bytes(header, body=b''):
  header = header if isinstance(header, bytes) else json.dumps(header).encode()
  return struct.pack('<Q', len(header)) + header + body


def entry(shape, end, dtype='F32'):
  return {'conv1.weight': {'dtype': dtype, 'shape': shape, 'data_offsets': [0, end]}}


@pytest.mark.parametrize(
  'content, message',
  [
    (safetensors_bytes(entry([2, 1000], 8), b'\0' * 8), 'is damaged or not a safetensors file'),
    (safetensors_bytes(entry([2], 8), b'\0' * 4), 'is damaged'),
    (safetensors_bytes(entry([2**40, 2**40], 8), b'\0' * 8), 'is damaged'),
    (safetensors_bytes(entry([2], 8), b'\0' * 8)[:-3], 'is damaged'),
    (struct.pack('<Q', 2**60) + b'{}', 'is damaged'),
    (safetensors_bytes(b'{not json'), 'is damaged'),
    (b'', 'is damaged'),
    (pickle.dumps({'conv1.weight': 1}), 'is damaged'),
    (safetensors_bytes(entry([2], 2, 'F8_E4M3'), b'\0' * 2), 'save it as float32'),
    (safetensors_bytes(entry([1] * 100, 4), b'\0' * 4), 'is damaged'),
    (safetensors_bytes(entry([0, 2**63], 0)), 'is damaged'),
  ],
)
def test_damaged_safetensors_are_refused(content, message, tmp_path):
  path = tmp_path / 'weights.safetensors'
  path.write_bytes(content)
  with pytest.raises(InputError, match=message):
    weight_files.read(path)


PanicException = type('PanicException', (BaseException,), {})


@pytest.mark.parametrize('error', [PanicException('in Rust'), MemoryError()])
def test_every_error_of_safetensors_is_reported(error, tmp_path, monkeypatch):
  def load(content):
    raise error

  (tmp_path / 'weights.safetensors').write_bytes(b'')
  monkeypatch.setattr(weight_files.safetensors.numpy, 'load', load)
  with pytest.raises(InputError, match=r'weights.safetensors is damaged.*(in Rust|MemoryError)'):
    weight_files.read(tmp_path / 'weights.safetensors')
  error = KeyboardInterrupt()
  with pytest.raises(KeyboardInterrupt):
    weight_files.read(tmp_path / 'weights.safetensors')


def test_files_of_other_kinds_and_none(tmp_path, monkeypatch):
  with pytest.raises(InputError, match='there is no such file'):
    weight_files.read(tmp_path / 'none.pth')
  (tmp_path / 'weights.h5').write_bytes(b'')
  with pytest.raises(InputError, match=r'\.safetensors file, or one of PyTorch'):
    weight_files.read(tmp_path / 'weights.h5')
  (tmp_path / 'folder.safetensors').mkdir()
  with pytest.raises(InputError, match=r'folder\.safetensors is a folder'):
    weight_files.read(tmp_path / 'folder.safetensors')
  with pytest.raises(InputError, match=r'x\.safetensors cannot be read: .*File name too long'):
    weight_files.read('x' * 300 + '.safetensors')
  monkeypatch.setenv('HOME', str(tmp_path))
  safetensors.numpy.save_file({'conv1.weight': np.ones(3)}, tmp_path / 'WEIGHTS.SafeTensors')
  assert list(weight_files.read('~/WEIGHTS.SafeTensors')[0]) == ['conv1.weight']


class Malicious:
  """Unpickling it creates a folder."""

  def __init__(self, folder):
    self.folder = str(folder)

  def __reduce__(self):
    return os.mkdir, (self.folder,)


def in_archive(content):
  """A pickle in the zip archive that torch.save writes."""
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, 'w') as archive:
    for name, value in {'data.pkl': content, 'byteorder': b'little', 'version': b'3\n'}.items():
      archive.writestr(f'archive/{name}', value)
  return buffer.getvalue()


@pytest.mark.parametrize('pack', [lambda content: content, in_archive], ids=['pickle', 'archive'])
def test_code_in_a_file_is_never_run(pack, tmp_path):
  """PyTorch refuses it. Without PyTorch it is refused because PyTorch is missing."""
  marker, path = tmp_path / 'ran', tmp_path / 'weights.pth'
  content = pickle.dumps({'state_dict': {'conv1.weight': Malicious(marker)}}, protocol=2)
  pickle.loads(content)
  marker.rmdir()
  path.write_bytes(pack(content))
  with pytest.raises(InputError, match=r"none of it was run|pip install 'ferjax\[torch\]'"):
    weight_files.read(path)
  assert not marker.exists()


def test_without_pytorch_the_extra_is_named(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'torch', None)
  (tmp_path / 'weights.pth').write_bytes(b'')
  with pytest.raises(InputError, match=r"pip install 'ferjax\[torch\]'"):
    weight_files.read(tmp_path / 'weights.pth')


class Tensor:
  """A stand-in for PyTorch's tensor, around an array; it can be used after `detach` only."""

  def __init__(self, array, detached=False):
    self.array, self.detached = array, detached

  def detach(self):
    return Tensor(self.array, True)

  @property
  def dtype(self):
    return getattr(self.array, 'dtype', None)

  def view(self, dtype):
    return Tensor(self.array.view(dtype), self.detached)

  def numpy(self):
    if not self.detached:
      raise RuntimeError("Can't call numpy() on Tensor that requires grad.")
    if self.array is None or self.dtype == jnp.bfloat16:
      raise TypeError("can't convert Sparse layout tensor to numpy. Use Tensor.to_dense() first.")
    return self.array


def stand_in(monkeypatch, held, version=(2, 13)):
  """A module torch whose `load` returns `held`, or raises it; returns the list of calls."""
  calls = []

  def load(file, **options):
    calls.append((file.read(), options))
    if isinstance(held, Exception):
      raise held
    return held

  torch = types.SimpleNamespace(
    __version__=version, Tensor=Tensor, load=load, bfloat16=jnp.bfloat16, int16=np.int16
  )
  monkeypatch.setitem(sys.modules, 'torch', torch)
  return calls


@pytest.fixture
def torch_file(tmp_path):
  path = tmp_path / 'weights.pth'
  path.write_bytes(b'content')
  return path


@pytest.mark.parametrize('ending', ['pth', 'pt', 'bin', 'pth.tar', 'ckpt', 'PTH'])
def test_pytorch_loads_tensors_only(ending, tmp_path, monkeypatch):
  path = tmp_path / f'weights.{ending}'
  path.write_bytes(b'content')
  held = {
    'epoch': 3,
    'state_dict': {'conv1.weight': Tensor(np.float16([1.5]))},
    'optimizer': {'state': {0: {'step': Tensor(np.array(7))}}},
    'average': {'conv1.weight': Tensor(np.array([-2.5], jnp.bfloat16))},
  }
  calls = stand_in(monkeypatch, held)
  found, sha256 = weight_files.read(path)
  assert calls == [(b'content', {'map_location': 'cpu', 'weights_only': True})]
  assert sha256 == hashlib.sha256(b'content').hexdigest()
  assert found == {
    'state_dict.conv1.weight': 1.5,
    'optimizer.state.0.step': 7,
    'average.conv1.weight': -2.5,
  }
  stand_in(monkeypatch, [1, 2])
  assert weight_files.read(path)[0] == {}


def test_errors_of_pytorch_are_reported_without_its_advice(torch_file, monkeypatch):
  advice = 'Re-running with `weights_only` set to `False` will likely succeed.'
  failed = f'Weights only load failed. Do so \33[1monly if\33[0m you trust it. {advice}\n\t'
  for text, reason in {
    failed: 'Weights only load failed',
    f'{failed}Unsupported global: GLOBAL os.mkdir was not allowed': 'GLOBAL os.mkdir',
    '\33[1mbad': r'\\x1b\[1mbad',
  }.items():
    stand_in(monkeypatch, pickle.UnpicklingError(text))
    with pytest.raises(InputError, match=f"none of it was run.*says: '{reason}'$"):
      weight_files.read(torch_file)


def test_dicts_that_occur_twice_are_read_once(torch_file, monkeypatch):
  held = {'x': Tensor(np.ones(1))}
  for _ in range(40):
    held = {'a': held, 'b': held}
  held['again'] = held
  stand_in(monkeypatch, held)
  assert list(weight_files.read(torch_file)[0]) == ['a.' * 40 + 'x']
  stand_in(monkeypatch, {'a' * 300: {'x': Tensor(np.ones(1))}})
  with pytest.raises(InputError, match=r"nests dicts too deeply, to 'a{100}\.\.\.'"):
    weight_files.read(torch_file)


def test_two_arrays_of_one_name_are_refused(torch_file, monkeypatch):
  whole, sparse = Tensor(np.ones(1)), Tensor(None)
  for held in (
    {'s': {'a': whole}, 's.a': whole},
    {'s': {'a': sparse}, 's.a': whole},
    {1: {'a': whole}, '1': {'a': whole}},
  ):
    stand_in(monkeypatch, held)
    with pytest.raises(InputError, match=r"weights.pth has two arrays named '[s1]\.a'"):
      weight_files.read(torch_file)


def test_tensors_that_numpy_cannot_have_are_left_out(torch_file, monkeypatch, caplog):
  stand_in(monkeypatch, {'net': {'a': Tensor(np.ones(1))}, 'optimizer': {'b': Tensor(None)}})
  assert list(weight_files.read(torch_file)[0]) == ['net.a']
  assert (
    "left out arrays that cannot be read: 'optimizer.b': \"can't convert Sparse layout"
    in caplog.text
  )


def archive(kind, copies=1):
  """A zip file like those of `torch.save`, whose directory lists its one entry several times."""
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, 'w', kind) as made:
    made.writestr('archive/data/0', b'\0' * 1000)
    made.filelist *= copies
  return buffer.getvalue()


def test_archives_that_unpack_to_more_than_their_size_are_refused(torch_file, monkeypatch):
  stand_in(monkeypatch, {'a': Tensor(np.ones(1))})
  torch_file.write_bytes(archive(zipfile.ZIP_STORED))
  assert list(weight_files.read(torch_file)[0]) == ['a']
  for content in (archive(zipfile.ZIP_DEFLATED), archive(zipfile.ZIP_STORED, copies=9)):
    torch_file.write_bytes(content)
    with pytest.raises(InputError, match='unpacks to more than its own size'):
      weight_files.read(torch_file)
  torch_file.write_bytes(archive(zipfile.ZIP_STORED)[:-9])
  with pytest.raises(InputError, match='is damaged'):
    weight_files.read(torch_file)


def test_an_unsafe_pytorch_is_not_used(tmp_path, monkeypatch):
  path = tmp_path / 'weights.pth'
  path.write_bytes(b'')
  calls = stand_in(monkeypatch, {}, version=(2, 9))
  with pytest.raises(InputError, match="may run code(.|\n)*'torch>=2.10'"):
    weight_files.read(path)
  assert not calls
