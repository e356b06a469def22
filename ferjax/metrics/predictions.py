"""Predictions for every row of a split, each row exactly once; their metrics and files."""

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jax import Array

from ferjax import files
from ferjax.core import Batch, Method, TrainState, own
from ferjax.data import dataset, pipeline
from ferjax.data.splits import take
from ferjax.distributed.parallel import gather
from ferjax.losses.divergence import jensen_shannon
from ferjax.metrics import classification

AVERAGED = ('acc', 'mean_class_acc', 'f1_macro')


class Predictions(NamedTuple):
  """The predictions of a method for every row of a split, in its order: arrays of n rows by name.

  Attributes:
    outputs: The outputs of the method's `predict`.
    table: The split's own columns, such as `label`, `name`, `yaw_bin`.
  """

  outputs: dict[str, np.ndarray]
  table: dataset.Table

  @property
  def label(self) -> np.ndarray:
    return self.table['label']

  @property
  def prediction(self) -> np.ndarray:
    """int[n]: the class with the highest score."""
    return self.outputs['logits'].argmax(-1)


def predict(
  predict_step: Callable,
  shard: Callable,
  state: TrainState,
  split: dataset.Split,
  columns: tuple[str, ...],
  *,
  image_size: int,
  batch: int,
  limit: int = 0,
  **reading,
) -> Predictions:
  """Predictions for a split. The last batch is padded, and the rows of padding are removed again.

  Args:
    predict_step: Compiled `make_predict_step`.
    shard: `Parallel.shard`.
    state: The training state.
    split: The rows.
    columns: Table columns that the method needs at inference.
    image_size: Picture size in pixels.
    batch: Global batch size.
    limit: Number of rows, from the first; 0 for all.
    **reading: `share threads workers prefetch` of `pipeline.batches`.
  """
  rows = min(limit or len(split.rows), len(split.rows))
  split = take(split, np.arange(rows))
  plan = pipeline.in_order(rows, batch)
  parts = []
  for host_batch in pipeline.batches(split, plan, columns, image_size, **reading):
    parts.append(predict_step(state, shard(host_batch)))
  outputs = {
    name: np.concatenate([np.asarray(part[name]) for part in parts])[:rows] for name in parts[0]
  }
  return Predictions(outputs, split.table)


def probabilities(predictions: Predictions) -> np.ndarray:
  """f64[n, C]: softmax of the logits."""
  from scipy import special  # imported here, so that training starts without it

  return special.softmax(predictions.outputs['logits'].astype(np.float64), axis=1)


def measure(predictions: Predictions, classes: Sequence[str]) -> dict[str, float | None]:
  """Every metric of a split.

  Args:
    predictions: Those of the split.
    classes: The class names.

  Returns:
    `classification.classification` of the logits; `<name>/acc`, `<name>/mean_class_acc` and
    `<name>/f1_macro` of other scores `<name>_logits` (see `truth`); means of the outputs f[n];
    `acc/pose_<degrees>` if there are several poses; and if the true distributions or crowd votes
    are known, `jensen_shannon`, the mean divergence from them (nats).
  """
  values = classification.classification(predictions.outputs['logits'], predictions.label, classes)
  for name, output in predictions.outputs.items():
    if name.endswith('_logits'):
      part = name.removesuffix('_logits')
      label = truth(predictions.table, part)
      known = label >= 0
      if known.any():
        found = classification.classification(output[known], label[known], range(output.shape[1]))
        values |= {f'{part}/{key}': found[key] for key in ('acc', 'mean_class_acc', 'f1_macro')}
    elif output.ndim == 1:
      values[name] = float(output.mean())
  yaw = predictions.table.get('yaw_bin', np.zeros(1))
  degrees = np.unique(yaw)
  if len(degrees) > 1:
    right = predictions.prediction == predictions.label
    values |= {f'acc/pose_{angle}': float(right[yaw == angle].mean()) for angle in degrees}
  if 'distribution' in predictions.table:
    known = predictions.table['distribution'].astype(np.float64)
    values['jensen_shannon'] = float(jensen_shannon(probabilities(predictions), known).mean())
  return values


def averages(
  measured: Mapping[str, Mapping[str, float]], groups: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, float]]:
  """Means over data sets. Each set has the same weight, whatever its size.

  Args:
    measured: {set: the result of `measure`}.
    groups: {group: its sets}.

  Returns:
    {group: `acc mean_class_acc f1_macro`, and `sets`, the number of sets}.
  """
  return {
    group: {
      **{k: float(np.mean([measured[s][k] for s in sets])) for k in AVERAGED},
      'sets': len(sets),
    }
    for group, sets in groups.items()
  }


def truth(table: Mapping[str, np.ndarray], part: str) -> np.ndarray:
  """The true classes i32[n] of the scores `<part>_logits`; negative where they are unknown.

  They are the column `part` if it exists, else the label. Without a column `pose`, all poses are
  unknown.
  """
  unknown = np.full(len(table['label']), -1, np.int32)
  return table.get(part, unknown if part == 'pose' else table['label'])


def write_predictions(path: Path, predictions: Predictions, classes: Sequence[str]) -> None:
  """Writes the columns `name,label,prediction,p_<class>...`, one row for each picture. The file
  appears when it is complete."""
  path.parent.mkdir(parents=True, exist_ok=True)
  shares = probabilities(predictions)
  with files.replacing(path) as file:
    rows = csv.writer(file)
    rows.writerow(('name', 'label', 'prediction', *(f'p_{name}' for name in classes)))
    for name, label, share in zip(
      predictions.table['name'], predictions.label, shares, strict=True
    ):
      rows.writerow(
        (name, classes[label], classes[share.argmax()], *(f'{value:.6g}' for value in share))
      )


def make_predict_step(
  method: Method, prepare: Callable[[Batch], Batch]
) -> Callable[[TrainState, Batch], dict[str, Array]]:
  """A function (state, this device's share of a batch) -> predictions for the whole batch."""

  def predict_step(state, batch):
    return gather(method.predict(own(state.params), state.extra, prepare(batch)))

  return predict_step
