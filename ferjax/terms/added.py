"""From a section of `config.terms` to a loss: it is found, gets its arguments, and is tried."""

import functools
import hashlib
import importlib
import inspect
import re
import traceback
from collections import ChainMap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.interpreters import partial_eval

from ferjax.datasets import features
from ferjax.errors import InputError, nearest
from ferjax.losses import StatefulLoss
from ferjax.terms import builtin as terms

Term = StatefulLoss | Callable[..., jax.Array]
RESERVED = ('weight', 'name', 'path')
GIVEN = ('outputs', 'batch', 'where')  # never from a config


def find(where: str, path: str) -> Term:
  """The loss `module.function`, from the working directory or PYTHONPATH: a function, anything else
  that can be called, or a `StatefulLoss`.

  Args:
    where: Where it is named, for errors, such as `config.terms.mine.path`.
    path: Such as `my_losses.island`.

  Raises:
    InputError: no such module or function.
  """
  module_name, _, name = str(path).rpartition('.')
  if not (module_name and isinstance(path, str) and all(path.split('.'))) or path.endswith('.py'):
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
  found = getattr(module, name, None)
  if not (callable(found) or isinstance(found, StatefulLoss)):
    raise InputError(
      f"{where} is '{path}': {source(module)} has no function '{name}'.{nearest(name, functions)}"
    )
  return found


