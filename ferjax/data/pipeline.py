"""Turns an index plan into batches on the host, with Grain.

A pipeline can be rebuilt from (plan, position) at any time, so its state is never saved.
"""

import atexit
import multiprocessing
import signal
from collections.abc import Iterator, Mapping

import grain
import numpy as np

from ferjax.data import dataset

Batch = dict[str, np.ndarray]


class Planned:
  """Random access to the batches of a plan."""

  def __init__(self, split: dataset.Split, plan: Mapping[str, np.ndarray], columns, size, share):
    self.split, self.plan, self.size, self.share = split, plan, size, share
    self.table = {name: split.table[name] for name in columns}

  def __len__(self) -> int:
    return len(self.plan['index'])

  def __getitem__(self, step: int) -> Batch:
    planned = {name: _narrow(values[step][self.share]) for name, values in self.plan.items()}
    rows = planned['index']
    batch = {
      'image': self._pictures(rows),
      **{name: column[rows] for name, column in self.table.items()},
      **planned,
      'position': np.arange(self.plan['index'].shape[1], dtype=np.int32)[self.share],
    }
    if 'neighbours' in planned:
      batch['neighbour_image'] = self._pictures(planned['neighbours'])
    return batch

  def _pictures(self, rows):
    images = np.empty((*rows.shape, self.size, self.size, 3), np.uint8)
    for place, row in np.ndenumerate(rows):
      images[place] = dataset.picture(self.split, row, self.size)
    return images


def _narrow(values):
  return values.astype(np.int32 if values.dtype.kind in 'iu' else np.float32)


def batches(
  split: dataset.Split,
  plan: Mapping[str, np.ndarray],
  columns: tuple[str, ...],
  size: int,
  *,
  start: int = 0,
  share: slice = slice(None),
  threads: int = 4,
  workers: int = 0,
  prefetch: int = 4,
) -> Iterator[Batch]:
  """Batches of an index plan, beginning at step `start`.

  Args:
    split: The split with the pictures and columns.
    plan: `index` int[steps, b], rows of `split`. Further columns of shape [steps, b, ...] are added
      to the batches. With `neighbours` int[steps, b, m], the pictures of these rows are added too.
    columns: Columns of the split's table to add to the batches.
    size: Picture size in pixels.
    start: The first step.
    share: The rows of every batch to read; `position` is the place in the whole batch.
    threads: Number of threads that read and decode batches.
    workers: Number of processes that read instead, each with `threads` threads; 0 for none.
    prefetch: Number of batches to read in advance.

  Yields:
    `image` u8[b, size, size, 3], the columns, `index` i32[b] (row of the split), `position`
    i32[b] (place in the batch), and `neighbour_image` u8[b, m, size, size, 3] if the plan has
    neighbours.
  """
  batched = grain.MapDataset.source(Planned(split, plan, columns, size, share))[start:]
  options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
  batched = batched.to_iter_dataset(options)
  if workers:
    options = grain.MultiprocessingOptions(num_workers=workers)
    batched = batched.mp_prefetch(options, worker_init_fn=_outlive_signals)
    atexit.unregister(_end_workers)  # register once, whatever the number of iterators
    atexit.register(_end_workers)  # runs before Python ends them with SIGTERM, which they ignore
  return iter(batched)


def _outlive_signals(worker, workers):
  """Ignores the signals of a cluster, which every process gets. The run needs its reading processes
  until it has saved a checkpoint."""
  for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, signal.SIG_IGN)


def _end_workers():
  for child in multiprocessing.active_children():
    if child.daemon:  # others do not belong to this module; Python waits for them
      child.kill()


def in_order(rows: int, batch: int) -> dict[str, np.ndarray]:
  """The plan that visits every row once, in order; `mask` is 0 for the padding of the last batch.

  Args:
    rows: Number of rows.
    batch: Batch size.

  Returns:
    `index` int[steps, batch] and `mask` i32[steps, batch].
  """
  steps = -(-rows // batch)
  index = np.arange(steps * batch)
  mask = index < rows
  return {
    'index': np.where(mask, index, 0).reshape(steps, batch),
    'mask': mask.astype(np.int32).reshape(steps, batch),
  }
