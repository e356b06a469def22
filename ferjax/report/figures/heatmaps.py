"""Where a trained network looks: response heatmaps and Grad-CAM of original and distorted pictures.

The response is the mean of the absolute values of the last feature map over its channels. Grad-CAM
is by Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
Localization", ICCV 2017. The sheets are laid out as in HRL (2022), figures 8 to 11.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ferjax.core import Batch, Method
from ferjax.images import augment
from ferjax.ops.cells import PIXELS, Cells, resample


class Looks(NamedTuple):
  """Where a network looks in n pictures, each in v views.

  Attributes:
    views: Names; '' is the original.
    image: f[v, n, s, s, 3], RGB within 0..1.
    maps: {'response', 'grad_cam'}: f[v, n, h, w], at least 0; Grad-CAM is that of the predicted
      class, and only there for a method with logits.
    prediction: i[v, n], or None without logits.
    label: i[n].
    split: Name of the split of the pictures.
    cells: Where the cells of the maps look in the pictures.
  """

  views: tuple[str, ...]
  image: np.ndarray
  maps: dict[str, np.ndarray]
  prediction: np.ndarray | None
  label: np.ndarray
  split: str
  cells: Cells


def some_of_each_class(label: np.ndarray, count: int) -> np.ndarray:
  """int[<= count]: random rows with a fixed seed; one of every class comes before a second one."""
  order = np.random.default_rng(0).permutation(len(label))
  turn = np.zeros(len(label), int)
  for name in np.unique(label):
    of_class = np.flatnonzero(label[order] == name)
    turn[of_class] = np.arange(len(of_class))
  return order[np.lexsort((label[order], turn))][:count]


def look(
  method: Method,
  params: Any,
  extra: Any,
  batch: Mapping[str, np.ndarray],
  views: Mapping[str, Callable[[Batch], Batch]],
  split: str,
  cells: Cells,
) -> Looks | None:
  """Runs the network on every view of a batch at once.

  Args:
    method: The method.
    params, extra: Its parameters and other state, on the host.
    batch: n rows of the input pipeline.
    views: By name, functions that normalise (and distort) the pictures of a batch.
    split: Name of the split of the rows.
    cells: Where the cells of the network's last map look.

  Returns:
    The looks; None if the predictions of the method have no `last_map`.
  """

  @jax.jit
  def run(params, extra, batch):
    seen = [view(batch) for view in views.values()]
    joined = {name: jnp.concatenate([one[name] for one in seen]) for name in seen[0]}

    def score(delta):
      outputs = method.predict(params, extra, joined, delta)
      return outputs['logits'].max(-1).sum() if 'logits' in outputs else 0.0, outputs

    _, shapes = jax.eval_shape(score, jnp.zeros(()))
    if 'last_map' not in shapes:
      return None
    delta = jnp.zeros(shapes['last_map'].shape, shapes['last_map'].dtype)
    gradient, outputs = jax.grad(score, has_aux=True)(delta)
    last_map = outputs['last_map']
    maps, prediction = {'response': jnp.abs(last_map).mean(-1)}, None
    if 'logits' in outputs:
      weight = gradient.mean((1, 2), keepdims=True)
      maps['grad_cam'] = jax.nn.relu((weight * last_map).sum(-1))
      prediction = outputs['logits'].argmax(-1)
    image = joined['image'] * jnp.array(augment.STDDEV) + jnp.array(augment.MEAN)
    return jnp.clip(image, 0, 1), maps, prediction

  found = run(params, extra, dict(batch))
  if found is None:
    return None
  rows = len(batch['label'])
  image, maps, prediction = jax.tree.map(
    lambda x: np.asarray(x, np.float64).reshape(len(views), rows, *x.shape[1:]), found
  )
  prediction = prediction if prediction is None else prediction.astype(int)
  return Looks(tuple(views), image, maps, prediction, np.asarray(batch['label']), split, cells)


TITLES = {'response': 'feature response', 'grad_cam': 'Grad-CAM of the predicted class'}


def write(folder: Path, looks: Looks, classes: Sequence[str]) -> None:
  """PNG sheets `response.png` and `grad_cam.png`: each view of a picture, and its map over it."""
  for name, maps in looks.maps.items():
    _sheet(folder / f'{name}.png', looks, maps, classes, f'{looks.split}: {TITLES[name]}')


def _sheet(path, looks, maps, classes, title):
  from matplotlib.figure import Figure  # here, so that training starts without it

  from ferjax.report.figures import plots

  views, rows = maps.shape[:2]
  figure = Figure(figsize=(2.5 * views + 0.8, 1.38 * rows + 0.6))
  figure.suptitle(f'{title}; each map on its own scale', fontsize=10, y=0.96)
  grid = figure.add_gridspec(
    rows, 3 * views - 1, width_ratios=((1, 1, 0.12) * views)[:-1], wspace=0.04, hspace=0.22
  )
  each = maps.reshape(-1, *maps.shape[2:], 1).astype(np.float32)
  over_picture = resample(each, looks.cells, looks.image.shape[2:4], PIXELS)
  over_picture = np.asarray(over_picture).reshape(looks.image.shape[:4])
  for view in range(views):
    for row in range(rows):
      picture = figure.add_subplot(grid[row, 3 * view])
      picture.imshow(looks.image[view, row])
      mapped = figure.add_subplot(grid[row, 3 * view + 1])
      mapped.imshow(looks.image[view, row])
      low, high = maps[view, row].min(), maps[view, row].max()
      mapped.imshow(
        (over_picture[view, row] - low) / max(high - low, 1e-12),
        cmap='turbo',
        alpha=0.5,
        vmin=0,
        vmax=1,
      )
      for axes in (picture, mapped):
        axes.set_xticks(())
        axes.set_yticks(())
      if row == 0:
        picture.set_title(looks.views[view] or 'original', fontsize=9, loc='left', pad=14)
      if view == 0:
        picture.set_ylabel(classes[looks.label[row]], fontsize=8)
      if looks.prediction is not None:
        prediction = looks.prediction[view, row]
        colour = 'black' if prediction == looks.label[row] else 'tab:red'
        mapped.set_title(f'predicted: {classes[prediction]}', fontsize=7, pad=2, color=colour)
  plots.save(path, figure)
