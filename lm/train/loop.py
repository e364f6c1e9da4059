"""The one training loop; stages differ by their source and their loss."""

from collections.abc import Callable, Iterable, Sequence
import time
from typing import Any, Protocol

import jax

from lm.train.step import Step, shard_batch
from lm.types import Batch, TrainState


class Source(Protocol):
  """Where batches come from."""

  def __call__(self, state: TrainState) -> Batch:
    """The next batch; reading `state` waits for the device (RL must)."""

  def get_state(self) -> dict[str, Any]:
    """The position after the batches given so far, as small JSON."""

  def set_state(self, state: dict[str, Any]) -> None:
    """Goes to a position."""


class Stopped(SystemExit):
  """Training was asked to stop, saved, and ended.

  Attributes:
    status: of the exit, that of the signal.
    step: of the checkpoint.
  """

  def __init__(self, status: int, step: int):
    super().__init__(status)
    self.status, self.step = status, step


class Run:
  """What hooks see of a running `fit`.

  Attributes:
    state: after the newest update; on the device, reading it waits.
    source: where batches come from.
    step: updates dispatched so far.
    start_step: where this process began.
    num_steps: where it ends.
    batch_tokens: tokens of one global batch, padding included.
    metrics: the newest values of every metric, by name.
    paused: seconds spent in hooks rather than in training.
    stop_code: set it to end after this step with that exit code.
  """

  def __init__(self, state: TrainState, source: Source, num_steps: int,
               hooks: Sequence["Hook"]):
    self.state, self.source, self.num_steps = state, source, num_steps
    self.step = self.start_step = int(state.step)
    self.batch_tokens = 0
    self.metrics: dict[str, float] = {}
    self.paused = 0.0
    self.stop_code: int | None = None
    self._hooks = hooks
    self._pending: tuple[int, Any] | None = None

  @property
  def last(self) -> bool:
    """Whether no step follows."""
    return self.step >= self.num_steps or self.stop_code is not None

  def report(self, step: int, metrics: dict[str, float]) -> None:
    """Hands numbers that are not the step's own (an evaluation) to hooks."""
    self.metrics.update(metrics)
    for hook in self._hooks:
      hook.on_report(self, step, metrics)

  def advance(self, state: TrainState, metrics: Any) -> None:
    """Notes a dispatched step and reads the metrics of the one before."""
    late, self._pending = self._pending, (self.step + 1, metrics)
    self.state, self.step = state, self.step + 1
    self._read(late)

  def flush(self) -> None:
    """Reads what is pending; waits for the device, so only before a save."""
    begin = time.perf_counter()
    late, self._pending = self._pending, None
    self._read(late)
    self.paused -= time.perf_counter() - begin  # The step was still computing.

  def _read(self, late: tuple[int, Any] | None) -> None:
    if late is not None:
      step, metrics = late
      metrics = {k: float(v) for k, v in jax.device_get(metrics).items()}
      self.metrics.update(metrics)
      for hook in self._hooks:
        hook.on_metrics(self, step, metrics)


class Hook:
  """Does nothing; hooks override what they need. They run in order."""

  def start(self, run: Run) -> None:
    """Before the first step."""

  def on_metrics(self, run: Run, step: int, metrics: dict[str, float]) -> None:
    """The step's own metrics; they arrive while the next step computes."""

  def on_report(self, run: Run, step: int, metrics: dict[str, float]) -> None:
    """Occasional numbers, such as an evaluation's."""

  def after_step(self, run: Run) -> None:
    """After `run.step` was dispatched; reading `run.state` waits."""

  def finish(self, run: Run) -> None:
    """After the last step, when every metric has been read."""

  def close(self) -> None:
    """Always, also after an error."""


def fit(
    state: TrainState, source: Source, step: Step, num_steps: int,
    hooks: Iterable[Hook] = (), *,
    place: Callable[[Batch], Batch] = shard_batch,
) -> TrainState:
  """Trains until `state.step == num_steps`.

  Nothing here waits for the device: the metrics of a step are read after the
  next one was dispatched. Hooks that save or evaluate wait on their own.

  Args:
    state: where to begin; its buffers are donated to the first step.
    source: yields batches.
    step: of `make_step`.
    num_steps: updates in all, those before a resume included.
    hooks: called in order after every step.
    place: puts a batch on the devices.

  Returns:
    The final state.

  Raises:
    Stopped: a hook asked to stop (SIGTERM); everything is saved.
    UserError: by hooks, e.g. the loss is not finite or the disk is full.
  """
  hooks = tuple(hooks)
  run = Run(state, source, num_steps, hooks)
  del state
  try:
    for hook in hooks:
      hook.start(run)
    while not run.last:
      batch = place(source(run.state))
      run.batch_tokens = batch.tokens_BT.size
      run.advance(*step(run.state, batch))
      begin = time.perf_counter()
      for hook in hooks:
        hook.after_step(run)
      run.paused += time.perf_counter() - begin
    run.flush()
    for hook in hooks:
      hook.finish(run)
  finally:
    for hook in reversed(hooks):
      hook.close()
  if run.stop_code is not None:
    raise Stopped(run.stop_code, run.step)
  return run.state

