"""A thread beside the run: so that hosts fail together, and say why.

Several hosts compute one program: when one fails, the others wait in a
collective for ever. The thread tells the others of an error and ends this
process when another has one; it ends a run in which no step has finished for
too long, naming the host that is behind and showing where each one waits; and
it shows the supervisor that the process is alive.
"""

from collections.abc import Callable
import dataclasses
import json
import os
import sys
import threading
import time
import traceback
from typing import Any

import jax
from jax._src import distributed  # Its key-value store has no public name.

from lm import train

LOST_STATUS = 75  # EX_TEMPFAIL: another host is gone; starting again may help.
BEAT_FILE = "LM_BEAT_FILE"  # Of the environment, set by the supervisor.
INTERVAL = 2.0  # Seconds.
_ERRORS, _BEATS = "lm/error/", "lm/beat/"
# What the collectives and the coordinator say when a peer is not there.
_LOST = ("gloo", "connection reset", "connection closed", "broken pipe",
         "socket closed", "unavailable:", "deadline_exceeded", "heartbeat",
         "coordination service", "aborted:")
_FRAMES = 12


@dataclasses.dataclass(frozen=True)
class Failure:
  """Why a run ends.

  Attributes:
    index: the process that it comes from.
    text: one line.
    status: of the exit.
    stack: where that process was, if it matters.
  """

  index: int
  text: str
  status: int
  stack: str = ""


def lost_contact(error: BaseException) -> bool:
  """Whether an error is that of a collective whose other side is gone."""
  text = str(error).lower()
  return isinstance(error, (ValueError, RuntimeError)) and any(
      word in text for word in _LOST)


