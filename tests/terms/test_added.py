"""Losses from a section of `config.terms`: how they are found, what they read, and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from term_methods import drawn, linear_method, started
from user_losses import MINE

from ferjax import losses
from ferjax.errors import InputError
from ferjax.terms import added, wrap


@pytest.mark.parametrize(
  'section, message',
  [
    ({'path': 'my_losses.subject'}, "my_losses.py has no function 'subject'.* 'subjects'"),
    ({'path': 'my_loses.subjects'}, "no module 'my_loses' in .* or on PYTHONPATH"),
    ({'path': 'my_losses.py'}, 'give module.function'),
    ({'path': 'subjects'}, 'give module.function'),
    ({'path': './my_losses.subjects'}, 'give module.function'),
    ({'path': 'my_losses..subjects'}, 'give module.function'),
    ({'name': 'sgn'}, "no term 'sgn'. Did you mean 'sgm'.*(.|\n)*'path': 'my_losses.island'"),
    ({'name': 'sgm', 'sigm': 1.0}, "config.terms.mine.sigm. Did you mean 'sigma'.*num_classes"),
    ({'name': 'sgm', 'where': True}, 'unknown key config.terms.mine.where'),
    ({'path': 'my_losses.total'}, r'total of my_losses.py returns float32\[\]; give f.12.*mean'),
    ({'path': 'my_losses.two_columns'}, r'returns float32\[12, 2\]; give f\[12\]'),
    ({'path': 'my_losses.right'}, r'returns bool\[12\]: give .* of a floating type'),
    (
      {'path': 'my_losses.votes'},
      r"votes of my_losses.py reads 'distribution' \(line 35\), .*columns p_<class> or (.|\n)*"
      r'embedding float32\[12, 5\](.|\n)*label int32\[12\]',
    ),
    ({'path': 'my_losses.misspelt'}, "reads 'embeding', .*Did you mean 'embedding'"),
    (
      {'path': 'my_losses.no_label'},
      r"reads 'embedding' \(line 41\), which is an output of the method: outputs\['embedding'\]\n",
    ),
    (
      {'path': 'my_losses.no_output'},
      r"reads 'label' \(line 44\), which is a label of the batch: batch\['label'\]\n",
    ),
    ({'path': 'my_losses.neither'}, 'must make a ferjax.losses.StatefulLoss; it makes float'),
    (
      {'path': 'my_losses.broken'},
      r'broken of my_losses.py fails \(line 50\): TypeError: (.|\n)*:',
    ),
    ({'path': 3}, "config.terms.mine.path is '3': give module.function"),
    ({'name': 3}, "there is no term '3'. There are: arcface_head"),
    ({'path': 'my_losses.by_place'}, "by_place of my_losses.py has 'embedding' before a /"),
    ({'path': 'my_losses.taken'}, "has an argument 'weight', which is a key of every term"),
    ({'name': 'sgm', 'wieght': 1.0}, "config.terms.mine.wieght. Did you mean 'weight'"),
    (
      {'name': 'centers', 'rate': 'high'},
      r"centers of class_centers.py fails \(line \d+\): TypeError: (.|\n)*rate='high'",
    ),
    (
      {'path': 'my_losses.counted', 'rate': 1},
      'mine.rate. <lambda> of my_losses.py is made already',
    ),
    ({'path': 'my_losses.jnp.exp2'}, 'no module'),
    ({'path': 'builtins.max'}, 'config.terms.mine: <built-in function max> is no Python function'),
  ],
)
def test_functions_that_are_not_losses_are_refused_with_a_hint(my_losses, section, message):
  options = {k: v for k, v in section.items() if k not in added.RESERVED}
  with pytest.raises(InputError, match=message):
    function = added.function_of('mine', section)
    term = added.make('config.terms.mine', function, options, num_classes=7)
    added.check('config.terms.mine', function, term, *drawn())


def count_of_poses(outputs, batch):
  """Reads a column but not its numbers."""
  return outputs['embedding'].sum(1) * batch['pose'].shape[0]


def if_there(outputs, batch):
  pose = batch['pose'] if 'pose' in batch else 0
  return outputs['embedding'].sum(1) + pose + batch.get('nothing', 0)


def got(outputs, batch):
  turned = jax.tree.map(lambda x: x[::-1], batch)
  return outputs['embedding'].sum(1) + turned.get('pose', 0)


def tried(outputs, batch):
  try:
    return outputs['embedding'].sum(1) + batch['pose']
  except KeyError:
    return outputs['embedding'].sum(1)


def popped(outputs, batch):
  return outputs['embedding'].sum(1) + batch.copy().pop('pose', 0)


def refused(outputs, batch):
  if 'pose' not in batch:
    raise InputError('give poses')
  return outputs['embedding'].sum(1)


@pytest.mark.parametrize('function', [if_there, got, tried, popped])
def test_the_columns_that_a_loss_reads_are_found(function):
  outputs, batch = drawn()
  for compiled in (function, jax.jit(function)):
    assert added.check('here', function, compiled, outputs, batch) == {'pose'}


@pytest.mark.parametrize('function', [count_of_poses, refused])
def test_a_loss_that_uses_only_a_shape_or_a_name_gets_all_labels(function):
  """The loss does not use the numbers of the label, but would fail without it."""
  outputs, batch = drawn()
  for compiled in (function, jax.jit(function)):
    assert added.check('here', function, compiled, outputs, batch) == set(batch)


@pytest.mark.parametrize(
  'names',
  [
    dict,
    lambda batch: list(batch.keys()),
    lambda batch: {**batch},
    lambda batch: batch | {'where': True},
    lambda batch: {'where': True} | batch,
    list,
    lambda batch: [name for name, _ in batch.items()],
    lambda batch: ['pose'] * (len(batch.values()) == 4),
  ],
)
def test_a_loss_that_iterates_over_the_labels_gets_all_of_them(names):
  """Otherwise its result would depend on the columns that other terms read."""

  def function(outputs, batch):
    return outputs['embedding'].sum(1) * (2 if 'pose' in names(batch) else 1)

  outputs, batch = drawn()
  for compiled in (function, jax.jit(function)):
    assert added.check('here', function, compiled, outputs, batch) == set(batch)


def test_only_the_columns_of_a_loss_are_read(my_losses):
  outputs, batch = drawn()
  subjects = added.find('here', 'my_losses.subjects')
  for function in (subjects, jax.jit(subjects)):
    assert added.check('here', subjects, function, outputs, batch) == {'subject'}
  both = added.make('here', lambda embedding, pose, k: k * embedding.sum(1) + pose, {'k': 2})
  assert added.check('here', subjects, both, outputs, batch) == {'pose'}
  np.testing.assert_allclose(
    both(outputs, batch), 2 * outputs['embedding'].sum(1) + batch['pose'], rtol=1e-6
  )


@pytest.mark.parametrize(
  'start, update, message',
  [
    (
      lambda rng, rows: ({}, jnp.zeros(1)),
      lambda state: jnp.append(state, 0),
      r'makes float32\[2\] of a state float32\[1\]',
    ),
    (
      lambda rng, rows: ({'k': [3]}, ()),
      lambda state: state,
      r"learns 'k.0', int32\[\]: the optimizer moves floating numbers only",
    ),
    (
      lambda rng, rows: (jnp.zeros(3, bool), ()),
      lambda state: state,
      r'test_added.py learns bool\[3\]: the optimizer',
    ),
    (
      lambda rng, rows: ({}, {'rng': rng}),
      lambda state: state,
      r"keeps 'rng', key<fry>\[\]: a state consists of plain arrays. Keep jax.random.key_data",
    ),
    (
      lambda rng, rows: ({}, jnp.zeros(rows)),
      lambda state: state + 1,
      r"float32\[12\]'?\) of 12 rows and .*float32\[24\]'?\) of 24: .* must not depend on how many",
    ),
  ],
)
def test_invalid_parameters_and_states_are_refused(start, update, message):
  term = losses.StatefulLoss(
    init=lambda rng, outputs, batch: start(rng, len(batch['label'])),
    apply=lambda params, state, outputs, batch: outputs['embedding'].sum(1),
    update=lambda state, outputs, batch: update(state),
  )
  with pytest.raises(InputError, match=message):
    added.check('here', term, term, *drawn())


def test_any_callable_is_a_loss(my_losses):
  outputs, batch = drawn()
  for name, by in (('scaled', 1.0), ('halves', 0.5)):
    section = {name: {'path': f'my_losses.{name}'}}
    function = added.function_of(name, section[name])
    term = added.make('here', function, {})
    assert added.check('here', function, term, outputs, batch) == frozenset()
    np.testing.assert_allclose(term(outputs, batch), by * outputs['embedding'].sum(1), rtol=1e-6)
    assert added.sources(section)[name]['file'] == 'my_losses.py'
    with pytest.raises(InputError, match="here.bye. Did you mean 'by'.* (Scaled|__call__) of my_l"):
      added.make('here', function, {'bye': 1})


@pytest.mark.parametrize(
  'name, file',
  [
    ('subjects', 'my_losses.py'),
    ('by_hand', 'my_losses.py'),
    ('mild', 'my_losses.py and class_centers.py'),
  ],
)
def test_the_functions_that_make_a_loss_are_part_of_its_source(my_losses, name, file):
  """Also if the loss itself is in another file, or in no file."""
  more = """
