"""`python -m ferjax.prepare graphs --config=configs/NAME.py`: makes ahead what training needs.

`graphs` builds the graphs of the config's sampler, beside the prepared data; a run that lacks them
builds them by itself.
"""

import sys

from absl import app, flags

from ferjax import build, main
from ferjax import config as configs
from ferjax.data import dataset
from ferjax.errors import InputError, nearest

TARGETS = ('graphs',)


def prepare(argv: list[str]) -> None:
  targets = argv[1:]
  for target in targets:
    if target not in TARGETS:
      raise InputError(f"cannot prepare '{target}'.{nearest(target, TARGETS)} There are: graphs")
  if not targets:
    raise InputError('say what to prepare: python -m ferjax.prepare graphs --config=...')
  main.show_messages()
  config = main.config_flag()
  if config is None:
    raise InputError('give a config, such as --config=configs/ldl_alsg.py')
  configs.check(config)
  if not build.uses_graphs(config):
    raise InputError(
      f"config.sampler.name is '{config.sampler.name}', which needs no graphs: give a config with "
      'neighbour_groups, such as --config=configs/ldl_alsg.py'
    )
  data = configs.call(dataset.load, 'data', config.data)
  if 'train' not in data.splits:
    raise InputError(f'{data.name} has no training rows (split `train`)')
  build.make_sampler(config, data.splits['train'].table)


def run() -> None:
  """Mistakes that a user can mend are told in a line, without a traceback."""
  flags.FLAGS.set_gnu_getopt(True)
  try:
    app.run(prepare, flags_parser=main.parse_flags)
  except InputError as error:
    sys.exit(f'ferjax: {error}')


if __name__ == '__main__':
  run()