class Watch:
  """Watches from `start` to `stop`.

  Args:
    names: of all processes.
    stall_timeout: seconds without a finished step that end the run; 0 = never.
    record: called on process 0 with what ends the run.
    end: ends the process with a status; for tests.
  """

  def __init__(
      self, names: dict[int, str], *, stall_timeout: float = 0,
      record: Callable[[Failure], None] = lambda failure: None,
      end: Callable[[int], None] = os._exit,
  ):
    self._names, self._limit = names, stall_timeout
    self._name = lambda i: f"{names.get(i, '?')} (process {i})"
    self._record, self._end = record, end
    self._index = jax.process_index() if len(names) > 1 else 0
    self._client = distributed.global_state.client if len(names) > 1 else None
    self._step: int | None = None
    self._at = 0.0
    self._count = 0
    self._done = threading.Event()
    self._failing = False
    self._beat_file = os.environ.get(BEAT_FILE)
    self._thread = threading.Thread(
        target=self._run, name="watch", daemon=True)

  def start(self) -> "Watch":
    self._thread.start()
    return self

  def stop(self) -> None:
    """Ends the thread; before JAX leaves the other hosts."""
    self._done.set()
    self._thread.join(10 * INTERVAL)
    _touch(self._beat_file, False)

  def beat(self, step: int | None) -> None:
    """Notes that a step was finished; None: nothing more is expected."""
    self._at, self._step = time.monotonic(), step

  def failed(self, failure: Failure, *, lost: bool) -> Failure:
    """Tells the other hosts of this process's failure before it ends.

    Args:
      failure: what ended it.
      lost: it is but the echo of another host's; then that one is looked for.

    Returns:
      The failure to report: another host's if it came first.
    """
    self._failing = True
    if self._client is not None:
      if lost:
        failure = self._root(failure)
      self._publish(failure)
      if self._index == 0:  # It holds the store: the others must hear of it.
        time.sleep(2 * INTERVAL)
        self._say_others(failure)
    if self._index == 0:
      self._record(failure)
    return failure

  # ------------------------------------------------------------- the thread

  def _run(self) -> None:
    while not self._done.wait(INTERVAL):
      _touch(self._beat_file, self._step is not None)
      self._count += 1
      if self._client is not None:
        try:
          self._client.key_value_set(
              f"{_BEATS}{self._index}", json.dumps(
                  {"count": self._count, "step": self._step}),
              allow_overwrite=True)
          others = self._others()
        except jax.errors.JaxRuntimeError:
          continue  # The coordinator is gone; JAX ends this process.
        if others and not self._failing:
          self._follow(others[0])
      step, idle = self._step, time.monotonic() - self._at
      if self._limit and step is not None and idle > self._limit and (
          not self._failing):
        self._stalled(step)

  def _follow(self, other: Failure) -> None:
    """Ends this process, whose main thread may be waiting for ever."""
    time.sleep(INTERVAL)  # It may have met the same error by itself.
    if self._failing or self._done.is_set():
      return
    self._failing = True
    if self._index == 0:
      time.sleep(INTERVAL)
      self._say_others(None)
      self._record(other)
    else:
      _say(f"error: {self._name(other.index)}: {other.text}")
    _flush()
    self._end(other.status)

  def _stalled(self, step: int) -> None:
    self._failing = True
    where = self._behind(step)
    text = (f"no step has finished for {self._limit:.0f} s (--stall_timeout):"
            f" {where}")
    failure = Failure(self._index, text, LOST_STATUS, _main_stack())
    _say(f"error: {text}\nstack of {self._name(self._index)}:\n{failure.stack}")
    if self._client is not None:
      self._publish(failure)
      if self._index == 0:
        time.sleep(4 * INTERVAL)
        self._say_others(failure)
    if self._index == 0:
      self._record(failure)
    _flush()
    self._end(LOST_STATUS)

  # ------------------------------------------------------------ other hosts

  def _publish(self, failure: Failure) -> None:
    try:
      self._client.key_value_set(
          f"{_ERRORS}{self._index}", json.dumps(dataclasses.asdict(failure)),
          allow_overwrite=True)
    except jax.errors.JaxRuntimeError:
      pass  # Process 0 is gone, and with it those who would read this.

  def _others(self) -> list[Failure]:
    found = [Failure(**json.loads(value)) for _, value in
             self._client.key_value_dir_get(_ERRORS)]
    return [f for f in found if f.index != self._index]

  def _say_others(self, own: Failure | None) -> None:
    """Process 0's log gets what the others have to say."""
    try:
      others = self._others()
    except jax.errors.JaxRuntimeError:
      return
    for other in others:
      if own is None or other.text != own.text:
        _say(f"error: {self._name(other.index)}: {other.text}")
      if other.stack:
        _say(f"stack of {self._name(other.index)}:\n{other.stack}")

  def _beats(self) -> dict[int, dict[str, Any]]:
    found = self._client.key_value_dir_get(_BEATS)
    return {int(key.rpartition("/")[2]): json.loads(v) for key, v in found}

  def _silent(self) -> list[int]:
    """The processes that say nothing any more; takes some seconds."""
    before = self._beats()
    time.sleep(2.5 * INTERVAL)
    after = self._beats()
    return [i for i in self._names if i != self._index
            and before.get(i, {}).get("count") == after.get(i, {}).get("count")]

  def _root(self, failure: Failure) -> Failure:
    """What a lost contact is the echo of."""
    try:
      silent = self._silent()
      others = self._others()
    except jax.errors.JaxRuntimeError:
      return dataclasses.replace(
          failure, status=LOST_STATUS, text=(
              f"{self._name(0)}, the coordinator, is gone: see its own log"))
    if others:
      return others[0]
    who = ", ".join(map(self._name, silent)) or "another process"
    verb = "are" if len(silent) > 1 else "is"
    return dataclasses.replace(
        failure, status=LOST_STATUS,
        text=f"{who} {verb} gone: see its own log ({failure.text})")

  def _behind(self, step: int) -> str:
    """Who keeps the others waiting."""
    if self._client is None:
      return f"after step {step}"
    try:
      silent = self._silent()
      steps = {i: b["step"] for i, b in self._beats().items()
               if b["step"] is not None}
    except jax.errors.JaxRuntimeError:
      return f"{self._name(0)}, the coordinator, does not respond"
    if silent:
      return (f"{', '.join(map(self._name, silent))} does not respond; this is"
              f" {self._name(self._index)} after step {step}")
    least = min(steps.values(), default=step)
    late = [i for i, s in steps.items() if s == least]
    if len(late) == len(steps):
      return f"all processes are after step {least}"
    return (f"{', '.join(map(self._name, late))} is still after step {least},"
            f" others after step {max(steps.values())}")


class Beat(train.Hook):
  """Tells the process's watch of every step."""

  def start(self, run):
    _beat(run.step)

  def on_metrics(self, run, step, metrics):
    _beat(run.step)

  def after_step(self, run):
    _beat(run.step)

  def close(self):
    _beat(None)


_current: Watch | None = None  # One process, one watch.


def begin(names: dict[int, str], **options: Any) -> Watch:
  """Starts the process's watch, which `Beat` reports to."""
  global _current
  _current = Watch(names, **options).start()
  return _current


def _say(line: str) -> None:
  sys.stderr.write(f"{line}\n")


def _beat(step: int | None) -> None:
  if _current is not None:
    _current.beat(step)


def _main_stack() -> str:
  """Where the main thread is."""
  frame = sys._current_frames().get(threading.main_thread().ident or 0)
  lines = traceback.format_stack(frame)[-_FRAMES:] if frame else []
  return "".join(lines).rstrip()


def _flush() -> None:
  sys.stdout.flush()
  sys.stderr.flush()


def _touch(beat_file: str | None, armed: bool) -> None:
  """Time 0 tells the supervisor to expect nothing."""
  if beat_file:
    try:
      os.utime(beat_file, None if armed else (0, 0))
    except OSError:
      pass  # The supervisor is gone.
