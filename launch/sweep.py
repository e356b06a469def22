#!/usr/bin/env python3
"""Runs a grid of configs, overrides and seeds, and prints one table: mean +- deviation over seeds.

  python launch/sweep.py --out=runs/sweep --config=configs/softmax.py --config=configs/lanet.py \\
    --seeds=0,1,2 --set config.optimizer.lr=1e-3,3e-4 -- --config.data.name=ck_plus

Every value of a --set is combined with every value of the others. --case="config.batch=64
config.ema=0.99" sets several values together, and may be repeated. A seed sets both config.seed and
config.noise.seed. Flags after -- go to every run.

The folder of a run is OUT/<config>_<overrides>_seed=<seed>; its output is in a .log next to it.
After a crash, give the same command again: finished runs are skipped, other runs continue from
their checkpoints, and the sweep waits for runs that another sweep has started (OUT must support
file locks, as local disks, NFS 4 and Lustre with -o flock do). If a run fails, the others continue,
and it is listed at the end. With other flags after --, finished runs are started again: a run
continues if the flags make it longer, and ferjax.main refuses flags that make it another run. To
keep both, give another --out.

In an array job of SLURM (SLURM_ARRAY_TASK_ID), in a JobSet (JOB_COMPLETION_INDEX) or with --index,
one run is started, by its number. --list prints the numbers, --table prints the results so far.
Otherwise --jobs runs are started at once on this machine, or one on each of --gpus. Each run is one
process, even if JAX detects a cluster.

Exit code: 0 if all runs are finished; 1 if one failed; 75 if the sweep was stopped before its end.
Needs Python only, no packages.
"""

import argparse
import csv
import fcntl
import hashlib
import io
import itertools
import json
import os
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import watch

RESULTS = {
  'last': 'last',
  'mean_last_5': 'mean of the last five',
  'best_by_val': 'best by validation',
  'best_by_test': 'best by test',
}
NO_SHARES = ('loss', 'jensen_shannon')  # metrics that are not in percent
INDICES = ('SLURM_ARRAY_TASK_ID', 'JOB_COMPLETION_INDEX')


class Entry(NamedTuple):
  """A run: its row of the table (config and overrides), seed, folder name and flags."""

  row: str
  seed: int
  name: str
  flags: tuple[str, ...]


class Running(NamedTuple):
  """A running run, its locked file, the first byte of its log, and its GPU."""

  entry: Entry
  child: subprocess.Popen
  lock: IO
  log_start: int
  gpu: str | None


def values(text: str) -> list[str]:
  """`a,(b,c)` -> ['a', '(b,c)']: splits at commas outside brackets and quotes."""
  found, depth, quote = [''], 0, ''
  for letter in text:
    if quote:
      quote = '' if letter == quote else quote
    elif letter in '\'"':
      quote = letter
    else:
      depth += (letter in '([{') - (letter in ')]}')
    if letter == ',' and not depth and not quote:
      found.append('')
    else:
      found[-1] += letter
  return found


def overrides(sets: Sequence[str], cases: Sequence[str]) -> list[tuple[str, ...]]:
  """Every combination: ('config.optimizer.lr=1e-3', 'config.batch=64'), ...

  Raises:
    ValueError: an override has no `=`, or its key does not begin with `config.`.
  """
  grid = []
  for text in sets:
    key, _, listed = text.partition('=')
    grid.append([(f'{key}={value}',) for value in values(listed)])
  if cases:
    grid.append([tuple(shlex.split(case)) for case in cases])
  found = [tuple(itertools.chain(*parts)) for parts in itertools.product(*grid)]
  for text in itertools.chain(*found):
    if not re.fullmatch(r'config\.[\w.]+=.+', text):
      raise ValueError(f"'{text}': give config.KEY=VALUE, such as config.optimizer.lr=1e-3")
    if text.startswith(('config.seed=', 'config.noise.seed=')):
      raise ValueError(f"'{text}': give --seeds, which sets config.seed and config.noise.seed")
  return found


