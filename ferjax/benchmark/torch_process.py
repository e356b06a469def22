"""PyTorch in a process with its own interpreter, which runs `torch_side.py`."""

import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ferjax.errors import InputError

SCRIPT = Path(__file__).with_name('torch_side.py')
ADVICE = 'give a Python with PyTorch, such as of a venv with `pip install torch numpy pillow`'


class TorchProcess:
  """Sends one line of JSON and reads one line of JSON, one request at a time."""

  def __init__(self, process: subprocess.Popen, python: str):
    self._process = process
    try:
      self.versions = self.ask(do='versions')
    except (OSError, RuntimeError, ValueError) as error:
      raise InputError(
        f'--torch-python={python} does not run PyTorch ({error}): {ADVICE}'
      ) from None

  def ask(self, **request: Any) -> dict[str, Any]:
    """The answer to a request. `torch_side.py` lists the requests.

    Raises:
      RuntimeError: the request failed, or the process has ended.
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
    """Wall seconds and CPU seconds of `calls` calls of the function that was built last."""
    answer = self.ask(do='turn', calls=calls)
    return answer['seconds'], answer['cpu_seconds']


@contextlib.contextmanager
def start(python: str | None) -> Iterator[TorchProcess | None]:
  """PyTorch in the interpreter `python` until the context ends; None if `python` is None.

  Raises:
    InputError: the interpreter does not exist or has no PyTorch.
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
      with contextlib.suppress(BrokenPipeError):  # the process has not read the last request
        process.stdin.close()
