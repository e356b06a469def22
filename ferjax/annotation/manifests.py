"""Adds columns to manifests: annotations of other tools, people by clustering, pose classes.

A manifest is a CSV of pictures and labels; `datasets/manifest/README.md` describes its columns.
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
MOST_ROWS = 20_000  # the most rows for clustering, which compares all pairs
DML_NET_POSES = (-45, -30, -15, 0, 15, 30, 45)


class Table(NamedTuple):
  """A manifest as text.

  Attributes:
    folder: The folder from which its paths start.
    header: Names of the columns.
    rows: {column: text}, in order.
  """

  folder: Path
  header: list[str]
  rows: list[dict[str, str]]


def read(path: Path) -> Table:
  """The rows of a manifest, unchanged, or of a folder with a sub-folder for each class.

  Raises:
    InputError: there is no such file or folder, or it is neither.
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
      raise InputError(f"{path} has no column '{name}', which a manifest needs: add it")
  for line, record in records:
    if parser.SURPLUS in record:
      raise InputError(f'{path}, line {line}: more fields than the header has columns')
  return Table(path.parent, header, [record for _, record in records])


def write(path: Path, table: Table) -> None:
  """Writes a manifest with paths relative to its own folder.

  Raises:
    InputError: a picture is not below that folder, or there are no rows.
  """
  path = Path(path)
  if not table.rows:
    raise InputError(f'nothing to write to {path}: no row is left')
  files.check_out(path)
  between = os.path.relpath(table.folder.resolve(), path.parent.resolve())
  with files.replacing(path) as file:
    lines = csv.writer(file)
    lines.writerow(table.header)
    for row in table.rows:
      place = os.path.normpath(os.path.join(between, row['path'])).replace(os.sep, '/')
      if place.startswith('../'):
        raise InputError(
          f'--out={path}: {table.folder / row["path"]} is not below the folder of the manifest: '
          f'write the manifest to {table.folder}, or to a folder above'
        )
      lines.writerow([place if name == 'path' else row[name] for name in table.header])


def annotate(pictures: Path, out: Path, found: tools.Annotations) -> str:
  """Writes a manifest of the pictures that are annotated.

  Args:
    pictures: A manifest, whose columns are kept, or a folder with a sub-folder for each class.
    out: The manifest to write.
    found: See `tools.read`. Its columns replace those of the same kind in `pictures`.

  Returns:
    A summary of the rows and of what was left out.

  Raises:
    InputError: see `read` and `write`; also if a picture is listed twice, or none is annotated.
  """
  table = read(pictures)
  names = [row['path'] for row in table.rows]
  repeated = [name for name, count in Counter(names).items() if count > 1]
  if repeated:
    raise InputError(
      f'{pictures}: {repeated[0]} is listed {Counter(names)[repeated[0]]} times: keep one of these '
      'rows'
    )
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
      'An annotation must have the name of its picture, without the ending'
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
  """int[n]: the nearest of `poses` to yaws f[n], degrees. In a tie, it is the one nearer to 0."""
  ordered = np.array(sorted(poses, key=lambda pose: (abs(pose), pose)))
  return ordered[np.abs(yaw[:, None] - ordered).argmin(1)]


