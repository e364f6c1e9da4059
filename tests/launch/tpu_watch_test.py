"""What is preempted comes back the same, until the run has ended."""

import json
import time

from lm.launch.tpu import resources
from lm.launch.tpu import watch as watch_lib
import pytest
from tests.launch import tpu_house
from tests.launch.tpu_house import lm, TRAIN, UP, WORKDIR, ZONE

CREATE = ("compute", "tpus", "queued-resources", "create")
DELETE = ("compute", "tpus", "queued-resources", "delete")


@pytest.fixture
def cloud(tmp_path, monkeypatch):
  cloud = tpu_house.made(tmp_path, monkeypatch)
  assert lm(*UP, "--spot") == 0
  assert lm("run", "demo", ZONE, "--detach", "--", *TRAIN) == 0
  return cloud


@pytest.fixture
def at_sleep(monkeypatch):
  """Calls one function after the other, one at each sleep of the watch.

  The last one is called again and again; a watch that does not end fails.
  """
  steps, count = [], [0]
  real = time.sleep

  def sleep(seconds):
    real(min(seconds, 0.01))
    count[0] += 1
    assert count[0] < 60, "does not end"
    if steps:
      (steps.pop(0) if len(steps) > 1 else steps[0])()

  monkeypatch.setattr(watch_lib.time, "sleep", sleep)
  return steps


def nothing():
  pass


def arguments(call):
  """Of a request, without the names of temporary files."""
  return [w for w in call if not w.startswith("--metadata-from-file")]


@pytest.mark.parametrize("suspended", [True, False])
def test_preempted_asked_for_again_finished(cloud, at_sleep, capsys, suspended):
  script = cloud.state()["queued"]["demo"]["metadata"]["startup-script"]
  at_sleep += [lambda: cloud.preempt("demo", suspended=suspended)]
  at_sleep += [nothing] * 12 + [lambda: cloud.finish(WORKDIR, hosts=1)]
  assert lm("watch", "demo", ZONE) == 0
  first, second = cloud.calls(*CREATE)
  assert arguments(first) == arguments(second) and "--spot" in second
  assert "--force" in cloud.calls(*DELETE)[0]
  again = cloud.state()["queued"]["demo"]
  assert again["state"] == "ACTIVE"
  assert again["metadata"]["startup-script"] == script
  said = capsys.readouterr().out
  assert ("SUSPENDED" if suspended else "demo PREEMPTED") in said
  assert said.index("asked for again") < said.index("demo: ACTIVE\nrun ")
  assert "finished: results are in gs://bucket/run" in said
  assert lm("down", "demo", ZONE) == 0


def test_a_run_is_not_finished_before_its_last_host(cloud, at_sleep):
  with cloud.changed() as state:
    state["nodes"]["demo"]["networkEndpoints"] = [{}] * 2
  cloud.finish(WORKDIR, hosts=1)
  at_sleep += [nothing, lambda: cloud.finish(WORKDIR, hosts=2)]
  assert lm("watch", "demo", ZONE) == 0
  assert not at_sleep[1:]


def test_down_when_finished(cloud, at_sleep, capsys):
  cloud.finish(WORKDIR)
  assert lm("watch", "demo", ZONE, "--down") == 0
  assert cloud.state() == {"queued": {}, "nodes": {}, "instances": {}}
  assert cloud.file(f"{WORKDIR}/launch/run.json").exists()
  # The next run is not taken for this one.
  assert lm(*UP, "--spot") == 0
  assert lm("run", "demo", ZONE, "--detach") == 0
  at_sleep += [lambda: cloud.finish(WORKDIR, status="2")]
  assert lm("watch", "demo", ZONE) == 1
  assert "ended with status 2 on w-0: lm tpu logs demo" in (
      capsys.readouterr().out)


def test_taken_down_elsewhere_is_not_made_again(cloud, at_sleep, capsys):
  def down():
    at_sleep[:] = [nothing]
    assert lm("down", "demo", ZONE) == 0
  at_sleep += [down]
  assert lm("watch", "demo", ZONE) == 0
  assert "was taken down: not watching" in capsys.readouterr().out
  assert len(cloud.calls(*CREATE)) == 1 and not cloud.state()["queued"]


def test_deleted_while_nobody_watched(cloud, at_sleep):
  """As when a laptop closes between deleting and asking again."""
  with cloud.changed() as state:
    state["queued"].clear()
    state["nodes"].clear()
  at_sleep += [nothing] * 6 + [lambda: cloud.finish(WORKDIR)]
  assert lm("watch", "demo", f"--workdir={WORKDIR}") == 0
  assert len(cloud.calls(*CREATE)) == 2


