"""`lm doctor` finds each fault that it is for, and names one fix."""

import argparse
import email.utils
import errno
import http.server
import json
import os
import pathlib
import socket
import subprocess
import sys
import threading
import time
import types

import bucket
import house
from lm.launch import doctor
from lm.launch.doctor import command
from lm.launch.doctor import devices
from lm.launch.doctor import finding
from lm.launch.doctor import machine as machine_lib
from lm.launch.doctor import storage
from lm.launch.doctor.finding import Status
from lm.launch.plan import topology
import pytest

TPU = machine_lib.Machine(tpu_files=("/dev/accel0",), tpu_chips=4)
STARTED = {"stage": "the all-reduce", "platform": "tpu", "kind": "TPU v5 lite",
           "local": 4, "total": 8, "processes": 2, "owned": [4, 4],
           "names": ["a", "b"], "seconds": 0.001, "bandwidth": 67e9,
           "difference": 0.0, "done": True}
CPU = {**STARTED, "platform": "cpu", "kind": "cpu", "local": 1, "total": 1,
       "processes": 1, "owned": [1]}


def made(**said) -> devices.Probe:
  return devices.Probe({**STARTED, **said})


def fault(found: doctor.Finding, what: str, fix: str) -> None:
  assert found.status is Status.FAULT, found
  assert what in found.what and fix in found.fix, found


# -------------------------------------------------------------------- machine


def test_what_the_machine_has(tmp_path):
  dev, pci = tmp_path / "dev", tmp_path / "pci"
  (dev / "vfio").mkdir(parents=True)
  for name in ("accel0", "accel1", "vfio/7", "vfio/vfio", "nvidia0",
               "nvidiactl"):
    (dev / name).touch()
  for i, (vendor, device) in enumerate([
      ("0x1ae0", "0x0063"), ("0x1ae0", "0x0042"), ("0x8086", "0x0063")]):
    (pci / str(i)).mkdir(parents=True)
    (pci / str(i) / "vendor").write_text(vendor + "\n")
    (pci / str(i) / "device").write_text(device + "\n")
  found = machine_lib.look(dev=str(dev), pci=str(pci), environment={})
  names = lambda files: [pathlib.Path(f).name for f in files]
  assert names(found.tpu_files) == ["accel0", "accel1", "7"]
  assert (found.tpu_chips, names(found.gpu_files)) == (1, ["nvidia0"])
  bare = machine_lib.look(dev=str(dev), pci=str(tmp_path), environment={})
  assert names(bare.tpu_files) == ["accel0", "accel1"]  # VFIO: of anything.


def test_a_process_holds_the_lock_and_leaves_it(tmp_path):
  path = tmp_path / "lock"
  code = "import sys; f = open(sys.argv[1], 'w'); print(1, flush=True); input()"
  child = subprocess.Popen([sys.executable, "-c", code, str(path)],
                           stdin=subprocess.PIPE, stdout=subprocess.PIPE)
  try:
    child.stdout.readline()
    found = machine_lib.lock(TPU, path=str(path))
    fault(found, f"pid {child.pid} ({sys.executable}", f"kill {child.pid}")
    assert machine_lib.lock(machine_lib.Machine(), path=str(path)
                            ).status is Status.OK
    colab = machine_lib.Machine(("x",), environment={"COLAB_RELEASE_TAG": ""})
    fault(machine_lib.lock(colab, path=str(path)), "in use", "Restart session")
  finally:
    child.communicate()
  found = machine_lib.lock(TPU, path=str(path))
  assert (found.status, found.fix) == (Status.WARNING, f"rm {path}")
  theirs = os.getuid() + 1
  fault(machine_lib.lock(TPU, path=str(path), user=theirs),
        "another user", "sudo fuser")
  path.unlink()
  assert machine_lib.lock(TPU, path=str(path)).status is Status.OK


def test_a_process_holds_a_device(tmp_path):
  for pid, target in (("17", "/dev/accel0"), ("18", "/dev/null")):
    (tmp_path / pid / "fd").mkdir(parents=True)
    (tmp_path / pid / "fd" / "3").symlink_to(target)
  (tmp_path / "17" / "cmdline").write_text("python\0train.py\0")
  fault(machine_lib.lock(TPU, path=str(tmp_path / "no"), proc=str(tmp_path)),
        "in use by pid 17 (python train.py)", "kill 17")
  hung = devices.Probe({"stage": "starting the devices"}, hung=120)
  fault(devices.accelerator(hung, TPU, proc=str(tmp_path)),
        "nothing happened for 120 s while starting the devices", "kill 17")


