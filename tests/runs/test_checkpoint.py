import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints import damage, make_state

from ferjax.distributed import parallel
from ferjax.errors import InputError
from ferjax.runs import checkpoint


def fill(workdir, accuracies):
  with checkpoint.open_checkpoints(workdir, 2) as checkpoints:
    for step, accuracy in accuracies.items():
      checkpoint.save(checkpoints, make_state(step), accuracy)


def test_the_last_two_and_the_best_are_kept(tmp_path):
  fill(tmp_path, {1: 0.9, 2: 0.1, 3: None, 4: 0.2, 5: None})
  steps = sorted(p.name for p in (tmp_path / 'checkpoints').iterdir())
  assert steps == ['1', '4', '5']
  assert int(checkpoint.restore(tmp_path, 'best')['step']) == 1
  assert int(checkpoint.restore(tmp_path, 'last')['step']) == 5
  assert int(checkpoint.restore(tmp_path, '4')['step']) == 4
  with pytest.raises(InputError, match="no checkpoint '3'; there are: 1, 4, 5, last, best"):
    checkpoint.restore(tmp_path, '3')


def test_a_state_comes_back_bit_for_bit_on_other_devices(tmp_path):
  fill(tmp_path, {7: 0.5})
  restored = checkpoint.restore_latest(tmp_path, make_state(0, devices=4))
  assert checkpoint.state_sha256(restored) == checkpoint.state_sha256(make_state(7))
  assert len(restored.params['w'].sharding.device_set) == 4
  plain = checkpoint.restore(tmp_path, 'last')
  np.testing.assert_array_equal(plain['params']['w'], np.full(3, 7, np.float32))


def test_float64_comes_back_bit_for_bit(tmp_path):
  with jax.enable_x64(True):
    values = jnp.pi * jnp.arange(3)
    state = parallel.make(devices=2).replicate(make_state(1).replace(params={'w': values}))
    with checkpoint.open_checkpoints(tmp_path, 2) as checkpoints:
      checkpoint.save(checkpoints, state, None)
    restored = checkpoint.restore_latest(tmp_path, state)
    assert restored.params['w'].dtype == np.float64
    assert restored.params['w'].sharding == state.params['w'].sharding
    assert checkpoint.state_sha256(restored) == checkpoint.state_sha256(state)


def test_an_unreadable_checkpoint_is_moved_away_and_the_previous_one_used(tmp_path, caplog):
  fill(tmp_path, {1: None, 2: None})
  damage(tmp_path, 2)
  restored = checkpoint.restore_latest(tmp_path, make_state(0))
  assert int(restored.step) == 1
  assert 'checkpoint 2 cannot be read' in caplog.text
  assert (tmp_path / 'checkpoints_unreadable' / '2-0').is_dir()
  fill(tmp_path, {2: None})
  assert int(checkpoint.restore_latest(tmp_path, make_state(0)).step) == 2


def test_a_damaged_old_checkpoint_affects_only_itself(tmp_path):
  fill(tmp_path, {1: 0.9, 2: 0.1, 3: 0.2})
  (tmp_path / 'checkpoints' / '1' / 'metrics' / 'metrics').write_text('')
  assert int(checkpoint.restore_latest(tmp_path, make_state(0)).step) == 3
  assert sorted(p.name for p in (tmp_path / 'checkpoints').iterdir()) == ['2', '3']
  fill(tmp_path, {4: 0.3})


def test_a_damaged_checkpoint_does_not_keep_others_from_being_read(tmp_path):
  fill(tmp_path, {1: 0.9, 2: 0.1})
  (tmp_path / 'checkpoints' / '1' / '_CHECKPOINT_METADATA').write_text('')
  assert int(checkpoint.restore(tmp_path, 'last')['step']) == 2


def test_a_whole_checkpoint_of_another_model_is_not_touched(tmp_path):
  fill(tmp_path, {1: None})
  other = make_state(0).replace(params={'v': jnp.ones(4)})
  with pytest.raises(InputError, match='another state than this config makes'):
    checkpoint.restore_latest(tmp_path, other)
  assert (tmp_path / 'checkpoints' / '1').is_dir()


def test_the_earliest_of_equal_checkpoints_is_best(tmp_path):
  fill(tmp_path, {1: 0.1, 2: 0.5, 3: 0.5, 4: 0.5, 5: 0.2})
  assert sorted(p.name for p in (tmp_path / 'checkpoints').iterdir()) == ['2', '4', '5']
  assert int(checkpoint.restore(tmp_path, 'best')['step']) == 2


def test_reading_does_not_disturb_a_save(tmp_path):
  fill(tmp_path, {1: None})
  under_way = tmp_path / 'checkpoints' / '2.orbax-checkpoint-tmp'
  under_way.mkdir()
  checkpoint.restore(tmp_path, 'last')
  assert under_way.is_dir()


def test_nothing_readable_is_an_error_and_nothing_saved_is_not(tmp_path):
  assert checkpoint.restore_latest(tmp_path, make_state(0)) is None
  fill(tmp_path, {1: None})
  damage(tmp_path, 1)
  for _ in range(2):  # the same command must not start a new run over the old record
    with pytest.raises(InputError, match='no checkpoint of .* can be read'):
      checkpoint.restore_latest(tmp_path, make_state(0))


def test_the_digest_depends_on_every_bit():
  digest = checkpoint.state_sha256(make_state(1))
  assert digest == checkpoint.state_sha256(make_state(1, devices=1))
  changed = make_state(1).replace(params={'w': jnp.array([1, 1, 1.0000001])})
  assert digest != checkpoint.state_sha256(changed)


def test_weights_of_terms_are_stored_if_they_have_a_state(tmp_path):
  plain = make_state(1)
  weighted = plain.replace(weighting={'history': jnp.arange(3.0)})
  for name, state in (('plain', plain), ('weighted', weighted)):
    with checkpoint.open_checkpoints(tmp_path / name, 2) as checkpoints:
      checkpoint.save(checkpoints, state, None)
    stored = checkpoint.restore(tmp_path / name, 'last')
    assert set(stored) == {'step', 'params', 'opt_state', 'extra', 'rng'} | (
      {'weighting'} if name == 'weighted' else set()
    )
    emptied = {k: jax.tree.map(jnp.zeros_like, getattr(state, k)) for k in ('params', 'weighting')}
    restored = checkpoint.restore_latest(tmp_path / name, state.replace(**emptied))
    assert checkpoint.state_sha256(restored) == checkpoint.state_sha256(state)
  assert checkpoint.state_sha256(plain) != checkpoint.state_sha256(weighted)
