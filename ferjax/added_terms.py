"""From a section of `config.terms` to a loss: found, given its arguments, and tried on shapes."""

import hashlib
import importlib
import inspect
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from ferjax import terms
from ferjax.data import pipeline
from ferjax.errors import InputError, nearest
from ferjax.losses import StatefulLoss

Term = StatefulLoss | Callable[..., jax.Array]
RESERVED = ('weight', 'name', 'path')
GIVEN = ('outputs', 'batch', 'where')  # never from a config


def find(where: str, path: str) -> Callable:
  """The function that `module.function` names, in the working directory or on PYTHONPATH.

  Args:
    where: What is said of it in errors, such as `config.terms.mine.path`.
    path: Such as `my_losses.island`.

  Raises:
    InputError: no such module or function.
  """
  module_name, _, name = path.rpartition('.')
  if not module_name or path.endswith('.py'):
    raise InputError(
      f"{where} is '{path}': give module.function, such as my_losses.island for the function "
      'island of my_losses.py'
    )
  try:
    module = importlib.import_module(module_name)
  except ModuleNotFoundError as error:
    if error.name and f'{module_name}.'.startswith(f'{error.name}.'):
      raise InputError(
        f"{where} is '{path}': there is no module '{error.name}' in {Path.cwd()} or on PYTHONPATH"
      ) from error
    raise
  functions = [key for key, value in vars(module).items() if inspect.isfunction(value)]
  if not callable(getattr(module, name, None)):
    raise InputError(
      f"{where} is '{path}': {source(module)} has no function '{name}'.{nearest(name, functions)}"
    )
  return getattr(module, name)


def builtin(where: str, name: str) -> Callable:
  """The function of `ferjax.terms` of that name.

  Raises:
    InputError: there is none; lists those that exist.
  """
  if name not in terms.__all__:
    raise InputError(
      f"{where}: there is no term '{name}'.{nearest(name, terms.__all__)} "
      f'There are: {", ".join(terms.__all__)}. '
      "For a function of your own, give its path: {'path': 'my_losses.island'}"
    )
  return getattr(terms, name)


def function_of(name: str, section: Mapping[str, Any]) -> Callable:
  """The function that `config.terms.<name>` means: of its `path`, or built in.

  Raises:
    InputError: see `find` and `builtin`.
  """
  if 'path' in section:
    return find(f'config.terms.{name}.path', section['path'])
  return builtin(f'config.terms.{name}', section.get('name', name))


