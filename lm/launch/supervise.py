"""Restarts a run that dies, as long as it gets further each time."""

from collections.abc import Sequence
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
from typing import Any

from absl import logging

from lm import paths
from lm.launch import events
from lm.launch import peers
from lm.launch import watch
from lm.train import files
from lm.train import loading
from lm.types import UserError

DONE = (0, 2)  # Finished, or a fault of the input: restarting mends neither.
STOPPED = 128 + signal.SIGTERM  # Preempted: saved, and nobody's failure.
# The fault of another host: its own exit, or that of JAX's coordinator.
LOST = (peers.LOST_STATUS, -signal.SIGABRT)
GAVE_UP = "gave_up"  # The event that tells other supervisors to end, too.


def supervise(
    workdir: Any, command: Sequence[str] | None = None, *,
    max_failures: int = 3, max_lost: int = 6, delay: float = 1.0,
    silence: float = 60.0, several: bool = False,
) -> int:
  """Runs a command until it ends by itself; returns its exit status.

  It is started again after a crash, a kill or a preemption notice that only it
  got, and resumes from its last checkpoint. After `max_failures` deaths in a
  row without a new checkpoint it is given up. That another host is missing or
  gone counts on its own, for that host may need longer to come back; if its
  supervisor gave up, this one does at once. SIGTERM and SIGINT to the
  supervisor are passed on, and then it is not restarted.

  Args:
    workdir: the run's folder, where new checkpoints appear.
    command: by default this process's own, without --supervise.
    max_failures: how many deaths without progress end it.
    max_lost: how many losses of another host without progress end it.
    delay: seconds before a restart, doubled for each death in a row.
    silence: seconds without a sign of life from a training child's watch, such
      as of a stopped process, after which it is killed.
    several: whether there are other hosts.
  """
  command = list(command or own_command())
  stopped: list[int] = []
  child: subprocess.Popen | None = None

  def stop(signum, frame):
    del frame
    stopped.append(signum)
    if child is not None and child.poll() is None:
      child.send_signal(signum)

  previous = {s: signal.signal(s, stop)
              for s in (signal.SIGTERM, signal.SIGINT)}
  failures = lost = 0
  seen = progress(workdir)
  beat = _beat_file()
  try:
    while True:
      began = time.time()
      child = subprocess.Popen(  # Ctrl-C shall reach it once, through us.
          command, env={**os.environ, watch.BEAT_FILE: str(beat)},
          process_group=0)
      if stopped:  # Came between two children.
        child.send_signal(stopped[-1])
      status = _wait(child, beat, silence)
      if status in DONE or stopped:
        if several and status == 2:
          _give_up(workdir, status)
        return status if status >= 0 else 128 - status
      if several and status in LOST:
        ended = _ended_elsewhere(workdir, began)
        if ended is not None:
          logging.error("another host's supervisor gave up (status %d)", ended)
          return ended
      now = progress(workdir)
      if now != seen:
        failures = lost = 0
      seen = now
      if status == STOPPED:
        again = 0
      elif several and status in LOST:
        again = lost = lost + 1
      else:
        again = failures = failures + 1
      if failures >= max_failures or lost >= max_lost:
        logging.error("run died %d times without a new checkpoint (status %d):"
                      " giving up", failures + lost, status)
        status = status if status > 0 else 128 - status
        if several:
          _give_up(workdir, status)
        return status
      logging.warning("run ended (status %d): restarting from its last"
                      " checkpoint", status)
      time.sleep(min(delay * 2 ** max(again - 1, 0), 30))
      if stopped:
        return 128 + stopped[-1]
  finally:
    beat.unlink(missing_ok=True)
    for signum, handler in previous.items():
      signal.signal(signum, handler)


def _give_up(workdir: Any, status: int) -> None:
  events.record(workdir, GAVE_UP, status=status, host=socket.gethostname())


def _ended_elsewhere(workdir: Any, since: float) -> int | None:
  """The status of another supervisor that gave up; None if none did."""
  found = [e for e in events.read(workdir)
           if e["event"] == GAVE_UP and e["time"] > since]
  return int(found[-1]["status"]) if found else None


def _beat_file() -> pathlib.Path:
  """Its time says when the child was last alive; 0: nothing is expected."""
  handle, name = tempfile.mkstemp(prefix="lm-beat-")
  os.close(handle)
  os.utime(name, (0, 0))
  return pathlib.Path(name)


def _wait(child: subprocess.Popen, beat: pathlib.Path,
          silence: float) -> int:
  """The child's exit status; it is killed when it shows no life."""
  os.utime(beat, (0, 0))
  while True:
    try:
      return child.wait(min(1.0, silence / 2))
    except subprocess.TimeoutExpired:
      last = beat.stat().st_mtime
      if last and time.time() - last > silence:
        logging.error("run shows no life for %.0f s: killing it", silence)
        child.kill()
        return child.wait()


def own_command() -> list[str]:
  """This process's command line without --supervise."""
  return [sys.executable] + [
      a for a in sys.orig_argv[1:]
      if a.partition("=")[0] not in ("--supervise", "-supervise")]


def progress(workdir: Any) -> frozenset[str]:
  """The checkpoints there are; none where the bucket does not answer."""
  try:
    if paths.is_remote(workdir):
      found = files.steps(workdir / loading.FOLDER)
      return frozenset(str(step) for step in found)
  except UserError:
    return frozenset()
  return frozenset(
      str(p) for p in workdir.glob("**/step_*")
      if p.is_dir() and p.name.removeprefix("step_").isdigit())
