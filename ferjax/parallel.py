"""The only file that knows about devices: where arrays lie, and how a step runs on all of them."""

import ctypes
import platform
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ferjax.errors import InputError

AXIS = 'data'


class Parallel(NamedTuple):
  """How to run on some devices.

  Attributes:
    size: Number of devices.
    replicate: Puts a pytree on every device.
    shard: Splits the leading axis of a pytree of host arrays over the devices.
    compile: (step, donate=()) -> step on all devices. A step takes a replicated pytree and this
      device's share of a batch, and returns a replicated pytree; inside, `AXIS` is the device axis.
  """

  size: int
  replicate: Callable[[Any], Any]
  shard: Callable[[Any], Any]
  compile: Callable[..., Callable[[Any, Any], Any]]


def gather(tree):
  """Joins every device's share of a pytree along its leading axis, in the order of the batch."""
  return jax.tree.map(lambda x: lax.all_gather(x, AXIS, tiled=True), tree)


def mean(tree):
  """The mean of a pytree over the devices."""
  return lax.pmean(tree, AXIS)


def example_keys(key, position):
  """One key for each example: `key` folded with its position i32[b] in the global batch."""
  return jax.vmap(jax.random.fold_in, (None, 0))(key, position)


def make(*, devices: int = 0, backend: str = 'pmap') -> Parallel:
  """Factory: config section `parallel`.

  Args:
    devices: How many devices to use; 0 for all.
    backend: `pmap`, or `shard_map` under jit on global arrays. Both give the same numbers.

  Raises:
    InputError: more devices than there are, or an unknown backend.
  """
  available = jax.devices()
  if devices > len(available):
    raise InputError(
      f'config.parallel.devices={devices}, but JAX sees {len(available)}: {available}'
    )
  chosen = available[: devices or len(available)]
  mesh = jax.make_mesh((len(chosen),), (AXIS,), axis_types=(AxisType.Auto,), devices=chosen)
  replicated, split = (NamedSharding(mesh, spec) for spec in (PartitionSpec(), PartitionSpec(AXIS)))

  def replicate(tree):
    return jax.device_put(tree, replicated)

  if backend == 'pmap':

    def shard(tree):
      return jax.tree.map(lambda x: x.reshape(len(chosen), -1, *x.shape[1:]), tree)

    def compile(step, donate=()):
      return jax.pmap(
        step,
        axis_name=AXIS,
        in_axes=(None, 0),
        out_axes=None,
        devices=chosen,
        donate_argnums=donate,
      )

  elif backend == 'shard_map':

    def shard(tree):
      return jax.device_put(tree, split)

    def compile(step, donate=()):
      mapped = jax.shard_map(
        step,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec(AXIS)),
        out_specs=PartitionSpec(),
        check_vma=False,
      )
      return jax.jit(mapped, donate_argnums=donate)

  else:
    raise InputError(f"config.parallel.backend is '{backend}': use pmap or shard_map")
  return Parallel(len(chosen), replicate, shard, compile)


def check_batch(batch: int, devices: int) -> None:
  """Refuses a batch that the devices cannot share evenly.

  Raises:
    InputError: names the nearest batch sizes that fit.
  """
  if batch < 1 or batch % devices:
    below = batch // devices * devices
    sizes = [str(size) for size in (below, below + devices) if size > 0]
    raise InputError(
      f'config.batch={batch} cannot be split evenly over {devices} devices; '
      f'the nearest valid sizes: {" and ".join(sizes)}'
    )


def keep_freed_memory() -> None:
  """On a CPU with glibc: freed memory stays with the process, so a step finds its pages mapped.

  XLA takes and frees its temporary memory in every step; returned to the system, each page of it
  faults anew (ResNet-18 at 64 px on 2 cores: 147 to 152 images/s without this, 169 to 185 with it).
  Call it once, before the first computation; elsewhere it does nothing.
  """
  if jax.default_backend() != 'cpu' or platform.libc_ver()[0] != 'glibc':
    return
  libc = ctypes.CDLL(None)
  arena_max, mmap_threshold, trim_threshold = -8, -3, -1
  libc.mallopt(arena_max, 1)
  libc.mallopt(mmap_threshold, 2**30)
  libc.mallopt(trim_threshold, 2**31 - 1)


def first_process() -> bool:
  """Whether this process writes logs, predictions and reports."""
  return jax.process_index() == 0


def host(tree):
  """A replicated pytree as NumPy arrays."""
  return jax.tree.map(np.asarray, tree)