def builtin(where: str, name: str) -> Callable:
  """The loss of that name in `ferjax.terms.builtin`.

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


def function_of(name: str, section: Mapping[str, Any]) -> Term:
  """The function, or `StatefulLoss`, that `config.terms.<name>` names by its `path`, or by the name
  of a built-in one.

  Raises:
    InputError: see `find` and `builtin`.
  """
  if 'path' in section:
    return find(f'config.terms.{name}.path', section['path'])
  return builtin(f'config.terms.{name}', section.get('name', name))


def make(where: str, function: Term, options: Mapping[str, Any], **counts: int) -> Term:
  """A loss with its arguments, which are filled by name; a `StatefulLoss` has none.

  `options` and `counts` fill the arguments that they name. The other arguments without a default
  are filled in training: `outputs` is all outputs of the method, `batch` all labels of the batch,
  and any other is the output or label of that name, such as `embedding` or `label`. A function with
  no such argument must make a `StatefulLoss`, and is called here.

  Args:
    where: Where the options stand, for errors, such as `config.terms.sgm`.
    function: Such as `island(outputs, batch, margin=1.0)`, `island(embedding, label, margin=1.0)`,
      or `islands(num_classes, rate=0.5)`, which makes a `StatefulLoss`.
    options: Arguments from the config.
    **counts: Arguments such as `num_classes`, for functions that have them.

  Returns:
    (outputs, batch) -> f[b], or a `StatefulLoss`.

  Raises:
    InputError: the function lacks an argument that is given, has one that is not possible, fails,
      or makes something else.
  """
  if isinstance(function, StatefulLoss):
    for key in options:
      raise InputError(
        f'unknown key {where}.{key}. {_name(function)} is made already and has no arguments'
      )
    return function
  try:
    parameters = inspect.signature(function).parameters
  except (TypeError, ValueError) as error:
    raise InputError(f'{where}: {source(function)} is no Python function') from error
  for name, parameter in parameters.items():
    if parameter.kind is parameter.POSITIONAL_ONLY:
      raise InputError(
        f"{where}: {_name(function)} has '{name}' before a /: arguments are given by name"
      )
    if name in RESERVED:
      raise InputError(
        f"{where}: {_name(function)} has an argument '{name}', which is a key of every term: give "
        'it another name'
      )
  named = [k for k, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
  anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
  settings = [name for name in named if name not in GIVEN]
  for key in options:
    if key in GIVEN or not (key in settings or anything):
      raise InputError(
        f'unknown key {where}.{key}.{nearest(key, [*settings, *RESERVED])} {_name(function)} has '
        f'the arguments {", ".join(settings) or "(none)"}'
      )
  known = {k: v for k, v in counts.items() if k in named} | dict(options)
  asked = [k for k in named if parameters[k].default is inspect.Parameter.empty and k not in known]
  if asked:

    def loss(outputs, batch):
      seen = ChainMap({'outputs': outputs, 'batch': batch}, outputs, batch)
      return function(**{name: seen[name] for name in asked}, **known)

    return loss
  try:
    made = function(**known)
  except InputError:
    raise
  except Exception as error:  # a user's function may raise anything
    given = ', '.join(f'{key}={value!r}' for key, value in known.items()) or '(none)'
    raise InputError(f'{where}: {_failing(function, error)}\n  arguments: {given}') from error
  if not isinstance(made, StatefulLoss):
    raise InputError(
      f'{where}: {_name(function)} takes neither outputs nor labels, so it must make a '
      f'ferjax.losses.StatefulLoss; it makes {_shape(made)}. A loss is a function of outputs and '
      'batch, by these names'
    )
  return made


def stateful(term: Term) -> StatefulLoss:
  """A loss as a `StatefulLoss` whose numbers are all arrays; a plain function has no state. Each
  call gets its own copy of the dicts, so that no term sees what another one changes in them."""
  if not isinstance(term, StatefulLoss):
    plain = StatefulLoss(
      init=lambda rng, outputs, batch: ({}, ()),
      apply=lambda params, state, outputs, batch: term(outputs, batch),
      update=lambda state, outputs, batch: state,
    )
    return stateful(plain)
  return StatefulLoss(
    init=lambda rng, outputs, batch: _arrays(term.init(rng, outputs.copy(), batch.copy())),
    apply=lambda params, state, outputs, batch: term.apply(
      params, state, outputs.copy(), batch.copy()
    ),
    update=lambda state, outputs, batch: _arrays(term.update(state, outputs.copy(), batch.copy())),
  )


def _arrays(tree):
  return jax.tree.map(jnp.array, tree)


def check(where: str, function: Term, term: Term, outputs, batch) -> frozenset[str]:
  """Tries a loss on shapes; nothing is computed.

  Args:
    where: Where it stands, for errors.
    function: The function that the loss comes from, for errors.
    term: See `make`.
    outputs, batch: Shapes and types by name, of the same number of rows.

  Returns:
    The names of `batch` that it reads: those on which its loss or state depends. All names, if it
    does not compute the same with these and `label` alone: it looks at names or shapes.

  Raises:
    InputError: it fails, reads what is not there, or does not return one floating number a row; an
      update changes the shape or type of its state; it keeps or learns what training cannot.
  """
  triple = stateful(term)

  def start(outputs, batch):
    return triple.init(jax.random.key(0), outputs, batch)

  def run(outputs, batch):
    params, state = start(outputs, batch)
    losses = triple.apply(params, state, outputs, batch)
    return losses, (params, state), triple.update(state, outputs, batch)

  try:
    losses, kept, moved = jax.eval_shape(run, outputs, batch)
    kept_of_more = jax.eval_shape(start, *_twice_the_rows((outputs, batch)))
  except InputError:
    raise
  except KeyError as error:
    raise InputError(_lacking(where, function, error, outputs, batch)) from error
  except Exception as error:  # a user's function may raise anything
    message = f'{where}: {_failing(function, error)}\n{_seen(outputs, batch)}'
    raise InputError(message) from error
  whose, rows = f'{where}: {_name(function)}', len(batch['label'])
  _check_losses(whose, losses, rows)
  _check_kept(whose, *kept)
  of_rows, of_more = (jax.tree.map(_shape, tree) for tree in (kept, kept_of_more))
  if of_rows != of_more:
    raise InputError(
      f'{where}: init of {_name(function)} makes {of_rows} of {rows} rows and {of_more} of '
      f'{2 * rows}: parameters and state must not depend on how many rows a batch has'
    )
  if (before := of_rows[1]) != (after := jax.tree.map(_shape, moved)):
    raise InputError(f'{where}: the update of {_name(function)} makes {after} of a state {before}')
  return _read(run, outputs, batch)


def _read(run, outputs, batch) -> frozenset[str]:
  """The names of `batch` on which a function (outputs, batch) -> ... depends; all, if it does not
  compute the same when it has these and `label` alone."""
  program, read = _program(run, outputs, batch)
  try:
    alone, _ = _program(run, outputs, {name: batch[name] for name in read | {'label'}})
  except Exception:  # a user's function may raise anything
    return frozenset(batch)
  return read if alone == program else frozenset(batch)


def _program(run, outputs, batch) -> tuple[str, frozenset[str]]:
  """What a function computes, as text without addresses in memory, and the names of `batch` that go
  into it."""
  traced = jax.make_jaxpr(run)(outputs, batch).jaxpr
  program, used = partial_eval.dce_jaxpr(traced, [True] * len(traced.outvars))
  paths = [path for path, _ in jax.tree.leaves_with_path((outputs, batch))]
  found = [path for path, is_used in zip(paths, used, strict=True) if is_used]
  text = re.sub('0x[0-9a-f]+', '', str(program))
  return text, frozenset(name.key for part, name, *_ in found if part.idx == 1)


def _check_losses(whose, losses, rows):
  wanted = f'f[{rows}], one number for each of the {rows} rows of the batch'
  if not (hasattr(losses, 'shape') and losses.shape == (rows,)):
    hint = ' (leave out its mean or sum)' if getattr(losses, 'shape', None) == () else ''
    raise InputError(f'{whose} returns {_shape(losses)}; give {wanted}{hint}')
  if not jnp.issubdtype(losses.dtype, jnp.floating):
    raise InputError(f'{whose} returns {_shape(losses)}: give {wanted}, of a floating type')


def _twice_the_rows(tree):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct((2 * x.shape[0], *x.shape[1:]), x.dtype), tree)


def _check_kept(whose, params, state):
  for path, leaf in jax.tree.leaves_with_path(params):
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
      raise InputError(
        f'{whose} learns {_at(path)}{_shape(leaf)}: the optimizer moves floating numbers only. '
        'Keep other numbers in the state, or make it a float'
      )
  for path, leaf in jax.tree.leaves_with_path(state):
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      raise InputError(
        f'{whose} keeps {_at(path)}{_shape(leaf)}: a state consists of plain arrays. Keep '
        'jax.random.key_data(key), and make the key again with jax.random.wrap_key_data'
      )


def _at(path):
  name = jax.tree_util.keystr(path, simple=True, separator='.')
  return name and f"'{name}', "


def _lacking(where, function, error, outputs, batch):
  name = error.args[0] if error.args else ''
  text = f"{where}: {_name(function)} reads '{name}'{_line(function, error)}, which is "
  if name in outputs:
    text += f"an output of the method: outputs['{name}']"
  elif name in batch:
    text += f"a label of the batch: batch['{name}']"
  else:
    text += 'no output of the method and no label of the data set.'
    text += nearest(name, {**outputs, **batch})
  if name not in batch and name in features.COLUMNS:
    text += f' A manifest has it in its columns {features.COLUMNS[name]}'
  return f'{text}\n{_seen(outputs, batch)}'


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


def _failing(function, error):
  line = str(error).strip().partition('\n')[0]
  return f'{_name(function)} fails{_line(function, error)}: {type(error).__name__}: {line}'


def _line(function, error):
  """` (line n)` of the function's file where the error arose."""
  frames = traceback.extract_tb(error.__traceback__)
  lines = [frame.lineno for frame in frames if frame.filename == _file(function)]
  return f' (line {lines[-1]})' if lines else ''


