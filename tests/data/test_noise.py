import numpy as np
import pytest

from ferjax import labels
from ferjax.data import noise
from ferjax.errors import InputError

LABEL = np.arange(70_000, dtype=np.int32) % 7
NAMES = [f'a/{i}.jpg' for i in range(14)]


def test_symmetric_noise_has_its_rate_and_spares_no_class():
  noisy = noise.symmetric(LABEL, 0.3, 7, seed=1)
  assert noisy.dtype == np.int32
  assert abs((noisy != LABEL).mean() - 0.3) < 0.01
  wrong = noisy[(LABEL == 2) & (noisy != LABEL)]
  counts = np.bincount(wrong, minlength=7)
  assert counts[2] == 0 and counts[[0, 1, 3, 4, 5, 6]].min() > 0.8 * len(wrong) / 6
  np.testing.assert_array_equal(noisy, noise.symmetric(LABEL, 0.3, 7, seed=1))


def test_asymmetric_noise_goes_to_the_confused_class():
  noisy = noise.asymmetric(LABEL, 0.2, labels.CLASSES, seed=0)
  for name, other in labels.CONFUSED_WITH.items():
    if name in labels.CLASSES:
      rows = LABEL == labels.CLASSES.index(name)
      assert set(noisy[rows]) == {labels.CLASSES.index(name), labels.CLASSES.index(other)}
  assert abs((noisy != LABEL).mean() - 0.2) < 0.01
  with pytest.raises(InputError, match='fear'):
    noise.asymmetric(LABEL, 0.2, ('neutral', 'sadness', 'fear'), 0)


def test_written_labels_are_read_back(tmp_path):
  clean = LABEL[:14]
  noisy = noise.symmetric(clean, 0.5, 7, 0)
  noise.write(tmp_path / 'noise.csv', NAMES, noisy, clean, labels.CLASSES)
  read = noise.read(tmp_path / 'noise.csv', NAMES, clean, labels.CLASSES)
  np.testing.assert_array_equal(read, noisy)
  assert [p.name for p in tmp_path.iterdir()] == ['noise.csv']


def test_classes_named_by_numbers_are_read_back(tmp_path):
  clean, classes = LABEL[:14] % 3, ('7', '1', '2')
  noisy = noise.symmetric(clean, 0.5, 3, 0)
  noise.write(tmp_path / 'noise.csv', NAMES, noisy, clean, classes)
  np.testing.assert_array_equal(noise.read(tmp_path / 'noise.csv', NAMES, clean, classes), noisy)
  (tmp_path / 'list.txt').write_text('0.jpg 1\n')
  read = noise.read(tmp_path / 'list.txt', NAMES, clean, classes, label_order=('2', '7', '1'))
  assert read[0] == classes.index('7')


def test_a_name_may_occur_twice_with_the_same_label(tmp_path):
  (tmp_path / 'list.txt').write_text('0.jpg anger\na/0.jpg angry\n')
  read = noise.read(tmp_path / 'list.txt', NAMES, LABEL[:14], labels.CLASSES)
  assert read[0] == labels.CLASSES.index('anger')


def test_published_lists_are_written_as_they_are_read(tmp_path):
  order = ('surprise', 'fear', 'disgust', 'happy', 'sadness', 'anger', 'neutral')
  noise.write_list(tmp_path / 'a.txt', NAMES, LABEL[:14], labels.CLASSES, order, 1)
  assert (tmp_path / 'a.txt').read_text().splitlines()[:2] == ['a/0.jpg 7', 'a/1.jpg 4']
  read = noise.read(tmp_path / 'a.txt', NAMES, LABEL[:14] * 0, labels.CLASSES, order, 1)
  np.testing.assert_array_equal(read, LABEL[:14])
  noise.write_list(tmp_path / 'b.txt', NAMES, LABEL[:14], labels.CLASSES)
  assert (tmp_path / 'b.txt').read_text().startswith('a/0.jpg neutral\n')
  with pytest.raises(InputError, match="lacks the class 'anger'"):
    noise.write_list(tmp_path / 'c.txt', NAMES, LABEL[:14], labels.CLASSES, order[:1])


