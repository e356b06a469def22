"""Builds the terms of the loss and their weights from `config.terms` and `config.weights`."""

import math

import jax
import ml_collections

from ferjax import config as configs
from ferjax import core
from ferjax.assembly.sources import example_batch
from ferjax.data import dataset, samplers
from ferjax.errors import InputError
from ferjax.terms import added, schedules, wrap


def with_terms(
  config: ml_collections.ConfigDict,
  method: core.Method,
  split: dataset.Split,
  sampler: samplers.Plan,
  num_classes: int,
  num_poses: int = 0,
) -> core.Method:
  """Adds the terms of `config.terms` to those of a method.

  Each term is traced on the shapes of a batch. The columns of the training rows that it reads are
  added to the method's `needs`.

  Args:
    config: The config.
    method: The method.
    split: The training rows.
    sampler: The sampler of the run.
    num_classes, num_poses: Arguments for the terms; 0 poses if they are unknown.

  Raises:
    InputError: see `added.make` and `added.check`.
  """
  if not config.terms:
    return method
  every = tuple(name for name, column in split.table.items() if column.dtype.kind in 'biuf')
  batch = example_batch(config, split, every, sampler)
  params, extra = jax.eval_shape(
    lambda rng, batch: method.init(rng, batch, split.table), jax.random.key(0), batch
  )
  outputs, seen = wrap.example(method, params, extra, batch)
  terms, needs = {}, method.needs
  for name, section in sorted(config.terms.to_dict().items()):
    where, function = f'config.terms.{name}', added.function_of(name, section)
    options = {k: v for k, v in section.items() if k not in added.RESERVED}
    counts = {'num_classes': num_classes, 'num_poses': num_poses}
    terms[name] = added.make(where, function, options, **counts)
    read = added.check(where, function, terms[name], outputs, seen)
    needs |= read & set(split.table) - {'label'}
  return wrap.with_terms(method, terms)._replace(needs=needs)


def make_weights(
  config: ml_collections.ConfigDict, steps_per_epoch: int
) -> dict[str, schedules.Weight]:
  """{term: its weight} of `config.weights` and `config.terms`: a number, or a schedule by step.

  Raises:
    InputError: a weight is neither, or is given in both sections; see also `schedules`.
  """
  made = {
    name: _weight(f'weights.{name}', value, steps_per_epoch)
    for name, value in config.weights.to_dict().items()
  }
  for name, section in config.terms.to_dict().items():
    if 'weight' not in section:
      continue
    if name in made:
      raise InputError(f'give config.weights.{name} or config.terms.{name}.weight, not both')
    made[name] = _weight(f'terms.{name}.weight', section['weight'], steps_per_epoch)
  return made


def _weight(where, value, steps_per_epoch):
  if isinstance(value, dict) and 'schedule' in value:
    make = configs.named(schedules, value['schedule'], where, 'schedule')
    options = {
      key: _number(f'{where}.{key}', number) for key, number in value.items() if key != 'schedule'
    }
    return configs.call(make, where, options, steps_per_epoch)
  example = "{'schedule': 'linear', 'start': 0.0, 'end': 0.1, 'epochs': 2}"
  return _number(where, value, f', or a dict such as {example}')


def _number(where, value, or_else=''):
  if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
    raise InputError(f'config.{where} is {value!r}: give a finite number{or_else}')
  return value
