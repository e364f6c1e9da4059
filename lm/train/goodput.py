"""Goodput: the share of a run's wall time that became training steps."""

import time

import jax

from lm.train.loop import Hook
from lm.train.metrics import read_metrics

_USEFUL, _WALL = "goodput/useful_seconds", "goodput/wall_seconds"
_BEGAN = "goodput/began"


class Goodput(Hook):
  """Reports `goodput`: useful step time over wall time since the first start.

  Useful is the time of the steps that the run's final state is made of, each
  counted once: what was redone after a crash is lost, and so are compiling,
  saving, evaluating and the time in which no process ran. It goes on over
  restarts by reading the metrics of the run. Put it before `JsonLines`. The
  seconds of compiling (with the first step) and of the hooks (saving,
  evaluating) are those of this process.

  Args:
    folder: the working folder, with the run's metrics.
    every: steps between two reports.
    saved: steps between two checkpoints, which are reported too, so that
      nothing is lost when one is gone on from; 0 = none but the last.
    restarts: how often the run was started before, to be reported.
  """

  def __init__(self, folder, *, every: int = 50, saved: int = 0,
               restarts: int = 0):
    self._folder, self._every, self._saved = folder, every, saved
    self._useful = self._compile = 0.0
    self._restarts = restarts
    self._began = time.time()
    self._mark = 0.0

  def start(self, run):
    if jax.process_index() == 0:
      rows = [row for row in read_metrics(self._folder) if _WALL in row]
      past = [row for row in rows if row["step"] <= run.start_step]
      if rows:
        self._began = rows[0][_BEGAN]
      if past:
        self._useful = past[-1][_USEFUL]
    self._mark = time.perf_counter() - run.paused

  def on_metrics(self, run, step, metrics):
    now = time.perf_counter() - run.paused
    if step == run.start_step + 1:
      self._compile = now - self._mark  # With the first step.
    else:
      self._useful += now - self._mark
    self._mark = now
    if (step % self._every == 0 or self._saved and step % self._saved == 0
        or step in (run.start_step + 1, run.num_steps)):
      self._report(run, step)

  def _report(self, run, step):
    wall = time.time() - self._began
    run.report(step, {
        "goodput": self._useful / wall if wall > 0 else 0.0,
        _USEFUL: self._useful, _WALL: wall, _BEGAN: self._began,
        "goodput/restarts": self._restarts,
        "goodput/compile_seconds": self._compile,
        "goodput/hooks_seconds": run.paused})
