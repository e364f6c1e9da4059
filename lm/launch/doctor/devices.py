"""What JAX makes of the machine: devices, hosts, and a sum over all of them."""

from collections.abc import Callable, Mapping, Sequence
import concurrent.futures
import contextlib
import dataclasses
import json
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import typing
from typing import Any

from lm.launch.doctor import machine as machine_lib
from lm.launch.doctor.finding import Finding
from lm.launch.doctor.finding import line
from lm.launch.doctor.finding import split
from lm.launch.doctor.finding import Status
from lm.launch.doctor.machine import Machine
from lm.launch.doctor.probe import MEBIBYTES

if typing.TYPE_CHECKING:
  from lm.launch.plan.topology import Topology

PROBE = (sys.executable, "-m", "lm.launch.doctor.probe")
ALL_HOSTS = ("on all hosts at once, `lm doctor --distributed` (with gcloud"
             " compute tpus tpu-vm ssh NAME --worker=all --command=...)")
_CONTAINER = ("give the container the TPU's devices: docker run --privileged,"
              " or in Kubernetes a google.com/tpu limit")
# Hosts meet with a time-out of their own, which names who is missing.
_GRACE = 15


@dataclasses.dataclass(frozen=True)
class Probe:
  """How far JAX came in the child process.

  Attributes:
    said: facts, as `probe` names them.
    hung: seconds after which it was ended; None if it ended by itself.
    status: its exit status; negative is a signal.
    log: the end of what it wrote to its standard error.
  """

  said: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  hung: float | None = None
  status: int = 0
  log: str = ""

  @property
  def stage(self) -> str:
    return self.said.get("stage", "starting Python")

  @property
  def apart(self) -> bool:
    """Whether it got no further than looking for other hosts."""
    return "total" not in self.said and self.stage.endswith("the other hosts")

  @property
  def error(self) -> str:
    """Why it failed; "" if it did not fail."""
    if self.hung is not None:
      return f"nothing happened for {self.hung:g} s while {self.stage}"
    if "error" in self.said:
      if self.said["error"].strip():
        return line(self.said["error"])
      return f"{self.said['type']} while {self.stage}"
    if self.said.get("done"):
      return ""
    lines = self.log.strip().splitlines()
    return (f"ended with status {self.status} while {self.stage}:"
            f" {lines[-1] if lines else 'it says nothing'}")


def probe(flags: Sequence[str] = (), *, timeout: float = 120,
          command: Sequence[str] = PROBE) -> Probe:
  """Starts JAX in a child process, joined with other hosts if flags say so.

  Args:
    flags: of the child: --distributed and so on.
    timeout: seconds for each of its stages.
    command: what is started.
  """
  said: dict[str, Any] = {}
  hung = None
  with tempfile.TemporaryFile("w+", errors="replace") as log:
    child = subprocess.Popen(
        [*command, *flags, f"--timeout={timeout}"], stdout=subprocess.PIPE,
        stderr=log, stdin=subprocess.DEVNULL, text=True, errors="replace",
        start_new_session=True)
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(child.stdout, lines),
                     daemon=True).start()
    try:
      while True:
        meets = said.get("stage", "").endswith("the other hosts")
        limit = timeout + (_GRACE if meets else 0)
        text = lines.get(timeout=limit)
        if text is None:
          break
        with contextlib.suppress(ValueError):  # A library's own words.
          facts = json.loads(text)
          said.update(facts if isinstance(facts, dict) else {})
    except queue.Empty:
      hung = None if said.get("done") else limit
    finally:
      status = _end(child)
    log.seek(0)
    return Probe(said, hung, status, log.read()[-4000:])


def _read(stream: Any, lines: "queue.SimpleQueue[str | None]") -> None:
  for text in stream:
    lines.put(text)
  lines.put(None)


def _end(child: subprocess.Popen) -> int:
  """Its exit status; what is still there is killed."""
  with contextlib.suppress(subprocess.TimeoutExpired):
    return child.wait(0.5)
  with contextlib.suppress(ProcessLookupError):
    os.killpg(child.pid, signal.SIGKILL)
  with contextlib.suppress(subprocess.TimeoutExpired):
    return child.wait(5)
  return -signal.SIGKILL  # It waits for a driver and cannot be ended.


# --------------------------------------------------------------- accelerator