def row_name(config: str, changes: Sequence[str]) -> str:
  """A name for any file system, such as `softmax-smoke_optimizer.lr=1e-3`."""
  path, _, variant = config.partition(':')
  stem = Path(path).stem + (f'-{variant}' if variant else '')
  name = '_'.join([stem, *(change.removeprefix('config.') for change in changes)])
  plain = re.sub(r'[^\w.=+-]+', '-', name)[:150]
  digest = hashlib.sha256(name.encode()).hexdigest()[:6]
  return plain if plain == name else f'{plain}-{digest}'


def expand(
  configs: Sequence[str],
  seeds: Sequence[int],
  changes: Iterable[Sequence[str]],
  shared: Sequence[str],
) -> list[Entry]:
  """The runs of a sweep, in a fixed order.

  Raises:
    ValueError: two runs would have the same folder.
  """
  found = {}
  for config, change, seed in itertools.product(configs, list(changes), seeds):
    row = row_name(config, change)
    flags = (
      f'--config={config}',
      *shared,
      *(f'--{text}' for text in change),
      f'--config.seed={seed}',
      f'--config.noise.seed={seed}',
    )
    entry = Entry(row, seed, f'{row}_seed={seed}', flags)
    if entry.name in found:
      raise ValueError(
        f'two runs have the name {entry.name}: give each config, value and seed once'
      )
    found[entry.name] = entry
  return list(found.values())


def is_finished(out: Path, entry: Entry) -> bool:
  """Whether a run is finished with its present flags. The flags are recorded at its start, so a
  summary of other flags does not count."""
  noted, summary = out / f'{entry.name}.lock', out / entry.name / 'summary.json'
  try:
    flags = json.loads(noted.read_text())
    newer = summary.stat().st_mtime_ns >= noted.stat().st_mtime_ns
  except (FileNotFoundError, ValueError):
    return False
  return newer and flags == list(entry.flags)


def lock(out: Path, entry: Entry) -> IO | None:
  """The locked file of a run; None if another sweep, or a run that outlived its sweep, holds it."""
  file = (out / f'{entry.name}.lock').open('a+')
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    file.close()
    return None
  return file


def write_flags(file: IO, flags: Sequence[str]) -> None:
  """Records the flags with which a run was started; empty flags mean that it failed."""
  file.seek(0)
  file.truncate()
  file.write(json.dumps(flags) if flags else '')
  file.flush()


def start(out: Path, entry: Entry, held: IO, command: Sequence[str], gpu: str | None) -> Running:
  """Starts a run. The run holds the lock too, so it stays locked if the sweep is killed."""
  write_flags(held, entry.flags)
  environment = os.environ | {'PYTHONUNBUFFERED': '1'}
  if gpu is not None:
    environment['CUDA_VISIBLE_DEVICES'] = gpu
  with (out / f'{entry.name}.log').open('ab') as log:
    began = log.tell()
    child = subprocess.Popen(
      [*command, *entry.flags, f'--workdir={out / entry.name}', '--num_processes=1'],
      stdin=subprocess.DEVNULL,
      stdout=log,
      stderr=subprocess.STDOUT,
      env=environment,
      pass_fds=[held.fileno()],
      start_new_session=True,
    )
  return Running(entry, child, held, began, gpu)


def last_line(path: Path, start: int) -> str:
  """The last non-empty line of a log, after the byte `start`."""
  with path.open('rb') as file:
    file.seek(max(start, file.seek(0, os.SEEK_END) - 2**16))
    lines = file.read().decode(errors='replace').splitlines()
  return next((line.strip() for line in reversed(lines) if line.strip()), '(no output)')


