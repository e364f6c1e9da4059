"""Useful time over wall time, over restarts and with work done twice."""

import jax.numpy as jnp
from lm import train
from lm.train import goodput
from lm.train import loop
from lm.types import TrainState
import pytest
from tests.train import toy

STEP, SAVE = 0.05, 0.2


class Clock:
  """Passes only when somebody sleeps."""

  def __init__(self):
    self.now = 1000.0

  def sleep(self, seconds):
    self.now += seconds

  def time(self):
    return self.now

  perf_counter = time


time = Clock()


@pytest.fixture(autouse=True)
def clock(monkeypatch):
  monkeypatch.setattr(goodput, "time", time)
  monkeypatch.setattr(loop, "time", time)


class Slow(train.Hook):
  """Takes its time after every second step, as saving would."""

  def after_step(self, run):
    if run.step % 2 == 0:
      time.sleep(SAVE)


class Die(train.Hook):

  def __init__(self, at):
    self._at = at

  def after_step(self, run):
    if run.step == self._at:
      raise RuntimeError("killed")


def step(state, batch):
  time.sleep(STEP)
  return state.replace(step=state.step + 1), {"loss": jnp.float32(1.0)}


def run(folder, *, start=0, steps=12, every=1, hooks=()):
  state = TrainState(jnp.int32(start), {"w": jnp.zeros(())}, ())
  train.fit(state, toy.Source(), step, steps, [
      train.Goodput(folder, every=every, saved=4, restarts=start and 1),
      train.JsonLines(folder), Slow(), *hooks],
      place=lambda batch: batch)


def rows(folder):
  return [r for r in train.read_metrics(folder) if "goodput" in r]


def test_saves_and_the_first_step_are_not_useful(tmp_path):
  run(tmp_path)
  last = rows(tmp_path)[-1]  # Metrics come a step late: a start costs two.
  assert last["step"] == 12 and last["goodput/restarts"] == 0
  assert last["goodput/useful_seconds"] == pytest.approx(10 * STEP)
  assert last["goodput/hooks_seconds"] == pytest.approx(6 * SAVE)
  assert last["goodput"] == pytest.approx(
      last["goodput/useful_seconds"] / last["goodput/wall_seconds"])
  assert last["goodput"] < 0.6


@pytest.mark.parametrize("every", [1, 50])
def test_what_is_done_twice_counts_once(tmp_path, every):
  with pytest.raises(RuntimeError, match="killed"):
    run(tmp_path, every=every, hooks=[Die(9)])
  before = rows(tmp_path)
  time.sleep(0.3)  # Nothing runs: wall time all the same.
  run(tmp_path, start=4, every=every)
  last = rows(tmp_path)[-1]
  assert last["goodput/restarts"] == 1
  assert last["goodput/began"] == before[0]["goodput/began"]
  # Metrics come a step late, so a start costs two steps: three of the first
  # run's before step 4, six of the eight after the restart.
  assert last["goodput/useful_seconds"] == pytest.approx(9 * STEP)
  assert last["goodput/wall_seconds"] == pytest.approx(
      before[-1]["goodput/wall_seconds"] + 0.3 + 8 * STEP + 4 * SAVE)
