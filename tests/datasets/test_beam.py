"""Apache Beam prepares the same rows, order, files and reports as this process."""

import importlib.util
import subprocess
import sys

import pytest
from drawn_faces import write_manifest

from ferjax.datasets import beam
from ferjax.errors import InputError

BEAM = importlib.util.find_spec('apache_beam') is not None

# Runs in its own process, because Beam's imports warn. 18 files of about 20 kB, over ten for train.
PROGRAM = """
import sys
from pathlib import Path
from ferjax.data import dataset
from ferjax.datasets import beam, builder, catalogue
from ferjax.errors import InputError
import numpy as np

builder.SHARD_BYTES = 20_000
root, manifest = Path(sys.argv[1]), sys.argv[2]
options = beam.parse_options(['runner=DirectRunner', 'direct_running_mode=in_memory'])
found, prepared = [], []
for name, chosen in (('plain', None), ('beam', options)):
  source = catalogue.Source(path=manifest, skip_bad=True)
  made = catalogue.make_builder('manifest', str(root / name), source, {})
  catalogue.prepare(made, chosen)
  prepared.append(made)
  found.append(dataset.load(name='manifest', path=manifest, dir=str(root / name), skip_bad=True))
a, b = prepared
assert a.info.metadata['bad_rows'] == b.info.metadata['bad_rows']
assert 'train_003.png' in a.info.metadata['bad_rows']
lengths = [{k: info.shard_lengths for k, info in made.info.splits.items()} for made in prepared]
assert lengths[0] == lengths[1] and len(lengths[0]['train']) > 10, lengths
assert sum(lengths[0]['train']) == 83 and len(set(lengths[0]['train'])) > 1
names = [sorted(path.name for path in Path(made.data_path).iterdir()) for made in prepared]
assert names[0] == names[1], names
assert found[0].fingerprint == found[1].fingerprint
for split, of_plain in found[0].splits.items():
  of_beam = found[1].splits[split]
  assert of_plain.table.keys() == of_beam.table.keys()
  for key, column in of_plain.table.items():
    np.testing.assert_array_equal(column, of_beam.table[key])
  for row in range(len(of_plain.records)):
    assert of_plain.records[row] == of_beam.records[row]
wrong = catalogue.make_builder('manifest', str(root / 'wrong'), source, {})
try:
  catalogue.prepare(wrong, beam.parse_options(['runner=NoRunner']))
except InputError as error:
  print(str(error).splitlines()[0][:70])
source = catalogue.Source()
drawn = catalogue.make_builder('synthetic_faces', str(root / 'drawn'), source, {'num': 50})
try:
  catalogue.prepare(drawn, options)
except InputError as error:
  print(error)
"""


@pytest.mark.skipif(not BEAM, reason="Apache Beam is not installed: pip install 'ferjax[beam]'")
def test_beam_stores_the_same_rows_in_the_same_files(tmp_path):
  manifest = write_manifest(tmp_path / 'faces', {'train': 84, 'val': 21, 'test': 28})
  (tmp_path / 'faces' / 'train_003.png').write_bytes(b'no picture')
  command = [sys.executable, '-c', PROGRAM, str(tmp_path), str(manifest)]
  result = subprocess.run(command, capture_output=True, text=True)
  assert result.returncode == 0, result.stderr
  runner, drawn = result.stdout.splitlines()[-2:]
  assert runner.startswith('Apache Beam with --beam_options: Unexpected pipeline runner: NoRunner')
  assert drawn.startswith('synthetic_faces is drawn, not read')


@pytest.mark.skipif(BEAM, reason='Apache Beam is installed')
def test_without_beam_the_error_names_the_package():
  with pytest.raises(InputError, match=r"pip install 'ferjax\[beam\]'"):
    beam.parse_options(['runner=DirectRunner'])
