"""Restarts a run that dies, as long as it gets further each time."""

from collections.abc import Sequence
import pathlib
import signal
import subprocess
import sys
import time

from absl import logging

DONE = (0, 2)  # Finished, or a fault of the input: restarting mends neither.


def supervise(
    workdir: pathlib.Path, command: Sequence[str] | None = None, *,
    max_failures: int = 3, delay: float = 1.0,
) -> int:
  """Runs a command until it ends by itself; returns its exit status.

  It is started again after a crash or a kill, and resumes from its last
  checkpoint. After `max_failures` deaths in a row without a new checkpoint it
  is given up. SIGTERM and SIGINT are passed on, and then it is not restarted.

  Args:
    workdir: the run's folder, where new checkpoints appear.
    command: by default this process's own, without --supervise.
    max_failures: how many deaths without progress end it.
    delay: seconds before a restart, doubled for each death in a row.
  """
  command = list(command or own_command())
  stopped = []
  child: subprocess.Popen | None = None

  def stop(signum, frame):
    del frame
    stopped.append(signum)
    if child is not None and child.poll() is None:
      child.send_signal(signum)

  previous = {s: signal.signal(s, stop)
              for s in (signal.SIGTERM, signal.SIGINT)}
  failures, seen = 0, progress(workdir)
  try:
    while True:
      child = subprocess.Popen(command)
      if stopped:  # Came between two children.
        child.send_signal(stopped[-1])
      status = child.wait()
      if status in DONE or stopped:
        return status if status >= 0 else 128 - status
      now = progress(workdir)
      failures = 1 if now != seen else failures + 1
      seen = now
      if failures >= max_failures:
        logging.error("run died %d times without a new checkpoint (status %d):"
                      " giving up", failures, status)
        return status if status > 0 else 128 - status
      logging.warning("run died (status %d): restarting from its last"
                      " checkpoint", status)
      time.sleep(delay * 2 ** (failures - 1))
      if stopped:
        return 128 + stopped[-1]
  finally:
    for signum, handler in previous.items():
      signal.signal(signum, handler)


def own_command() -> list[str]:
  """This process's command line without --supervise."""
  return [sys.executable] + [
      a for a in sys.orig_argv[1:]
      if a.partition("=")[0] not in ("--supervise", "-supervise")]


def progress(workdir: pathlib.Path) -> frozenset[str]:
  """The checkpoints there are: finished `step_N` folders."""
  return frozenset(
      str(p.relative_to(workdir)) for p in workdir.glob("**/step_*")
      if p.is_dir() and p.name.removeprefix("step_").isdigit())
