"""Loads the data of a run from its config: the training data, one or several sets, and tests."""

import functools
import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import ml_collections

from ferjax import config as configs
from ferjax import core, labels
from ferjax.assembly.build import picture_dtype
from ferjax.data import (
  checks,
  dataset,
  graphs,
  landmarks,
  near_duplicates,
  noise,
  pipeline,
  samplers,
  sets,
)
from ferjax.errors import InputError, nearest
from ferjax.images import augment, distort

LOGGER = logging.getLogger(__name__)


class Data(NamedTuple):
  """The data of `config.data` and `config.eval.sets`.

  Attributes:
    data: The data set, or several joined to one.
    tests: If there are several sets: {name: test data of the set, with the only split `test`}.
    groups: {group: names of its tests, which are averaged}. The group `all` has the tests of
      `config.eval.sets`, or every test if that is empty.
  """

  data: dataset.Dataset
  tests: dict[str, dataset.Dataset]
  groups: dict[str, tuple[str, ...]]


def load(
  config: ml_collections.ConfigDict, classes: Sequence[str] = (), needs_every_class: bool = True
) -> Data:
  """Loads every data set that a config names.

  Several training sets get the classes that all of them have, unless `config.data.classes` chooses
  others. The test sets get the classes of the training sets. Classes are matched by name.

  Args:
    config: The config.
    classes: The classes of a trained model, instead of `config.data.classes`.
    needs_every_class: See `dataset.load`. With several sets, none needs to have every class.

  Raises:
    InputError: an error of `sets.parse` or `dataset.load`, with the set's name; both one set and
      several are named, or one is named twice; a group names a set that is not tested; no set has
      a class of `config.data.class_map`.
  """
  several = config.data.sets
  own = several or (_spec(config.data),)
  _check_sets(config, several, config.eval.sets)
  wanted = tuple(_as_trained_on(spec, own) for spec in config.eval.sets)
  further = tuple(spec for spec in wanted if spec not in own)
  name = sets.names((*own, *further), distort.DISTORTIONS)
  as_written = {spec: name[same] for spec, same in zip(config.eval.sets, wanted, strict=True)}
  groups = _groups(config.eval.groups, name | as_written)

  section = config.data.to_dict() | ({'classes': tuple(classes)} if classes else {})
  del section['sets']
  chosen = section['landmarks']
  drops = _drop_duplicates(section)
  if several:
    data = _join(section | {'landmarks': ()}, several, name)
    data = landmarks.select(data, chosen) if chosen else data
  else:
    strict = {'needs_every_class': needs_every_class, 'needs_mapped_classes': not further}
    data = configs.call(dataset.load, 'data', section, **strict)
  tests = {}
  for spec in own if several or wanted or groups else ():
    split = sets.of_set(data, name[spec]) if several else data.splits.get('test')
    if split:
      tests[name[spec]] = data._replace(name=name[spec], splits={'test': split})
    elif spec in wanted:
      raise InputError(f"config.eval.sets names '{spec}', which is trained on and has no test rows")
  section |= {'classes': data.classes, 'poses': (), 'val_fraction': 0.0, 'fold': 0}
  section |= {'landmarks': ()} if data.landmark_scheme else {}  # they become those of the data set
  for spec in further:
    one = _load_one(section, spec, 'eval.sets', name[spec], test_only=True)
    tests[name[spec]] = sets.tested_on(one, data)
  _check_class_map(section['class_map'], data, tests)
  data = drops(data, [tests[name[spec]].splits['test'] for spec in further])
  for group, members in groups.items():
    for member in members:
      if member not in tests:
        raise InputError(f"config.eval.groups: '{member}' of '{group}' has no test rows")
  everything = tuple(name[spec] for spec in wanted) or tuple(tests)
  return Data(data, tests, {'all': everything, **groups} if tests else {})


