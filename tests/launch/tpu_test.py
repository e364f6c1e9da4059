"""`lm tpu` against a strict fake of gcloud: the whole way, and each fault."""

import ast
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess

import house
from lm.launch.tpu import actions
from lm.launch.tpu import resources
from lm.launch.tpu import spec as spec_lib
from lm.types import UserError
import pytest
from tests.launch import tpu_house
from tests.launch.tpu_house import lm, TRAIN, UP, WORKDIR, ZONE

CREATE = ("compute", "tpus", "queued-resources", "create")
DELETE = ("compute", "tpus", "queued-resources", "delete")
SSH = ("compute", "tpus", "tpu-vm", "ssh")


@pytest.fixture
def cloud(tmp_path, monkeypatch):
  return tpu_house.made(tmp_path, monkeypatch)


def nothing_left(cloud) -> bool:
  return cloud.state() == {"queued": {}, "nodes": {}, "instances": {}}


def test_from_up_to_down(tmp_path, monkeypatch, capsys):
  cloud = tpu_house.made(tmp_path, monkeypatch, processes=True)
  assert lm(*UP) == 0
  said = capsys.readouterr().out
  assert [re.sub(" for .*", "", x) for x in said.splitlines()[:-1]] == [
      "demo: CREATING", "demo: WAITING_FOR_RESOURCES", "demo: PROVISIONING",
      "demo: ACTIVE"]
  assert lm("run", "demo", ZONE, "--detach", "--", *TRAIN, "--x=a b") == 0
  ran = json.loads(cloud.file(f"{WORKDIR}/launch/run.json").read_text())
  assert ran["command"] == [*TRAIN, "--x=a b", f"--workdir={WORKDIR}",
                            "--distributed", "--supervise"]
  head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True,
                        text=True, check=True).stdout.strip()
  assert ran["commit"] == head
  listed = subprocess.run(
      ["tar", "-tzf", cloud.file(f"{WORKDIR}/launch/{head}.tar.gz")],
      capture_output=True, text=True, check=True).stdout
  assert listed == "setup.py\n"
  ssh, = cloud.calls(*SSH)
  assert "--worker=all" in ssh and "demo" in ssh
  capsys.readouterr()

  cloud.file(f"{WORKDIR}/metrics.jsonl").write_text(
      '{"step": 10, "loss": 3.25}\n{"step": 20, "loss": 2.5}\n{"step": 2')
  cloud.file(f"{WORKDIR}/checkpoints/step_00000020/manifest").write_text("")
  cloud.file(f"{WORKDIR}/checkpoints/step_00000010/manifest").write_text("")
  assert lm("status", "demo", ZONE) == 0
  said = " ".join(capsys.readouterr().out.split())
  for part in ("queued resource │ ACTIVE", "READY, HEALTHY",
               "step 20, loss 2.5", "step_00000020", "controller │ none",
               "$21.60 an hour", ran["id"]):
    assert part in said, part

  # Its output goes to the terminal, not through Python.
  assert lm("logs", "demo", ZONE, "--follow") == 0
  logs = cloud.calls(*SSH)[-1]
  assert "--worker=0" in logs and (
      "--command=sudo journalctl --unit=lm.service --no-pager --lines=200"
      " --follow") in logs

  assert lm("down", "demo", ZONE) == 0
  assert nothing_left(cloud)
  assert cloud.file(f"{WORKDIR}/metrics.jsonl").exists()
  assert "nothing of it is left" in capsys.readouterr().out
  assert lm("down", "demo", ZONE) == 0
  assert "nothing to delete" in capsys.readouterr().out
  assert lm("down", "demo", f"--workdir={WORKDIR}") == 0


def test_any_laptop_knows_it_by_its_folder(cloud, capsys):
  lm(*UP)
  assert lm("status", "demo", f"--workdir={WORKDIR}") == 0
  assert lm("status", "other", f"--workdir={WORKDIR}") == 2
  assert "called demo" in one_error(capsys)
  assert lm("status", "demo") == 2
  assert "give --zone" in one_error(capsys)


def one_error(capsys) -> str:
  return tpu_house.one_line(capsys)


def test_several_slices(cloud):
  assert lm(*UP, "--slices=3", "--spot") == 0
  created, = cloud.calls(*CREATE)
  assert {"--node-count=3", "--node-prefix=demo", "--spot"} <= set(created)
  assert not any(w.startswith("--node-id") for w in created)
  lm("run", "demo", ZONE, "--detach", "--", *TRAIN)
  assert {c[4] for c in cloud.calls(*SSH)} == {"demo-0", "demo-1", "demo-2"}
  assert lm("logs", "demo", ZONE, "--slice=2", "--worker=1") == 0
  assert {"demo-2", "--worker=1"} <= set(cloud.calls(*SSH)[-1])
  assert lm("logs", "demo", ZONE, "--slice=3") == 2
  lm("down", "demo", ZONE)
  assert nothing_left(cloud)


