"""The only module that knows about devices: where arrays are stored, and how a step runs on
them."""

import collections
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ferjax.errors import InputError, choose

AXIS = 'data'
UNDER_WAY = 3  # steps by which the host may be ahead of the devices


class Parallel(NamedTuple):
  """How to run on the devices of one or several processes.

  Attributes:
    size: Number of devices of all processes together.
    share: (rows of a batch) -> the slice of them that this process reads.
    replicate: Copies a pytree to every device. With several processes, it copies the pytree of the
      first process.
    shard: Splits a pytree of host arrays, this process's share of a batch, over the devices along
      the leading axis.
    compile: (step, donate=()) -> the step on all devices. A step takes a replicated pytree and this
      device's share of a batch, and returns a replicated pytree; inside, `AXIS` is the device axis.
    joined: Converts the results of a step to global arrays over the devices of all processes, as
      checkpoints need them.
    agreement: () -> agree; agree(flag) -> whether the flag of any process was True. All processes
      must call it equally often, and get the same answers. With several processes, answers come
      `UNDER_WAY` calls late, so that the host need not wait for the devices.
  """

  size: int
  share: Callable[[int], slice]
  replicate: Callable[[Any], Any]
  shard: Callable[[Any], Any]
  compile: Callable[..., Callable[[Any, Any], Any]]
  joined: Callable[[Any], Any]
  agreement: Callable[[], Callable[[bool], bool]]


def gather(tree):
  """Concatenates the devices' shares of a pytree along the leading axis, in the order of the
  batch."""
  return jax.tree.map(lambda x: lax.all_gather(x, AXIS, tiled=True), tree)


def mean(tree):
  """The mean of a pytree over the devices. One device has it already; XLA would copy it."""
  return tree if lax.axis_size(AXIS) == 1 else lax.pmean(tree, AXIS)


def example_keys(key, position):
  """One key for each example: `key` folded with the position i32[b] in the global batch."""
  return jax.vmap(jax.random.fold_in, (None, 0))(key, position)


def make(*, devices: int = 0, backend: str = 'pmap') -> Parallel:
  """Factory: config section `parallel`.

  Args:
    devices: Number of devices, equally many in every process; 0 for all.
    backend: `pmap`, or `shard_map` under jit on global arrays. Both give the same numbers.

  Raises:
    InputError: there are fewer devices, the processes cannot use equally many, or the backend is
      unknown.
  """
  choose('config.parallel.backend', backend, ('pmap', 'shard_map'))
  chosen = _choose(devices)
  mesh = Mesh(np.array(chosen), (AXIS,), axis_types=(AxisType.Auto,))
  replicated, split = (NamedSharding(mesh, spec) for spec in (PartitionSpec(), PartitionSpec(AXIS)))
  processes, process = jax.process_count(), jax.process_index()

  def share(batch):
    each = batch // processes
    return slice(process * each, (process + 1) * each)

  def replicate(tree):
    if processes == 1:
      return jax.device_put(tree, replicated)
    plain = jax.tree.map(np.asarray, _without_keys(tree))
    return _with_keys(place(multihost_utils.broadcast_one_to_all(plain), replicated))

  def joined(tree):
    if processes == 1:
      return tree
    plain = _without_keys(tree)
    return _with_keys(
      multihost_utils.host_local_array_to_global_array(plain, mesh, PartitionSpec())
    )

  if backend == 'pmap':

    def shard(tree):
      each = len(chosen) // processes
      return jax.tree.map(lambda x: x.reshape(each, -1, *x.shape[1:]), tree)

    def compile(step, donate=()):
      options = {'axis_name': AXIS, 'in_axes': (None, 0), 'out_axes': None}
      options |= {'devices': chosen, 'donate_argnums': donate}
      if processes == 1:
        return jax.pmap(step, **options)
      # With several processes, pmap copies keys to the host, and so waits for every step.
      mapped = jax.pmap(lambda tree, batch: _without_keys(step(_with_keys(tree), batch)), **options)
      return lambda tree, batch: _with_keys(mapped(_without_keys(tree), batch))

  else:

    def shard(tree):
      return jax.tree.map(lambda x: jax.make_array_from_process_local_data(split, x), tree)

    def compile(step, donate=()):
      mapped = jax.shard_map(
        step,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec(AXIS)),
        out_specs=PartitionSpec(),
        check_vma=False,
      )
      return jax.jit(mapped, donate_argnums=donate)

  def agreement():
    if processes == 1:
      return bool
    anyone = compile(lambda _, flags: lax.pmax(flags, AXIS).max())
    pending = collections.deque()

    def agree(flag):
      pending.append(anyone((), shard(np.full(len(chosen) // processes, flag, np.int32))))
      return len(pending) > UNDER_WAY and bool(pending.popleft())

    return agree

  return Parallel(len(chosen), share, replicate, shard, compile, joined, agreement)


def _choose(devices):
  """The devices to use, sorted by process."""
  available = sorted(jax.devices(), key=lambda device: device.process_index)
  if devices > len(available):
    raise InputError(
      f'config.parallel.devices={devices}, but JAX sees {len(available)}: {available}'
    )
  processes = jax.process_count()
  if devices % processes:
    raise InputError(
      f'config.parallel.devices={devices} cannot be shared evenly by {processes} processes'
    )
  of_process = [[d for d in available if d.process_index == i] for i in range(processes)]
  counts = {len(own) for own in of_process}
  if len(counts) > 1:
    raise InputError(
      f'the processes have different numbers of devices, {sorted(counts)}: start each process with '
      'the same number'
    )
  return [d for own in of_process for d in own[: devices // processes or len(own)]]


def place(tree, sharding):
  """Puts host arrays on devices. Every process must have the arrays as a whole.

  Args:
    tree: A pytree of NumPy arrays.
    sharding: A sharding, or a pytree of shardings.
  """

  def put(x, sharding):
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

  if isinstance(sharding, jax.sharding.Sharding):
    return jax.tree.map(lambda x: put(x, sharding), tree)
  return jax.tree.map(put, tree, sharding)


@flax.struct.dataclass
class _Key:
  """The data of a random key, which can be copied between processes."""

  data: Any


def _is_key(leaf):
  return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _without_keys(tree):
  return jax.tree.map(lambda x: _Key(jax.random.key_data(x)) if _is_key(x) else x, tree)


def _with_keys(tree):
  def key(leaf):
    return jax.random.wrap_key_data(leaf.data) if isinstance(leaf, _Key) else leaf

  return jax.tree.map(key, tree, is_leaf=lambda leaf: isinstance(leaf, _Key))


def check_batch(batch: int, devices: int) -> None:
  """Checks that a batch can be split evenly over the devices.

  Raises:
    InputError: it cannot. The message gives the nearest batch sizes that fit.
  """
  if batch < 1 or batch % devices:
    below = batch // devices * devices
    sizes = [str(size) for size in (below, below + devices) if size > 0]
    raise InputError(
      f'config.batch={batch} cannot be split evenly over {devices} devices; '
      f'the nearest valid sizes are {" and ".join(sizes)}'
    )


def first_process() -> bool:
  """Whether this process writes logs, predictions and reports."""
  return jax.process_index() == 0


def local(tree):
  """The copy of a replicated pytree on the first device of this process."""
  return jax.tree.map(lambda x: x.addressable_data(0), tree)


def host(tree):
  """A replicated pytree as NumPy arrays."""
  return jax.tree.map(np.asarray, tree)