def fit(
  method: core.Method, tests: Mapping[str, dataset.Dataset], poses: Sequence[int]
) -> dict[str, dataset.Dataset]:
  """Test sets with the model's pose classes. Warnings name features that the method could use but a
  set lacks, and classes without rows.

  Args:
    method: The method.
    tests: {name: test set}.
    poses: The model's pose classes, yaw in degrees.

  Raises:
    InputError: a set lacks a feature that the method needs for prediction.
  """
  tests = {name: derive(method, data) for name, data in tests.items()}
  for name, data in tests.items():
    checks.check_features(data, method.predict_needs)
    without = sorted(method.predict_uses.difference(data.splits['test'].table))
    if without:
      LOGGER.warning('%s has no %s: the model predicts without them', name, ', '.join(without))
    missing = dataset.classes_without_rows(data)
    if missing:
      LOGGER.warning('%s has no row of %s: means are over the others', name, ', '.join(missing))
  return {name: dataset.with_poses(data, poses) for name, data in tests.items()}


def _drop_duplicates(section):
  """Takes the keys of near duplicates out of the section. Returns (data, test splits) -> the data
  without training and validation rows that are near duplicates of others, where that is wanted."""
  wanted = section.pop('drop_duplicates', False)
  options = {
    'distance': section.pop('duplicate_distance', near_duplicates.DISTANCE),
    'mirrored': section.pop('duplicate_mirrored', False),
  }
  if not wanted:
    return lambda data, tests: data
  return functools.partial(near_duplicates.drop, **options)


def _join(section, specs, name):
  found = {name[spec]: _load_one(section, spec, 'data.sets', name[spec]) for spec in specs}
  first = next(iter(found.values()))
  classes = first.classes if section['classes'] else sets.shared_classes(found)
  return sets.join({k: dataset.with_classes(one, classes) for k, one in found.items()})


def _load_one(section, spec, key, name, **options):
  """Loads the set that a spec of `config.<key>` names; it gets the name that the run uses."""
  which = sets.parse(spec, f'config.{key}')
  LOGGER.info('%s of config.%s: %s', name, key, spec)
  try:
    found = configs.call(
      dataset.load,
      'data',
      section | which,
      needs_every_class=False,
      needs_mapped_classes=False,
      **options,
    )
  except InputError as error:
    raise InputError(f"'{spec}' of config.{key}: {error}") from error
  return found._replace(name=name)


def _spec(section):
  path, protocol = section.path, section.protocol
  return section.name + (f'@{protocol}' if protocol else '') + (f':{path}' if path else '')


def _as_trained_on(spec, own):
  """The spec with which the run trains on this set, or `spec` if it does not train on it.

  A spec with another protocol is an error, because it would test on rows that the run trains on.
  """
  for one in own:
    if sets.place(one) == sets.place(spec):
      if sets.parts(spec)[2] not in ('', sets.parts(one)[2]):
        raise InputError(
          f"config.eval.sets names '{spec}', but the run trains on '{one}'; its rows would be "
          f"tested: write '{one}'"
        )
      return one
  return spec


def _check_sets(config, several, wanted):
  if several and (config.data.path or config.data.name != configs.base().data.name):
    raise InputError(
      f'config.data.sets={several} and config.data.name={config.data.name!r} (or path): give one '
      "of them; in config.data.sets, a manifest is 'manifest:FILE.csv'"
    )
  if several and config.data.protocol:
    raise InputError(
      f"config.data.protocol='{config.data.protocol}' and several sets: give each its own, such as "
      f"config.data.sets=('{several[0]}@{config.data.protocol}',)"
    )
  for key, specs in (('data.sets', several), ('eval.sets', wanted)):
    places = [sets.place(spec) for spec in specs]
    for spec in specs:
      if places.count(sets.place(spec)) > 1:
        raise InputError(f"config.{key} names '{spec}' twice")
      if sets.place(spec) != sets.place(_spec(config.data)):
        sets.parse(spec, f'config.{key}')