def test_up_again_goes_on_and_refuses_another_request(cloud, capsys):
  cloud.cue(lag=3)
  assert lm(*UP) == 0
  assert lm(*UP) == 0
  assert len(cloud.calls(*CREATE)) == 1
  assert lm(*UP, "--spot") == 2
  line = one_error(capsys)
  assert "spot: True, not False" in line and "lm tpu down demo" in line
  assert lm("up", "other", *UP[2:]) == 2
  assert "belongs to demo" in one_error(capsys)
  assert len(cloud.calls(*CREATE)) == 1 and not cloud.calls(*DELETE)


def test_interrupted_while_it_waits(cloud, capsys, monkeypatch):
  def interrupt(seconds):
    raise KeyboardInterrupt
  monkeypatch.setattr(resources.time, "sleep", interrupt)
  assert lm(*UP) == 130
  said = capsys.readouterr().out
  assert "stays requested" in said and f"lm tpu down demo {ZONE}" in said
  monkeypatch.undo()
  cloud.inside(monkeypatch)  # Undone as well.
  assert lm(*UP) == 0
  assert len(cloud.calls(*CREATE)) == 1


def test_waiting_bears_a_lost_network(cloud, capsys, monkeypatch):
  messages = iter([{"describe": "Network is unreachable"}] * 3)
  cloud.cue(lag=2)
  monkeypatch.setattr(resources.time, "sleep", lambda s: cloud.cue(
      refuse=next(messages, {})))
  assert lm(*UP) == 0
  assert "trying again: could not look up demo" in capsys.readouterr().out
  assert len(cloud.calls(*CREATE)) == 1


QUOTA = "RESOURCE_EXHAUSTED: Quota limit 'TPUV6E' has been exceeded. Limit: 0."
FAULTS = [
    # Which command is refused, with what, words of the line.
    ("quota", {"refuse": {"resources create": QUOTA}}, "no quota for v6e-8"),
    ("late quota", {"fail": QUOTA}, "no quota for v6e-8"),
    ("reservation", {"fail": "Insufficient reserved capacity. [EID: 0x7]"},
     "not to be had"),
    ("roles", {"refuse": {"resources create":
                          "PERMISSION_DENIED: The caller does not have"
                          " permission"}}, "not permitted"),
    ("login", {"login": False}, "gcloud auth login"),
    ("project", {"refuse": {"describe": "Error parsing [queued_resource].\nThe"
                            " resource is not properly specified.\nFailed to"
                            " find attribute [project]."}}, "give --project"),
    ("name", {"refuse": {"resources create":
                         "ALREADY_EXISTS: Resource 'x' already exists"}},
     "the name is taken"),
    ("api", {"refuse": {"describe": "PERMISSION_DENIED: Cloud TPU API has not"
                        " been used in project 1 before or it is disabled."}},
     "gcloud services enable tpu.googleapis.com"),
    ("zone", {"zones": {"us-central2-b": ["v6e-8"], "us-east5-b": ["v5p-8"],
                        "us-east1-d": ["v6e-8"]}},
     "--zone=us-central2-b, or us-east1-d"),
    ("no zone", {"zones": {"us-central2-b": ["v6e-8"]}},
     "--zone=us-central2-b"),
    ("controller", {"refuse": {"instances create": "Required"
                               " 'compute.instances.create' permission: 403"}},
     "could not create demo-controller: not permitted"),
]


@pytest.mark.parametrize("cue, words", [f[1:] for f in FAULTS],
                         ids=[f[0] for f in FAULTS])
def test_a_fault_is_one_line_and_leaves_nothing(cloud, capsys, cue, words):
  cloud.cue(**cue)
  assert lm(*UP, "--controller") == 2
  assert words in one_error(capsys)
  assert nothing_left(cloud)
  (cloud.root / "cues.json").unlink()
  # As if nothing had been, also for another name in the same folder.
  assert lm("up", "other", *UP[2:]) == 0


def test_no_bucket(cloud, capsys):
  assert lm(*UP[:-1], "--workdir=gs://nowhere/run") == 2
  assert "gcloud storage buckets create gs://nowhere" in one_error(capsys)
  assert nothing_left(cloud)


