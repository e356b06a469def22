"""The results of `check_loss` for good and bad losses."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from ferjax import losses
from ferjax.cli import check_loss
from ferjax.errors import InputError
from ferjax.terms import added, check

SMALL = check.Sizes(num_classes=3, dim=4)
EXAMPLES = Path(__file__).parents[2] / 'configs' / 'examples'


def lone_rows(embedding, label):
  """Divides by the number of other rows of a class, which may be 0."""
  same = label[:, None] == label[None]
  distance = ((embedding[:, None] - embedding[None]) ** 2).sum(-1)
  return (distance * same).sum(1) / (same.sum(1) - 1)


def lengths(embedding, label):
  """A square root at 0, whose gradient is not finite."""
  return jnp.sqrt((embedding**2).sum(1))


def place(embedding, label):
  return ((embedding - embedding[::-1]) ** 2).sum(1)


def stopped(embedding, label):
  return ((embedding - jax.lax.stop_gradient(embedding.mean(0))) ** 2).sum(1)


@jax.custom_vjp
def halved(x):
  return (x**2).sum(1)


halved.defvjp(lambda x: (halved(x), x), lambda x, g: (g[:, None] * x,))


def wrong_gradient(embedding, label):
  return halved(embedding)


def wrong_and_tiny(embedding, label):
  return 1e-7 * halved(embedding)


def wrong_beside_a_stop(logits, label):
  """Log-softmax stops a gradient that does not matter. This must not hide a wrong gradient."""
  return halved(logits) - jax.nn.log_softmax(logits)[:, 0]


def wrong_in_a_margin(embedding, label):
  """Correct if the margin is kept, which is so for most of the drawn rows."""
  return halved(jax.nn.relu(0.004 - jnp.abs(embedding)))


def stopped_in_a_loop(logits, embedding, label):
  """In jit and in a loop, together with stops that do not matter."""

  @jax.jit
  def one(row):
    return jax.nn.logsumexp(row) * jax.lax.stop_gradient(row[0])

  return jax.lax.map(one, logits) + halved(jax.lax.stop_gradient(embedding))


def stopped_in_a_branch(embedding, label):
  stop = jax.lax.stop_gradient
  return jax.lax.cond(embedding[0, 0] > 9, lambda x: x, lambda x: stop(x) * x, embedding).sum(1)


def stopped_in_a_checkpoint(embedding, label):
  return jax.checkpoint(lambda x: (x * jax.lax.stop_gradient(x)).sum(1))(embedding)


def centers_in_float32():
  """Losses should be computed in this way, for any type of the outputs."""

  def shares(outputs, batch):
    z = outputs['embedding'].astype(jnp.float32)
    member = jax.nn.one_hot(batch['label'], 3, dtype=jnp.float32)
    return z, member / jnp.maximum(member.sum(0), 1)

  def update(state, outputs, batch):
    z, share = shares(outputs, batch)
    return state + 0.1 * (share.T @ z - state)

  return losses.StatefulLoss(
    init=lambda rng, outputs, batch: ({}, jnp.zeros((3, 4), jnp.float32)),
    apply=lambda params, state, outputs, batch: (
      (shares(outputs, batch)[0] - state[batch['label']]) ** 2
    ).mean(1),
    update=update,
  )


def float32_alone(embedding, label):
  """A loop with a float32 carry, which cannot hold float64."""
  total, squares = jax.lax.scan(
    lambda total, row: (total + row.sum(), (row**2).sum()), jnp.float32(0), embedding
  )
  return squares + total**2


def wrong_in_float32(embedding, label):
  return 1e-7 * halved(embedding.astype(jnp.float32))


def in_bfloat16(embedding, label):
  return (embedding.astype(jnp.bfloat16) ** 2).sum(1).astype(jnp.float32)


def whitened(embedding, label):
  """With a solver that stops a gradient inside, and still has the right gradient."""
  spread = embedding.T @ embedding + jnp.eye(embedding.shape[1])
  return (jnp.linalg.solve(spread, embedding.T).T * embedding).sum(1)


def whitened_beside_a_stop(embedding, label):
  return whitened(embedding, label) + stopped(embedding, label)


def errors(logits, label):
  return (logits.argmax(1) != label).astype(logits.dtype)


def plain_log_softmax(logits, label):
  return -jnp.take_along_axis(jax.nn.log_softmax(logits), label[:, None], 1)[:, 0]


CALLS = []


def impure(embedding, label):
  CALLS.append(1)
  return len(CALLS) * (embedding**2).sum(1)


def one_device(embedding, label):
  return (embedding**2).sum(1) * (1 + jax.lax.axis_index('data') if in_a_step() else 1)


def in_a_step():
  try:
    return jax.lax.axis_size('data') > 1
  except NameError:
    return False


def of_loss(function):
  """{(check, input): failure or note} of all results that are not plain successes."""
  term = added.make('here', function, {}, num_classes=3, num_poses=3)
  found = check.check(term, SMALL)
  assert len({(r.check, r.input) for r in found}) == len(found) > 15
  return {(r.check, r.input): r.failure or r.note for r in found if r.failure or r.note}


@pytest.mark.parametrize(
  'function, expected',
  [
    (
      lone_rows,
      {
        ('finite, float32', 'every class once'): 'the loss is not finite, in 3 of 3 rows',
        ('finite, float32', 'a batch of 1'): 'the loss is not finite, in 1 of 1 rows',
        ('finite, float32', 'a batch of 2, two classes'): 'the loss is not finite, in 2 of 2 rows',
      },
    ),
    (
      lengths,
      {('finite, float32', 'all outputs 0'): 'the gradient by embedding is not finite'},
    ),
    (
      place,
      {('order of the rows', 'random'): 'the loss of a row depends on its place in the batch'},
    ),
    (
      one_device,
      {
        (f'{count} devices as one', 'random'): 'the gradient depends on the number of devices'
        for count in (2, 4, 8)
      },
    ),
  ],
)
def test_a_failure_is_reported_with_its_input(function, expected):
  assert of_loss(function) == expected


def of_gradient(function):
  """The results for its gradient at both points; {} if both are correct."""
  term = added.stateful(added.make('here', function, {}, num_classes=3))
  with jax.enable_x64(True):
    given = jax.tree.map(jnp.asarray, check.drawn(SMALL, check.ROWS))
    precision = check.precision_of(term, *given)
    return [(r.input, r.failure, r.note) for r in check.gradients(term, *given, precision)]


def test_a_wrong_gradient_is_reported():
  for function in (wrong_gradient, wrong_and_tiny, wrong_in_float32):
    for _, failure, _ in of_gradient(function):
      assert failure.startswith('along a direction in embedding the loss changes by ')
      before, after = failure.split('changes by ')[1].split(', the gradient says ')
      assert abs(float(before) / float(after) - 2) < 1e-2


def test_a_wrong_gradient_does_not_hide_behind_a_stop_or_a_margin():
  assert all('along a direction in logits' in f for _, f, _ in of_gradient(wrong_beside_a_stop))
  (_, kept, _), (name, failure, _) = of_gradient(wrong_in_a_margin)
  assert not kept and name == 'random, times 0.05' and 'along a direction in embedding' in failure


def test_a_gradient_may_be_stopped_and_is_then_reported():
  for function in (stopped, stopped_in_a_loop):
    for _, failure, note in of_gradient(function):
      assert not failure and note.startswith('it stops a gradient: along a direction in ')
  for function in (plain_log_softmax, whitened):
    assert of_gradient(function) == [('random', '', ''), ('random, times 0.05', '', '')]
  for function, hint in (
    (stopped_in_a_branch, 'inside a loop, a branch or jax.checkpoint is not looked at)'),
    (stopped_in_a_checkpoint, 'inside a loop, a branch or jax.checkpoint is not looked at)'),
    (
      whitened_beside_a_stop,
      '(the stop_gradient in solve and inv of jax.numpy.linalg counts as one of the loss)',
    ),
  ):
    (_, failure, _), _ = of_gradient(function)
    assert failure.endswith(hint)


def test_a_loss_without_gradient_for_the_network_is_reported():
  (_, failure, note), near = of_gradient(errors)
  assert not failure and note == 'the gradient by every output is 0'
  assert near == ('random, times 0.05', '', '')


def test_a_loss_may_compute_in_float32():
  assert not of_loss(centers_in_float32)
  [(place, note)] = of_loss(float32_alone).items()
  assert place == ('pure', 'random')
  assert note.startswith('this and what follows in float32; in float64: TypeError: scan body')


def test_a_gradient_in_half_precision_is_not_compared():
  for _, failure, note in of_gradient(in_bfloat16):
    assert not failure and note == 'not compared: it computes in half precision'


def test_a_loss_that_is_not_pure():
  found = of_loss(impure)
  assert found['pure', 'random'] == 'two calls with the same arguments differ'


@pytest.mark.parametrize('function', [losses.islands, losses.cosface_head])
def test_losses_of_the_toolbox_pass(function):
  assert not of_loss(function)


def test_costs_by_batch_size():
  term = added.make('here', losses.supervised_contrastive, {})
  found = check_loss.costs(term, SMALL, (4, 8))
  assert found['rows'] == [4, 8] and min(found['ms']) > 0
  assert 0 < found['MFLOP'][0] < found['MFLOP'][1]


def test_flags():
  assert check_loss.parse(['a.b', '--dim=5', '--margin=0.2', '--kind=relu']) == (
    'a.b',
    check.Sizes(dim=5),
    {'margin': 0.2, 'kind': 'relu'},
  )
  _, sizes, _ = check_loss.parse(['a.b', '--outputs={"pose_logits": (5,)}'])
  assert check.drawn(sizes, 3)[0]['pose_logits'].shape == (3, 5)


@pytest.mark.parametrize(
  'flag, message',
  [
    ('--margin', "'--margin': give arguments of the loss as --key=value"),
    ('--weight=0.1', 'weight is a key of config.terms, not an argument of the loss'),
    ('--dim=-3', '--dim is -3: give a number above 0'),
    ('--num_poses=0', '--num_poses is 0: give'),
    ('--outputs={"x": 5}', '--outputs is {"x": 5}: give shapes by name, such as'),
    ('--outputs={"x": (-1,)}', '--outputs is .* give shapes'),
    ('--outputs=[5]', '--outputs is .* give shapes'),
    ('--outputs=junk(', '--outputs is .* give shapes'),
  ],
)
def test_invalid_flags_are_refused(flag, message):
  with pytest.raises(InputError, match=message):
    check_loss.parse(['a.b', flag])


def test_the_example_passes_and_mistakes_are_reported_in_one_line(capsys, monkeypatch):
  monkeypatch.syspath_prepend(EXAMPLES)
  assert check_loss.main(['my_loss.island', '--dim=8', '--apart=0.5'])
  text = capsys.readouterr().out
  assert 'island of my_loss.py reads these columns of the batch: label' in text
  assert 'all checks passed' in text
  assert text.count('| ok') == 22 and '512' in text
  monkeypatch.setattr(
    check_loss,
    'check',
    lambda *_: [check.Result('finite, float32', 'random', 'it is no good')],
  )
  monkeypatch.setattr(check_loss, 'costs', None)
  assert not check_loss.main(['my_loss.island'])
  text = capsys.readouterr().out
  assert '1 of 1 checks failed' in text and 'Its time and memory are not measured' in text
  command = [sys.executable, '-m', 'ferjax', 'check-loss']
  result = subprocess.run([*command, 'my_loss.island'], capture_output=True, text=True, cwd='/')
  assert result.returncode == 1 and 'Traceback' not in result.stderr
  assert "there is no module 'my_loss'" in result.stderr
