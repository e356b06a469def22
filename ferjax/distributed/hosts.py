"""Several processes, on one host or many: how they find each other, wait, and leave.

JAX's distributed runtime is all there is to it. Each process has devices of its own; the first one
(process 0) holds the coordination service that the others connect to.
"""

import contextlib
import importlib.util
import logging
import multiprocessing
import os
import socket
import sys
import time
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from ferjax.errors import InputError

LOGGER = logging.getLogger(__name__)

T = TypeVar('T')

# Seconds.
DAY = 24 * 3600  # how long processes wait for the first one to prepare data, to write reports
GRACE = 3  # in which the others can tell what is wrong too, before they miss one that ends
LATE = 60  # after which a network's file system shows what another host wrote
FLAGS = '--coordinator_address=HOST:PORT, --num_processes=N and --process_id=I'
SLURM = {'SLURM_JOB_ID', 'SLURM_STEP_NODELIST', 'SLURM_NTASKS', 'SLURM_PROCID', 'SLURM_LOCALID'}


def connect(
  *,
  coordinator_address: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  heartbeat_timeout: int = 100,
) -> None:
  """Joins the processes of a run; call it before any other use of JAX.

  Without arguments it looks where it is (see `environment`), and does nothing on a single machine.

  Args:
    coordinator_address: HOST:PORT of process 0, as every process reaches it.
    num_processes: How many processes there are; 1 for this one alone, wherever it runs.
    process_id: Which of them this one is, from 0.
    heartbeat_timeout: After how many seconds of silence a process counts as dead; all end then.

  Raises:
    InputError: some of the first three without the others, impossible values, the cluster does not
      say what it should, or the address cannot be used. Processes that wait for others in vain are
      ended by JAX after five minutes.
  """
  flags = (coordinator_address, num_processes, process_id)
  _check(*flags, heartbeat_timeout)
  if num_processes == 1 or jax.distributed.is_initialized():
    return
  names = ('coordinator_address', 'num_processes', 'process_id')
  given = dict(zip(names, flags, strict=True)) | {'local_device_ids': []}
  given = environment(os.environ) if num_processes is None else given
  if given is None:
    return
  jax.config.update('jax_enable_preemption_service', False)  # `preemption` has the signals
  if given:
    LOGGER.info('waits for all of %d processes', given['num_processes'])
  try:
    jax.distributed.initialize(
      **given, heartbeat_timeout_seconds=heartbeat_timeout, shutdown_timeout_seconds=DAY
    )
  except Exception as error:  # of JAX, or of what it asks: a socket, Google Cloud, Kubernetes
    if not given and isinstance(error, ValueError) and 'coordinator_address' in str(error):
      return  # so JAX says that it finds no cluster
    where = coordinator_address or f'the address that this cluster gives (else give {FLAGS})'
    raise InputError(f'cannot join the processes at {where}: {error}') from error


def _check(coordinator_address, num_processes, process_id, heartbeat_timeout):
  if heartbeat_timeout < 1:
    raise InputError(f'--heartbeat_timeout={heartbeat_timeout}: give at least 1 second')
  if num_processes is not None and num_processes < 1:
    raise InputError(f'--num_processes={num_processes}: give at least 1')
  flags = (coordinator_address, num_processes, process_id)
  if num_processes == 1 and coordinator_address is None and not process_id:
    return
  if None in flags and any(flag is not None for flag in flags):
    raise InputError(
      f'give {FLAGS} together; none of them under SLURM, Open MPI before 5, Kubernetes or on a TPU '
      'pod; --num_processes=1 for a process alone'
    )
  if num_processes is None:
    return
  if not 0 <= process_id < num_processes:
    raise InputError(
      f'--process_id={process_id}: of {num_processes} processes, give 0..{num_processes - 1}'
    )
  host, _, port = coordinator_address.rpartition(':')
  if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
    raise InputError(
      f'--coordinator_address={coordinator_address}: give HOST:PORT of process 0, such as '
      'node1:12345'
    )