def run(
  out: Path,
  entries: Sequence[Entry],
  command: Sequence[str],
  slots: Sequence[str | None],
  say: Callable[[str], None],
) -> tuple[dict[str, str], list[str]]:
  """Runs all runs that are not finished, as many at once as there are slots.

  Args:
    out: The sweep's folder.
    entries: The runs.
    command: The training command; flags and --workdir are added.
    slots: For each slot the GPU, or None to set none.
    say: Called with each line of progress.

  Returns:
    {name: reason} of the runs that failed, and the names of those that were stopped.
  """
  waiting, running, free = list(entries), [], list(slots)
  failed, stopped, received, announced = {}, [], [], set()

  def pass_on(number):
    received.append(number)
    for one in running:
      if one.child.poll() is None:
        one.child.send_signal(number)

  def settle(one, code):
    name, workdir = one.entry.name, out / one.entry.name
    if code == 0 and watch.finished(workdir):
      say(f'{name} is finished')
    elif code in {0, watch.UNFINISHED} | watch.stopped_by(received):
      say(f'{name} was stopped before its end')
      stopped.append(name)
    else:
      write_flags(one.lock, ())
      line = last_line(out / f'{name}.log', one.log_start)
      failed[name] = f'it {watch.cause(code)}; its last line: {line}'
      say(f'{name} failed')
    one.lock.close()

  with watch.passing_on(pass_on):
    while running or (waiting and not received):
      for one in list(running):
        code = one.child.poll()
        if code is not None:
          running.remove(one)
          free.append(one.gpu)
          settle(one, code)
      for entry in list(waiting):
        if is_finished(out, entry):
          say(f'{entry.name} is already finished')
          waiting.remove(entry)
          continue
        if not free or received:
          break
        held = lock(out, entry)
        if held is None:
          if entry.name not in announced:
            say(f'{entry.name} is running in another sweep: waiting for it')
            announced.add(entry.name)
          continue
        if is_finished(out, entry):  # another sweep finished it since the check above
          held.close()
          continue
        gpu = free.pop(0)
        going_on = ' continues' if (out / entry.name).exists() else ''
        say(f'{entry.name}{going_on}' + (f' on GPU {gpu}' if gpu is not None else ''))
        running.append(start(out, entry, held, command, gpu))
        waiting.remove(entry)
        if received:
          running[-1].child.send_signal(received[-1])
      time.sleep(0.1)
  return failed, stopped + [entry.name for entry in waiting]


def collect(out: Path, entries: Sequence[Entry], metric: str) -> list[list[str]]:
  """The cells of the table. The first row is the header. Each further row has a name, the number of
  finished seeds, and for each result the mean and, from two seeds, the sample standard deviation,
  in percent except for NO_SHARES."""
  header = ['run', 'seeds']
  for title in RESULTS.values():
    header += [title, f'{title}, deviation']
  lines, (factor, digits) = [header], (1, 4) if metric in NO_SHARES else (100, 2)
  for row in dict.fromkeys(entry.row for entry in entries):
    of_row = [entry for entry in entries if entry.row == row]
    summaries = [
      json.loads((out / entry.name / 'summary.json').read_text(encoding='utf-8'))
      for entry in of_row
      if is_finished(out, entry)
    ]
    cells = [row, f'{len(summaries)} of {len(of_row)}']
    for key in RESULTS:
      of_test = [(summary.get(key) or {}).get('test', {}).get(metric) for summary in summaries]
      known = [factor * value for value in of_test if value is not None]
      cells.append(f'{statistics.mean(known):.{digits}f}' if known else '')
      cells.append(f'{statistics.stdev(known):.{digits}f}' if len(known) > 1 else '')
    lines.append(cells)
  return lines


def as_text(lines: Sequence[Sequence[str]], markdown: bool = False) -> str:
  """The cells as aligned columns or as a Markdown table, with mean and deviation in one column."""
  joined = [[*lines[0][:2], *lines[0][2::2]]]
  for line in lines[1:]:
    pairs = zip(line[2::2], line[3::2], strict=True)
    joined.append(
      [*line[:2], *(f'{mean} ± {spread}' if spread else mean for mean, spread in pairs)]
    )
  if markdown:
    joined.insert(1, ['---'] * len(joined[0]))
    return '\n'.join(f'| {" | ".join(line)} |' for line in joined)
  widths = [max(map(len, column)) for column in zip(*joined, strict=True)]
  return '\n'.join(
    '  '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
    for line in joined
  )


def write_tables(out: Path, lines: Sequence[Sequence[str]]) -> None:
  """Writes `table.csv` and `table.md`."""
  text = io.StringIO()
  csv.writer(text, lineterminator='\n').writerows(lines)
  for name, content in (('table.csv', text.getvalue()), ('table.md', as_text(lines, True) + '\n')):
    partial = out / f'{name}.{os.getpid()}.partial'
    partial.write_text(content, encoding='utf-8')
    partial.replace(out / name)


