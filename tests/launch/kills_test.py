"""kill -9 of any host in every stage: it ends as if nobody had disturbed it."""

import os
import random
import signal

from lm import train
from lm.launch import events
import pod
import pytest
from tests.experiments import road

# Which process dies in which stage; when is drawn anew each time.
KILLED = {"pretrain": 0, "instruct": 1, "value": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Every stage uninterrupted, with two processes."""
  made = tmp_path_factory.mktemp("pod")
  road.text_folder(made / "text")
  for stage in road.STAGES:
    workdir = made / stage
    with pod.start(pod.command(stage, made, workdir), workdir, 2) as run:
      assert run.wait() == [0, 0], run.log(0) + run.log(1)
  return made


@pytest.mark.parametrize("stage", list(KILLED))
def test_killed_at_a_random_moment(folder, tmp_path, stage):
  workdir, index = tmp_path / stage, KILLED[stage]
  wanted = random.randrange(3, pod.STEPS - 6)
  with pod.start(pod.command(stage, folder, workdir), workdir, 2,
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
  pod.same(workdir, folder / stage)
  assert road.result(workdir) == road.result(folder / stage)