def environment(variables: Mapping[str, str]) -> dict[str, Any] | None:
  """Arguments of `jax.distributed.initialize` where the environment says that there are several
  processes, the rest being found by JAX; None where it says that this one is alone.

  Of a SLURM job it counts the tasks of the step, of which there is one where a shell in an
  allocation, or the batch script itself, starts Python. Where a task has its node to itself, it
  gets all GPUs of it; else, as JAX has it, the one with its number on the node. On a TPU, and in an
  indexed job of Kubernetes, JAX asks the cluster.

  Raises:
    InputError: Open MPI 5, which JAX 0.10 does not know, or Kubernetes without the package
      `kubernetes`.
  """

  def number(name):
    return int(variables.get(name, 1))

  def several(processes, alone_on_node):
    if processes == 1:
      return None
    return {'num_processes': processes} | ({'local_device_ids': []} if alone_on_node else {})

  if 'OMPI_COMM_WORLD_SIZE' in variables:
    processes = number('OMPI_COMM_WORLD_SIZE')
    if processes > 1 and 'OMPI_MCA_orte_hnp_uri' not in variables:
      raise InputError(
        f'this Open MPI (5 or newer) does not say where its processes meet: give {FLAGS}, as in\n'
        "  mpirun ... bash -c 'python -m ferjax.main ... --coordinator_address=HOST:PORT "
        '--num_processes="$OMPI_COMM_WORLD_SIZE" --process_id="$OMPI_COMM_WORLD_RANK"\''
      )
    return several(processes, number('OMPI_COMM_WORLD_LOCAL_SIZE') == 1)
  if SLURM <= set(variables):
    tasks = number('SLURM_STEP_NUM_TASKS')
    return several(tasks, tasks == number('SLURM_STEP_NUM_NODES'))
  if importlib.util.find_spec('libtpu'):
    return {}
  if {'KUBERNETES_SERVICE_HOST', 'JOB_COMPLETION_INDEX'} <= set(variables):
    if not importlib.util.find_spec('kubernetes'):
      raise InputError(
        'a pod of an indexed Kubernetes job cannot ask for the others without the package '
        f"kubernetes: pip install 'ferjax[k8s]', or give {FLAGS}; --num_processes=1 for a pod alone"
      )
    return {}
  return None


def wait(name: str) -> None:
  """Waits until every process is here.

  Args:
    name: Of the place.
  """
  multihost.get_barrier_sync_fn()(key=name, timeout_ms=1000 * DAY)


def of_first(value: int) -> int:
  """An i32 as the first process has it, in all of them."""
  return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def how_many(flag: bool) -> int:
  """The number of processes that have set a flag."""
  return int(np.sum(multihost_utils.process_allgather(np.int32(flag))))


def appears(path: Path) -> bool:
  """Whether a file is here that another process wrote, perhaps on another host just now."""
  end = time.monotonic() + LATE
  while not path.is_file():
    if time.monotonic() > end:
      return False
    time.sleep(1)
  return True


def first_then_others(name: str, make: Callable[[], T]) -> T:
  """make() by the first process, when it is done by one of every other host, and at last by the
  rest: no two make the same at a time, on a disk that all share or on a host's own.

  Args:
    name: Of what is made.
    make: What to call.
  """
  own, made = _turn(), None
  for turn in range(3):
    if turn == own:
      made = make()
    wait(f'{name} {turn}')
  return made


def _turn() -> int:
  host = np.uint32(zlib.crc32(socket.gethostname().encode()))
  hosts = np.ravel(multihost_utils.process_allgather(host)).tolist()
  if jax.process_index() == 0:
    return 0
  return 1 if hosts.index(host) == jax.process_index() else 2


def abandon(message: str) -> None:
  """Of several processes, ends this one with a message and status 1, without waiting for the others
  as an orderly exit does; they end when they miss it. Does nothing in a process that is alone."""
  if not jax.distributed.is_initialized():
    return
  with contextlib.suppress(OSError):  # nobody may be reading them any more
    print(message, file=sys.stderr, flush=True)
    sys.stdout.flush()
  for child in multiprocessing.active_children():
    child.kill()
  time.sleep(GRACE)
  os._exit(1)