from ferjax import losses
mild = losses.centers(num_classes=7, rate=0.1)
exec('def by_hand(embedding): return embedding.sum(1)')
"""
  my_losses.write_text(MINE + more)
  section = {'mine': {'path': f'my_losses.{name}'}}
  before = added.sources(section)['mine']
  my_losses.write_text(MINE + more.replace('rate=0.1', 'rate=0.2'))
  after = added.sources(section)['mine']
  assert before['file'] == file and before['sha256'] != after['sha256']


def test_a_state_of_numbers_becomes_arrays(my_losses):
  counted = added.function_of('counted', {'path': 'my_losses.counted'})
  assert added.make('here', counted, {}) is counted
  assert added.check('here', counted, counted, *drawn()) == frozenset()
  assert added.sources({'mine': {'path': 'my_losses.counted'}})['mine']['file']
  method = wrap.with_terms(linear_method(), {'counted': counted})
  batch, outputs, own = started(method)
  learned, state = added.stateful(counted).init(jax.random.key(0), outputs, batch)
  assert learned['scale'].dtype == jnp.float32
  extra = {'terms': {'counted': state}}
  update = jax.jit(lambda extra: method.update(extra, own, None, outputs, batch, None))
  for number in range(3):
    count, last = extra['terms']['counted']
    assert count == number and count.dtype == jnp.int32 and last == (0.25 if number else 0.5)
    extra = update(extra)
  assert update._cache_size() == 1
