"""Makes manifests of what is known: annotations of other tools, people by clustering, pose classes.

A manifest is a CSV of pictures and labels; `data/manifest/README.md` says its columns.
"""

import csv
import os
import re
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn.cluster import AgglomerativeClustering
from threadpoolctl import threadpool_limits

from ferjax import files
from ferjax.annotation import tools
from ferjax.datasets import listing
from ferjax.datasets.folder import parser as folders
from ferjax.datasets.listing import Problem
from ferjax.datasets.manifest import parser
from ferjax.errors import InputError

KINDS = {'landmarks': r'[xy]_\d+', 'action units': r'AU\d+_r', 'pose': r'pose_R[xyz]'}
MOST_ROWS = 20_000  # of which all pairs are compared
DML_NET_POSES = (-45, -30, -15, 0, 15, 30, 45)


class Table(NamedTuple):
  """A manifest as text.

  Attributes:
    folder: Where its paths start.
    header: Names of the columns.
    rows: {column: text}, in order.
  """

  folder: Path
  header: list[str]
  rows: list[dict[str, str]]


def read(path: Path) -> Table:
  """The rows of a manifest as they stand, or of a folder with one sub-folder a class.

  Raises:
    InputError: no such file or folder, or it is neither.
  """
  path = Path(path)
  if path.is_dir():
    found = folders.parse(path)
    header = ['path', 'split', 'label']
    return Table(path, header, [{name: row[name] for name in header} for row in found.rows])
  if not path.is_file():
    raise InputError(f'no such manifest or folder of pictures: {path}')
  header, records = parser.read_csv(path)
  for name in ('path', 'split', 'label'):
    if name not in header:
      raise InputError(f"{path} has no column '{name}', as a manifest has")
  for line, record in records:
    if parser.SURPLUS in record:
      raise InputError(f'{path}, line {line}: more fields than the header has columns')
  return Table(path.parent, header, [record for _, record in records])


def write(path: Path, table: Table) -> None:
  """Writes a manifest, its paths relative to its own folder.

  Raises:
    InputError: a picture does not lie below that folder, or there are no rows.
  """
  path = Path(path)
  if not table.rows:
    raise InputError(f'nothing to write to {path}: no row is left')
  if not path.parent.is_dir():
    raise InputError(f'--out={path}: there is no folder {path.parent}')
  between = os.path.relpath(table.folder.resolve(), path.parent.resolve())
  with files.replacing(path) as file:
    lines = csv.writer(file)
    lines.writerow(table.header)
    for row in table.rows:
      place = os.path.normpath(os.path.join(between, row['path'])).replace(os.sep, '/')
      if place.startswith('../'):
        raise InputError(
          f'--out={path}: {table.folder / row["path"]} does not lie below the folder of the '
          f'manifest: write it to {table.folder}, or above'
        )
      lines.writerow([place if name == 'path' else row[name] for name in table.header])


def annotate(pictures: Path, out: Path, found: tools.Annotations) -> str:
  """Writes a manifest of the pictures that are annotated.

  Args:
    pictures: A manifest, whose columns stay, or a folder with one sub-folder a class.
    out: The manifest to write.
    found: See `tools.read`. Columns of a kind that it brings replace those of `pictures`.

  Returns:
    What was done and left out.

  Raises:
    InputError: see `read` and `write`; a picture that stands twice; no picture is annotated.
  """
  table = read(pictures)
  names = [row['path'] for row in table.rows]
  repeated = [name for name, count in Counter(names).items() if count > 1]
  if repeated:
    raise InputError(f'{pictures}: {repeated[0]} stands there {Counter(names)[repeated[0]]} times')
  of_picture, problems = tools.by_picture(found.faces, names)
  problems = [*found.problems, *problems]
  problems += [
    Problem(0, 'picture without an annotation, left out', name)
    for name in names
    if name not in of_picture
  ]
  if not of_picture:
    raise InputError(
      f'no picture of {pictures} is annotated:\n{listing.report(problems)}\n'
      'Annotations are found by the names of the pictures, without their endings'
    )
  new = list(next(iter(of_picture.values())).values)
  kinds = {kind for kind, names in KINDS.items() if any(re.fullmatch(names, n) for n in new)}
  replaced = [n for n in table.header if any(re.fullmatch(KINDS[kind], n) for kind in kinds)]
  header = [name for name in table.header if name not in replaced] + new
  rows = [
    row | {name: f'{round(value, 5):.9g}' for name, value in of_picture[row['path']].values.items()}
    for row in table.rows
    if row['path'] in of_picture
  ]
  write(out, Table(table.folder, header, rows))
  lines = [f'{out}: {len(rows)} of {len(table.rows)} pictures, with {", ".join(sorted(kinds))}']
  counts = {kind: sum(bool(re.fullmatch(KINDS[kind], n)) for n in new) for kind in kinds}
  if 'landmarks' in counts:
    lines[0] += f' ({counts["landmarks"] // 2} points)'
  if 'action units' in counts:
    lines[0] += f' ({counts["action units"]} action units)'
  if replaced:
    lines.append(f'replaced: {len(replaced)} columns, {replaced[0]} to {replaced[-1]}')
  lines += found.remarks
  return '\n'.join([*lines, *([listing.report(problems)] if problems else [])])


