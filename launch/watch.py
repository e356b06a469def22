#!/usr/bin/env python3
"""Runs a command and reports why it ended. JAX alone aborts all processes when one of them dies.

  python launch/watch.py --processes=2 -- python -m ferjax.main --config=... --workdir=RUN
  python launch/watch.py -- srun python -m ferjax.main --config=... --workdir=RUN

With --processes=N, the command is started N times on this machine, as one run: watch.py adds the
flags of JAX's coordinator, divides the GPUs, and puts the process's number before every line of
output. Without --processes, the command finds the other processes itself (SLURM, Kubernetes, TPU),
and watch.py handles the processes of one host. SIGTERM, SIGUSR1 and SIGINT are forwarded, and
SIGHUP as SIGTERM. If a process fails, the others are stopped.

Exit code: 0 if the run is finished (its --workdir holds summary.json); 75 if it stopped before its
end and the same command continues it, as after a preemption, also if the time for saving was too
short (SIGKILL after one of these signals); else the exit code of the process that failed, or 128 +
n for signal n. Needs Python only, no packages.
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
PASSED_ON = {  # signal: the signal that is forwarded for it
  signal.SIGTERM: signal.SIGTERM,
  signal.SIGUSR1: signal.SIGUSR1,
  signal.SIGINT: signal.SIGINT,
  signal.SIGHUP: signal.SIGTERM,
}
LAST_LINES = 12


class Process(NamedTuple):
  """A process, the last lines of its stderr, and the threads that read its output."""

  child: subprocess.Popen
  last: collections.deque
  readers: tuple[threading.Thread, ...]


def cause(code: int) -> str:
  """Describes a return code in the form of `Popen.returncode`: negative for a signal."""
  number = -code if code < 0 else code - 128
  try:
    name = signal.Signals(number).name
  except ValueError:
    return f'ended with exit code {code}'
  text = f'was killed by {name}' if code < 0 else f'ended with exit code {code} ({name})'
  if name == 'SIGABRT':
    text += (
      ': JAX ends a process in this way when another process of the run died, or sent no sign of '
      'life within the heartbeat time-out; see the messages of the others'
    )
  elif name == 'SIGKILL':
    text += ': by a person, by the scheduler, or by the kernel because memory ran out'
  return text


def workdir_of(command: Sequence[str]) -> Path | None:
  """The last --workdir of a command, None if there is none."""
  found = None
  for part, following in zip(command, [*command[1:], ''], strict=True):
    flag, equals, value = part.partition('=')
    if flag in ('--workdir', '-workdir'):
      found = Path(value if equals else following)
  return found


def finished(workdir: Path) -> bool:
  """Whether a run is finished."""
  return (workdir / 'summary.json').is_file()


def free_port() -> int:
  """A TCP port of this machine that is not in use."""
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
  """The NVIDIA GPUs that a process started here would see, as names for CUDA_VISIBLE_DEVICES."""
  if 'CUDA_VISIBLE_DEVICES' in os.environ:
    names = os.environ['CUDA_VISIBLE_DEVICES'].split(',')
    return list(itertools.takewhile(lambda name: name not in ('', '-1', 'NoDevFiles'), names))
  try:
    listed = subprocess.run(['nvidia-smi', '--list-gpus'], capture_output=True, text=True)
  except OSError:
    return []
  return [str(n) for n in range(len(re.findall('^GPU ', listed.stdout, re.M)))]


def shares(processes: int | None) -> list[dict[str, str]]:
  """For each process, the environment variables that limit it to its share of the GPUs.

  Raises:
    ValueError: the GPUs cannot be shared evenly.
  """
  found = gpus() if processes and os.environ.get('JAX_PLATFORMS') != 'cpu' else []
  if not found:
    return [{}] * (processes or 1)
  each, left = divmod(len(found), processes)
  if left or not each:
    raise ValueError(
      f'--processes={processes}: {len(found)} GPUs cannot be shared evenly. Choose another number: '
      'one process uses all GPUs; with JAX_PLATFORMS=cpu, none are used'
    )
  parts = [found[number * each : (number + 1) * each] for number in range(processes)]
  return [{'CUDA_VISIBLE_DEVICES': ','.join(part)} for part in parts]


def start(
  command: Sequence[str], variables: Mapping[str, str], prefix: bytes, lock: threading.Lock
) -> Process:
  """Starts a process in its own session, so that its workers can be ended with it.

  Args:
    command: The command.
    variables: Environment variables in addition to those of this process.
    prefix: Text before each line of its output. If it is empty, stdout is not redirected.
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
      with lock, contextlib.suppress(OSError):  # the run continues if the reader is gone
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
  """In this context, `send` is called with the signal to forward. Signals that were ignored, such
  as SIGHUP under nohup, are still ignored."""
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
  """Ends the running processes: SIGTERM, and after `grace` seconds SIGKILL, also for workers."""
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
  """The return codes of a process that signals ended before it could save: the forwarded signals,
  and SIGKILL, which a scheduler sends when the time is over."""
  numbers = {*received, signal.SIGKILL} if received else set()
  return {code for number in numbers for code in (-number, 128 + number)}


def explain(
  command: Sequence[str],
  processes: Sequence[Process],
  codes: Sequence[int | None],
  received: Sequence[int],
  began: float,
) -> int:
  """Reports which process failed and why, and which other processes are stopped.

  Args:
    command: The command.
    processes: All processes.
    codes: Their return codes, None for running processes.
    received: The signals that were forwarded to them.
    began: Their start, in the time of `time.monotonic`.

  Returns:
    The exit code of the failed process; UNFINISHED if it was stopped by these signals.
  """
  failed = [number for number, code in enumerate(codes) if code]
  # If several have ended at once, an abort is a consequence and not the cause.
  aborts = (-signal.SIGABRT, 128 + signal.SIGABRT)
  causes = [number for number in failed if codes[number] not in aborts] or failed
  if {codes[number] for number in causes} <= stopped_by(received):
    say(f'it may not have saved: it {cause(codes[causes[0]])}')
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
  """Runs the processes once, until they end.

  Args:
    command: The command.
    count: Number of processes; None runs the command without additional flags.
    variables: Environment variables of each process; see `shares`.
    grace: Seconds that the others have to end after one failed.
    received: The signals that arrive are appended.

  Returns:
    0; UNFINISHED if a signal ended them before they could save; or the exit code of the process
    that failed first. Failures are reported on stderr.
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
  """Parses the flags before `--`; adds the `command` after it, and the `variables` of each
  process."""
  parser = argparse.ArgumentParser(
    prog='launch/watch.py',
    usage='%(prog)s [FLAGS] -- COMMAND ...',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument('--processes', type=int, help='number of processes on this machine')
  parser.add_argument('--restarts', type=int, default=0, help='how often all may be started again')
  parser.add_argument(
    '--grace', type=float, default=20, help='seconds that the others have to end; default 20'
  )
  parser.add_argument(
    '--resume', help='the command that continues the run, if it is not this command'
  )
  own, command = list(argv), []
  if '--' in own:
    place = own.index('--')
    own, command = own[:place], own[place + 1 :]
  args = parser.parse_args(own)
  if not command:
    parser.error('give a command after --, such as -- python -m ferjax.main --config=...')
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
      say(f'stopped before its end; this command continues it:\n  {again}')
      return UNFINISHED
    if received or not left:
      break
    say(f'starting again from the last checkpoint; restarts left after this one: {left - 1}')
  if workdir:
    say(f'this command continues from the last checkpoint, if there is one:\n  {again}')
  return code


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
