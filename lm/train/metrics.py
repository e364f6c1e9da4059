"""Hooks that write a run's numbers to its folder, on a disk or in a bucket.

A local file is appended to. An object of a bucket cannot be: there all rows are
kept and written again now and then, in a thread of its own, so that a slow
network does not hold up the training; that it fails is no reason to stop.
"""

from collections.abc import Callable
from concurrent import futures
import json
import os
import pathlib
import tempfile
import time
from typing import Any, TextIO
import warnings

import jax

from lm import paths
from lm.train.loop import Hook
from lm.types import UserError

METRICS_FILE = "metrics.jsonl"
_EVERY = 30.0  # Seconds between two uploads, except for evaluations.


class _Upload:
  """Runs an upload in a thread, at most one at a time and one waiting.

  Args:
    where: what it writes, for warnings.
    work: the upload; it sends all that there is when it runs.
  """

  def __init__(self, where: Any, work: Callable[[], None]):
    self._where, self._work = where, work
    self._pool = futures.ThreadPoolExecutor(1, "metrics")
    self._next: futures.Future | None = None
    self._last = time.monotonic()

  def begin(self) -> None:
    """Sends soon; a call that has not begun yet will do for this one too."""
    self._last = time.monotonic()
    if self._next is None or self._next.running() or self._next.done():
      self._next = self._pool.submit(self._try)

  def now_and_then(self) -> None:
    """Sends if that is some time ago."""
    if time.monotonic() - self._last >= _EVERY:
      self.begin()

  def close(self) -> None:
    """Sends the last, and waits for it."""
    self.begin()
    self._pool.shutdown()

  def _try(self) -> None:
    try:
      self._work()
    except (UserError, OSError) as e:
      warnings.warn(f"could not write {self._where}, the run goes on: {e}",
                    stacklevel=2)


class JsonLines(Hook):
  """Appends `{"step": ..., "loss": ..., ...}` to `metrics.jsonl`.

  When a run resumes, rows after its checkpoint are dropped: they come again.
  """

  def __init__(self, folder: str | os.PathLike, *, every: int = 1):
    self._path = paths.path(folder) / METRICS_FILE
    self._every = every
    self._file: TextIO | None = None
    self._rows: list[str] = []  # All of them, if it is an object.
    self._upload: _Upload | None = None

  def start(self, run):
    if jax.process_index() != 0:
      return
    rows = [json.dumps(row) + "\n" for row in read_metrics(self._path)
            if row["step"] <= run.start_step]
    if paths.is_remote(self._path):
      self._rows = rows
      self._upload = _Upload(self._path, self._send)
      return
    self._path.parent.mkdir(parents=True, exist_ok=True)
    partial = self._path.with_suffix(".tmp")
    partial.write_text("".join(rows))
    os.replace(partial, self._path)
    self._file = open(self._path, "a", buffering=1)

  def on_metrics(self, run, step, metrics):
    if step % self._every == 0 or step in (run.start_step + 1, run.num_steps):
      self._add(step, metrics)
      if self._upload is not None:
        self._upload.now_and_then()

  def on_report(self, run, step, metrics):
    self._add(step, metrics)
    if self._upload is not None:
      self._upload.begin()

  def close(self):
    if self._file is not None:
      self._file.close()
      self._file = None
    if self._upload is not None:
      self._upload.close()
      self._upload = None

  def _add(self, step: int, metrics: dict[str, float]) -> None:
    row = json.dumps({"step": step, **metrics}) + "\n"
    if self._file is not None:
      self._file.write(row)
    elif self._upload is not None:
      self._rows.append(row)

  def _send(self) -> None:
    paths.write_bytes(self._path, "".join(list(self._rows)).encode())


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
  """The rows of a metrics file, or of a folder's; torn lines are dropped."""
  path = paths.path(path)
  path = path / METRICS_FILE if paths.is_dir(path) else path
  rows = []
  try:
    text = paths.read_bytes(path).decode(errors="replace")
  except FileNotFoundError:
    return rows
  for line in text.splitlines():
    try:
      row = json.loads(line)
    except ValueError:
      continue
    if isinstance(row, dict) and isinstance(row.get("step"), int):
      rows.append(row)
  return rows


class TensorBoard(Hook):
  """Writes scalars for TensorBoard into `folder/tensorboard`."""

  def __init__(self, folder: str | os.PathLike, *, every: int = 10):
    self._folder = paths.path(folder) / "tensorboard"
    self._every = every
    self._writer = None
    self._local: tempfile.TemporaryDirectory | None = None
    self._upload: _Upload | None = None

  def start(self, run):
    if jax.process_index() == 0:
      import tensorboardX  # Only where it is used.
      folder = str(self._folder)
      if paths.is_remote(self._folder):
        self._local = tempfile.TemporaryDirectory(prefix="lm-tensorboard-")
        self._upload = _Upload(self._folder, self._send)
        folder = self._local.name
      self._writer = tensorboardX.SummaryWriter(
          folder, purge_step=run.start_step + 1)

  def on_metrics(self, run, step, metrics):
    if step % self._every == 0:
      self._add(step, metrics)
      if self._upload is not None:
        self._upload.now_and_then()

  def on_report(self, run, step, metrics):
    self._add(step, metrics)
    if self._upload is not None:
      self._writer.flush()
      self._upload.begin()

  def close(self):
    if self._writer is not None:
      self._writer.close()
      self._writer = None
    if self._upload is not None:
      self._upload.close()
      self._local.cleanup()
      self._upload = self._local = None

  def _add(self, step: int, metrics: dict[str, float]) -> None:
    if self._writer is not None:
      for name, value in metrics.items():
        name = name if "/" in name else f"train/{name}"
        self._writer.add_scalar(name, value, step)

  def _send(self) -> None:
    folder = pathlib.Path(self._local.name)
    for name in paths.files(folder):
      paths.copy(folder / name, self._folder / name)