def nearest_pose(yaw: np.ndarray, poses: Sequence[int]) -> np.ndarray:
  """int[n]: the nearest of `poses` to yaws f[n], degrees; of two the one that is turned less."""
  ordered = np.array(sorted(poses, key=lambda pose: (abs(pose), pose)))
  return ordered[np.abs(yaw[:, None] - ordered).argmin(1)]


def add_poses(manifest: Path, out: Path, poses: Sequence[int] = DML_NET_POSES) -> str:
  """Writes a manifest with the pose class `yaw_bin` of each row, the nearest to its yaw `pose_Ry`.

  DML-Net labels SFEW's yaws by a network and then corrects them by hand; it has seven classes,
  which it does not list: -45 to 45 by 15 are ours.

  Args:
    manifest: With `pose_Ry`, radians, above 0 where the nose points to the right of the picture.
    out: The manifest to write.
    poses: Pose classes, whole degrees. Edges lie half-way; what is beyond the outermost belongs to
      it. Rows without a yaw are left out.

  Returns:
    What was done: of each class its edges, rows, and the yaws that it has.

  Raises:
    InputError: see `read` and `write`; fewer than two classes, no column `pose_Ry`, yaws that are
      degrees.
  """
  poses = tuple(sorted(set(poses)))
  if len(poses) < 2 or any(abs(pose) > 180 for pose in poses):
    raise InputError(f'--bins={poses}: at least two different ones, in whole degrees')
  table = read(manifest)
  if 'pose_Ry' not in table.header:
    raise InputError(
      f"{manifest} has no column 'pose_Ry' (yaw in radians): add it with ferjax prepare annotations"
    )
  yaw = np.array([_float(row['pose_Ry']) for row in table.rows])
  if (np.abs(yaw) > np.pi).any():
    row = int(np.flatnonzero(np.abs(yaw) > np.pi)[0])
    raise InputError(
      f'{manifest}: pose_Ry of {table.rows[row]["path"]} is {yaw[row]:g}, which is more than a '
      'half turn: it must be in radians'
    )
  known = np.flatnonzero(np.isfinite(yaw))
  degrees = np.degrees(yaw[known])
  binned = nearest_pose(degrees, poses)
  header = [*(name for name in table.header if name != 'yaw_bin'), 'yaw_bin']
  rows = [table.rows[row] | {'yaw_bin': str(pose)} for row, pose in zip(known, binned, strict=True)]
  write(out, Table(table.folder, header, rows))
  edges = [-180.0, *((a + b) / 2 for a, b in zip(poses, poses[1:], strict=False)), 180.0]
  lines = [f'{out}: {len(rows)} rows by yaw, degrees, above 0 where the nose points to the right']
  for pose, low, high in zip(poses, edges, edges[1:], strict=False):
    of = degrees[binned == pose]
    seen = f', yaws {of.min():.1f} to {of.max():.1f}' if len(of) else ''
    lines.append(f'  {pose:4d} ({low:g} to {high:g}): {len(of)} rows{seen}')
  if 'yaw_bin' in table.header:
    lines.append('replaced: yaw_bin')
  if len(rows) < len(table.rows):
    lines.append(f'left out, without a yaw: {len(table.rows) - len(rows)}')
  return '\n'.join(lines)


def _float(text: str) -> float:
  try:
    return float(text)
  except ValueError:
    return np.nan


def cluster(
  embedding: np.ndarray, people: int | None = None, threshold: float | None = None
) -> np.ndarray:
  """Groups face embeddings by average linkage of cosine distances.

  Args:
    embedding: f[n, d], of a network for face recognition; no row of zeros.
    people: How many groups, if that is known.
    threshold: Else the mean cosine distance up to which two groups are joined, 0..2.

  Returns:
    int[n], the largest group 0, of equal ones the one whose first row comes first.
  """
  unit = embedding.astype(np.float64)
  unit /= np.linalg.norm(unit, axis=1, keepdims=True)
  if len(unit) == 1:
    return np.zeros(1, int)
  method = AgglomerativeClustering(
    n_clusters=people, distance_threshold=threshold, metric='cosine', linkage='average'
  )
  with threadpool_limits(1):
    found = method.fit_predict(unit)
  _, first, place, rows = np.unique(
    found, return_index=True, return_inverse=True, return_counts=True
  )
  return np.argsort(np.lexsort((first, -rows)))[place]


