"""A thread beside the run: so that hosts fail together, and say why.

Several hosts compute one program: when one fails, the others wait in a
collective for ever. The thread tells the others of an error and ends this
process when another has one; it ends a run in which no step has finished for
too long, naming the host that is behind and showing where each one waits; and
it shows the supervisor that the process is alive.
"""

from collections.abc import Callable
import dataclasses
import os
import sys
import threading
import time
import traceback
from typing import Any

from lm import train
from lm.launch import peers as peers_lib
from lm.launch.peers import (
    Failure, INTERVAL, LOST_STATUS, Peers, STALLED_STATUS)
from lm.train import agree

BEAT_FILE = "LM_BEAT_FILE"  # Of the environment, set by the supervisor.
# What the collectives and the coordinator say when a peer is not there.
_LOST = ("gloo", "connection reset", "connection closed", "broken pipe",
         "socket closed", "unavailable:", "deadline_exceeded", "heartbeat",
         "coordination service", "aborted:")
_FRAMES = 24  # JAX's own, between ours and the wait, may be a dozen.


def lost_contact(error: BaseException) -> bool:
  """Whether an error is that of a collective whose other side is gone."""
  text = str(error).lower()
  return isinstance(error, agree.Lost) or (
      isinstance(error, (ValueError, RuntimeError))
      and any(word in text for word in _LOST))