@pytest.mark.parametrize("free, status", [
    (0.9e9, Status.FAULT), (9e9, Status.WARNING), (11e9, Status.OK)])
def test_disk(tmp_path, free, status):
  found = machine_lib.disk("disk", tmp_path / "not" / "yet", "buy one",
                           usage=lambda path: types.SimpleNamespace(free=free))
  assert (found.status, found.name) == (status, "disk")
  assert f"{free / 1e9:.1f} GB" in found.what
  assert not (tmp_path / "not").exists()


def test_a_disk_that_cannot_be_written():
  fault(machine_lib.disk("cache", "/proc/lm", "elsewhere"), "/proc/lm cannot",
        "elsewhere")


@pytest.mark.parametrize("kilobytes, shm, status, text", [
    (900_000, 8e9, Status.FAULT, "0.9 GB"),
    (3_000_000, 8e9, Status.WARNING, "3.1 GB"),
    (9_000_000, 64e6, Status.WARNING, "only 64 MB"),
    (9_000_000, 8e9, Status.OK, "9.2 GB")])
def test_memory(tmp_path, kilobytes, shm, status, text):
  (tmp_path / "meminfo").write_text(
      f"MemTotal: 1 kB\nMemAvailable:   {kilobytes} kB\n")
  found = machine_lib.memory(
      meminfo=str(tmp_path / "meminfo"), shm=str(tmp_path),
      usage=lambda path: types.SimpleNamespace(total=shm))
  assert found.status is status and text in found.what, found


@pytest.mark.parametrize("ahead, status", [
    (100, Status.FAULT), (-100, Status.FAULT), (20, Status.WARNING),
    (0, Status.OK)])
def test_clock(ahead, status):

  class Handler(http.server.BaseHTTPRequestHandler):

    def date_time_string(self, timestamp=None):
      return email.utils.formatdate(time.time() - ahead, usegmt=True)

    def do_GET(self):
      self.send_error(403)

    def log_message(self, *args):
      pass

  with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    found = machine_lib.clock(sources=(
        "http://127.0.0.1:1", f"http://127.0.0.1:{server.server_port}"))
    server.shutdown()
  assert found.status is status, found
  if status is not Status.OK:
    assert ("ahead" if ahead > 0 else "behind") in found.what
    assert found.fix == "sudo timedatectl set-ntp true"


def test_no_time_source():
  found = machine_lib.clock(sources=("http://127.0.0.1:1",))
  assert found.status is Status.SKIPPED


# ------------------------------------------------------------ working folder


def test_workdir_on_a_disk(tmp_path):
  assert storage.workdir(None).status is Status.SKIPPED
  found = storage.workdir(str(tmp_path / "run" / "1"))
  assert found.status is Status.OK and not list(tmp_path.iterdir())
  (tmp_path / "file").touch()
  fault(storage.workdir(str(tmp_path / "file" / "run")), "is a file",
        "another --workdir")
  fault(storage.workdir("/proc/lm/run"), "cannot be used", "another --workdir")


def broken(**functions) -> types.SimpleNamespace:
  from lm import paths
  return types.SimpleNamespace(**{**vars(paths), **functions})


def test_workdir_refused_or_not_answering(tmp_path):
  def refuse(*args):
    raise PermissionError(errno.EACCES, "Permission denied")
  fault(storage.workdir(str(tmp_path), files=broken(write_bytes=refuse)),
        "Permission denied", f"sudo chown -R $USER {tmp_path}")
  fault(storage.workdir(str(tmp_path), files=broken(
      files=lambda folder: {})), "is not listed", "another --workdir")
  fault(storage.workdir(str(tmp_path), timeout=0.1, files=broken(
      read_bytes=lambda path: time.sleep(1))), "no answer in 0.1 s", "network")