def add_subjects(
  manifest: Path,
  out: Path,
  embeddings: Path,
  people: int | None = None,
  threshold: float | None = None,
) -> str:
  """Writes a manifest with `subject` of each row, from clusters of face embeddings.

  DML-Net labels SFEW's people so, with FaceNet's embeddings, and then corrects them by hand. It
  assumes that the embeddings tell people apart whatever their expression and pose; an expression
  network's do not.

  Args:
    manifest: The manifest.
    out: The one to write.
    embeddings: `.npy` f[n, d] in the order of its rows, or `.npz` with `embedding` f[m, d] and
      `path` str[m] as in the manifest, in any order. Rows without one are left out.
    people, threshold: See `cluster`; one of them.

  Returns:
    What was done: the sizes of the clusters, and how many stand in two splits.

  Raises:
    InputError: see `read` and `write`; embeddings that do not fit; neither or both of `people` and
      `threshold`.
  """
  if (people is None) == (threshold is None):
    raise InputError(
      'say one of --people=N, if it is known how many there are, and --threshold=DISTANCE (cosine '
      'distance: networks for face recognition tell people apart at about 0.5 to 0.7)'
    )
  if threshold is not None and not 0 < threshold <= 2:
    raise InputError(f'--threshold={threshold}: a cosine distance lies between 0 and 2')
  table = read(manifest)
  paths = [row['path'] for row in table.rows]
  known, embedding = _embeddings(Path(embeddings), paths)
  if len(known) > MOST_ROWS:
    raise InputError(
      f'{len(known)} rows: clustering compares all pairs, of at most {MOST_ROWS} rows. Cluster '
      'parts of the manifest that have no person in common, such as one film each'
    )
  if people is not None and not 1 <= people <= len(known):
    raise InputError(f'--people={people}: there are {len(known)} rows with an embedding')
  group = cluster(embedding, people, threshold)
  digits = len(str(group.max()))
  header = [*(name for name in table.header if name != 'subject'), 'subject']
  rows = [
    table.rows[row] | {'subject': f'cluster{number:0{digits}}'}
    for row, number in zip(known, group, strict=True)
  ]
  write(out, Table(table.folder, header, rows))
  sizes = np.bincount(group)
  shown = ', '.join(map(str, sizes[:10])) + (', ...' if len(sizes) > 10 else '')
  lines = [f'{out}: {len(rows)} rows of {len(sizes)} people; rows of each: {shown}']
  lines.append(f'  median {np.median(sizes):g}, people with one row: {(sizes == 1).sum()}')
  splits = {}
  for row in rows:
    split = parser.SPLITS.get(row['split'].strip().lower(), row['split'])
    splits.setdefault(row['subject'], set()).add(split)
  shared = sum(len(found) > 1 for found in splits.values())
  if shared:
    lines.append(f'  people in several splits, which training refuses: {shared}')
  if 'subject' in table.header:
    lines.append('replaced: subject')
  if len(rows) < len(table.rows):
    lines.append(f'left out, without an embedding: {len(table.rows) - len(rows)}')
  return '\n'.join([*lines, 'Look through the clusters and correct them before you use them.'])


def _embeddings(path: Path, paths: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
  """Rows int[m] that have an embedding, and their embeddings f[m, d]."""
  layout = f'{path}: give .npy f[n, d], or .npz with embedding f[n, d] and path str[n]'
  try:
    with path.open('rb') as file:
      stored = np.load(file, allow_pickle=False)
      if isinstance(stored, np.ndarray):
        embedding, names = stored, None
      else:
        embedding, names = stored['embedding'], [str(name) for name in stored['path']]
  except OSError as error:
    raise InputError(f'cannot read {path}: {error.strerror or error}') from error
  except (KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
    raise InputError(f'{layout} ({error})') from error
  if embedding.ndim != 2 or embedding.dtype.kind != 'f':
    raise InputError(f'{layout}; it has {embedding.dtype}{list(embedding.shape)}')
  if names is None:
    if len(embedding) != len(paths):
      raise InputError(
        f'{path} has {len(embedding)} embeddings, and the manifest {len(paths)} rows: give one for '
        'each row, in order, or .npz with the paths'
      )
    rows = np.arange(len(paths))
  else:
    if len(names) != len(embedding) or len(set(names)) != len(names):
      raise InputError(f'{path}: {len(names)} paths, each once, for {len(embedding)} embeddings')
    place = {name: number for number, name in enumerate(names)}
    rows = np.array([row for row, name in enumerate(paths) if name in place], int)
    if not len(rows):
      raise InputError(
        f'{path}: none of its paths is one of the manifest, such as {names[0]} and {paths[0]}'
      )
    embedding = embedding[[place[paths[row]] for row in rows]]
  length = np.linalg.norm(embedding.astype(np.float64), axis=1)
  wrong = np.flatnonzero(~np.isfinite(length) | (length == 0))
  if len(wrong):
    raise InputError(
      f'{path}: the embedding of {paths[rows[wrong[0]]]} is zero or not finite, as {len(wrong)} are'
    )
  return rows, embedding