def _name(function):
  return f'{getattr(_code(function), "__name__", "it")} of {source(function)}'


def source(thing) -> str:
  """The name of the file that a function or module comes from."""
  return Path(_file(thing)).name


def _file(thing):
  """The path of the source of a term or module, or its `str` where there is none."""
  try:
    return inspect.getsourcefile(_code(thing)) or str(thing)
  except TypeError:  # built into Python
    return str(thing)


def _code(thing):
  """The function, class or module in whose source a term is written."""
  if isinstance(thing, StatefulLoss):
    return _code(thing.apply)
  if isinstance(thing, functools.partial):
    return _code(thing.func)
  thing = inspect.unwrap(thing)
  return thing if hasattr(thing, '__name__') else type(thing)


def sources(section: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, str]]:
  """{term: {'file', 'sha256'}} of the losses in `config.terms` that have a path. Both are of the
  module that the path names, together with the function's own file where that is another."""
  found = {}
  for name, options in section.items():
    if 'path' in options:
      function = function_of(name, options)
      module = importlib.import_module(options['path'].rpartition('.')[0])
      paths = [
        path
        for path in map(Path, dict.fromkeys((_file(module), _file(function))))
        if path.is_file()
      ]
      digest = hashlib.sha256(b''.join(path.read_bytes() for path in paths)).hexdigest()
      found[name] = {'file': ' and '.join(path.name for path in paths), 'sha256': digest}
  return found