def test_a_quota_that_is_late(cloud, at_sleep, capsys):
  cloud.preempt("demo")
  cloud.cue(refuse={"resources create": "Quota limit 'T' has been exceeded."})
  at_sleep += [nothing] * 4 + [lambda: cloud.cue(refuse={}), *[nothing] * 8,
                               lambda: cloud.finish(WORKDIR)]
  assert lm("watch", "demo", ZONE) == 0
  assert "refused, trying again: Quota limit" in capsys.readouterr().out
  assert cloud.state()["queued"]["demo"]["state"] == "ACTIVE"


@pytest.mark.parametrize("command", ["describe", "tpu-vm list", "cat"])
def test_a_network_that_is_away_for_a_while(cloud, at_sleep, capsys, command):
  cloud.cue(refuse={command: "There was a problem: Network is unreachable"})
  at_sleep += [nothing] * 3 + [lambda: cloud.cue(refuse={}), nothing,
                               lambda: cloud.finish(WORKDIR)]
  assert lm("watch", "demo", f"--workdir={WORKDIR}", ZONE) == (
      2 if command == "describe" else 0)  # The first look is not patient.
  said = capsys.readouterr()
  if command != "describe":
    assert said.out.count("trying again: could not") == 4
  assert len(cloud.calls(*CREATE)) == 1


def test_a_network_that_stays_away(cloud, at_sleep, capsys, monkeypatch):
  monkeypatch.setattr(resources.Patience, "LIMIT", 5)

  def cut():
    cloud.cue(refuse={"describe": "Network is unreachable"})
  at_sleep += [cut]
  assert lm("watch", "demo", ZONE) == 2
  assert "Network is unreachable" in tpu_house.one_line(capsys)


@pytest.mark.parametrize("message, words, times", [
    ("Quota limit 'T' has been exceeded.", "5 times in a row: no quota", 5),
    ("PERMISSION_DENIED: no", "not permitted", 1)])
def test_a_refusal_that_stays(cloud, at_sleep, capsys, message, words, times):
  cloud.preempt("demo")
  cloud.cue(refuse={"resources create": message})
  assert lm("watch", "demo", ZONE) == 2
  assert words in tpu_house.one_line(capsys)
  assert len(cloud.calls(*CREATE)) == 1 + times
  assert not cloud.state()["queued"]


def test_a_request_that_fails_again_and_again(cloud, at_sleep, capsys):
  cloud.preempt("demo")
  cloud.cue(fail="no more capacity in the zone")
  assert lm("watch", "demo", ZONE) == 2
  assert "not to be had in us-east5-b" in tpu_house.one_line(capsys)


def test_run_watches_and_ctrl_c_only_detaches(cloud, at_sleep, capsys):
  def interrupt():
    raise KeyboardInterrupt
  at_sleep += [interrupt]
  before = cloud.state()
  assert lm("run", "demo", ZONE) == 0
  said = capsys.readouterr().out
  assert f"lm tpu watch demo {ZONE}" in said and "detached" in said
  assert cloud.state() == before


def test_a_controller_watches_in_the_cloud(tmp_path, monkeypatch, capsys):
  cloud = tpu_house.made(tmp_path, monkeypatch)
  assert lm(*UP, "--controller", "--down",
            "--service_account=a@p.iam.gserviceaccount.com") == 0
  created, = cloud.calls("compute", "instances", "create")
  assert {"demo-controller", "--machine-type=e2-small", ZONE,
          "--service-account=a@p.iam.gserviceaccount.com"} <= set(created)
  asked = json.loads(cloud.file(
      f"{WORKDIR}/launch/controller.json").read_text())
  assert asked["command"] == [
      "lm", "tpu", "watch", "demo", ZONE, f"--workdir={WORKDIR}", "--down"]
  assert cloud.file(f"{WORKDIR}/launch/{asked['commit']}.tar.gz").exists()
  items = cloud.state()["instances"]["demo-controller"]["metadata"]["items"]
  script, = (i["value"] for i in items if i["key"] == "startup-script")
  assert "RUN_FILE=launch/controller.json" in script
  # `run` then does not watch, and the command that it runs ends it all.
  assert lm("run", "demo", ZONE, "--", *TRAIN) == 0
  assert "demo-controller watches" in capsys.readouterr().out
  cloud.finish(WORKDIR)
  assert lm(*asked["command"][2:]) == 0
  assert cloud.state() == {"queued": {}, "nodes": {}, "instances": {}}


def test_a_controller_alone_is_found_and_deleted(tmp_path, monkeypatch):
  cloud = tpu_house.made(tmp_path, monkeypatch)
  assert lm(*UP, "--controller") == 0
  with cloud.changed() as state:
    state["queued"].clear()
    state["nodes"].clear()
  assert lm("down", "demo", ZONE) == 0
  assert not cloud.state()["instances"]