def make(where: str, function: Callable, options: Mapping[str, Any], **counts: int) -> Term:
  """A loss with its arguments, which are filled by their names.

  `options` and `counts` fill those that they name. Of the others that have no default, `outputs`
  and `batch` are all outputs of the method and all labels of the batch, and any other is the output
  or label of that name, such as `embedding` or `label`. Where no such argument is left the function
  is none of outputs: it makes a `StatefulLoss`, and is called here.

  Args:
    where: Where the options stand, for errors, such as `config.terms.sgm`.
    function: Such as `island(outputs, batch, margin=1.0)`, `island(embedding, label, margin=1.0)`,
      or `islands(num_classes, rate=0.5)`, which makes a `StatefulLoss`.
    options: Arguments from the config.
    **counts: Arguments that are given where it has them.

  Returns:
    (outputs, batch) -> f[b], or a `StatefulLoss`.

  Raises:
    InputError: an argument that it does not have, or a function that makes something else.
  """
  parameters = inspect.signature(function).parameters
  named = [k for k, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
  anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
  settings = [name for name in named if name not in GIVEN]
  for key in options:
    if key in GIVEN or not (key in settings or anything):
      raise InputError(
        f'unknown key {where}.{key}.{nearest(key, settings)} {_name(function)} has the arguments '
        f'{", ".join(settings) or "(none)"}'
      )
  known = {k: v for k, v in counts.items() if k in named} | dict(options)
  asked = [k for k in named if parameters[k].default is inspect.Parameter.empty and k not in known]
  if asked:

    def loss(outputs, batch):
      whole = {'outputs': outputs, 'batch': batch}
      seen = {**batch, **outputs, **whole}
      return function(**{name: seen[name] for name in asked}, **known)

    return loss
  made = function(**known)
  if not isinstance(made, StatefulLoss):
    raise InputError(
      f'{where}: {_name(function)} takes neither outputs nor labels, so it must make a '
      f'ferjax.losses.StatefulLoss; it makes {_shape(made)}. A loss is a function of outputs and '
      'batch, by these names'
    )
  return made


def stateful(term: Term) -> StatefulLoss:
  """A loss as a triple; a plain function learns nothing and keeps nothing."""
  if isinstance(term, StatefulLoss):
    return term
  return StatefulLoss(
    init=lambda rng, outputs, batch: ({}, ()),
    apply=lambda params, state, outputs, batch: term(outputs, batch),
    update=lambda state, outputs, batch: state,
  )


def check(where: str, function: Callable, term: Term, outputs, batch) -> frozenset[str]:
  """Tries a loss on shapes; nothing is computed.

  Args:
    where: Where it stands, for errors.
    function: Whose loss it is, for errors.
    term: See `make`.
    outputs, batch: Shapes and types by name, of the same number of rows.

  Returns:
    Which names of `batch` it reads.

  Raises:
    InputError: it fails, reads what is not there, or does not return one floating number a row; an
      update changes the shape or type of its state.
  """
  triple = stateful(term)
  rows = len(batch['label'])

  def run(outputs, batch):
    params, state = triple.init(jax.random.key(0), outputs, batch)
    losses = triple.apply(params, state, outputs, batch)
    return losses, state, triple.update(state, outputs, batch)

  try:
    traced, (losses, state, moved) = jax.make_jaxpr(run, return_shape=True)(outputs, batch)
  except InputError:
    raise
  except KeyError as error:
    raise InputError(_lacking(where, function, error, outputs, batch)) from error
  except Exception as error:  # a user's function may raise anything
    raise InputError(
      f'{where}: {_name(function)} fails{_line(function, error)}: {type(error).__name__}: '
      f'{str(error).strip().partition(chr(10))[0]}\n{_seen(outputs, batch)}'
    ) from error
  wanted = f'f[{rows}], one number for each of the {rows} rows of the batch'
  if not (hasattr(losses, 'shape') and losses.shape == (rows,)):
    hint = ' (leave out its mean or sum)' if getattr(losses, 'shape', None) == () else ''
    raise InputError(f'{where}: {_name(function)} returns {_shape(losses)}; give {wanted}{hint}')
  if not jax.numpy.issubdtype(losses.dtype, jax.numpy.floating):
    raise InputError(
      f'{where}: {_name(function)} returns {_shape(losses)}: give {wanted}, of a floating type'
    )
  if (a := jax.tree.map(_shape, state)) != (b := jax.tree.map(_shape, moved)):
    raise InputError(f'{where}: the update of {_name(function)} makes {b} of a state {a}')
  paths = [path for path, _ in jax.tree_util.tree_flatten_with_path((outputs, batch))[0]]
  found = zip(paths, _used(traced.jaxpr), strict=True)
  return frozenset(path[1].key for path, used in found if path[0].idx == 1 and used)


def _used(jaxpr):
  """Which arguments of a traced function it looks at."""
  used = {id(variable) for variable in jaxpr.outvars}
  for equation in jaxpr.eqns:
    inner = getattr(equation.params.get('jaxpr'), 'jaxpr', None)
    known = inner is not None and len(inner.invars) == len(equation.invars)
    looks = _used(inner) if known else [True] * len(equation.invars)
    used |= {id(v) for v, look in zip(equation.invars, looks, strict=True) if look}
  return [id(variable) in used for variable in jaxpr.invars]


def _lacking(where, function, error, outputs, batch):
  name = error.args[0] if error.args else ''
  told = (
    f"{where}: {_name(function)} reads '{name}'{_line(function, error)}, which is no output of the "
    f'method and no label of the data set.{nearest(name, {**outputs, **batch})}'
  )
  if name in pipeline.COLUMNS:
    told += f' A manifest brings it by its columns {pipeline.COLUMNS[name]}'
  return f'{told}\n{_seen(outputs, batch)}'


def _seen(outputs, batch):
  listing = (
    f'  {what}: ' + ', '.join(f'{k} {_shape(v)}' for k, v in sorted(values.items()))
    for what, values in (('outputs', outputs), ('batch', batch))
  )
  return '\n'.join(listing)


def _shape(value):
  if not hasattr(value, 'shape'):
    return type(value).__name__
  return f'{value.dtype}[{", ".join(map(str, value.shape))}]'


def _line(function, error):
  """` (line n)` of the function's file where the error arose."""
  frames = traceback.extract_tb(error.__traceback__)
  file = inspect.getsourcefile(inspect.unwrap(function))
  lines = [frame.lineno for frame in frames if frame.filename == file]
  return f' (line {lines[-1]})' if lines else ''


def _name(function):
  return f'{function.__name__} of {source(function)}'


def source(thing) -> str:
  """Name of the file that a function or module comes from."""
  try:
    return Path(inspect.getsourcefile(inspect.unwrap(thing))).name
  except TypeError:
    return str(thing)


def sources(section: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, str]]:
  """{term: its `file` and `sha256`} of the user's own functions in `config.terms`."""
  found = {}
  for name, options in section.items():
    if 'path' in options:
      path = inspect.getsourcefile(inspect.unwrap(function_of(name, options)))
      digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
      found[name] = {'file': Path(path).name, 'sha256': digest}
  return found