def test_the_list_that_was_read_is_kept(tmp_path):
  (tmp_path / 'list.lst').write_text('0.jpg 5\n')
  options = {'file': str(tmp_path / 'list.lst'), 'label_order': labels.CLASSES, 'first_label': 0}
  label = noise.make(kind='file', **options)(LABEL[:14], NAMES, labels.CLASSES)
  run = tmp_path / 'run'
  run.mkdir()
  noise.record(run, NAMES, label, LABEL[:14], labels.CLASSES, **options)
  assert (run / 'noise_file.lst').read_text() == '0.jpg 5\n'
  assert (run / 'noise.txt').read_text().startswith('a/0.jpg 5\na/1.jpg 1\n')
  assert (run / 'noise.csv').read_text().splitlines()[1] == 'a/0.jpg,disgust,neutral'


def test_exact_names_win_over_last_parts(tmp_path):
  names = ['001.png', 'sub/001.png']
  noise.write(tmp_path / 'noise.csv', names, np.array([2, 3]), np.array([0, 1]), labels.CLASSES)
  read = noise.read(tmp_path / 'noise.csv', names, np.array([0, 1]), labels.CLASSES)
  np.testing.assert_array_equal(read, [2, 3])


def test_lines_about_held_out_rows_are_ignored(tmp_path):
  (tmp_path / 'list.txt').write_text('0.jpg fear\n99.jpg fear\n')
  read = noise.read(
    tmp_path / 'list.txt', NAMES, LABEL[:14], labels.CLASSES, others=('b/99.jpg', *NAMES)
  )
  assert read[0] == labels.CLASSES.index('fear') and (read[1:] == LABEL[1:14]).all()


def test_published_lists_of_names_and_numbers(tmp_path):
  (tmp_path / 'list.txt').write_text('0.jpg 5\n3.jpg\t1\n\n')
  order = ('surprise', 'fear', 'disgust', 'happiness', 'sadness', 'anger', 'neutral')
  read = noise.read(tmp_path / 'list.txt', NAMES, LABEL[:14], labels.CLASSES, order, 1)
  expected = LABEL[:14].copy()
  expected[0], expected[3] = labels.CLASSES.index('sadness'), labels.CLASSES.index('surprise')
  np.testing.assert_array_equal(read, expected)


@pytest.mark.parametrize(
  'text, message',
  [
    ('0.jpg 5\n', 'line 1: .*number'),
    ('0.jpg happy\n1.jpg\n', 'line 2: expected'),
    ('nobody.jpg fear\n', 'is not a training row'),
    ('0.jpg glee\n', "unknown class 'glee'"),
    ('name,label\n0.jpg,glee\n', 'line 2: unknown class'),
    ('"label","name"\nglee,0.jpg\n', 'line 2: unknown class'),
    ('name,label\n0.jpg,\n', 'line 2: expected'),
    ('0.jpg \u00b2\n', "unknown class '\u00b2'"),
    (' \n', 'is empty'),
    ('0.jpg anger\n1.jpg fear\na/0.jpg fear\n', "line 3: 'a/0.jpg' has another label on line 1"),
    (f'name,label\n{"x" * 140_000},fear\n', 'as a CSV file: field larger'),
  ],
)
def test_bad_noise_files_name_the_line(tmp_path, text, message):
  (tmp_path / 'list.txt').write_text(text, encoding='utf-8')
  with pytest.raises(InputError, match=message):
    noise.read(tmp_path / 'list.txt', NAMES, LABEL[:14], labels.CLASSES)


def test_names_with_spaces_and_files_that_are_not_text(tmp_path):
  (tmp_path / 'list.txt').write_text('my face.jpg fear\n')
  read = noise.read(tmp_path / 'list.txt', ['a/my face.jpg'], LABEL[:1], labels.CLASSES)
  assert read[0] == labels.CLASSES.index('fear')
  (tmp_path / 'list.txt').write_bytes(b'\xff\xfe0.jpg fear')
  with pytest.raises(InputError, match='not UTF-8'):
    noise.read(tmp_path / 'list.txt', NAMES, LABEL[:14], labels.CLASSES)


@pytest.mark.parametrize(
  'options', [{'kind': 'symetric'}, {'kind': 'symmetric', 'rate': 30}, {'kind': 'file'}]
)
def test_impossible_settings_are_refused(options):
  with pytest.raises(InputError):
    noise.make(**options)


def test_one_class_cannot_be_noisy():
  with pytest.raises(InputError, match='two classes'):
    noise.symmetric(np.zeros(3, int), 0.5, 1, 0)


def test_missing_noise_file(tmp_path):
  with pytest.raises(InputError, match='no such noise file'):
    noise.make(kind='file', file=str(tmp_path / 'x'))(LABEL[:14], NAMES, labels.CLASSES)