def add_poses(manifest: Path, out: Path, poses: Sequence[int] = DML_NET_POSES) -> str:
  """Writes a manifest with the pose class `yaw_bin` of each row, the nearest to its yaw `pose_Ry`.

  DML-Net labels the yaws of SFEW with a network and then corrects them by hand. It has seven
  classes but does not list them; -45 to 45 in steps of 15 are ours.

  Args:
    manifest: A manifest with `pose_Ry`, radians, positive if the nose points to the right of the
      picture.
    out: The manifest to write.
    poses: Pose classes, whole degrees. Edges are half-way between them; yaws beyond the outermost
      class belong to it. Rows without a yaw are left out.

  Returns:
    A summary with the edges, the number of rows and the range of yaws of each class.

  Raises:
    InputError: see `read` and `write`; also if there are fewer than two classes, there is no column
      `pose_Ry`, or yaws are in degrees.
  """
  poses = tuple(sorted(set(poses)))
  if len(poses) < 2 or any(abs(pose) > 180 for pose in poses):
    raise InputError(f'--bins={poses}: give at least two different ones, in whole degrees')
  table = read(manifest)
  if 'pose_Ry' not in table.header:
    raise InputError(
      f"{manifest} has no column 'pose_Ry' (yaw in radians): add it with ferjax prepare annotations"
    )
  yaw = np.array([_float(row['pose_Ry']) for row in table.rows])
  if (np.abs(yaw) > np.pi).any():
    row = int(np.flatnonzero(np.abs(yaw) > np.pi)[0])
    raise InputError(
      f'{manifest}: pose_Ry of {table.rows[row]["path"]} is {yaw[row]:g}, which is more than half '
      'a turn: give it in radians'
    )
  known = np.flatnonzero(np.isfinite(yaw))
  degrees = np.degrees(yaw[known])
  binned = nearest_pose(degrees, poses)
  header = [*(name for name in table.header if name != 'yaw_bin'), 'yaw_bin']
  rows = [table.rows[row] | {'yaw_bin': str(pose)} for row, pose in zip(known, binned, strict=True)]
  write(out, Table(table.folder, header, rows))
  edges = [-180.0, *((a + b) / 2 for a, b in zip(poses, poses[1:], strict=False)), 180.0]
  lines = [f'{out}: {len(rows)} rows by yaw, degrees, positive if the nose points to the right']
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
    embedding: f[n, d], from a network for face recognition, without rows of zeros.
    people: Number of groups, if it is known.
    threshold: Otherwise the mean cosine distance up to which two groups are joined, 0..2.

  Returns:
    int[n], numbers of groups: 0 is the largest; among equal ones, that with the earliest row comes
    first.
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
  """Writes a manifest with the `subject` of each row, from clusters of face embeddings.

  DML-Net labels the people of SFEW in this way, with embeddings of FaceNet, and then corrects them
  by hand. The embeddings must distinguish people independently of expression and pose; those of an
  expression network do not.

  Args:
    manifest: The manifest to read.
    out: The manifest to write.
    embeddings: `.npy` f[n, d] in the order of the rows, or `.npz` with `embedding` f[m, d] and
      `path` str[m] as in the manifest, in any order. Rows without an embedding are left out.
    people, threshold: See `cluster`; give one of them.

  Returns:
    A summary with the sizes of the clusters, and the number of people in several splits.

  Raises:
    InputError: see `read` and `write`; also if the embeddings do not fit, or neither or both of
      `people` and `threshold` are given.
  """
  if (people is None) == (threshold is None):
    raise InputError(
      'give one of --people=N, if their number is known, and --threshold=DISTANCE (cosine '
      'distance: networks for face recognition distinguish people at about 0.5 to 0.7)'
    )
  if threshold is not None and not 0 < threshold <= 2:
    raise InputError(f'--threshold={threshold}: give a cosine distance above 0, at most 2')
  table = read(manifest)
  paths = [row['path'] for row in table.rows]
  known, embedding = _embeddings(Path(embeddings), paths)
  if len(known) > MOST_ROWS:
    raise InputError(
      f'{len(known)} rows: clustering compares all pairs of at most {MOST_ROWS} rows. Cluster '
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
    lines.append(f'  people in several splits, which training does not accept: {shared}')
  if 'subject' in table.header:
    lines.append('replaced: subject')
  if len(rows) < len(table.rows):
    lines.append(f'left out, without an embedding: {len(table.rows) - len(rows)}')
  return '\n'.join([*lines, 'Check the clusters and correct them before you use them.'])


def _embeddings(path: Path, paths: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
  """The rows int[m] that have an embedding, and their embeddings f[m, d]."""
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
        f'{path} has {len(embedding)} embeddings, but the manifest has {len(paths)} rows: give one '
        'for each row, in order, or .npz with the paths'
      )
    rows = np.arange(len(paths))
  else:
    if len(names) != len(embedding) or len(set(names)) != len(names):
      raise InputError(
        f'{path} has {len(names)} paths for {len(embedding)} embeddings: give each embedding a '
        'path, and each path once'
      )
    place = {name: number for number, name in enumerate(names)}
    rows = np.array([row for row, name in enumerate(paths) if name in place], int)
    if not len(rows):
      raise InputError(
        f'{path}: none of its paths is in the manifest. It has {names[0]}, for example, and the '
        f'manifest {paths[0]}'
      )
    embedding = embedding[[place[paths[row]] for row in rows]]
  length = np.linalg.norm(embedding.astype(np.float64), axis=1)
  wrong = np.flatnonzero(~np.isfinite(length) | (length == 0))
  if len(wrong):
    raise InputError(
      f'{path}: {len(wrong)} embeddings are zero or not finite, such as that of '
      f'{paths[rows[wrong[0]]]}: leave these rows out'
    )
  return rows, embedding
