"""A run that dies is started again as long as it gets further."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import house
from lm.launch import events
from lm.launch import supervise
import pytest

# Counts its starts in a file and does what the list says for this start.
CHILD = """
import os, pathlib, signal, sys
folder, *plan = sys.argv[1:]
folder = pathlib.Path(folder)
count = len(list(folder.glob("start*")))
(folder / f"start{count}").touch()
action = plan[count] if count < len(plan) else "done"
if action.startswith("save"):
  (folder / "checkpoints" / f"step_{count:08d}").mkdir(parents=True)
if action.endswith("kill"):
  os.kill(os.getpid(), signal.SIGKILL)
sys.exit({"done": 0, "user": 2}.get(action, 1))
"""


def starts(folder: pathlib.Path) -> int:
  return len(list(folder.glob("start*")))


@pytest.mark.parametrize("plan, status, count", [
    (["done"], 0, 1),
    (["user"], 2, 1),  # Bad input does not get better.
    (["kill", "done"], 0, 2),
    (["crash", "savekill", "crash", "savecrash", "crash", "done"], 0, 6),
    (["crash", "crash", "crash", "done"], 1, 3),  # No progress: given up.
    (["savekill", "kill", "kill", "done"], 137, 3),
])
def test_restarts_while_there_is_progress(tmp_path, plan, status, count):
  command = [sys.executable, "-c", CHILD, str(tmp_path), *plan]
  assert supervise.supervise(tmp_path, command, delay=0.01) == status
  assert starts(tmp_path) == count


def test_it_ends_when_another_hosts_supervisor_gave_up(tmp_path):
  """A host that waits for one that will never come again need not wait long."""
  code = ("import pathlib, sys\n"
          "from lm.launch import events\n"
          "folder = pathlib.Path(sys.argv[1])\n"
          "(folder / f'start{len(list(folder.glob(\"start*\")))}').touch()\n"
          "if len(sys.argv) > 2:\n"
          "  events.record(folder, 'gave_up', status=2, host='b')\n"
          "sys.exit(75)\n")
  one, two = tmp_path / "one", tmp_path / "two"
  for folder, more, count, status in (
      (one, [], 3, 75), (two, ["gave up"], 1, 2)):
    folder.mkdir()
    command = [sys.executable, "-c", code, str(folder), *more]
    assert supervise.supervise(
        folder, command, delay=0.01, max_lost=3, several=True) == status
    assert starts(folder) == count
  # Its own end, but not one that a signal asked for, is told to the others.
  assert [e["status"] for e in events.read(one)] == [75]
  assert [e["host"] for e in events.read(two)] == ["b"]


def test_sigterm_is_passed_on_and_ends_it(tmp_path):
  code = ("import sys, pathlib; from lm.launch import supervise;"
          "sys.exit(supervise.supervise(pathlib.Path(sys.argv[1]),"
          " [sys.executable, '-c', sys.argv[2], sys.argv[1]]))")
  child = ("import pathlib, signal, sys, time\n"
           "folder = pathlib.Path(sys.argv[1])\n"
           "def stop(*_):\n  (folder / 'stopped').touch(); sys.exit(0)\n"
           "signal.signal(signal.SIGTERM, stop)\n"
           "(folder / 'start0').touch()\n"
           "time.sleep(60)\n")
  process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), child],
                             cwd=house.ROOT)
  deadline = time.monotonic() + 30
  while not starts(tmp_path) and time.monotonic() < deadline:
    time.sleep(0.05)
  os.kill(process.pid, signal.SIGTERM)
  assert process.wait(30) == 0
  assert (tmp_path / "stopped").exists() and starts(tmp_path) == 1


def test_the_flag_is_not_passed_to_the_child(monkeypatch):
  monkeypatch.setattr(sys, "orig_argv", [
      "python", "-m", "experiments.x.run", "--config=c", "--supervise",
      "--workdir=w"])
  assert supervise.own_command() == [
      sys.executable, "-m", "experiments.x.run", "--config=c", "--workdir=w"]
