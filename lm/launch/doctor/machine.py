"""The machine: accelerators, who holds them, disk, memory, clock."""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import email.utils
import functools
import os
import pathlib
import re
import shutil
import tempfile
import time
import urllib.error
import urllib.request

from lm.launch.doctor.finding import Finding
from lm.launch.doctor.finding import Status
from lm.launch.doctor.finding import within

LOCK = "/tmp/libtpu_lockfile"  # libtpu's; it can be nowhere else.
METADATA = "http://metadata.google.internal"
# Plain HTTP last: with a clock that is years off no certificate is valid.
TIME_SOURCES = (METADATA, "https://www.google.com", "http://www.google.com")
_GB = 10**9
# PCI identities of TPUs, v2 to tpu7x; Google's other devices are network cards
# and disks. From jax/_src/hardware_utils.py.
_PCI_VENDOR = "0x1ae0"
_PCI_TPU = ("0x0027", "0x0056", "0x005e", "0x0062", "0x0063", "0x006f",
            "0x0076")


@dataclasses.dataclass(frozen=True)
class Machine:
  """What there is, whatever JAX makes of it.

  Attributes:
    tpu_files: devices that programs open to use a TPU.
    tpu_chips: counted on the PCI bus.
    gpu_files: likewise of a GPU.
    environment: all variables.
  """

  tpu_files: tuple[str, ...] = ()
  tpu_chips: int = 0
  gpu_files: tuple[str, ...] = ()
  environment: Mapping[str, str] = dataclasses.field(default_factory=dict)

  @property
  def tpu(self) -> bool:
    return bool(self.tpu_files or self.tpu_chips)

  @property
  def colab(self) -> bool:
    return "COLAB_RELEASE_TAG" in self.environment


def look(*, dev: str = "/dev", pci: str = "/sys/bus/pci/devices",
         environment: Mapping[str, str] = os.environ) -> Machine:
  """Looks at the machine, without JAX."""
  chips = 0
  for vendor in pathlib.Path(pci).glob("*/vendor"):
    kind = _text(vendor.parent / "device").strip()
    chips += _text(vendor).strip() == _PCI_VENDOR and kind in _PCI_TPU
  folder = pathlib.Path(dev)
  tpu_files = sorted(folder.glob("accel[0-9]*"))
  named = {k for k in environment if k.startswith("TPU_WORKER_")}
  if chips or named:  # Other devices are also lent to programs by VFIO.
    tpu_files += sorted(folder.glob("vfio/[0-9]*"))
  gpus = [p for pattern in ("nvidia[0-9]*", "dxg", "kfd")
          for p in sorted(folder.glob(pattern))]
  return Machine(tuple(map(str, tpu_files)), chips, tuple(map(str, gpus)),
                 dict(environment))


def metadata(key: str, *, url: str = METADATA,
             timeout: float = 3) -> str | None:
  """An attribute of a Google Cloud VM; None if there is none."""
  request = urllib.request.Request(
      f"{url}/computeMetadata/v1/instance/attributes/{key}",
      headers={"Metadata-Flavor": "Google"})
  try:
    with urllib.request.urlopen(request, timeout=timeout) as answer:
      return answer.read().decode().strip() or None
  except (OSError, ValueError):
    return None


# ---------------------------------------------------------------- TPU in use


@dataclasses.dataclass(frozen=True)
class Holder:
  """A process that has a file open."""

  pid: int
  command: str

  def __str__(self) -> str:
    return f"pid {self.pid} ({self.command})"


def holders(files: Iterable[str], proc: str = "/proc") -> tuple[Holder, ...]:
  """Processes, other than this, that have one of the files open.

  Without root only those of the same user can be seen.
  """
  wanted = set(files) | {os.path.realpath(f) for f in files}
  found = []
  for folder in sorted(pathlib.Path(proc).glob("[0-9]*")):
    if folder.name == str(os.getpid()):
      continue
    try:
      opened = {os.readlink(fd) for fd in (folder / "fd").iterdir()}
    except OSError:  # Another user's, or it has just ended.
      continue
    if opened & wanted:
      words = _text(folder / "cmdline").replace("\0", " ").strip()
      command = words or _text(folder / "comm").strip() or "?"
      found.append(Holder(int(folder.name), command[:60]))
  return tuple(found)


def lock(machine: Machine, *, path: str = LOCK, proc: str = "/proc",
         user: int | None = None) -> Finding:
  """Whether another process has the TPU, or its lock was left behind.

  libtpu locks the file for as long as its process lives. So what is left of a
  dead process is harmless, unless it is another user's and cannot be opened.

  Args:
    machine: as `look` finds it.
    path: of the lock.
    proc: where processes are described.
    user: whose numbers are compared; by default ours.
  """
  user = os.getuid() if user is None else user
  there = os.path.lexists(path)
  who = holders([*machine.tpu_files, *([path] if there else [])], proc)
  if who and machine.tpu:
    return Finding("tpu lock", Status.FAULT, (
        f"the TPU is in use by {', '.join(map(str, who))}"),
        stop(machine, who))
  if not there:
    return Finding("tpu lock", Status.OK, "no process holds a TPU")
  if not machine.tpu:
    return Finding("tpu lock", Status.OK, (
        f"{path} is there but no TPU that it would lock"))
  owner = os.lstat(path).st_uid
  if owner == user:
    return Finding("tpu lock", Status.WARNING, (
        f"{path} is left from a process that has ended"), f"rm {path}")
  if user:
    return Finding("tpu lock", Status.FAULT, (
        f"{path} belongs to another user (number {owner}), whose processes"
        " cannot be seen"), (
        f"end the process that `sudo fuser -v {path}` shows, or if it shows"
        f" none, sudo rm {path}"))
  return Finding("tpu lock", Status.FAULT, (
      f"{path} is left from a process of another user (number {owner}) and"
      " cannot be opened"), f"rm {path}")


