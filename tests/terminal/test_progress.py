"""Progress on a terminal and in a log file."""

import logging
import os
import subprocess
import sys
import threading

import pytest

from ferjax.terminal import progress


@pytest.fixture
def clock(monkeypatch):
  """A clock that moves by as many seconds as its one element says, each time it is read."""
  step, now = [0.0], [0.0]

  def monotonic():
    now[0] += step[0]
    return now[0]

  monkeypatch.setattr(progress.time, 'monotonic', monotonic)
  return step


def lines(caplog):
  return [record.getMessage() for record in caplog.records]


def test_a_short_job_writes_nothing(clock, caplog):
  caplog.set_level(logging.INFO)
  clock[0] = 0.29
  assert list(progress.track(range(100), 'Checking')) == list(range(100))
  assert not lines(caplog)


def test_a_long_job_writes_a_line_every_ten_percent(clock, caplog):
  caplog.set_level(logging.INFO)
  clock[0] = 6.0
  list(progress.track(iter(range(100)), 'Checking', 100))
  assert len(lines(caplog)) == 11
  assert lines(caplog)[0] == 'Checking: 10 of 100 pictures (10 %), 540 s left'
  assert lines(caplog)[-1] == 'Checking: 100 pictures in 606 s'


def test_a_job_of_some_minutes_writes_a_line_every_thirty_seconds(clock, caplog):
  caplog.set_level(logging.INFO)
  clock[0] = 1.0
  list(progress.track(range(100), 'Checking', unit='blocks'))
  assert [line.split(' (')[0] for line in lines(caplog)[:-1]] == [
    'Checking: 30 of 100 blocks',
    'Checking: 60 of 100 blocks',
    'Checking: 90 of 100 blocks',
  ]


def test_work_done_before_is_no_part_of_the_speed(clock, caplog):
  caplog.set_level(logging.INFO)
  with progress.Progress('Annotating', 100, done=50) as job:
    clock[0] = 60.0
    job.update(25)
    clock[0] = 0.0
  assert lines(caplog)[0] == 'Annotating: 75 of 100 pictures (75 %), 60 s left'


def test_a_total_may_be_unknown(clock, caplog):
  caplog.set_level(logging.INFO)
  clock[0] = 40.0
  list(progress.track(iter('abc'), 'Reading', unit='letters'))
  assert lines(caplog)[:2] == ['Reading: 1 letters', 'Reading: 2 letters']


def test_a_failed_job_does_not_say_that_it_is_done(clock, caplog):
  caplog.set_level(logging.INFO)
  clock[0] = 40.0
  with pytest.raises(RuntimeError), progress.Progress('Checking', 10) as job:
    job.update()
    raise RuntimeError
  assert len(lines(caplog)) == 1


def prepare(manifest, folder, **streams):
  command = [sys.executable, '-m', 'ferjax', 'prepare', 'data', '--name=manifest']
  environment = {**os.environ, 'TERM': 'xterm', 'COLUMNS': '100'}
  return subprocess.run(
    [*command, f'--path={manifest}', f'--dir={folder}'], check=True, env=environment, **streams
  )


def test_a_log_file_has_plain_lines_only(manifest, tmp_path):
  with (tmp_path / 'out').open('wb') as out, (tmp_path / 'err').open('wb') as err:
    prepare(manifest, tmp_path / 'data', stdout=out, stderr=err)
  written = [(tmp_path / name).read_bytes() for name in ('out', 'err')]
  assert not any(b'\r' in text or b'\x1b' in text for text in written)
  assert sum(map(len, written)) < 2000
  assert b'Downloading' not in written[0]
  (line,) = [line for line in written[1].splitlines() if b'pictures' in line]
  assert line.startswith(b'manifest: 133 pictures prepared in ' + bytes(tmp_path / 'data'))


def test_a_terminal_has_bars(manifest, tmp_path):
  pty = pytest.importorskip('pty')
  ours, theirs = pty.openpty()
  shown = []

  def read():
    try:
      while part := os.read(ours, 4096):
        shown.append(part)
    except OSError:  # the other end is closed
      pass

  reader = threading.Thread(target=read)
  reader.start()
  try:
    prepare(manifest, tmp_path / 'data', stdout=subprocess.DEVNULL, stderr=theirs)
  finally:
    os.close(theirs)
    reader.join()
    os.close(ours)
  text = b''.join(shown).decode()
  for title in ('Checking manifest', 'Storing manifest', 'Reading labels of train'):
    assert title in text
  assert '━' in text and '133/133' in text and 'manifest: 133 pictures prepared in' in text
