"""Runs the demo's stages as child processes, each once.

A finished stage leaves `demo.json` in its folder: the fingerprint of what it
ran, its seconds and the seconds of CPU time that it took on all cores. Stages
resume by themselves, so an interrupted demo goes on where it was; seconds add
up over interruptions.
"""

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any

from lm.launch import config_file
from lm.types import UserError

MARKER = "demo.json"
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Ended(Exception):
  """A stage did not finish; its own words stand above."""

  def __init__(self, name: str, status: int):
    self.name, self.status = name, status
    super().__init__(f"{name} ended with status {status}")


@dataclasses.dataclass(frozen=True)
class Stage:
  """One stage of the road.

  Attributes:
    name: its folder under the demo's.
    about: what it does, for people.
    module: what to run.
    config: its config file; None for a module with arguments of its own.
    after: the stages whose checkpoints it reads; one with a config begins from
      the first.
    arguments: further ones.
  """

  name: str
  about: str
  module: str
  config: str | None = None
  after: tuple[str, ...] = ()
  arguments: tuple[str, ...] = ()

  def command(self, root: pathlib.Path) -> list[str]:
    """The command line, as a person would type it."""
    command = [sys.executable, "-m", self.module]
    if self.config:
      command += [f"--config={self.config}", f"--workdir={root / self.name}"]
    if self.config and self.after:
      command.append(f"--config.init={root / self.after[0]}")
    return command + list(self.arguments)

  def fingerprint(self, before: Sequence[str]) -> str:
    """Changes with the config, the arguments, or those of the stages before."""
    config = config_file.load(self.config).to_dict() if self.config else None
    text = json.dumps([self.module, config, self.arguments, list(before)],
                      sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def marker(folder: pathlib.Path) -> dict[str, Any]:
  """What is known of a stage's folder: {} before it began."""
  path = folder / MARKER
  try:
    return json.loads(path.read_text()) if path.exists() else {}
  except ValueError as e:
    raise UserError(f"{path} is damaged: remove {folder} to run that stage"
                    " anew") from e


def check(stages: Sequence[Stage], root: pathlib.Path) -> list[str]:
  """The stages' fingerprints.

  Raises:
    UserError: a folder holds a run of another config, or a config is missing.
  """
  marks: dict[str, str] = {}
  stale = []
  for stage in stages:
    mark = stage.fingerprint([marks[name] for name in stage.after])
    marks[stage.name] = mark
    if marker(root / stage.name).get("fingerprint", mark) != mark:
      stale.append(str(root / stage.name))
  if stale:
    raise UserError(f"{stale[0]} is from another config, or was begun with"
                    f" other options: rm -r {' '.join(stale)}, or choose"
                    " another --workdir")
  return list(marks.values())


def run(stage: Stage, root: pathlib.Path, fingerprint: str, *,
        lock: int | None = None) -> float:
  """Runs a stage, or finds it done; returns its seconds in all.

  The child has a process group of its own, so that a Ctrl-C reaches it only
  once, from here.

  Raises:
    Ended: it failed or was interrupted.
  """
  folder = root / stage.name
  folder.mkdir(parents=True, exist_ok=True)
  old = marker(folder)
  if old.get("done"):
    return old["seconds"]
  before, start = old.get("seconds", 0.0), time.monotonic()
  cpu_before, cpu_start = old.get("cpu_seconds", 0.0), _children_cpu()

  def record(done: bool = False) -> float:
    seconds = before + time.monotonic() - start
    partial = folder / f"{MARKER}.tmp"
    partial.write_text(json.dumps({
        "fingerprint": fingerprint, "seconds": seconds,
        "cpu_seconds": cpu_before + _children_cpu() - cpu_start,
        "done": done}))
    os.replace(partial, folder / MARKER)
    return seconds

  record()
  status, stopped = _wait(stage.command(root), record, lock)
  seconds = record(done=status == 0)
  if stopped:  # Even if it came when nothing was left to do.
    status = 128 + stopped[0]
  if status != 0:
    raise Ended(stage.name, 128 - status if status < 0 else status)
  return seconds


def _children_cpu() -> float:
  """CPU seconds, user and system, of the child processes that have ended."""
  times = os.times()
  return times.children_user + times.children_system


def _wait(command: Sequence[str], beat, lock: int | None
          ) -> tuple[int, list[int]]:
  """Runs a command; returns its status and the signals that came.

  The first signal reaches it as SIGTERM: a stage in training saves on that,
  any other ends at once (a KeyboardInterrupt may be lost in a callback). A
  second Ctrl-C is passed on as it is, and a stage does not save on it.
  """
  environment = dict(os.environ)
  # Large pages: two to four times faster training where memory is virtual.
  environment.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
  child: subprocess.Popen | None = None
  came: list[int] = []

  def send():
    if came and child is not None and child.poll() is None:
      again = len(came) > 1 and came[-1] == signal.SIGINT
      child.send_signal(signal.SIGINT if again else signal.SIGTERM)

  def note(number, frame):
    del frame
    came.append(number)
    send()

  previous = {s: signal.signal(s, note) for s in _SIGNALS}
  try:
    child = subprocess.Popen(
        command, process_group=0, env=environment,
        pass_fds=() if lock is None else (lock,))
    send()  # What came before there was a child.
    while True:
      try:
        return child.wait(timeout=2), came
      except subprocess.TimeoutExpired:
        beat()
  finally:
    if child is not None and child.poll():  # Its helpers may have outlived it.
      with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGTERM)
    for number, handler in previous.items():
      signal.signal(number, handler)


@contextlib.contextmanager
def alone(root: pathlib.Path) -> Iterator[int]:
  """Holds the folder's lock, which a stage that outlives us keeps.

  Raises:
    UserError: another demo runs there, or `root` is no folder.
  """
  try:
    root.mkdir(parents=True, exist_ok=True)
  except (FileExistsError, NotADirectoryError) as e:
    raise UserError(f"--workdir={root} is a file, not a folder") from e
  with open(root / ".lock", "w") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
      raise UserError(f"another demo is at work in {root}: wait for it, or"
                      " choose another --workdir") from e
    yield file.fileno()