def test_workdir_in_a_bucket(monkeypatch):
  made_bucket = bucket.Bucket()
  url = f"{made_bucket.url}/run"
  found = storage.workdir(url)
  assert found.status is Status.OK, found
  assert not made_bucket.names()
  fault(storage.workdir("gs://nobody-has-this/run"),
        "no bucket gs://nobody-has-this", "gcloud storage buckets create")
  with made_bucket.refusing(bucket.writes):
    fault(storage.workdir(url), "the bucket refuses",
          "roles/storage.objectAdmin")
  monkeypatch.setitem(sys.modules, "gcsfs", None)
  found = storage.workdir(url)
  fault(found, "need gcsfs", "")
  assert found.fix == "pip install 'deliberate-lm[tpu]'"


# --------------------------------------------------------------- accelerators


def test_no_accelerator_is_no_fault():
  found = devices.accelerator(made(**CPU), machine_lib.Machine())
  assert found.status is Status.OK and "no accelerator" in found.what


@pytest.mark.parametrize("about, what, fix", [
    ({"tpu_files": ("/dev/accel0",)}, "TPU (/dev/accel0)", "'jax[tpu]'"),
    ({"tpu_chips": 4}, "TPU (on the PCI bus)", "--privileged"),
    ({"gpu_files": ("/dev/nvidia0",)}, "GPU", "'jax[cuda13]'"),
    ({"tpu_files": ("/dev/accel0",), "environment": {"JAX_PLATFORMS": "cpu"}},
     "JAX uses the CPU", "unset JAX_PLATFORMS")])
def test_jax_overlooks_an_accelerator(about, what, fix):
  fault(devices.accelerator(made(**CPU), machine_lib.Machine(**about)), what,
        fix)


def test_fewer_chips_than_there_are():
  assert devices.accelerator(made(), TPU).status is Status.OK
  fault(devices.accelerator(made(local=3), TPU), "3 x TPU v5 lite, of 4",
        "reboot")


@pytest.mark.parametrize("said, about, fix", [
    ({"error": "The TPU is already in use by process with pid 7"}, {}, "lsof"),
    ({"error": "No module named 'jaxlib'"}, {}, "pip install deliberate-lm"),
    ({"error": "Unable to initialize backend 'cuda'"},
     {"environment": {"JAX_PLATFORMS": "cuda"}}, "unset JAX_PLATFORMS"),
    ({"error": "?"}, {}, "jax.devices()")])
def test_jax_does_not_start(said, about, fix):
  failed = devices.Probe({"stage": "starting the devices", **said}, status=1)
  fault(devices.accelerator(failed, machine_lib.Machine(**about)),
        said["error"], fix)


def test_a_slice_of_several_hosts_waits_for_all():
  hung = devices.Probe({"stage": "starting the devices"}, hung=120)
  fault(devices.accelerator(hung, TPU, workers=4), "nothing happened",
        "on all hosts")
  found = devices.hosts(hung, workers=["a", "b"], reach=lambda h: h == "a")
  fault(found, "1 of 2 hosts do not answer: b", "READY")
  assert devices.all_reduce(hung).status is Status.SKIPPED


@pytest.mark.parametrize("code, what", [
    ("time.sleep(60)", "nothing happened for 1 s while sleeping"),
    ("sys.exit(3)", "ended with status 3 while sleeping: it says nothing"),
    ("os.abort()", "ended with status -6 while sleeping"),
    ("raise OSError('a bug')", "OSError: a bug")])
def test_the_child_hangs_or_dies(code, what):
  begin = time.monotonic()
  found = devices.probe(timeout=1, command=[
      sys.executable, "-c", "import os, sys, time\nprint('noise')\n"
      f"print('{{\"stage\": \"sleeping\"}}', flush=True)\n{code}"])
  assert what in found.error
  assert time.monotonic() - begin < 20
  fault(devices.accelerator(found, machine_lib.Machine()), what, "")


# ---------------------------------------------------------------------- hosts


@pytest.mark.parametrize("said, name, workers, what, fix", [
    ({}, "v5e-16", "a b c d", "8 devices, but 1 x v5litepod-16 has 16 on 4",
     "on all hosts"),
    ({}, "v5e-4", "", "has 4 on 1 host", "--topology"),
    ({}, None, "a b c", "the slice has 3 hosts", "on all hosts"),
    ({"owned": [4, 3], "total": 7}, "v5e-8", "a b", "process 1 has 3",
     "reboot b")])