def _groups(groups, name):
  """{group: names of its sets}, from pairs of a group and its sets. The sets in a pair have the
  names of the config or of the run."""
  names, found = name | {known: known for known in name.values()}, {}
  for pair in groups:
    if isinstance(pair, str) or len(pair) != 2 or isinstance(pair[1], str) or not pair[1]:
      raise InputError(
        f"config.eval.groups={groups}: give pairs, such as (('lab', ('ck_plus', 'jaffe')),)"
      )
    for member in pair[1]:
      if member not in names:
        raise InputError(
          f"config.eval.groups: '{member}' of '{pair[0]}' is not tested on."
          f'{nearest(member, names)} There are: {", ".join(dict.fromkeys(name.values()))}'
        )
    found[pair[0]] = tuple(names[member] for member in pair[1])
  return found


def _check_class_map(pairs, data, tests):
  known = {class_name for one in (data, *tests.values()) for class_name in one.known}
  for theirs, _ in pairs:
    if labels.canonical(theirs) not in known:
      raise InputError(
        f"config.data.class_map names '{theirs}', which is not a class of any set."
        f'{nearest(theirs, known)} There are: {", ".join(sorted(known))}'
      )


def make_sampler(config: ml_collections.ConfigDict, table: dataset.Table) -> samplers.Plan:
  """The sampler of `config.sampler`.

  Args:
    config: The config.
    table: The training rows, from which a sampler of `samplers.OF_GRAPHS` builds its graphs.

  Raises:
    InputError: there is no such sampler, it lacks a key of the config, or it cannot use these rows.
  """
  make = configs.named(samplers, config.sampler.name, 'sampler')
  options = configs.without_name(config.sampler)
  if not uses_graphs(config):
    return configs.call(make, 'sampler', options)
  folder, size = graphs.folder(config.data.dir), config.data.image_size
  return configs.call(make, 'sampler', options, table=table, image_size=size, folder=folder)


def uses_graphs(config: ml_collections.ConfigDict) -> bool:
  """Whether the sampler of a config builds graphs of neighbours."""
  return config.sampler.name in samplers.OF_GRAPHS


def example_batch(
  config, split: dataset.Split, columns: tuple[str, ...], sampler: samplers.Plan
) -> core.Batch:
  """A batch of one row with a normalised picture, to initialise a method.

  If terms are added, the batch also has the columns of the sampler's plan, because the functions of
  these terms get the whole batch.
  """
  plan = pipeline.in_order(1, 1)
  if config.terms:
    plan = sampler(0, 1, config.seed, split.table, config.batch)
    plan = {name: values[:1, :1] for name, values in plan.items()}
  host_batch = next(pipeline.batches(split, plan, columns, config.data.image_size, threads=1))
  batch = {name: jnp.asarray(value) for name, value in host_batch.items()}
  return augment.evaluation(batch, picture_dtype(config))


def corrupt_labels(config: ml_collections.ConfigDict, data: dataset.Dataset) -> dataset.Dataset:
  """Applies the label noise of `config.noise` to the training rows of a data set."""
  corrupt = configs.call(noise.make, 'noise', config.noise)
  train_split = data.splits['train']
  others = [name for split in data.splits.values() for name in split.table['name']]
  table = train_split.table
  label = corrupt(table['label'], table['name'], data.classes, others)
  corrupted = train_split._replace(table=table | {'label': label})
  return data._replace(splits=data.splits | {'train': corrupted})


def derive(method: core.Method, data: dataset.Dataset) -> dataset.Dataset:
  """The data set with the columns that a method derives from others. Existing columns are kept."""
  splits = {name: with_derived(method, split) for name, split in data.splits.items()}
  return data._replace(splits=splits)


def with_derived(method: core.Method, split: dataset.Split) -> dataset.Split:
  """The split with the columns that a method derives; see `derive`."""
  made = dict(split.table)
  if method.needs <= set(made):
    made |= {k: f(split.table) for k, f in method.derived.items() if k not in made}
  return split._replace(table=made)
