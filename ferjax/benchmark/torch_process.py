"""PyTorch in a process and an interpreter of its own; `torch_side.py` is what runs there."""

import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ferjax.errors import InputError

SCRIPT = Path(__file__).with_name('torch_side.py')
ADVICE = 'give a Python that has it, such as of a venv with `pip install torch numpy pillow`'


class TorchProcess:
  """Asks by one line of JSON and reads one line of JSON; one request at a time."""

  def __init__(self, process: subprocess.Popen, python: str):
    self._process = process
    try:
      self.versions = self.ask(do='versions')
    except (OSError, RuntimeError, ValueError) as error:
      raise InputError(
        f'--torch-python={python} does not run PyTorch ({error}): {ADVICE}'
      ) from None

  def ask(self, **request: Any) -> dict[str, Any]:
    """The answer to a request; see `torch_side.py` for those there are.

    Raises:
      RuntimeError: it failed there, or the process has ended.
    """
    self._process.stdin.write(json.dumps(request) + '\n')
    self._process.stdin.flush()
    line = self._process.stdout.readline()
    if not line:
      raise RuntimeError(f'the process ended with status {self._process.wait()}')
    answer = json.loads(line)
    if 'error' in answer:
      raise RuntimeError(answer['error'])
    return answer

  def turn(self, calls: int) -> tuple[float, float]:
    """Wall seconds and CPU seconds of so many calls of what was built last."""
    answer = self.ask(do='turn', calls=calls)
    return answer['seconds'], answer['cpu_seconds']


@contextlib.contextmanager
def start(python: str | None) -> Iterator[TorchProcess | None]:
  """PyTorch in the interpreter `python` until the block ends; None without one.

  Raises:
    InputError: no such interpreter, or none with PyTorch.
  """
  if python is None:
    yield None
    return
  pipe = subprocess.PIPE
  try:
    process = subprocess.Popen([python, str(SCRIPT)], stdin=pipe, stdout=pipe, text=True)
  except OSError as error:
    raise InputError(f'--torch-python={python} cannot be started ({error}): {ADVICE}') from error
  with process:
    try:
      yield TorchProcess(process, python)
    finally:
      process.kill()
      with contextlib.suppress(BrokenPipeError):  # of a request that it never read
        process.stdin.close()