def accelerator(made: Probe, machine: Machine, *, distributed: bool = False,
                workers: int = 1, proc: str = "/proc") -> Finding:
  """What JAX sees against what there is.

  Args:
    made: of `probe`.
    machine: of `machine.look`.
    distributed: whether all hosts were asked to come.
    workers: hosts of the slice.
    proc: where processes are described.
  """
  name = "accelerator"
  if made.apart:
    return Finding(name, Status.SKIPPED, "the hosts do not come together")
  if "total" not in made.said:
    return Finding(name, Status.FAULT, f"JAX does not start: {made.error}",
                   _why_not(made, machine, distributed, workers, proc))
  kind = f"{made.said['local']} x {made.said['kind']}"
  on_cpu = made.said["platform"] == "cpu"
  if on_cpu and (machine.tpu or machine.gpu_files):
    what, extra = ("TPU", "tpu") if machine.tpu else ("GPU", "cuda13")
    seen = machine.tpu_files or machine.gpu_files or ("on the PCI bus",)
    if not machine.tpu and seen[0].endswith("kfd"):
      extra = "rocm7-local"
    fix = f"pip install 'jax[{extra}]'"
    if _platforms(machine).startswith("cpu"):
      fix = "unset JAX_PLATFORMS"
    elif machine.tpu and not machine.tpu_files:
      fix = _CONTAINER
    return Finding(name, Status.FAULT, (
        f"there is a {what} ({seen[0]}) but JAX uses the CPU"), fix)
  if on_cpu:
    text = f"no accelerator here; JAX uses the CPU, as {made.said['local']}"
    text += f" device{'s' if made.said['local'] > 1 else ''}"
    named = [k for k in ("TPU_ACCELERATOR_TYPE", "TPU_WORKER_HOSTNAMES")
             if k in machine.environment]
    if named:
      return Finding(name, Status.WARNING, f"{named[0]} is set, but {text}",
                     _CONTAINER)
    if machine.colab:
      return Finding(name, Status.WARNING, text, (
          "Runtime > Change runtime type, and choose a TPU or GPU"))
    return Finding(name, Status.OK, text)
  if made.said["platform"] == "tpu" and (
      made.said["local"] < machine.tpu_chips):
    limits = [k for k in ("TPU_VISIBLE_CHIPS", "TPU_VISIBLE_DEVICES",
                          "TPU_CHIPS_PER_PROCESS_BOUNDS")
              if k in machine.environment]
    return Finding(
        name, Status.WARNING if limits else Status.FAULT,
        f"{kind}, of {machine.tpu_chips} chips in this machine",
        f"unset {' '.join(limits)}" if limits else "sudo reboot")
  return Finding(name, Status.OK, kind)


def _platforms(machine: Machine) -> str:
  return machine.environment.get("JAX_PLATFORMS", "")


# What an error says, and the cure.
_CURES = (
    (r"No module named '(?:jax|jaxlib|flax|packaging)",
     "pip install deliberate-lm"),
    (r"PJRT.*version|libtpu.*(?:version|too old)|undefined symbol",
     "pip install -U 'jax[tpu]'"),
    (r"[Pp]ermission denied.*/dev/|open\(/dev/.*[Pp]ermission",
     "sudo chmod a+rw /dev/accel* /dev/vfio/*"),
)


def _why_not(made: Probe, machine: Machine, distributed: bool, workers: int,
             proc: str) -> str:
  """One thing to do about JAX not starting."""
  text = f"{made.error}\n{made.log}"
  who = machine_lib.holders(machine.tpu_files, proc)
  if who:
    return machine_lib.stop(machine, who)
  if "already in use" in text:
    return f"end the process that `sudo lsof -w {_first(machine)}` shows"
  for pattern, cure in _CURES:
    if re.search(pattern, text):
      return cure
  has = "tpu" if machine.tpu else "cuda" if machine.gpu_files else "cpu"
  if not has.startswith(_platforms(machine).split(",")[0]):
    return "unset JAX_PLATFORMS"
  if workers > 1 and not distributed:
    return ALL_HOSTS  # A TPU of several hosts starts on all or not at all.
  if made.hung is not None and machine.tpu:
    return "sudo reboot"
  if made.hung is not None:
    return f"run it again with --timeout={made.hung * 5:g}"
  return "see what `python -c 'import jax; print(jax.devices())'` says"


def _first(machine: Machine) -> str:
  return machine.tpu_files[0] if machine.tpu_files else "/dev/accel0"


# --------------------------------------------------------------------- hosts


