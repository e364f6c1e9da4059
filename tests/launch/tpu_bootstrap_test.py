"""The script of every VM, run in a folder, with systemd and uv played."""

import json
import os
import pathlib
import re
import subprocess

from lm.launch.tpu import bootstrap
import pytest
from tests.launch import fake_gcloud
from tests.launch import tpu_house

WORKDIR = "gs://bucket/a run"
COMMIT = "0123abcd"
# Notes what it is asked; a unit "runs" from start to stop.
SYSTEMCTL = """#!/bin/sh
echo "systemctl $*" >> "$LM_ROOT/log"
"""
UV = """#!/bin/sh
echo "uv $*" >> "$LM_ROOT/log"
[ "$1" = venv ] || exit "${UV_STATUS:-0}"
for last; do :; done
mkdir -p "$last/bin"
ln -sf "$(command -v python3)" "$last/bin/python"
"""
# pip that has only uv.
PYTHON = """#!/bin/sh
if [ "$1 $2" = "-m pip" ]; then
  echo "pip $*" >> "$LM_ROOT/log"
  [ "$3" = install ] || exit 0
  mkdir -p "$LM_ROOT/opt/lm/uv/bin"
  cp "$LM_ROOT/uv" "$LM_ROOT/opt/lm/uv/bin/uv"
  exit 0
fi
exec @REAL@ "$@"
"""


class Machine:
  """A VM's root folder, and the programs it has.

  Attributes:
    root: the folder.
    cloud: its bucket.
  """

  def __init__(self, tmp_path: pathlib.Path):
    self.cloud = fake_gcloud.Cloud(tmp_path / "cloud")
    self.root = tmp_path / "vm"
    self.root.mkdir()
    self.program("systemctl", SYSTEMCTL)
    self.program("uv", UV)

  def program(self, name: str, text: str) -> None:
    path = self.cloud.root / "bin" / name
    path.write_text(text)
    path.chmod(0o755)

  def ask(self, command, *, run_id="one", commit=COMMIT, **more) -> None:
    self.cloud.file(f"{WORKDIR}/launch/run.json").write_text(json.dumps(
        {"id": run_id, "commit": commit, "command": command, **more}))
    source = self.root.parent / "source"
    source.mkdir(exist_ok=True)
    (source / "hello.py").write_text(
        "import pathlib, sys\nprint(sys.argv[1:])\nsys.exit(int(sys.argv[1]))")
    subprocess.run(
        ["tar", "-czf", self.cloud.file(f"{WORKDIR}/launch/{commit}.tar.gz"),
         "-C", source, "hello.py"], check=True)

  def bash(self, *words, **env) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", *words], text=True, capture_output=True, check=False,
        timeout=60, env={
            **os.environ, "LM_ROOT": str(self.root), "LM_RETRY_SECONDS": "0",
            "FAKE_GCLOUD": str(self.cloud.root),
            "PATH": f"{self.cloud.root / 'bin'}:/usr/bin:/bin", **env})

  def boot(self, **env) -> subprocess.CompletedProcess:
    self.log_file.unlink(missing_ok=True)
    script = self.root / "script.sh"
    script.write_text(bootstrap.script(WORKDIR))
    return self.bash(str(script), **env)

  def end(self, code: str, status: str) -> None:
    """The unit's ExecStopPost, as systemd calls it."""
    done = self.bash(str(self.root / "opt/lm/ended.sh"), EXIT_CODE=code,
                     EXIT_STATUS=status)
    assert done.returncode == 0, done.stderr

  def ended(self) -> list[dict]:
    folder = self.cloud.file(f"{WORKDIR}/launch/finished/one/x").parent
    return [json.loads(p.read_text()) for p in folder.glob("*.json")]

  @property
  def log_file(self) -> pathlib.Path:
    return self.root / "log"

  @property
  def log(self) -> list[str]:
    if not self.log_file.exists():
      return []
    return self.log_file.read_text().splitlines()


@pytest.fixture
def machine(tmp_path):
  return Machine(tmp_path)


def test_a_shell_takes_it():
  for extras in ("", "[tpu]"):
    text = bootstrap.script(WORKDIR, extras=extras)
    assert not re.search("@[A-Z_]+@", text)
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
  command = bootstrap.remote("gs://bucket/run")
  subprocess.run(["bash", "-n", "-c", command], check=True)


def test_nothing_to_run_yet(machine):
  done = machine.boot()
  assert done.returncode == 0, done.stderr
  assert "nothing is to run yet" in done.stdout and not machine.log


