import errno
import os
import subprocess
import sys

import filelock
import pytest

from ferjax import files
from ferjax.errors import InputError

HOLD = """
import sys, time
from pathlib import Path
from ferjax import files
with files.locked(Path(sys.argv[1]), 'busy'):
  print('locked', flush=True)
  time.sleep(600)
"""


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
  path = tmp_path / 'a.txt'
  with files.replacing(path) as file:
    file.write('whole\n')
  with pytest.raises(RuntimeError), files.replacing(path) as file:
    file.write('half')
    raise RuntimeError
  assert path.read_text() == 'whole\n' and list(tmp_path.iterdir()) == [path]


def test_a_lock_is_refused_to_a_second_process_until_the_first_is_killed(tmp_path):
  path = tmp_path / 'new' / 'a.lock'
  with subprocess.Popen([sys.executable, '-c', HOLD, path], stdout=subprocess.PIPE) as holder:
    assert holder.stdout.readline() == b'locked\n'
    with pytest.raises(InputError, match='^in use$'), files.locked(path, 'in use'):
      pass
    holder.kill()
  with files.locked(path, 'in use'), pytest.raises(InputError, match='^in use$'):
    with files.locked(path, 'in use'):
      pass
  with files.locked(path, 'in use'):
    assert path.exists()
  assert list(path.parent.iterdir()) == [path]


def test_without_locks_there_is_a_warning(tmp_path, monkeypatch, caplog):
  def acquire(self):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

  monkeypatch.setattr(filelock.FileLock, 'acquire', acquire)
  with files.locked(tmp_path / 'a.lock', 'in use'):
    pass
  assert 'cannot lock' in caplog.text and 'a.lock (No locks available)' in caplog.text


def test_a_folder_that_cannot_be_written(tmp_path):
  (tmp_path / 'file').touch()
  with pytest.raises(InputError, match='cannot write in .*file'):
    with files.locked(tmp_path / 'file' / 'a.lock', 'in use'):
      pass
