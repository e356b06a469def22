import cv2
import numpy as np
import pytest

from ferjax.metrics import predictions, retrieval
from ferjax.report.figures import embeddings

CLASSES = ('neutral', 'fear', 'anger')


def predicted(rows, seed=0, **columns):
  rng = np.random.default_rng(seed)
  label = np.arange(rows) % 3
  embedding = np.eye(3)[label] @ np.ones((3, 5)) + rng.standard_normal((rows, 5))
  embedding[:, :3] += 3 * np.eye(3)[label]
  outputs = {'logits': np.eye(3)[label], 'embedding': embedding.astype(np.float32)}
  return predictions.Predictions(outputs, {'label': label, **columns})


def test_sheets_and_numbers(tmp_path):
  yaw, subject = np.repeat([-45, 0, 30, 45], 9), np.arange(36) // 3 % 6
  test = predicted(36, yaw_bin=yaw, subject=subject)
  training = predicted(30, seed=1)
  arguments = (tmp_path, {'test': test, 'test/rotation': test}, training, CLASSES)
  found = embeddings.write(*arguments, numbers=True, tsne=30)
  assert set(found) == {'test'}
  values = found['test']
  label, embedding = test.label, test.outputs['embedding']
  neighbours = retrieval.nearest_neighbours(training.outputs['embedding'], embedding, 30)
  voted = retrieval.vote(training.label[neighbours[:, :11]], 3)
  assert values['knn/acc'] == np.mean(voted == label) > 0.8
  assert values['nearest_mean/f1_macro'] > 0.8
  assert list(values['f1_by_neighbours']) == ['1', '3', '5', '7', '11', '15', '21']
  assert values['f1_by_neighbours']['11'] == values['knn/f1_macro']
  assert values['silhouette/expression'] > 0.2 > values['silhouette/pose']
  assert values['silhouette/subject_in_expression'] < 0.2
  assert {'nmi', 'pairwise_f1', 'recall@32', 'acc@1'} <= set(values)
  names = {'tsne_test.png', 'identities_test.png', 'retrieval_test.png'}
  assert {path.name for path in tmp_path.iterdir()} == names
  sizes = {name: cv2.imread(str(tmp_path / name)) for name in names}
  assert all(image.std() > 5 for image in sizes.values())
  assert sizes['tsne_test.png'].shape[1] > 2 * sizes['identities_test.png'].shape[1]
  first = (tmp_path / 'tsne_test.png').read_bytes()
  assert embeddings.write(*arguments, numbers=False, tsne=30)['test'].items() < values.items()
  assert (tmp_path / 'tsne_test.png').read_bytes() == first


@pytest.mark.parametrize('rows', [1, 3, 4, 6])
def test_few_rows_of_one_pose_and_one_subject(rows, tmp_path):
  same = np.zeros(rows, int)
  test = predicted(rows, yaw_bin=same, subject=same)
  values = embeddings.write(tmp_path, {'val': test}, test, CLASSES, numbers=True, tsne=100)['val']
  assert 'silhouette/subject_in_expression' not in values
  assert (tmp_path / 'tsne_val.png').exists() == (rows >= 4)
  assert not (tmp_path / 'identities_val.png').exists()


def test_equal_embeddings_and_embeddings_of_one_number():
  for embedding in (np.zeros((9, 4), np.float32), np.arange(9.0)[:, None]):
    assert np.isfinite(embeddings.plane(embedding)).all()


def test_training_rows_are_not_classified_by_themselves(tmp_path):
  rows = predicted(12)
  values = embeddings.write(tmp_path, {'train': rows}, rows, CLASSES, numbers=True, tsne=0)
  assert 'knn/acc' not in values['train'] and 'recall@1' in values['train']


def test_no_embeddings_no_sheets(tmp_path):
  rows = predicted(12)
  for evaluated in ({}, {'test': rows._replace(outputs={'logits': rows.outputs['logits']})}):
    assert embeddings.write(tmp_path, evaluated, None, CLASSES, numbers=True, tsne=9) == {}
  assert embeddings.write(tmp_path, {'test': rows}, None, CLASSES, numbers=False, tsne=0) == {}
  assert list(tmp_path.iterdir()) == []


def test_sub_classes_have_a_panel_of_their_own(tmp_path):
  """By the likeliest sub-class of the given class, whatever the scores of other classes are."""
  rows = predicted(36)
  posterior = np.zeros((36, 3, 2))
  posterior[:, :, 1] = np.where(np.arange(36) < 18, 1, -1)[:, None]
  widths = {}
  for name, outputs in (('plain', {}), ('split', {'subclass_log_posterior': posterior})):
    outputs = rows.outputs | {key: value.reshape(36, 6) for key, value in outputs.items()}
    test = rows._replace(outputs=outputs)
    embeddings.write(tmp_path / name, {'test': test}, None, CLASSES, numbers=False, tsne=36)
    widths[name] = cv2.imread(str(tmp_path / name / 'tsne_test.png')).shape[1]
  assert widths['split'] > 1.8 * widths['plain']
  groups = embeddings._by_subclass(rows.label, (np.arange(36) < 18).astype(int), CLASSES)
  assert [name for name, *_ in groups][:3] == ['neutral 0', 'neutral 1', 'fear 0']
  assert sum(found.sum() for _, found, *_ in groups) == 36