def test_it_installs_once_and_starts_the_unit(machine):
  machine.ask(["python", "hello.py", "0", "two words", "$HOME 'quoted' %i"])
  done = machine.boot()
  assert done.returncode == 0, done.stderr
  base = machine.root / "opt/lm"
  assert machine.log == [
      f"uv venv --quiet --allow-existing --python 3.11 {base}/{COMMIT}/venv",
      f"uv pip install --quiet --python {base}/{COMMIT}/venv/bin/python"
      f" {base}/{COMMIT}/source[tpu]",
      "systemctl stop lm.service", "systemctl daemon-reload",
      "systemctl reset-failed lm.service", "systemctl start lm.service"]
  unit = (machine.root / "etc/systemd/system/lm.service").read_text()
  for line in ("Restart=on-failure", "RestartPreventExitStatus=2",
               "KillMode=mixed", "TimeoutStopSec=120", "StartLimitBurst=5",
               f"ExecStart=/bin/bash {base}/run.sh"):
    assert line in unit.splitlines()
  ran = machine.bash(str(base / "run.sh"))
  assert ran.stdout == str(["0", "two words", "$HOME 'quoted' %i"]) + "\n"

  assert machine.boot().returncode == 0  # A reboot.
  assert machine.log == [
      "systemctl daemon-reload", "systemctl reset-failed lm.service",
      "systemctl start lm.service"]
  machine.ask(["python", "hello.py", "1"], run_id="two", commit="4567")
  assert machine.boot().returncode == 0
  assert [x.split()[1] for x in machine.log] == [
      "venv", "pip", "stop", "daemon-reload", "reset-failed", "start"]


def test_an_installation_that_broke_off_is_made_again(machine):
  machine.ask(["python", "hello.py", "0"])
  assert machine.boot(UV_STATUS="1").returncode == 1
  assert not any("start" in x for x in machine.log)
  assert machine.boot().returncode == 0
  assert "systemctl start lm.service" in machine.log


def test_data_is_copied_once(machine):
  source = machine.cloud.file("gs://bucket/corpora/my text/a.txt")
  source.write_text("words")
  machine.ask(["python", "hello.py", "0"],
              fetch=["gs://bucket/corpora/my text", "gs://bucket/missing"])
  assert machine.boot().returncode == 1  # Not without all of its data.
  assert not any("start" in x for x in machine.log)
  machine.ask(["python", "hello.py", "0"],
              fetch=["gs://bucket/corpora/my text"])
  source.write_text("other words")
  done = machine.boot()
  assert done.returncode == 0, done.stderr
  copied = machine.root / "opt/lm/data/my text/a.txt"
  assert copied.read_text() == "words" and "copying" not in done.stdout


def test_uv_comes_from_pip_where_it_is_not(machine):
  (machine.cloud.root / "bin" / "uv").rename(machine.root / "uv")
  real = subprocess.run(["which", "-a", "python3"], text=True,
                        capture_output=True, check=True).stdout.split()
  real = next(p for p in real if p.startswith(("/usr/bin", "/bin")))
  machine.program("python3", PYTHON.replace("@REAL@", real))
  machine.ask(["python", "hello.py", "0"])
  if subprocess.run(["which", "uv"], env={"PATH": "/usr/bin:/bin"},
                    capture_output=True, check=False).returncode == 0:
    pytest.skip("the system has uv")
  done = machine.boot()
  assert done.returncode == 0, done.stderr
  assert any("pip -m pip install" in x and "--target" in x
             and x.endswith(" uv") for x in machine.log)
  assert "systemctl start lm.service" in machine.log


def test_a_bucket_that_cannot_be_read_is_tried_again(machine):
  machine.ask(["python", "hello.py", "0"])
  machine.cloud.cue(login=False)
  done = machine.boot()
  assert done.returncode == 1 and not machine.log
  assert done.stdout.count("cannot read") == 6


def test_how_a_run_ends_is_noted(machine):
  machine.ask(["python", "hello.py", "0"])
  machine.boot()
  machine.end("exited", "143")  # Preempted: it goes on elsewhere.
  machine.end("killed", "TERM")
  assert machine.ended() == []
  for _ in range(bootstrap.CRASHES - 1):
    machine.end("exited", "1")
  assert machine.ended() == []
  machine.end("killed", "KILL")
  assert [row["status"] for row in machine.ended()] == ["KILL"]
  machine.end("exited", "0")
  (row,) = machine.ended()
  assert row["id"] == "one" and row["status"] == "0" and row["host"]


def test_crashes_of_other_days_do_not_count(machine):
  machine.ask(["python", "hello.py", "0"])
  machine.boot()
  (machine.root / "opt/lm/crashes-one").write_text("1000\n" * 10)
  machine.end("exited", "1")
  assert machine.ended() == []
  machine.end("exited", "2")
  assert [row["status"] for row in machine.ended()] == ["2"]


def test_a_vm_that_was_made_again_continues_by_itself(
    machine, tmp_path, monkeypatch):
  """Its startup script, as it was sent to the cloud, starts the same run."""
  folder = tmp_path / "laptop"
  folder.mkdir()
  cloud = tpu_house.made(folder, monkeypatch)
  assert tpu_house.lm(*tpu_house.UP) == 0
  assert tpu_house.lm("run", "demo", tpu_house.ZONE, "--detach", "--",
                      *tpu_house.TRAIN) == 0
  script = cloud.state()["nodes"]["demo"]["metadata"]["startup-script"]
  path = machine.root / "startup.sh"
  path.write_text(script)
  done = machine.bash(str(path), FAKE_GCLOUD=str(cloud.root))
  assert done.returncode == 0, done.stderr
  assert machine.log[-1] == "systemctl start lm.service"
  ran = (machine.root / "opt/lm/run.sh").read_text().splitlines()[-1]
  assert ran == ("exec python -m experiments.pretrain.run"
                 " --config=configs/a.py --workdir=gs://bucket/run"
                 " --distributed --supervise")
