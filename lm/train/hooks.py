"""What happens around the steps: writing, saving, evaluating, stopping."""

from collections import deque
from collections.abc import Callable, Mapping
import math
import os
import signal
import threading
from typing import Any

import jax

from lm.train.checkpoint import Checkpointer
from lm.train.loop import Hook, Run
from lm.train.metrics import JsonLines, TensorBoard, read_metrics
from lm.types import Params, UserError

__all__ = ("Checkpoint", "Diverged", "Evaluate", "JsonLines", "StopIfDiverged",
           "StopOnSignal", "TensorBoard", "read_metrics")


class Diverged(UserError):
  """The loss is not finite or has exploded; the message is the report."""


class Evaluate(Hook):
  """Calls `evaluate(params) -> numbers` now and then and at the end.

  Put it before `Checkpoint`, which keeps the best by what it reports.

  Args:
    evaluate: the evaluation; see `lm.train.evaluate`.
    every: steps between two; 0 = only at the end.
    prefix: put before the names.
    first: also before the first step.
  """

  def __init__(
      self, evaluate: Callable[[Params], Mapping[str, float]], *,
      every: int = 0, prefix: str = "eval/", first: bool = False,
  ):
    self._evaluate, self._every = evaluate, every
    self._prefix, self._first = prefix, first

  def start(self, run):
    if self._first and run.step == 0:
      self._report(run)

  def after_step(self, run):
    if (self._every and run.step % self._every == 0) or (
        run.step >= run.num_steps):
      run.flush()
      self._report(run)

  def _report(self, run):
    found = self._evaluate(run.state.params)
    run.report(run.step, {self._prefix + k: float(v)
                          for k, v in found.items()})


class Checkpoint(Hook):
  """Saves every so many steps, and whenever training ends in order.

  The metrics of a step are read before it is saved, so that a guard can
  refuse it: what is on the disk is good.

  Args:
    checkpointer: where to.
    every: steps between two; 0 = only at the end.
  """

  def __init__(self, checkpointer: Checkpointer, *, every: int):
    self._checkpointer, self._every = checkpointer, every

  def after_step(self, run):
    self._checkpointer.poll()
    if self._every and run.step % self._every == 0 and not run.last:
      self._save(run)

  def finish(self, run):
    self._checkpointer.wait()
    if self._checkpointer.last_step != run.step:
      self._save(run)
    self._checkpointer.wait()

  def close(self):
    # With other hosts a save may wait for one that is gone.
    self._checkpointer.join(20.0 if jax.process_count() > 1 else None)

  def _save(self, run: Run):
    run.flush()
    self._checkpointer.save(
        run.step, run.state, run.source.get_state(), run.metrics)


class StopIfDiverged(Hook):
  """Ends training when the loss is not finite or explodes.

  Exploded: the mean of the last `window` losses is more than `factor` times
  the lowest such mean so far, plus `margin`.

  Args:
    checkpointer: to name the last good checkpoint.
    factor: see above.
    margin: see above, in nats.
    window: steps.
  """

  def __init__(self, checkpointer: Checkpointer | None = None, *,
               factor: float = 2.0, margin: float = 1.0, window: int = 16):
    self._checkpointer = checkpointer
    self._factor, self._margin = factor, margin
    self._recent: deque[float] = deque(maxlen=window)
    self._lowest = math.inf

  def on_metrics(self, run, step, metrics):
    for name in ("loss", "grad_norm"):
      if not math.isfinite(metrics.get(name, 0.0)):
        self._stop(step, f"{name} is {metrics[name]}", metrics)
    if "loss" not in metrics:
      return
    self._recent.append(metrics["loss"])
    if len(self._recent) < self._recent.maxlen:
      return
    mean = sum(self._recent) / len(self._recent)
    self._lowest = min(self._lowest, mean)
    if mean > self._factor * self._lowest + self._margin:
      self._stop(
          step, f"the loss exploded: {mean:.4g} on average over"
          f" {len(self._recent)} steps, after {self._lowest:.4g}", metrics)

  def _stop(self, step: int, what: str, metrics: Mapping[str, float]):
    saved = None
    if self._checkpointer is not None:
      self._checkpointer.wait()
      saved = self._checkpointer.last_path
    shown = ", ".join(f"{k} {v:.4g}" for k, v in metrics.items())
    last = [f"{x:.4g}" for x in list(self._recent)[-5:]]
    raise Diverged(
        f"training diverged at step {step}: {what} ({shown}; last losses"
        f" {', '.join(last) or 'none'}). Last good checkpoint:"
        f" {saved or 'none'}. Lower the learning rate, lengthen the warm-up or"
        " clip the gradient more, then run again")


class StopOnSignal(Hook):
  """SIGTERM or Ctrl-C ends training after the step at hand, saved.

  The exit status is 143 or 130. A second Ctrl-C interrupts at once. With
  several processes JAX's preemption service agrees on the step.
  """

  def __init__(self):
    self._previous: dict[int, Any] = {}
    self._signal: int | None = None

  def start(self, run):
    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGTERM, signal.SIGINT):
        if jax.process_count() == 1 or number == signal.SIGINT:
          self._previous[number] = signal.signal(number, self._note)

  def _note(self, number, frame):
    if jax.process_count() > 1:  # Only of SIGTERM do the other hosts hear.
      os.kill(os.getpid(), signal.SIGTERM)
      return
    if self._signal is not None and number == signal.SIGINT:
      raise KeyboardInterrupt
    self._signal = number

  def after_step(self, run):
    if jax.process_count() > 1:
      from jax.experimental import multihost_utils
      if multihost_utils.reached_preemption_sync_point(run.step):
        self._signal = signal.SIGTERM
    if self._signal is not None and run.step < run.num_steps:
      run.stop_code = 128 + self._signal

  def close(self):
    for number, handler in self._previous.items():
      signal.signal(number, handler)
    self._previous = {}
