#!/usr/bin/env python3
"""Runs a command and says why it ended, which JAX cannot: it aborts when a process of a run dies.

  python launch/watch.py --processes=2 -- python -m ferjax.main --config=... --workdir=RUN
  python launch/watch.py -- srun python -m ferjax.main --config=... --workdir=RUN

With --processes the command is started so many times on this machine, as one run: the flags of
JAX's coordinator are added, the GPUs are shared out, and every line of output begins with the
process's number. Without it the command finds the others by itself (SLURM, Kubernetes, TPU), and
this watches the part of one host. SIGTERM, SIGUSR1 and SIGINT are passed on, and SIGHUP as SIGTERM.
When a process fails, the others are stopped.

Exit code: 0 when the run is finished (its --workdir holds summary.json); 75 when it stopped before
its end and the same command goes on, as after a preemption, also where the time for saving ran out
(SIGKILL after such a signal); else that of the process that failed, with 128 + n for signal n.
Needs nothing but Python.
"""

import argparse
import collections
import contextlib
import itertools
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

UNFINISHED = 75  # EX_TEMPFAIL of sysexits.h
PASSED_ON = {  # signal: what is sent on
  signal.SIGTERM: signal.SIGTERM,
  signal.SIGUSR1: signal.SIGUSR1,
  signal.SIGINT: signal.SIGINT,
  signal.SIGHUP: signal.SIGTERM,
}
LAST_LINES = 12


class Process(NamedTuple):
  """One process, the last lines that it wrote to stderr, and the threads that read its output."""

  child: subprocess.Popen
  last: collections.deque
  readers: tuple[threading.Thread, ...]


def cause(code: int) -> str:
  """What a return code says, as of `Popen.returncode`: negative for a signal."""
  number = -code if code < 0 else code - 128
  try:
    name = signal.Signals(number).name
  except ValueError:
    return f'ended with exit code {code}'
  told = f'was killed by {name}' if code < 0 else f'ended with exit code {code} ({name})'
  if name == 'SIGABRT':
    told += (
      ': so JAX ends a process when another one of the run died, or gave no sign within the '
      'heartbeat time-out; look for what the others say'
    )
  elif name == 'SIGKILL':
    told += ': by hand, by the scheduler, or by the kernel because memory ran out'
  return told


def workdir_of(command: Sequence[str]) -> Path | None:
  """The last --workdir of a command, None where it has none."""
  found = None
  for part, following in zip(command, [*command[1:], ''], strict=True):
    flag, equals, value = part.partition('=')
    if flag in ('--workdir', '-workdir'):
      found = Path(value if equals else following)
  return found


def finished(workdir: Path) -> bool:
  """Whether a run came to its end."""
  return (workdir / 'summary.json').is_file()


def free_port() -> int:
  """A TCP port of this machine that nothing listens at."""
  with socket.socket() as found:
    found.bind(('127.0.0.1', 0))
    return found.getsockname()[1]


def commands(command: Sequence[str], processes: int | None) -> list[list[str]]:
  """The command of each process."""
  if processes is None:
    return [list(command)]
  address = f'127.0.0.1:{free_port()}'
  return [
    [
      *command,
      f'--coordinator_address={address}',
      f'--num_processes={processes}',
      f'--process_id={number}',
    ]
    for number in range(processes)
  ]


def gpus() -> list[str]:
  """NVIDIA's GPUs that a process started here would see, as of CUDA_VISIBLE_DEVICES."""
  if 'CUDA_VISIBLE_DEVICES' in os.environ:
    names = os.environ['CUDA_VISIBLE_DEVICES'].split(',')
    return list(itertools.takewhile(lambda name: name not in ('', '-1', 'NoDevFiles'), names))
  try:
    listed = subprocess.run(['nvidia-smi', '--list-gpus'], capture_output=True, text=True)
  except OSError:
    return []
  return [str(n) for n in range(len(re.findall('^GPU ', listed.stdout, re.M)))]


