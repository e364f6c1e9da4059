"""Who is named when nobody gets on: three watches on a store of our own."""

import threading
import time

from lm.launch import peers
from lm.launch import watch
import pytest

NAMES = {0: "a", 1: "b", 2: "c"}


class Store:
  """As the coordinator's."""

  def __init__(self):
    self._values = {}

  def key_value_set(self, key, value, allow_overwrite):
    assert allow_overwrite
    self._values[key] = value

  def key_value_dir_get(self, prefix):
    return [(k, v) for k, v in dict(self._values).items()
            if k.startswith(prefix)]


@pytest.fixture
def start(monkeypatch):
  """Starts the watch of a host; `ended` gets its exit status."""
  monkeypatch.setattr(peers, "INTERVAL", 0.1)
  monkeypatch.setattr(watch, "INTERVAL", 0.1)
  monkeypatch.setattr(peers, "SILENCE", 1.0)
  store, watches = Store(), []
  monkeypatch.setattr(peers.distributed.global_state, "client", store)

  def one(index, **options):
    ended, said = threading.Event(), []
    made = watch.Watch(
        NAMES, index, record=lambda failure: said.append(failure),
        end=lambda status: (said.append(status), ended.set()), **options)
    watches.append(made)
    return made, ended, said

  yield one
  for made in watches:
    made.stop()


def test_the_host_that_is_behind_is_named(start, capfd):
  """Though all wait, and find it out at the same time."""
  found = [start(i, stall_timeout=0.5) for i in range(3)]
  for (made, _, _), step in zip(found, (7, 7, 5), strict=True):
    made.beat(step)
  for _, ended, said in found:
    assert ended.wait(20)
    assert said[-1] == peers.STALLED_STATUS
  (failure, _) = found[0][2]  # What process 0 records.
  assert "c (process 2) still after step 5, others after step 7" in failure.text
  err = capfd.readouterr().err
  assert all(f"stack of {NAMES[i]} (process {i})" in err for i in NAMES)


def test_a_host_without_life_is_named_long_before_a_stall(start):
  first, ended, said = start(0, stall_timeout=900)
  second, *_ = start(1)
  first.beat(3)
  time.sleep(0.5)
  assert not ended.is_set()
  second._done.set()  # Its thread ends as that of a frozen process.
  assert ended.wait(20)
  assert said[0].text == "b (process 1) shows no life any more"
  assert said[-1] == peers.LOST_STATUS


def test_a_host_that_has_finished_is_not_missed(start):
  first, ended, _ = start(0)
  second, *_ = start(1)
  first.beat(3)
  time.sleep(0.5)
  second.stop()
  assert not ended.wait(2)


def test_the_cause_is_reported_and_not_its_echo(start):
  zero, _, said = start(0)
  one, *_ = start(1)
  two, *_ = start(2)
  time.sleep(0.3)
  cause = peers.Failure(2, "its disk is broken", 2)
  assert two.failed(cause, lost=False) == 2
  echo = peers.Failure(1, "Gloo failed", peers.LOST_STATUS)
  assert one.failed(echo, lost=True) == 2
  echo = peers.Failure(0, "Gloo failed", peers.LOST_STATUS)
  assert zero.failed(echo, lost=True) == 2
  assert said[-1] == cause