def parse(argv: Sequence[str]) -> argparse.Namespace:
  """Parses the flags; adds `entries`, the runs. `index` is the number of the run if only one
  runs."""
  parser = argparse.ArgumentParser(
    prog='launch/sweep.py',
    usage='%(prog)s --out=DIR --config=FILE [FLAGS] [-- FLAGS OF EVERY RUN]',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  add = parser.add_argument
  add('--out', type=Path, required=True, help="the sweep's folder")
  add('--config', action='append', required=True, help='FILE[:VARIANT]; may be repeated')
  add('--seeds', default='0', help='such as 0,1,2')
  add('--set', action='append', default=[], metavar='config.KEY=A,B', help='may be repeated')
  add('--case', action='append', default=[], metavar='"config.KEY=A ..."', help='may be repeated')
  add('--jobs', type=int, default=1, help='number of runs at once')
  add('--gpus', help='such as 0,1,2,3: one run at a time on each, instead of --jobs')
  add('--index', type=int, help='run only this one')
  add('--list', action='store_true', help='print the runs with their numbers; run nothing')
  add('--table', action='store_true', help='print the table of the results so far; run nothing')
  add('--metric', default='acc', help='a metric of summary.json, such as f1_macro')
  add(
    '--command',
    default=shlex.join([sys.executable, '-m', 'ferjax.main']),
    help="the training command, such as 'apptainer exec ferjax.sif python -m ferjax.main'",
  )
  own, shared = list(argv), []
  if '--' in own:
    place = own.index('--')
    own, shared = own[:place], own[place + 1 :]
  args = parser.parse_args(own)
  args.out = args.out.absolute()
  try:
    if any(re.match('--?workdir', flag) for flag in shared):
      raise ValueError('leave out --workdir: each run has its own below --out')
    if not re.fullmatch(r'\d+(,\d+)*', args.seeds):
      raise ValueError(f'--seeds={args.seeds!r}: give whole numbers, such as 0,1,2')
    seeds = [int(seed) for seed in args.seeds.split(',')]
    args.entries = expand(args.config, seeds, overrides(args.set, args.case), shared)
    found = [os.environ[name] for name in INDICES if name in os.environ]
    if args.index is None and found:
      args.index = int(found[0])
    if args.index is not None and not 0 <= args.index < len(args.entries):
      raise ValueError(
        f'there is no run {args.index}: the sweep has {len(args.entries)} runs, 0 to '
        f'{len(args.entries) - 1}'
      )
    if args.jobs < 1:
      raise ValueError(f'--jobs={args.jobs}: give at least 1')
    args.command = shlex.split(args.command)
    if not args.command or not shutil.which(args.command[0]):
      raise ValueError(f'--command={shlex.join(args.command)}: this program does not exist')
  except ValueError as error:
    parser.error(str(error))
  return args


def main(argv: Sequence[str]) -> int:
  args = parse(argv)
  if args.list:
    for number, entry in enumerate(args.entries):
      done = 'finished' if is_finished(args.out, entry) else ''
      print(f'{number:4} {entry.name} {done}'.rstrip())
    return 0
  args.out.mkdir(parents=True, exist_ok=True)
  failed, stopped = {}, []
  if not args.table:
    chosen = args.entries if args.index is None else [args.entries[args.index]]
    slots = args.gpus.split(',') if args.gpus else [None] * args.jobs
    failed, stopped = run(
      args.out, chosen, args.command, slots, lambda text: print(text, flush=True)
    )
  lines = collect(args.out, args.entries, args.metric)
  write_tables(args.out, lines)
  print(f'\ntest {args.metric}{"" if args.metric in NO_SHARES else ", %"}\n{as_text(lines)}')
  for name, why in failed.items():
    print(f'failed: {name}: {why} ({args.out / name}.log)')
  if stopped:
    print(f'not finished: {", ".join(stopped)}\nThe same command continues them.')
  return 1 if failed else watch.UNFINISHED if stopped else 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