def shares(processes: int | None) -> list[dict[str, str]]:
  """What each process has in its environment to see its share of the GPUs alone.

  Raises:
    ValueError: they cannot be shared evenly.
  """
  found = gpus() if processes and os.environ.get('JAX_PLATFORMS') != 'cpu' else []
  if not found:
    return [{}] * (processes or 1)
  each, left = divmod(len(found), processes)
  if left or not each:
    raise ValueError(
      f'--processes={processes}: {len(found)} GPUs cannot be shared evenly; one process uses them '
      'all, JAX_PLATFORMS=cpu none'
    )
  parts = [found[number * each : (number + 1) * each] for number in range(processes)]
  return [{'CUDA_VISIBLE_DEVICES': ','.join(part)} for part in parts]


def start(
  command: Sequence[str], variables: Mapping[str, str], prefix: bytes, lock: threading.Lock
) -> Process:
  """Starts a process in a session of its own, so that its workers can be ended with it.

  Args:
    command: What to run.
    variables: Of its environment, besides those here.
    prefix: What each line of its output begins with; without one, stdout is left alone.
    lock: Held while a line is written.
  """
  child = subprocess.Popen(
    command,
    stdout=subprocess.PIPE if prefix else None,
    stderr=subprocess.PIPE,
    env=os.environ | {'PYTHONUNBUFFERED': '1', **variables},
    start_new_session=True,
  )
  last = collections.deque(maxlen=LAST_LINES)

  def read(source, to, kept):
    for line in source:
      kept.append(line.decode(errors='replace').rstrip())
      with lock, contextlib.suppress(OSError):  # where nobody reads any more, the run goes on
        to.write(prefix + line)
        to.flush()

  streams = [(child.stderr, sys.stderr.buffer, last)]
  if prefix:
    streams.append((child.stdout, sys.stdout.buffer, collections.deque(maxlen=0)))
  readers = tuple(threading.Thread(target=read, args=s, daemon=True) for s in streams)
  for reader in readers:
    reader.start()
  return Process(child, last, readers)


@contextlib.contextmanager
def passing_on(send: Callable[[int], None]) -> Iterator[None]:
  """Inside, what is to be sent on for a signal goes to `send`; signals that were ignored, as SIGHUP
  under nohup, still are."""
  before = {
    number: signal.signal(number, lambda number, _: send(PASSED_ON[number]))
    for number in PASSED_ON
    if signal.getsignal(number) != signal.SIG_IGN
  }
  try:
    yield
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


def stop(processes: Sequence[Process], grace: float) -> None:
  """Ends what still runs: SIGTERM, after `grace` seconds SIGKILL, which goes to workers too."""
  running = [process.child for process in processes if process.child.poll() is None]
  for child in running:
    child.terminate()
  end = time.monotonic() + grace
  while time.monotonic() < end and any(child.poll() is None for child in running):
    time.sleep(0.05)
  for process in processes:
    try:
      os.killpg(process.child.pid, signal.SIGKILL)
    except ProcessLookupError:
      pass
    process.child.wait()
    for reader in process.readers:
      reader.join(1)


def say(text: str) -> None:
  """Writes lines of this launcher to stderr."""
  with contextlib.suppress(OSError):
    for line in text.splitlines():
      print(f'watch: {line}', file=sys.stderr, flush=True)


def stopped_by(received: Sequence[int]) -> set[int]:
  """Return codes of a process that signals ended before it could save: those that were passed on to
  it, and the SIGKILL of a scheduler that waited for it in vain."""
  numbers = {*received, signal.SIGKILL} if received else set()
  return {code for number in numbers for code in (-number, 128 + number)}


def explain(
  command: Sequence[str],
  processes: Sequence[Process],
  codes: Sequence[int | None],
  received: Sequence[int],
  began: float,
) -> int:
  """Says which process failed and why, and which others are stopped for it.

  Args:
    command: What was to be run.
    processes: All of them.
    codes: Their return codes, None for those that still run.
    received: Signals that were passed on to them.
    began: When they were started, as of `time.monotonic`.

  Returns:
    Its exit code; UNFINISHED where it was stopped by such signals.
  """
  failed = [number for number, code in enumerate(codes) if code]
  # Where several are found dead at once, an abort is not the cause but what came of it.
  aborts = (-signal.SIGABRT, 128 + signal.SIGABRT)
  causes = [number for number in failed if codes[number] not in aborts] or failed
  if {codes[number] for number in causes} <= stopped_by(received):
    say(f'perhaps before it could save, it {cause(codes[causes[0]])}')
    return UNFINISHED
  first = causes[0]
  code, process = codes[first], processes[first]
  for reader in process.readers:
    reader.join(1)
  who = f'process {first} of {len(processes)}' if len(processes) > 1 else shlex.join(command[:3])
  seconds = time.monotonic() - began
  say(f'{who} (pid {process.child.pid}) {cause(code)}; it ran for {seconds:.0f} s')
  if process.last:
    say('its last lines of stderr:\n' + '\n'.join(f'  {line}' for line in process.last))
  others = [str(number) for number, code in enumerate(codes) if code is None]
  if others:
    who = f'process {others[0]} is' if len(others) == 1 else f'processes {", ".join(others)} are'
    say(f'{who} stopped: a run cannot go on without one of its processes')
  return code if code > 0 else 128 - code


