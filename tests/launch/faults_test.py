"""Several hosts as real processes: killed, preempted, stalled, resumed."""

import os
import random
import re
import shutil
import signal

import jax
from lm import train
from lm.launch import events
import numpy as np
import pod
import pytest
from tests.experiments import road

# Which process dies in which stage; when is drawn anew each time.
KILLED = {"pretrain": 0, "instruct": 1, "value": 1}
STEPS = 30


def command(stage, folder, workdir, *more):
  """A stage's command line; it goes on from the one before in `folder`."""
  before = {"pretrain": None, "instruct": "pretrain", "value": "instruct"}
  init = before[stage] and folder / before[stage]
  arguments = road.arguments(
      stage, workdir, f"--config.steps={STEPS}", "--config.batch=8",
      "--config.checkpoint.every=3", "--config.log_every=5",
      "--config.mesh.fsdp=-1", text=folder / "text", init=init)
  arguments = [a for a in arguments if not a.startswith("--workdir")]
  if stage == "instruct":
    arguments.append("--config.evaluate.questions=0")
  return [f"experiments.{stage}.run", *arguments, *more]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Every stage uninterrupted, with two processes."""
  made = tmp_path_factory.mktemp("pod")
  road.text_folder(made / "text")
  for stage in road.STAGES:
    with pod.start(command(stage, made, made / stage), made / stage, 2) as run:
      assert run.wait() == [0, 0], run.log(0) + run.log(1)
  return made


def same(a, b):
  """Whether two runs ended in the same state, bit for bit."""
  a, b = train.load(a), train.load(b)
  assert a.step == b.step == STEPS
  assert a.description["source"] == b.description["source"]
  leaves = [jax.tree.leaves(x.params) for x in (a, b)]
  for x, y in zip(*leaves, strict=True):
    np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.mark.parametrize("stage", list(KILLED))
def test_killed_at_a_random_moment(folder, tmp_path, stage):
  workdir, index = tmp_path / stage, KILLED[stage]
  wanted = random.randrange(3, STEPS - 6)
  with pod.start(command(stage, folder, workdir), workdir, 2,
                 "--supervise") as run:
    pod.until(lambda: max(pod.checkpoints(workdir), default=0) >= wanted,
              what=f"a checkpoint after {wanted} steps")
    os.kill(run.worker(index), signal.SIGKILL)
    assert run.wait() == [0, 0], run.log(0) + run.log(1)
    assert "restarting from its last checkpoint" in run.log(index)
  starts = [e for e in events.read(workdir) if e["event"] == "started"]
  assert len(starts) >= 2, "it was not started again"
  last = [r for r in train.read_metrics(workdir) if "goodput" in r][-1]
  assert last["goodput/restarts"] == len(starts) - 1
  assert 0 < last["goodput/useful_seconds"] < last["goodput/wall_seconds"]
  same(workdir, folder / stage)
  assert road.result(workdir) == road.result(folder / stage)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_one_host_saves_on_all(folder, tmp_path, number):
  workdir = tmp_path / "run"
  with pod.start(command("value", folder, workdir), workdir, 2) as run:
    pod.until(lambda: pod.checkpoints(workdir), what="a checkpoint")
    run.processes[1].send_signal(number)
    assert run.wait() == [143, 143], run.log(0) + run.log(1)
    assert "Traceback" not in run.log(0) + run.log(1)
  marker = events.read(workdir)[-1]
  assert (marker["event"], marker["signal"]) == ("stopped", "SIGTERM")
  assert pod.checkpoints(workdir)[-1] == marker["step"] < STEPS
  with pod.start(command("value", folder, workdir), workdir, 2) as run:
    assert run.wait() == [0, 0], run.log(0) + run.log(1)
  same(workdir, folder / "value")


def test_a_stalled_host_is_named_with_the_stacks_of_those_that_wait(
    folder, tmp_path):
  workdir = tmp_path / "run"
  with pod.start(command("value", folder, workdir), workdir, 2,
                 "--stall_timeout=8") as run:
    pod.until(lambda: pod.checkpoints(workdir), what="a checkpoint")
    run.processes[1].send_signal(signal.SIGSTOP)
    assert run.processes[0].wait(120) == 124, run.log(0)
  log = run.log(0)
  assert re.search(r"no step has finished for 8 s .*: \S+ \(process 1\) does"
                   r" not respond", log), log
  assert "stack of" in log and "in _read" in log
  assert events.read(workdir)[-1]["event"] == "error"


def in_float32(folder, workdir):
  _, _, *rest = command(
      "pretrain", folder, workdir, "--config.checkpoint.every=6",
      "--config.checkpoint.keep_last=9")
  return ["experiments.pretrain.run", road.float32(folder), *rest]


@pytest.fixture(scope="module")
def whole(folder):
  """A run of two processes in float32 that kept all its checkpoints."""
  made = folder / "float32"
  with pod.start(in_float32(folder, made), made, 2) as run:
    assert run.wait() == [0, 0], run.log(0) + run.log(1)
  return made


@pytest.mark.parametrize("count", [1, 4])
def test_continued_by_another_number_of_processes(
    folder, whole, tmp_path, count):
  """The same batches in the same order, and the loss of float32 sums."""
  workdir = tmp_path / "run"
  shutil.copytree(whole, workdir)
  for step in pod.checkpoints(workdir):
    if step > 12:
      shutil.rmtree(workdir / "checkpoints" / f"step_{step:08d}")
  (workdir / "result.json").unlink()
  with pod.start(in_float32(folder, workdir), workdir, count) as run:
    assert run.wait() == [0] * count, run.log(0)
  found, wanted = ({r["step"]: r for r in train.read_metrics(w)
                    if "loss" in r and r["step"] > 12}
                   for w in (workdir, whole))
  assert sorted(found) == sorted(wanted) == list(range(13, STEPS + 1))
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