def test_other_hosts_than_the_slice_has(said, name, workers, what, fix):
  fault(devices.hosts(made(**said), workers=workers.split(),
                      expected=topology.parse(name) if name else None),
        what, fix)


def test_the_hosts_of_a_slice():
  place, workers = command.slice_of(TPU, None, 1, ask={
      "accelerator-type": "v5litepod-8",
      "worker-network-endpoints": "t:0:10.0.0.1,t:1:10.0.0.2"}.get)
  assert place.num_devices == 8 and workers == ["10.0.0.1", "10.0.0.2"]
  found = devices.hosts(made(), expected=place, workers=workers)
  assert found.status is Status.OK and "2 processes (a, b)" in found.what
  one = made(processes=1, local=8, owned=[8])  # Also a v5e-8.
  assert devices.hosts(one, expected=place, workers=["a"]).status is Status.OK
  old = command.slice_of(TPU, None, 1, ask={"accelerator-type": "v3-8"}.get)
  assert old == (None, [])


def test_a_wrong_sum():
  assert "67.00 GB/s" in devices.all_reduce(made()).what
  fault(devices.all_reduce(made(difference=3.0)), "wrong by 3", "do not use")


# ----------------------------------------------------------------- as a whole


def test_a_check_that_crashes_is_a_warning(capsys):
  def check(number):
    raise KeyError(number)
  found = finding.checked("sums", check, 3)
  assert found == doctor.Finding("sums", Status.WARNING,
                                 "could not be checked: KeyError: 3")
  finding.report([found], title="a title", width=80)
  assert "could not be checked" in capsys.readouterr().out
  with pytest.raises(ValueError, match="without a fix"):
    doctor.Finding("sums", Status.FAULT, "bad")


def call(*flags: str) -> int:
  parser = argparse.ArgumentParser()
  doctor.add(parser.add_subparsers())
  args = parser.parse_args(["doctor", *flags])
  assert args.takes_overrides is False
  return args.call(args)


def test_this_machine(tmp_path, capsys):
  status = call("--json", f"--workdir={tmp_path}", "--timeout=60")
  shown = json.loads(capsys.readouterr().out)
  assert shown["faults"] == status == 0, shown
  names = [f["name"] for f in shown["findings"]]
  assert len(set(names)) == len(names) == 15
  assert "matrix product" in shown["findings"][-1]["what"]


def test_a_fault_is_shown_with_its_fix(monkeypatch, capsys):
  monkeypatch.setattr(devices, "probe", lambda *a, **k: made(**CPU))
  monkeypatch.setattr(machine_lib, "clock", lambda: None + 1)
  assert call("--topology=v5e-8", "--workdir=/proc/lm") == 1
  shown = " ".join(capsys.readouterr().out.split())
  assert "fix: on all hosts at once" in shown and "TypeError" in shown
  with pytest.raises(ValueError, match="v5e-7"):
    call("--topology=v5e-7")


def test_two_processes_and_a_missing_one():
  """The second sums with the first; a third way round it waits in vain."""
  with socket.create_server(("127.0.0.1", 0)) as server:
    port = server.getsockname()[1]
  doctor_of = lambda i, timeout: subprocess.Popen(
      [sys.executable, "-m", "lm.launch.doctor", "--json",
       f"--coordinator=127.0.0.1:{port}", "--num_processes=2",
       f"--process_id={i}", f"--timeout={timeout}"],
      cwd=house.ROOT, stdout=subprocess.PIPE, text=True)
  both = [doctor_of(i, 60) for i in range(2)]
  for process in both:
    shown = json.loads(process.communicate()[0])
    assert process.returncode == shown["faults"] == 0, shown
    *_, hosts, reduce = shown["findings"]
    assert "2 processes" in hosts["what"] and "2 devices" in hosts["what"]
    assert "the sum is right" in reduce["what"]
  alone = doctor_of(0, 12)
  shown = json.loads(alone.communicate()[0])
  assert alone.returncode == shown["faults"] == 1
  hosts = shown["findings"][-2]
  assert "1 of 2 processes are missing: process 1" in hosts["what"]
  assert "start the same command there" in hosts["fix"]