def attempt(
  command: Sequence[str],
  count: int | None,
  variables: Sequence[Mapping[str, str]],
  grace: float,
  received: list[int],
) -> int:
  """Runs the processes once, to their end.

  Args:
    command: What to run.
    count: How many processes; None for the command as it is.
    variables: Of the environment of each; see `shares`.
    grace: Seconds that the others have to end after one failed.
    received: Signals that came are added.

  Returns:
    0; UNFINISHED where a signal ended them before they could save; or the exit code of the process
    that failed first, after saying what happened.
  """
  lock, began = threading.Lock(), time.monotonic()
  processes = []

  def pass_on(number):
    received.append(number)
    for process in processes:
      if process.child.poll() is None:
        process.child.send_signal(number)

  with passing_on(pass_on):
    try:
      for number, one in enumerate(commands(command, count)):
        prefix = b'' if count is None else b'[%d] ' % number
        processes.append(start(one, variables[number], prefix, lock))
        if received:
          processes[-1].child.send_signal(received[-1])
      while True:
        codes = [process.child.poll() for process in processes]
        failed = [number for number, code in enumerate(codes) if code]
        if failed or None not in codes:
          break
        time.sleep(0.1)
      code = explain(command, processes, codes, received, began) if failed else 0
      stop(processes, grace)
      return code
    except OSError as error:
      stop(processes, 0)
      say(f'cannot start {command[0]}: {error.strerror}')
      return 127


def parse(argv: Sequence[str]) -> argparse.Namespace:
  """The flags before `--`, the `command` after it, and `variables` of each process."""
  parser = argparse.ArgumentParser(
    prog='launch/watch.py',
    usage='%(prog)s [FLAGS] -- COMMAND ...',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument('--processes', type=int, help='how many to start on this machine')
  parser.add_argument('--restarts', type=int, default=0, help='how often to start all again')
  parser.add_argument(
    '--grace', type=float, default=20, help='seconds that the others have to end: 20'
  )
  parser.add_argument(
    '--resume', help='the command that goes on with the run, where it is not this one'
  )
  own, command = list(argv), []
  if '--' in own:
    place = own.index('--')
    own, command = own[:place], own[place + 1 :]
  args = parser.parse_args(own)
  if not command:
    parser.error('say what to run, after --, such as -- python -m ferjax.main --config=...')
  if args.processes is not None and args.processes < 1:
    parser.error(f'--processes={args.processes}: at least 1')
  if (args.processes or args.restarts) and workdir_of(command) is None:
    parser.error('the command needs a --workdir: all processes and restarts share it')
  try:
    args.variables = shares(args.processes)
  except ValueError as error:
    parser.error(str(error))
  args.command = command
  return args


def main(argv: Sequence[str]) -> int:
  args = parse(argv)
  received, workdir = [], workdir_of(args.command)
  again = args.resume or shlex.join(sys.orig_argv)
  for left in reversed(range(args.restarts + 1)):
    code = attempt(args.command, args.processes, args.variables, args.grace, received)
    if not code and (workdir is None or finished(workdir)):
      return 0
    if code in (0, UNFINISHED):
      say(f'stopped before its end; this goes on with it:\n  {again}')
      return UNFINISHED
    if received or not left:
      break
    say(f'starting again from the last checkpoint; restarts left after this one: {left - 1}')
  if workdir:
    say(f'this goes on from the last checkpoint, if there is one:\n  {again}')
  return code


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
