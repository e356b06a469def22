"""The data of a run, from its config: one data set or several joined, and what is tested on."""

import inspect
import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import ml_collections

from ferjax import config as configs
from ferjax import core, labels
from ferjax.assembly.build import picture_dtype
from ferjax.data import checks, dataset, graphs, noise, pipeline, samplers, sets
from ferjax.errors import InputError, nearest
from ferjax.images import augment, distort

LOGGER = logging.getLogger(__name__)


class Data(NamedTuple):
  """What `config.data` and `config.eval.sets` name.

  Attributes:
    data: The data set, or several joined to one.
    tests: Where there are several sets: by name, what each is tested on, its only split `test`.
    groups: Names of tests by the group that their average is of; `all` is of `config.eval.sets`,
      or else of every test.
  """

  data: dataset.Dataset
  tests: dict[str, dataset.Dataset]
  groups: dict[str, tuple[str, ...]]


def load(
  config: ml_collections.ConfigDict, classes: Sequence[str] = (), needs_every_class: bool = True
) -> Data:
  """Loads every data set that a config names.

  Several training sets have the classes that all of them know, unless `config.data.classes` says
  which; the sets that are tested on have those of the training sets. All go by their names.

  Args:
    config: The config.
    classes: Of a trained model, instead of `config.data.classes`.
    needs_every_class: See `dataset.load`; several sets need not know every one.

  Raises:
    InputError: what `sets.parse` and `dataset.load` raise, with the set's name; one set is named as
      well as several, or twice; a group names a set that is not tested on; a class of
      `config.data.class_map` is unknown to all sets.
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
  if several:
    data = _join(section, several, name)
  else:
    strict = {'needs_every_class': needs_every_class, 'needs_mapped_classes': not further}
    data = configs.call(dataset.load, 'data', section, **strict)
  tests = {}
  for spec in own if several or wanted or groups else ():
    split = sets.of_set(data, name[spec]) if several else data.splits.get('test')
    if split:
      tests[name[spec]] = data._replace(name=name[spec], splits={'test': split})
    elif spec in wanted:
      raise InputError(
        f"config.eval.sets names '{spec}', which is trained on and has no test rows beside"
      )
  section |= {'classes': data.classes, 'poses': (), 'val_fraction': 0.0, 'fold': 0}
  for spec in further:
    one = _load_one(section, spec, 'eval.sets', name[spec], test_only=True)
    tests[name[spec]] = sets.tested_on(one, data)
  _check_class_map(section['class_map'], data, tests)
  for group, members in groups.items():
    for member in members:
      if member not in tests:
        raise InputError(f"config.eval.groups: '{member}' of '{group}' has no test rows")
  everything = tuple(name[spec] for spec in wanted) or tuple(tests)
  return Data(data, tests, {'all': everything, **groups} if tests else {})


def fit(
  method: core.Method, tests: Mapping[str, dataset.Dataset], poses: Sequence[int]
) -> dict[str, dataset.Dataset]:
  """Data sets to test on, with the model's pose classes; it is said what the method would look at
  and one of them does not have.

  Raises:
    InputError: one lacks what the method needs to predict.
  """
  tests = {name: derive(method, data) for name, data in tests.items()}
  for name, data in tests.items():
    checks.check_features(data, method.predict_needs)
    without = sorted(method.predict_uses.difference(data.splits['test'].table))
    if without:
      LOGGER.warning('%s has no %s: the model predicts without them', name, ', '.join(without))
    lacking = dataset.classes_without_rows(data)
    if lacking:
      LOGGER.warning('%s has no row of %s: means are over the others', name, ', '.join(lacking))
  return {name: dataset.with_poses(data, poses) for name, data in tests.items()}


def _join(section, specs, name):
  found = {name[spec]: _load_one(section, spec, 'data.sets', name[spec]) for spec in specs}
  first = next(iter(found.values()))
  classes = first.classes if section['classes'] else sets.shared_classes(found)
  return sets.join({k: dataset.with_classes(one, classes) for k, one in found.items()})


def _load_one(section, spec, key, name, **options):
  """The set that a spec of `config.<key>` names, under the name that it goes by."""
  which = sets.parse(spec, key)
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
  """The spec by which a set is trained on, if it is; a test on its other rows would be of rows that
  are trained on."""
  for one in own:
    if sets.place(one) == sets.place(spec):
      if sets.parts(spec)[2] not in ('', sets.parts(one)[2]):
        raise InputError(
          f"config.eval.sets names '{spec}', but the run trains on '{one}', some of whose rows "
          f"would be tested: write '{one}'"
        )
      return one
  return spec


def _check_sets(config, several, wanted):
  if several and (config.data.path or config.data.name != configs.base().data.name):
    raise InputError(
      f'config.data.sets={several} and config.data.name={config.data.name!r} (or path): give one '
      "or the other; a manifest among several is 'manifest:FILE.csv'"
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
        sets.parse(spec, key)


def _groups(groups, name):
  """{group: names of its sets}, from pairs of the group and its sets, as they were named or as they
  go by."""
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
        f"config.data.class_map names '{theirs}', which is no class of any set."
        f'{nearest(theirs, known)} There are: {", ".join(sorted(known))}'
      )


def make_sampler(config: ml_collections.ConfigDict, table: dataset.Table) -> samplers.Plan:
  """The sampler that a config names.

  Its factory is told the table of the training rows, the picture size and the folder of graphs
  where it has such arguments.

  Raises:
    InputError: no such sampler, a key that it does not take, or rows that it cannot work with.
  """
  make = configs.named(samplers, config.sampler.name, 'sampler')
  known = {
    'table': table,
    'image_size': config.data.image_size,
    'folder': graphs.folder(config.data.dir),
  }
  known = {k: v for k, v in known.items() if k in inspect.signature(make).parameters}
  return configs.call(make, 'sampler', configs.without_name(config.sampler), **known)


def uses_graphs(config: ml_collections.ConfigDict) -> bool:
  """Whether the sampler that a config names builds graphs of neighbours."""
  make = configs.named(samplers, config.sampler.name, 'sampler')
  return 'graphs' in inspect.signature(make).parameters


def example_batch(
  config, split: dataset.Split, columns: tuple[str, ...], sampler: samplers.Plan
) -> core.Batch:
  """One row as a batch of one, its picture normalised: what a method is initialised with. Where
  terms are added, whose functions see all that travels with a row, with what the sampler plans."""
  plan = pipeline.in_order(1, 1)
  if config.terms:
    plan = sampler(0, 1, config.seed, split.table, config.batch)
    plan = {name: values[:1, :1] for name, values in plan.items()}
  host_batch = next(pipeline.batches(split, plan, columns, config.data.image_size, threads=1))
  batch = {name: jnp.asarray(value) for name, value in host_batch.items()}
  return augment.evaluation(batch, picture_dtype(config))


def corrupt_labels(config: ml_collections.ConfigDict, data: dataset.Dataset) -> dataset.Dataset:
  """The data set with the label noise of `config.noise` in its training rows."""
  corrupt = configs.call(noise.make, 'noise', config.noise)
  train_split = data.splits['train']
  others = [name for split in data.splits.values() for name in split.table['name']]
  table = train_split.table
  label = corrupt(table['label'], table['name'], data.classes, others)
  corrupted = train_split._replace(table=table | {'label': label})
  return data._replace(splits=data.splits | {'train': corrupted})


def derive(method: core.Method, data: dataset.Dataset) -> dataset.Dataset:
  """The data set with the columns that a method makes of others; those that are there stay."""
  splits = {name: with_derived(method, split) for name, split in data.splits.items()}
  return data._replace(splits=splits)


def with_derived(method: core.Method, split: dataset.Split) -> dataset.Split:
  """As `derive`, of one split."""
  made = dict(split.table)
  if method.needs <= set(made):
    made |= {k: f(split.table) for k, f in method.derived.items() if k not in made}
  return split._replace(table=made)
