import pytest

from ferjax import files


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
  path = tmp_path / 'a.txt'
  with files.replacing(path) as file:
    file.write('whole\n')
  with pytest.raises(RuntimeError), files.replacing(path) as file:
    file.write('half')
    raise RuntimeError
  assert path.read_text() == 'whole\n' and list(tmp_path.iterdir()) == [path]