class Watch:
  """Watches from its making to `stop`.

  Args:
    names: of all processes.
    index: which of them this is.
    stall_timeout: seconds without a finished step that end the run; 0 = never.
    record: called on process 0 with what ends the run.
    end: ends the process with a status; for tests.
  """

  def __init__(
      self, names: dict[int, str], index: int = 0, *, stall_timeout: float = 0,
      record: Callable[[Failure], None] = lambda failure: None,
      end: Callable[[int], None] = os._exit,
  ):
    self._peers, self._limit = Peers(names, index), stall_timeout
    self._first = index == 0
    self._record, self._end = record, end
    self._step: int | None = None
    self._at = 0.0
    self._done = threading.Event()
    self._ending = threading.Lock()  # Whoever has it says why, and ends it.
    self._beat_file = os.environ.get(BEAT_FILE)
    self._thread = threading.Thread(
        target=self._run, name="watch", daemon=True)
    self._thread.start()

  def stop(self) -> None:
    """Ends the thread; before JAX leaves the other hosts."""
    self._done.set()
    self._thread.join(10 * INTERVAL)
    self._peers.leave()
    _touch(self._beat_file, False)

  def beat(self, step: int | None) -> None:
    """Notes that a step was finished; None: nothing more is expected."""
    self._at, self._step = time.monotonic(), step

  def failed(self, failure: Failure, *, lost: bool) -> int:
    """Says why this process ends, here and to the other hosts.

    Args:
      failure: what ended it.
      lost: it is but the echo of another host's; then that one is looked for.

    Returns:
      The exit status: that of the host where it began.
    """
    if not self._ending.acquire(blocking=False):
      time.sleep(20 * INTERVAL)  # The thread ends this process in a moment.
    if lost:
      failure = self._root(failure)
    own = failure.index == self._peers.index
    if own:
      peers_lib.write(failure.stack or f"error: {failure.text}")
      self._peers.publish(failure)
    elif not self._first:
      self._peers.say([failure])
    self._last_words(failure, known=failure.text if own else "")
    return failure.status

  def _last_words(self, failure: Failure, *, known: str) -> None:
    """Process 0 holds the store: the others must hear before it goes."""
    if self._first:
      if self._peers.several:
        time.sleep(4 * INTERVAL)
        self._peers.say_all(known=known)
      self._record(failure)
    sys.stdout.flush()
    sys.stderr.flush()

  def _run(self) -> None:
    count = 0
    while not self._done.wait(INTERVAL):
      _touch(self._beat_file, self._step is not None)
      count += 1
      try:
        self._peers.beat(count, self._step)
        others, silent = self._peers.failures(), self._peers.long_silent()
      except peers_lib.Gone:
        continue  # JAX ends this process.
      step, idle = self._step, time.monotonic() - self._at
      if others:
        self._meanwhile(self._follow, others[0])
      elif silent:
        self._meanwhile(self._lost, silent)
      elif self._limit and step is not None and idle > self._limit:
        self._meanwhile(self._stalled, step)

  def _meanwhile(self, end: Callable[[Any], None], why: Any) -> None:
    """Ends the process while this thread goes on to show that it lives."""
    if self._ending.acquire(blocking=False):
      threading.Thread(target=end, args=(why,), name="end", daemon=True).start()

  def _follow(self, other: Failure) -> None:
    """Ends this process, whose main thread may be waiting for ever."""
    if not self._first:
      self._peers.say([other])
    if other.status == STALLED_STATUS:  # Where does this one wait?
      self._peers.publish(dataclasses.replace(
          other, index=self._peers.index, stack=_main_stack()))
    self._last_words(other, known="")
    self._end(other.status)

  def _lost(self, silent: list[int]) -> None:
    who = ", ".join(map(self._peers.name, silent))
    failure = Failure(self._peers.index, f"{who} shows no life any more",
                      LOST_STATUS, _main_stack())
    self._give_up(failure)

  def _stalled(self, step: int) -> None:
    text = (f"no step has finished for {self._limit:.0f} s (--stall_timeout):"
            f" {self._behind(step)}")
    self._give_up(Failure(
        self._peers.index, text, STALLED_STATUS, _main_stack()))

  def _give_up(self, failure: Failure) -> None:
    peers_lib.write(f"error: {failure.text}\nstack of"
                    f" {self._peers.name(failure.index)}:\n{failure.stack}")
    self._peers.publish(failure)
    self._last_words(failure, known=failure.text)
    self._end(failure.status)

  def _root(self, failure: Failure) -> Failure:
    """What a lost contact is the echo of."""
    name = self._peers.name
    try:
      silent = self._peers.silent()
      others = self._peers.failures()
    except peers_lib.Gone:
      return dataclasses.replace(
          failure, status=LOST_STATUS,
          text=f"{name(0)}, the coordinator, is gone: see its own log")
    if others:  # Rather the cause than another echo of it.
      return min(others, key=lambda f: f.status == LOST_STATUS)
    who = ", ".join(map(name, silent)) or "another process"
    verb = "are" if len(silent) > 1 else "is"
    return dataclasses.replace(
        failure, status=LOST_STATUS,
        text=f"{who} {verb} gone: see its own log ({failure.text})")

  def _behind(self, step: int) -> str:
    """Who keeps the others waiting."""
    name, here = self._peers.name, self._peers.index
    if not self._peers.several:
      return f"this process is after step {step}"
    try:
      silent, steps = self._peers.silent(), self._peers.steps()
    except peers_lib.Gone:
      return f"{name(0)}, the coordinator, does not respond"
    if silent:
      verb = "do" if len(silent) > 1 else "does"
      return (f"{', '.join(map(name, silent))} {verb} not respond; this is"
              f" {name(here)} after step {step}")
    least = min(steps.values(), default=step)
    late = [i for i, s in steps.items() if s == least]
    if len(late) == len(steps):
      return f"all processes are after step {least}"
    return (f"{', '.join(map(name, late))} still after step {least}, others"
            f" after step {max(steps.values())}")


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


def begin(names: dict[int, str], index: int = 0, **options: Any) -> Watch:
  """Starts the process's watch, which `Beat` reports to."""
  global _current
  _current = Watch(names, index, **options)
  return _current


def _beat(step: int | None) -> None:
  if _current is not None:
    _current.beat(step)


def _main_stack() -> str:
  """Where the main thread is."""
  frame = sys._current_frames().get(threading.main_thread().ident or 0)
  lines = traceback.format_stack(frame)[-_FRAMES:] if frame else []
  return "".join(lines).rstrip()


def _touch(beat_file: str | None, armed: bool) -> None:
  """Time 0 tells the supervisor to expect nothing."""
  if beat_file:
    try:
      os.utime(beat_file, None if armed else (0, 0))
    except OSError:
      pass  # The supervisor is gone.
