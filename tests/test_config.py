import re

import pytest
from shipped_configs import CONFIGS, module_of

from ferjax import config as configs
from ferjax.assembly import build
from ferjax.errors import InputError
from ferjax.optim import optimizers
from ferjax.runs.record import check_same_run, read


@pytest.mark.parametrize(
  'key, value, message',
  [
    ('epoch', 3, "config.epoch. Did you mean 'epochs'"),
    ('precision', 'fp16', 'float32 or bfloat16 or float64'),
    ('batch', 0, 'config.batch=0: it must lie within 1'),
    ('steps', -5, 'config.steps=-5'),
    ('eval', {'evry': 3}, "config.eval.evry. Did you mean 'every'"),
  ],
)
def test_unknown_keys_and_values_are_named(key, value, message):
  config = configs.base()
  with config.unlocked():
    config[key] = value
  with pytest.raises(InputError, match=message):
    configs.check(config)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.stem)
def test_every_variant_that_a_config_describes_builds(path):
  module = module_of(path)
  names = re.findall(r'^`:(\w+)`', module.__doc__, re.M)
  assert {'demo', 'paper', 'smoke'} <= set(names)
  for name in names:
    config = module.get_config(name)
    configs.check(config)
    method = build.make_method(config, 7, 5)
    assert callable(method.loss)
  with pytest.raises(InputError) as refused:
    module.get_config('none')
  assert set(re.findall(r'\w+', str(refused.value).rpartition('use ')[2])) - {'or'} == set(names)


def test_a_section_may_only_hold_its_factorys_arguments():
  config = configs.base()
  section = config.optimizer.to_dict() | {'learning_rate': 0.1}
  with pytest.raises(InputError, match=r'config.optimizer.learning_rate(.|\n)*lr_rules'):
    configs.call(optimizers.make, 'optimizer', section, {}, 1, 1)


@pytest.mark.parametrize(
  'section, name, message', [('method', 'softmx', "'softmax'"), ('model', 'resnet19', 'resnet18')]
)
def test_unknown_names_are_refused_with_the_known_ones(section, name, message):
  config = configs.base()
  config[section].name = name
  with pytest.raises(InputError, match=message):
    build.make_method(config, 7)


def record(**changes):
  config = configs.base()
  for key, value in changes.items():
    config.update_from_flattened_dict({key.replace('__', '.'): value})
  return {
    'config': configs.plain(config),
    'fingerprint': 'a',
    'labels_sha256': 'b',
    'steps': 10 * config.epochs,
    'versions': {'jax': '1'},
    'git_revision': '',
  }


def test_a_run_continues_only_with_its_own_config(tmp_path, caplog):
  for same in (
    record(),
    record(epochs=20),
    record(parallel__backend='shard_map', reading__threads=9, data__dir='elsewhere'),
  ):
    check_same_run(record(epochs=8), same, tmp_path)
  with pytest.raises(InputError, match=r'config.epochs: 8 in the run, 2 now'):
    check_same_run(record(), record(epochs=2), tmp_path)
  with pytest.raises(InputError, match=r'config.optimizer.lr: 0.001 in the run, 0.1 now'):
    check_same_run(record(), record(optimizer__lr=0.1), tmp_path)
  for what in ('fingerprint', 'labels_sha256'):
    with pytest.raises(InputError, match='other data'):
      check_same_run(record(), record() | {what: 'changed'}, tmp_path)
  check_same_run(record(), record() | {'versions': {'jax': '2'}}, tmp_path)
  assert "versions were {'jax': '1'}, now {'jax': '2'}" in caplog.text


def test_a_run_continues_without_its_first_weights(tmp_path):
  begun = record(model__weights='a.pth')
  for other in ('', 'b.pth'):
    check_same_run(begun | {'weights': {}}, record(model__weights=other), tmp_path)
  with pytest.raises(InputError, match=r"config.model.weights: '' in the run, 'b.pth' now"):
    check_same_run(record(), record(model__weights='b.pth'), tmp_path)


def test_a_run_of_an_older_version_continues_with_the_default_of_a_new_key(tmp_path):
  old = record()
  del old['config']['optimizer']['clip_norm']
  check_same_run(old, record(), tmp_path)
  with pytest.raises(InputError, match=r'clip_norm: 0.0 in the run, 1.0 now'):
    check_same_run(old, record(optimizer__clip_norm=1.0), tmp_path)


def test_a_plain_config_comes_back_with_its_tuples():
  config = configs.base()
  config.optimizer.lr_rules = (('a/.*', 0.1),)
  again = configs.base()
  again.update(configs.with_tuples(configs.plain(config)))
  assert again.to_dict() == config.to_dict()


def test_folders_without_a_run(tmp_path):
  with pytest.raises(InputError, match='no config.json'):
    read(tmp_path)
  for text, message in (
    ('{"config"', 'damaged'),
    ('{}', "lacks 'classes'"),
    ('3', 'damaged'),
    ('\xe9', 'damaged'),
  ):
    (tmp_path / 'config.json').write_text(text, encoding='latin-1')
    with pytest.raises(InputError, match=message):
      read(tmp_path)