def stop(machine: Machine, who: Sequence[Holder]) -> str:
  """How to end processes; in Colab it is the notebook's own."""
  if machine.colab:
    return "Runtime > Restart session, then run this before anything else"
  return f"kill {' '.join(str(h.pid) for h in who)}"


# ---------------------------------------------------------- disk and memory


def disk(name: str, folder: str | os.PathLike, fix: str, *,
         usage: Callable = shutil.disk_usage) -> Finding:
  """Free space where something is to be written, and whether it can be.

  Args:
    name: of the finding.
    folder: need not be there yet.
    fix: where else it could be.
    usage: folder -> an object with `free`, in bytes.
  """
  place = existing(folder)
  try:
    free = usage(place).free
    with tempfile.TemporaryFile(dir=place) as f:
      f.write(b"lm")
      f.flush()
  except OSError as e:
    return Finding(name, Status.FAULT, (
        f"{folder} cannot be written: {e.strerror or e}"), fix)
  text = f"{free / _GB:.1f} GB free at {folder}"
  if free < _GB:
    return Finding(name, Status.FAULT, text, fix)
  if free < 10 * _GB:
    return Finding(name, Status.WARNING, text, fix)
  return Finding(name, Status.OK, text)


def existing(folder: str | os.PathLike) -> pathlib.Path:
  """The nearest folder above that is there."""
  place = pathlib.Path(folder).expanduser().absolute()
  while not place.exists() and place != place.parent:
    place = place.parent
  return place


def memory(*, meminfo: str = "/proc/meminfo", shm: str = "/dev/shm",
           usage: Callable = shutil.disk_usage) -> Finding:
  """Memory that programs can have, and the part that processes share."""
  match = re.search(r"^MemAvailable:\s+(\d+) kB", _text(pathlib.Path(meminfo)),
                    re.MULTILINE)
  if not match:
    return Finding("memory", Status.SKIPPED, f"{meminfo} does not say")
  free = int(match[1]) * 1024
  text = f"{free / _GB:.1f} GB of memory available"
  if free < 4 * _GB:
    return Finding(
        "memory", Status.FAULT if free < _GB else Status.WARNING, text,
        "end what uses it; `ps aux --sort=-rss | head` shows it")
  if os.path.isdir(shm):
    shared = usage(shm).total
    # Docker gives 64 MiB, and a data worker with more dies by a bus error.
    if shared < _GB:
      return Finding("memory", Status.WARNING, (
          f"{text}, but {shm} has only {shared / 1e6:.0f} MB"),
          "start the container with --shm-size=8g")
    text += f", {shm} of {shared / _GB:.1f} GB"
  return Finding("memory", Status.OK, text)


# --------------------------------------------------------------------- clock


def clock(*, sources: Sequence[str] = TIME_SOURCES, timeout: float = 3,
          now: Callable[[], float] = time.time) -> Finding:
  """The clock against the date that a server gives, to about a second.

  Args:
    sources: URLs; the first that answers counts.
    timeout: seconds for each.
    now: seconds since 1970.
  """
  for source in sources:
    try:  # Name servers that do not answer know no time-out.
      off = within(2 * timeout, functools.partial(
          _offset, source, timeout, now))
    except (OSError, ValueError):
      continue
    text = f"the clock is {abs(off):.1f} s {'ahead' if off > 0 else 'behind'}"
    fix = "sudo timedatectl set-ntp true"
    if abs(off) > 60:
      return Finding("clock", Status.FAULT, (
          f"{text} of {source}: certificates and logins will fail"), fix)
    if abs(off) > 5:
      return Finding("clock", Status.WARNING, f"{text} of {source}", fix)
    return Finding("clock", Status.OK, f"within a few seconds of {source}")
  return Finding("clock", Status.SKIPPED, "no time source answers")


def _offset(url: str, timeout: float, now: Callable[[], float]) -> float:
  begin = now()
  try:
    with urllib.request.urlopen(url, timeout=timeout) as answer:
      date = answer.headers["Date"]
  except urllib.error.HTTPError as e:  # It refuses, and still says when.
    date = e.headers["Date"]
  theirs = email.utils.parsedate_to_datetime(date or "").timestamp()
  return (begin + now()) / 2 - theirs - 0.5  # They leave out the fraction.


def _text(path: pathlib.Path) -> str:
  try:
    return path.read_text(errors="replace")
  except OSError:
    return ""
