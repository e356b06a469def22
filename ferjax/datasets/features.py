"""The features that every data set's builder offers, with the same names and dtypes.

A data set has only the features that it knows. A method declares which of them it needs.
"""

from collections.abc import Sequence

import numpy as np
import tensorflow_datasets as tfds


def face_features(
  classes: Sequence[str],
  *,
  subjects: Sequence[str] = (),
  landmarks: int = 0,
  action_units: int = 0,
  pose: bool = False,
  yaw_bin: bool = False,
  distribution: bool = False,
  fold: bool = False,
) -> tfds.features.FeaturesDict:
  """The features of one face picture.

  Args:
    classes: Class names in label order.
    subjects: Names of the people, in the order of their ids; empty if identities are unknown.
    landmarks: Number of landmarks k, 0 for none.
    action_units: Number of action units a, 0 for none.
    pose: Whether yaw, pitch and roll are known (degrees).
    yaw_bin: Whether a pose class is known: the nearest nominal yaw in whole degrees.
    distribution: Whether label distributions are known (sum 1, in the order of `classes`).
    fold: Whether it is known in which fold each row is tested.

  Returns:
    `image` (encoded bytes), `label`, `name`, and those that the arguments select: `subject` (class
    label), `landmarks` f32[k, 2] (x, y in pixels of the image, pixel centres at integers), `au`
    f32[a] on OpenFace's 0..5 scale, `yaw pitch roll` f32[] in degrees, `yaw_bin` i32[],
    `distribution` f32[C], `fold` i32[].
  """
  features = {
    'image': tfds.features.Image(shape=(None, None, 3)),
    'label': tfds.features.ClassLabel(names=list(classes)),
    'name': tfds.features.Text(),
  }
  if subjects:
    features['subject'] = tfds.features.ClassLabel(names=list(subjects))
  if landmarks:
    features['landmarks'] = tfds.features.Tensor(shape=(landmarks, 2), dtype=np.float32)
  if action_units:
    features['au'] = tfds.features.Tensor(shape=(action_units,), dtype=np.float32)
  if pose:
    for name in ('yaw', 'pitch', 'roll'):
      features[name] = tfds.features.Scalar(dtype=np.float32)
  if yaw_bin:
    features['yaw_bin'] = tfds.features.Scalar(dtype=np.int32)
  if distribution:
    features['distribution'] = tfds.features.Tensor(shape=(len(classes),), dtype=np.float32)
  if fold:
    features['fold'] = tfds.features.Scalar(dtype=np.int32)
  return tfds.features.FeaturesDict(features)


COLUMNS = {  # feature: the columns of a manifest that give it
  'landmarks': 'x_0 ... x_67, y_0 ... y_67',
  'au': 'AU01_r ...',
  'subject': 'subject',
  'pose': 'yaw_bin',
  'yaw_bin': 'yaw_bin',
  'yaw': 'pose_Rx, pose_Ry, pose_Rz',
  'distribution': 'p_<class> or votes_<class>',
}