def test_no_gcloud(monkeypatch, tmp_path, capsys):
  monkeypatch.setenv("PATH", str(tmp_path))
  assert lm(*UP) == 2
  assert "docs.cloud.google.com/sdk/docs/install" in one_error(capsys)


def test_only_a_commit_runs(cloud, capsys, monkeypatch, tmp_path):
  lm(*UP)
  pathlib.Path("setup.py").write_text("changed\n")
  pathlib.Path("new.py").write_text("")
  assert lm("run", "demo", ZONE, "--detach", "--", *TRAIN) == 2
  line = one_error(capsys)
  assert "setup.py" in line and "new.py" in line and "git commit" in line
  monkeypatch.chdir(tmp_path)
  assert lm("run", "demo", ZONE, "--detach", "--", *TRAIN) == 2
  assert "not a git checkout" in one_error(capsys)
  assert not cloud.calls(*SSH)
  assert not cloud.file(f"{WORKDIR}/launch/run.json").exists()


def test_a_dry_run_shows_and_changes_nothing(cloud, capsys):
  assert lm(*UP, "--controller", "--dry-run") == 0
  shown = capsys.readouterr().out.splitlines()
  assert [" ".join(x.split()[1:4]) for x in shown[1:-1]] == [
      "storage cp -", "storage cp -", "storage cp -",
      "compute instances create", "compute tpus queued-resources"]
  assert shown[0].endswith("--no-clobber --quiet")
  assert nothing_left(cloud)
  assert not any((cloud.root / "buckets" / "bucket").iterdir())
  lm(*UP)
  before = cloud.state()
  files = sorted((cloud.root / "buckets").rglob("*"))
  for words in (("run", "demo", ZONE, "--dry-run", "--", *TRAIN),
                ("trace", "demo", ZONE, "--dry-run"),
                ("watch", "demo", ZONE, "--dry-run"),
                ("down", "demo", ZONE, "--dry-run")):
    assert lm(*words) == 0
  assert "delete demo --zone=us-east5-b --force" in capsys.readouterr().out
  assert cloud.state() == before
  assert sorted((cloud.root / "buckets").rglob("*")) == files


def test_what_lm_did_not_make_is_let_alone(cloud, capsys):
  lm(*UP)
  with cloud.changed() as state:
    state["queued"]["demo"]["metadata"] = {}
  for words in (("down", "demo", ZONE), ("status", "demo", ZONE)):
    assert lm(*words) == 2
    assert "give its --workdir" in one_error(capsys)
  assert cloud.state()["queued"]
  # Should the API not show the metadata, the folder knows.
  assert lm(*UP) == 0
  assert lm("down", "demo", ZONE, f"--workdir={WORKDIR}") == 0
  assert nothing_left(cloud)
  with cloud.changed() as state:
    state["queued"]["other"] = {"path": "x/other", "nodes": [], "coming": [],
                                "state": "ACTIVE", "metadata": {}}
  assert lm("up", "other", *UP[2:]) == 2
  assert "was not made by lm tpu" in one_error(capsys)


def test_trace(cloud):
  lm(*UP)
  assert lm("trace", "demo", ZONE, "--steps=3") == 0
  note = cloud.file(f"{WORKDIR}/trace.json").read_text()
  assert json.loads(note) == {"steps": 3}
  assert lm("trace", "demo", ZONE, "--steps=0") == 2


def test_run_says_what_it_needs(cloud, capsys):
  lm(*UP)
  assert lm("run", "demo", ZONE) == 2
  assert "nothing has run yet" in one_error(capsys)
  assert lm("run", "demo", ZONE, "--", *TRAIN, "--workdir=gs://b/x") == 2
  assert "not the launch's" in one_error(capsys)
  assert lm("status", "demo", ZONE, "--", "ls") == 2
  assert "takes no command" in one_error(capsys)
  assert lm("run", "demo", ZONE, "--fetch=text", "--", *TRAIN) == 2
  assert "gs://BUCKET/FOLDER" in one_error(capsys)
  assert lm("run", "demo", ZONE, "--detach", "--fetch=gs://bucket/text", "--",
            *TRAIN) == 0
  assert lm("run", "demo", ZONE, "--detach") == 0  # The same once more.
  again = json.loads(cloud.file(f"{WORKDIR}/launch/run.json").read_text())
  assert again["fetch"] == ["gs://bucket/text"]
  assert lm("down", "demo", ZONE) == 0
  assert lm("run", "demo", f"--workdir={WORKDIR}", "--", *TRAIN) == 2
  assert "is GONE" in one_error(capsys)


