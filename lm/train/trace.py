"""XProf traces of a running experiment, when somebody asks for one."""

import contextlib
import json
import os
import pathlib
import shutil
import tempfile
import time
import warnings

import jax

from lm import paths
from lm.train.loop import Hook
from lm.types import UserError

REQUEST = "trace.json"
FOLDER = "traces"
_STEPS = 5


class TraceOnDemand(Hook):
  """Traces some steps when `folder/trace.json` appears, and removes it.

      echo '{"steps": 5}' > runs/first/trace.json

  The trace comes to `folder/traces/TIME`, for `xprof` or TensorBoard's profile
  plugin. It is that of process 0.

  Args:
    folder: the working folder, local or a bucket's.
    every: steps between two looks for the file; a bucket's costs a request.
  """

  def __init__(self, folder: str | os.PathLike, *, every: int = 50):
    self._folder, self._every = paths.path(folder), every
    self._last: int | None = None  # The step after which the trace ends.
    self._local: pathlib.Path | None = None

  def after_step(self, run):
    if jax.process_index() != 0:
      return
    if self._last is None and run.step % self._every == 0:
      steps = self._asked()
      if steps:
        self._begin(run.step + steps)
    elif self._last is not None and run.step >= self._last:
      run.flush()  # What was dispatched belongs to it.
      self._end()

  def close(self):
    if self._last is not None:
      self._end()

  def _asked(self) -> int:
    """How many steps are wanted; 0 if none."""
    request = self._folder / REQUEST
    try:
      text = paths.read_bytes(request)
      paths.remove(request)  # First: a bad one is not read again and again.
    except (UserError, OSError):
      return 0
    try:
      steps = json.loads(text or b"{}").get("steps", _STEPS)
      if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps is {steps!r}")
    except (ValueError, AttributeError) as e:
      warnings.warn(f'{request} is not {{"steps": NUMBER}} ({e}): nothing is'
                    " traced", stacklevel=2)
      return 0
    return steps

  def _begin(self, last: int) -> None:
    self._local = pathlib.Path(tempfile.mkdtemp(prefix="lm-trace-"))
    jax.profiler.start_trace(str(self._local))
    self._last = last

  def _end(self) -> None:
    jax.profiler.stop_trace()
    local, self._local, self._last = self._local, None, None
    assert local is not None
    target = self._folder / FOLDER / time.strftime("%Y%m%d-%H%M%S")
    try:
      for name in paths.files(local):
        if not paths.is_remote(target):
          (target / name).parent.mkdir(parents=True, exist_ok=True)
        paths.copy(local / name, target / name)
    except (UserError, OSError) as e:
      warnings.warn(f"could not write the trace to {target}, the run goes on:"
                    f" {e}", stacklevel=2)
    with contextlib.suppress(OSError):
      shutil.rmtree(local)
