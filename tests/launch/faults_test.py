"""Several hosts as real processes: preempted, stalled, failing, moved."""

import re
import shutil
import signal

from lm import train
from lm.launch import events
import pod
import pytest
from tests.experiments import road


def command(folder, workdir):
  """Pre-training in float32 that keeps all its checkpoints."""
  module, _, *rest = pod.command(
      "pretrain", folder, workdir, "--config.checkpoint.keep_last=99")
  return [module, road.float32(folder), *rest]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Text, and `whole`: a run of two processes that nobody disturbed."""
  made = tmp_path_factory.mktemp("pod")
  road.text_folder(made / "text")
  with pod.start(command(made, made / "whole"), made / "whole", 2) as run:
    assert run.wait() == [0, 0], run.log(0) + run.log(1)
  return made


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_one_host_saves_on_all(folder, tmp_path, number):
  workdir = tmp_path / "run"
  with pod.start(command(folder, workdir), workdir, 2) as run:
    pod.until(lambda: pod.checkpoints(workdir), what="a checkpoint")
    run.processes[1].send_signal(number)
    assert run.wait() == [143, 143], run.log(0) + run.log(1)
    assert "Traceback" not in run.log(0) + run.log(1)
  marker = events.read(workdir)[-1]
  assert (marker["event"], marker["signal"]) == ("stopped", "SIGTERM")
  assert pod.checkpoints(workdir)[-1] == marker["step"] < pod.STEPS
  with pod.start(command(folder, workdir), workdir, 2) as run:
    assert run.wait() == [0, 0], run.log(0) + run.log(1)
  pod.same(workdir, folder / "whole")


def test_a_stalled_host_is_named_with_the_stacks_of_those_that_wait(
    folder, tmp_path):
  workdir = tmp_path / "run"
  with pod.start(command(folder, workdir), workdir, 2,
                 "--stall_timeout=20") as run:
    pod.until(lambda: pod.checkpoints(workdir), what="a checkpoint")
    run.processes[1].send_signal(signal.SIGSTOP)
    assert run.processes[0].wait(200) == 124, run.log(0)
  log = run.log(0)
  assert re.search(r"no step has finished for 20 s .*: \S+ \(process 1\) does"
                   r" not respond", log), log
  stack = log[log.index("stack of"):]  # Any of the collectives of a step.
  assert re.search(r'File "\S+/lm/train/\w+.py", line \d+, in ', stack), log
  assert events.read(workdir)[-1]["event"] == "error"


@pytest.mark.parametrize("count", [1, 4])
def test_continued_by_another_number_of_processes(folder, tmp_path, count):
  """The same batches in the same order, and the loss of float32 sums."""
  workdir = tmp_path / "run"
  shutil.copytree(folder / "whole", workdir)
  for step in pod.checkpoints(workdir):
    if step > 12:
      shutil.rmtree(workdir / "checkpoints" / f"step_{step:08d}")
  (workdir / "result.json").unlink()
  with pod.start(command(folder, workdir), workdir, count) as run:
    assert run.wait() == [0] * count, run.log(0)
  found, wanted = ({r["step"]: r for r in train.read_metrics(w)
                    if "loss" in r and r["step"] > 12}
                   for w in (workdir, folder / "whole"))
  assert sorted(found) == sorted(wanted) == list(range(13, pod.STEPS + 1))
  for step, row in found.items():
    assert row["tokens"] == wanted[step]["tokens"]  # The same batches.
    assert row["loss"] == pytest.approx(
        wanted[step]["loss"], rel=1e-5 if step == 13 else 1e-3)


@pytest.mark.parametrize("fault, status, words", [
    ("nan", 2, r"error: training diverged at step 8: loss is nan .*Last good"
     r" checkpoint: \S+step_00000006"),
    ("user", 2, r"error: \S+ \(process 1\): its own disk is broken"),
    ("bug", 1, r"error: \S+ \(process 1\): KeyError: 'no such thing'\nstack of"
     r" \S+ \(process 1\):\nTraceback[\s\S]+failing_main.py"),
])
def test_when_one_host_fails_all_stop_and_say_why(
    tmp_path, fault, status, words):
  config = tmp_path / "config.py"
  config.write_text(
      "from ml_collections import ConfigDict\ndef get_config():\n"
      f"  return ConfigDict(dict(fault={fault!r}, mesh=dict(fsdp=-1)))\n")
  workdir = tmp_path / "run"
  with pod.start(["tests.launch.failing_main", f"--config={config}"], workdir,
                 2) as run:
    assert run.wait() == [status] * 2, run.log(0) + run.log(1)
  assert re.search(words, run.log(0)), run.log(0)
  said = events.read(workdir)[-1]
  assert said["event"] == "error" and (fault == "nan" or said["process"] == 1)
  assert pod.checkpoints(workdir)[-1] == 6
