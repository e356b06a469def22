"""Runs of several processes, on one host or many: how they connect, wait and exit.

It uses JAX's distributed runtime only. Each process has its own devices. The first process (process
0) runs the coordination service, to which the others connect.
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
DAY = 24 * 3600  # how long processes wait for the first one, which prepares data or writes reports
GRACE = 3  # before a failed process exits, so that the others can report their own errors first
LATE = 60  # until a network file system shows a file that another host wrote
FLAGS = '--coordinator_address=HOST:PORT, --num_processes=N and --process_id=I'
SLURM = {'SLURM_JOB_ID', 'SLURM_STEP_NODELIST', 'SLURM_NTASKS', 'SLURM_PROCID', 'SLURM_LOCALID'}


def connect(
  *,
  coordinator_address: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  heartbeat_timeout: int = 100,
) -> None:
  """Joins the processes of a run. Call it before any other use of JAX.

  Without arguments, it reads the environment variables (see `environment`), and does nothing on a
  single machine.

  Args:
    coordinator_address: HOST:PORT of process 0, as every process can reach it.
    num_processes: Number of processes; 1 runs this process alone, also in a cluster.
    process_id: Number of this process, from 0.
    heartbeat_timeout: Seconds without a sign of life after which a process counts as dead. All
      processes then end.

  Raises:
    InputError: some of the first three arguments are given but not all, a value is impossible, the
      cluster does not give the necessary information, or the address cannot be used. If other
      processes do not appear within five minutes, JAX ends this process.
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
  jax.config.update('jax_enable_preemption_service', False)  # `preemption` handles the signals
  if given:
    LOGGER.info('waiting until all %d processes have joined', given['num_processes'])
  try:
    jax.distributed.initialize(
      **given, heartbeat_timeout_seconds=heartbeat_timeout, shutdown_timeout_seconds=DAY
    )
  except Exception as error:  # from JAX, or what it uses: sockets, Google Cloud, Kubernetes
    if not given and isinstance(error, ValueError) and 'coordinator_address' in str(error):
      return  # JAX reports in this way that it finds no cluster
    where = coordinator_address or f'the address from this cluster (or give {FLAGS})'
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
      f'give {FLAGS} together. Under SLURM, Open MPI before 5, Kubernetes or on a TPU pod, give '
      'none of them. To run one process alone, give --num_processes=1'
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
  """The arguments of `jax.distributed.initialize`, from environment variables.

  In a SLURM job, the number of processes is the number of tasks in the job step. It is 1 if Python
  is started by a shell in an allocation or by the batch script itself. A task that is alone on its
  node gets all GPUs of the node; otherwise it gets the GPU with its local task number, as is JAX's
  default. On a TPU, and in an indexed Kubernetes job, JAX asks the cluster.

  Args:
    variables: Environment variables, such as `os.environ`.

  Returns:
    Arguments for a run of several processes; JAX finds the others. None if this process is alone.

  Raises:
    InputError: Open MPI 5, which JAX 0.10 does not support, or Kubernetes without the package
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
        'this version of Open MPI (5 or newer) does not give the address of process 0: '
        f'give {FLAGS}, as in\n'
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
        'a pod of an indexed Kubernetes job needs the package kubernetes to find the other pods: '
        f"pip install 'ferjax[k8s]', or give {FLAGS}; for one pod alone, give --num_processes=1"
      )
    return {}
  return None


def wait(name: str) -> None:
  """Waits until every process has called it.

  Args:
    name: Name of the barrier, the same in every process.
  """
  multihost.get_barrier_sync_fn()(key=name, timeout_ms=1000 * DAY)


def of_first(value: int) -> int:
  """The value (i32) of the first process, returned in every process."""
  return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def how_many(flag: bool) -> int:
  """The number of processes in which the flag is True."""
  return int(np.sum(multihost_utils.process_allgather(np.int32(flag))))


def appears(path: Path) -> bool:
  """Whether a file exists that another process wrote. Waits up to `LATE` seconds for it, because a
  network file system may show a file of another host late."""
  end = time.monotonic() + LATE
  while not path.is_file():
    if time.monotonic() > end:
      return False
    time.sleep(1)
  return True


def first_then_others(name: str, make: Callable[[], T]) -> T:
  """Calls `make` in every process, so that no two processes on one disk call it at the same time.

  The first process calls it first, then one process of every other host, then the remaining
  processes. This suits a shared disk as well as a separate disk in each host.

  Args:
    name: Name of the product, the same in every process.
    make: The function to call, without arguments.

  Returns:
    The value of `make()`.
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
  """Ends this process with a message and exit status 1, if it is one of several.

  It does not wait for the other processes, as a normal exit would. They end when its heartbeat
  stops. The function does nothing in a run of one process.
  """
  if not jax.distributed.is_initialized():
    return
  with contextlib.suppress(OSError):  # the reader of the streams may be gone
    print(message, file=sys.stderr, flush=True)
    sys.stdout.flush()
  for child in multiprocessing.active_children():
    child.kill()
  time.sleep(GRACE)
  os._exit(1)