def hosts(made: Probe, *, expected: "Topology | None" = None,
          workers: Sequence[str] = (),
          reach: Callable[[str], bool] | None = None) -> Finding:
  """Whether the processes and devices are those of the slice.

  Args:
    made: of `probe`.
    expected: the slices, if known.
    workers: names of their hosts, if known.
    reach: host -> whether it answers, by default `reachable`.
  """
  name, said = "hosts", made.said
  if made.apart:
    # Our own errors name who is missing, and the cure; JAX's do not.
    what, fix = split(made.error) if said.get("type") in (
        "LostHosts", "UserError") else (made.error, "")
    if not fix or what.startswith("could not"):
      what, fix = made.error, (
          "start the same command on all hosts, with the same --coordinator,"
          " and see that they reach it")
    return Finding(name, Status.FAULT, what, fix)
  if "total" not in said:
    if len(workers) < 2:
      return Finding(name, Status.SKIPPED, "JAX does not start")
    with concurrent.futures.ThreadPoolExecutor(32) as pool:
      fine = list(pool.map(reach or reachable, workers))
    silent = [w for w, ok in zip(workers, fine, strict=True) if not ok]
    if silent:
      return Finding(name, Status.FAULT, (
          f"{len(silent)} of {len(workers)} hosts do not answer:"
          f" {', '.join(silent)}"), (
          "see their state with `gcloud compute tpus tpu-vm describe NAME`, and"
          " recreate the TPU if they are not READY"))
    return Finding(name, Status.SKIPPED, (
        f"JAX does not start; all {len(workers)} hosts answer"))
  processes, owned = said["processes"], said["owned"]
  there = f"{processes} process{'es' if processes > 1 else ''}"
  if processes > 1 and said.get("names"):
    there += f" ({', '.join(said['names'])})"
  total = f"{there}, {said['total']} device{'s' if said['total'] > 1 else ''}"
  if min(owned) != max(owned):
    few = owned.index(min(owned))
    names = said.get("names") or [f"process {i}" for i in range(processes)]
    return Finding(name, Status.FAULT, (
        f"{total}: process {few} has {min(owned)}, another {max(owned)}"),
        f"reboot {names[few]}")
  count = max(expected.hosts if expected else 0, len(workers))
  # A v5e-8 may be one host of 8 chips or two of 4: the devices decide.
  if expected and said["total"] != expected.num_devices:
    what = (f"{total}, but {expected.slices} x {expected.cloud_name} has"
            f" {expected.num_devices} on {expected.hosts} host"
            f"{'s' if expected.hosts > 1 else ''}")
    return Finding(name, Status.FAULT, what, ALL_HOSTS if processes < count
                   else "give the --topology that the slice was made with")
  if not expected and workers and processes != count:
    return Finding(name, Status.FAULT,
                   f"{total}, but the slice has {count} hosts", ALL_HOSTS)
  return Finding(name, Status.OK, total + (
      f", as {expected.slices} x {expected.cloud_name} has" if expected
      else ""))


def reachable(host: str, port: int = 22, timeout: float = 3) -> bool:
  """Whether a host answers at all, if only that the port is closed."""
  try:
    socket.create_connection((host, port), timeout).close()
  except ConnectionRefusedError:
    return True
  except OSError:
    return False
  return True


# ---------------------------------------------------------------- all-reduce


def all_reduce(made: Probe) -> Finding:
  """Whether a sum over all devices is right, and how fast it was."""
  name, said = "all-reduce", made.said
  if "total" not in said:
    return Finding(name, Status.SKIPPED, "JAX does not start")
  if "peak" in said:
    return Finding(name, Status.OK, (
        f"one device; a matrix product at {said['peak'] / 1e12:.2f} TFLOP/s"))
  if made.error:
    if said["total"] == 1:
      return Finding(name, Status.WARNING, made.error)
    lost = said["processes"] > 1
    return Finding(name, Status.FAULT, made.error, (
        "run it again; if a host is lost again, reboot that one" if lost
        else "see what the devices say: sudo dmesg | tail"))
  text = (f"{MEBIBYTES} MiB over {said['total']} devices in"
          f" {said['seconds'] * 1e3:.1f} ms, {said['bandwidth'] / 1e9:.2f} GB/s"
          " for each device")
  if said["difference"]:
    return Finding(name, Status.FAULT, (
        f"the sum is wrong by {said['difference']:g}; {text}"),
        "do not use these devices: recreate the TPU, or replace the GPU")
  return Finding(name, Status.OK, f"{text}, the sum is right")