def test_flags_that_a_run_gets():
  spec = spec_lib.Spec("demo", "us-east5-b", "v6e-4", WORKDIR)
  assert actions.completed(["python", "x.py"], spec) == ["python", "x.py"]
  assert actions.completed([*TRAIN, "--nosupervise"], spec)[4:] == [
      "--nosupervise", f"--workdir={WORKDIR}", "--supervise"]
  assert actions.completed([*TRAIN, "--supervise"], spec)[4:] == [
      "--supervise", f"--workdir={WORKDIR}"]


@pytest.mark.parametrize("change, words", [
    ({"name": "Demo"}, "begin with a letter"),
    ({"zone": "us-east5"}, "us-east5-b"),
    ({"accelerator": "v6e-12"}, "try v6e"),
    ({"accelerator": "tpu7x-8"}, "GKE"),
    ({"accelerator": "v5p:4x4x16"}, "has a name at Google Cloud"),
    ({"workdir": "runs/first"}, "gs://BUCKET/FOLDER"),
    ({"workdir": "gs://bucket"}, "gs://BUCKET/FOLDER"),
    ({"slices": 0}, "at least 1"),
    ({"spot": True, "reserved": True}, "exclude each other"),
])
def test_a_request_that_cannot_be(change, words):
  fields = {"name": "demo", "zone": "us-east5-b", "accelerator": "v6e:2x4",
            "workdir": WORKDIR}
  spec = spec_lib.Spec(**fields)
  assert spec.accelerator == "v6e-8"
  assert spec_lib.from_json(spec.to_json(), where="here") == spec
  with pytest.raises(UserError) as refused:
    spec_lib.Spec(**(fields | change))
  assert words in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("accelerator, version", [
    ("v4-8", "tpu-ubuntu2204-base"), ("v5litepod-16", "v2-alpha-tpuv5-lite"),
    ("v5p-128", "v2-alpha-tpuv5"), ("v6e-8", "v2-alpha-tpuv6e")])
def test_the_image_fits_the_chip(accelerator, version):
  spec = spec_lib.Spec("demo", "us-east5-b", accelerator, WORKDIR)
  assert spec.runtime_version == version


def test_no_shell_and_no_alpha_command():
  for path in sorted((house.ROOT / "lm/launch/tpu").glob("*.py")):
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.keyword):
        assert node.arg != "shell", path
      if isinstance(node, ast.Constant):
        assert node.value not in ("alpha", "beta"), path


def test_the_fake_refuses_what_gcloud_does_not_know(cloud):
  for words, status in ((["storage", "cat", "gs://bucket/x", "--bogus"], 2),
                        ([*CREATE, "x", ZONE], 2), (["nothing"], 2),
                        (["storage", "cat", "gs://bucket/x"], 1)):
    assert subprocess.run(["gcloud", *words], check=False,
                          capture_output=True).returncode == status, words


def test_the_real_gcloud_knows_all_flags(cloud, monkeypatch, tmp_path):
  """Where it is installed: its own linter, which asks no network."""
  real = shutil.which("gcloud", path=os.environ["PATH"].partition(":")[2])
  if not real:
    pytest.skip("no gcloud here")
  lm(*UP[:3], "--accelerator=v5p-16", UP[-1], "--slices=2", "--spot",
     "--service_account=a@p.iam.gserviceaccount.com", "--network=n",
     "--subnetwork=s", "--project=p", "--controller", "--down")
  lm("run", "demo", ZONE, "--detach", "--project=p", "--", *TRAIN)
  lm("status", "demo", ZONE, "--project=p")
  lm("down", "demo", ZONE, "--project=p")
  cloud.cue(zones={"us-east1-d": ["v6e-8"]})
  lm(*UP)
  calls = {" ".join(c[:4]): c for c in cloud.calls()}
  assert len(calls) >= 11
  file = tmp_path / "commands.json"
  file.write_text(json.dumps([
      {"command_string": shlex.join(["gcloud", *c])} for c in calls.values()]))
  done = subprocess.run(
      [real, "meta", "lint-gcloud-commands", f"--commands-file={file}"],
      capture_output=True, text=True, check=False, timeout=120,
      env={**os.environ, "CLOUDSDK_CONFIG": str(tmp_path / "config"),
           "CLOUDSDK_CORE_DISABLE_USAGE_REPORTING": "1"})
  rows = json.loads(done.stdout)
  assert len(rows) == len(calls)
  assert not [row["error_message"] for row in rows if not row["success"]]
