import csv

import cv2
import ml_collections
import numpy as np
import pytest
from drawn_faces import draw_face

from ferjax import core
from ferjax.assembly import restore
from ferjax.cli.album import main
from ferjax.errors import InputError
from ferjax.images.files import decode
from ferjax.metrics import predictions
from ferjax.prediction import album
from ferjax.training import loop


@pytest.fixture
def folder(tmp_path):
  """Thirty pictures in three colours, in two folders; two that cannot be read, and a text."""
  rng = np.random.default_rng(0)
  path = tmp_path / 'pictures'
  (path / 'more').mkdir(parents=True)
  for number in range(30):
    image = np.zeros((20, 24, 3), np.uint8)
    image[..., number % 3] = 150 + rng.integers(0, 60)
    place = path if number < 20 else path / 'more'
    suffix = ('png', 'jpg', 'bmp')[number // 3 % 3]
    cv2.imwrite(str(place / f'{number:02}.{suffix}'), image)
  whole = (path / '03.jpg').read_bytes()
  (path / 'cut.jpg').write_bytes(whole[: len(whole) // 2])
  (path / 'empty.png').write_bytes(b'')
  (path / 'notes.txt').write_text('no picture')
  return path


def fake_model(monkeypatch, **changes):
  """A model whose embedding is the mean colour."""
  config = ml_collections.ConfigDict({'precision': 'float32'})

  def predict(state, split, limit):
    assert limit == 0
    records = [split.records[int(row)] for row in split.rows]
    z = np.stack([decode(one).mean((0, 1)) for one in records])
    return predictions.Predictions({'embedding': z, 'logits': z} | changes, {})

  method = core.Method(frozenset(), frozenset(), *[None] * 5)
  model = restore.Trained(config, ('red', 'green', 'blue'), method, None, predict, ())
  monkeypatch.setattr(restore, 'load', lambda workdir, which: model)
  monkeypatch.setattr(album.record, 'read', lambda workdir: {'config': config.to_dict()})
  return model


def test_the_medoids_of_three_colours(folder, tmp_path, monkeypatch, caplog):
  fake_model(monkeypatch)
  rows = album.summarise(folder, tmp_path / 'run', 3, tmp_path / 'out')
  assert len(rows) == 3
  assert 'cut.jpg' in caplog.text and 'empty.png' in caplog.text and 'notes' not in caplog.text
  with (tmp_path / 'out' / 'album.csv').open(newline='') as file:
    lines = list(csv.DictReader(file))
  assert len(lines) == 30 and {line['picture'] for line in lines} >= {'00.png', 'more/29.png'}
  by_group = [[line for line in lines if line['group'] == str(group)] for group in range(3)]
  for group in by_group:
    assert len(group) == 10 == int(group[0]['size'])
    assert [line['medoid'] for line in group] == ['1'] + ['0'] * 9
    assert len({int(line['picture'][-6:-4]) % 3 for line in group}) == 1
    assert len({line['prediction'] for line in group}) == 1
    distances = [float(line['distance']) for line in group]
    assert distances == sorted(distances)
  assert {line['prediction'] for line in lines} == {'red', 'green', 'blue'}
  assert cv2.imread(str(tmp_path / 'out' / 'sheet.png')).std() > 5
  again = album.summarise(folder, tmp_path / 'run', 3, tmp_path / 'out')
  assert again == rows and len(list((tmp_path / 'out').iterdir())) == 2


def test_invalid_arguments_are_errors(folder, tmp_path, monkeypatch):
  model = fake_model(monkeypatch)
  run = tmp_path / 'run'
  with pytest.raises(InputError, match='holds 30 pictures that can be read, fewer than --n=31'):
    album.summarise(folder, run, 31, tmp_path / 'out')
  with pytest.raises(InputError, match='--n=0: it must be at least 1'):
    album.summarise(folder, run, 0, tmp_path / 'out')
  with pytest.raises(InputError, match='nowhere is not a folder'):
    album.summarise(tmp_path / 'nowhere', run, 3, tmp_path / 'out')
  needs = model._replace(method=model.method._replace(predict_needs=frozenset({'landmarks'})))
  monkeypatch.setattr(restore, 'load', lambda workdir, which: needs)
  with pytest.raises(InputError, match='needs landmarks besides pictures'):
    album.summarise(folder, run, 3, tmp_path / 'out')
  blind = model._replace(
    predict=lambda *args, **kwargs: predictions.Predictions({'logits': None}, {})
  )
  monkeypatch.setattr(restore, 'load', lambda workdir, which: blind)
  with pytest.raises(InputError, match='has no embeddings'):
    album.summarise(folder, run, 3, tmp_path / 'out')
  assert not (tmp_path / 'out').exists()


def test_the_command_on_a_trained_run(small_config, tmp_path, capsys):
  small_config.steps = 1
  small_config.model.width = 4
  small_config.data.image_size = 16
  small_config.parallel.devices = 1
  loop.train(small_config, tmp_path / 'run')
  rng = np.random.default_rng(0)
  (tmp_path / 'faces').mkdir()
  for number in range(9):
    cv2.imwrite(str(tmp_path / 'faces' / f'{number}.png'), draw_face(rng, number % 7)[0])
  main([str(tmp_path / 'faces'), f'--workdir={tmp_path / "run"}', '--n=4'])
  out = tmp_path / 'run' / 'album' / 'faces'
  assert str(out) in capsys.readouterr().out
  with (out / 'album.csv').open(newline='') as file:
    lines = list(csv.DictReader(file))
  assert len(lines) == 9 and sum(line['medoid'] == '1' for line in lines) == 4
  with pytest.raises(InputError, match='there is no folder .*other'):
    main([str(tmp_path / 'faces'), f'--workdir={tmp_path / "other"}', '--n=4'])


def test_seed_checkpoint_and_out(folder, tmp_path, monkeypatch):
  fake_model(monkeypatch)
  calls = []
  found = restore.load
  monkeypatch.setattr(restore, 'load', lambda run, which: calls.append(which) or found(run, which))
  mixture = album.mixtures.gaussian_mixture
  monkeypatch.setattr(
    album.mixtures, 'gaussian_mixture', lambda z, n, seed: calls.append(seed) or mixture(z, n, seed)
  )
  run = str(tmp_path / 'run')
  main([str(folder), '--n=3', f'--workdir={run}', '--checkpoint=best', '--seed=4'])
  assert calls == ['best', 4]
  assert (tmp_path / 'run' / 'album' / 'pictures' / 'sheet.png').is_file()
  with pytest.raises(InputError, match='--seed=-1'):
    album.summarise(folder, tmp_path / 'run', 3, tmp_path / 'out', seed=-1)
  with pytest.raises(InputError, match='give another folder'):
    album.summarise(folder, tmp_path / 'run', 3, folder / 'summary')
