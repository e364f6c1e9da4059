"""Checkpoint folders: checksums, commits that are whole, finding them.

A checkpoint is a folder `step_00000100`; `checksums.json`, the hash of each
file, is the last that is written. On a disk all goes under a hidden name that
is then changed, so that a folder with its final name is complete. A bucket
cannot change names: there the files lie under the final one from the start,
and a folder without `checksums.json` is no checkpoint.

With several processes each hashes its share of the files, and all agree on
what they found.
"""

from collections.abc import Callable, Iterable, Mapping
from concurrent import futures
import heapq
import json
import os
import pathlib
import re
import shutil
from typing import Any

from lm import paths
from lm.train import agree
from lm.types import UserError

FORMAT_VERSION = 1
CHECKSUMS = "checksums.json"
DESCRIPTION = "description.json"
_NAME = re.compile(r"step_(\d+)$")
_STREAMS = 8  # Objects of a bucket that one process reads at a time.
Share = tuple[int, int]  # Index and count of a process.
ALL: Share = (0, 1)


class CheckpointError(UserError):
  """A checkpoint that cannot be used; names the file at fault."""


def step_folder(folder: pathlib.Path, step: int) -> pathlib.Path:
  """Where the checkpoint of `step` lies."""
  return folder / f"step_{step:08d}"


def temporary(folder: pathlib.Path, step: int) -> pathlib.Path:
  """Where it is written before it is complete."""
  if paths.is_remote(folder):
    return step_folder(folder, step)
  return folder / f".writing_{step:08d}"


def steps(folder: pathlib.Path) -> list[int]:
  """The steps of which there is a checkpoint, in order."""
  return sorted(_numbers(folder, complete=True))


def _numbers(folder: pathlib.Path, *, complete: bool) -> Iterable[int]:
  remote = paths.is_remote(folder)
  for name in paths.folders(folder):
    found = _NAME.match(name)
    if found and (not remote or complete == paths.is_file(
        folder / name / CHECKSUMS)):
      yield int(found.group(1))


def clean(folder: pathlib.Path) -> None:
  """Removes what killed saves left behind."""
  if paths.is_remote(folder):
    for step in _numbers(folder, complete=False):
      paths.remove_tree(step_folder(folder, step))
    return
  for pattern in (".writing_*", ".old_*"):
    for path in folder.glob(pattern):
      shutil.rmtree(path, ignore_errors=True)


def begin(folder: pathlib.Path, step: int) -> pathlib.Path:
  """An empty place to write a checkpoint to."""
  temp = temporary(folder, step)
  if paths.is_remote(folder):
    remove(folder, step)
  else:
    shutil.rmtree(temp, ignore_errors=True)
    temp.mkdir(parents=True)
  return temp


def remove(folder: pathlib.Path, step: int) -> None:
  """Deletes a checkpoint; it never shows up half deleted."""
  final = step_folder(folder, step)
  if paths.is_remote(folder):
    if paths.is_file(final / CHECKSUMS):
      paths.remove(final / CHECKSUMS)  # First: the rest is no checkpoint.
    paths.remove_tree(final)
    return
  old = folder / f".old_{step:08d}"
  shutil.rmtree(old, ignore_errors=True)
  os.rename(final, old)
  shutil.rmtree(old, ignore_errors=True)


# -------------------------------------------------------------------- writing


def commit(folder: pathlib.Path, step: int) -> pathlib.Path:
  """Hashes, syncs and names a written checkpoint; replaces an older one.

  All processes call it; it returns when the checkpoint is whole.
  """
  temp, final = temporary(folder, step), step_folder(folder, step)
  # Process 0 knows that all have written, and so lists all that there is.
  sizes = agree.first("commit/list", lambda: paths.files(temp))
  parts = agree.everywhere(
      "commit/hash", lambda: hashes(temp, sizes, share=agree.share()))
  sums = {name: about for part in parts for name, about in part.items()}

  def finish() -> None:
    write_json(temp / CHECKSUMS, {"format_version": FORMAT_VERSION,
                                  "files": dict(sorted(sums.items()))})
    if paths.is_remote(folder):
      return
    _sync(temp)
    if final.exists():
      remove(folder, step)
    os.rename(temp, final)
    _sync(folder)

  agree.first("commit/name", finish)
  return final


def share_of(sizes: Mapping[str, int], share: Share) -> list[str]:
  """The files that one of several processes reads, of about equal bytes.

  Every process comes to the same division.
  """
  index, count = share
  loads = [(0, i) for i in range(count)]
  mine = set()
  for name in sorted(sizes, key=lambda n: (-sizes[n], n)):
    load, i = heapq.heappop(loads)
    if i == index:
      mine.add(name)
    # A file costs a request even if it is empty.
    heapq.heappush(loads, (load + sizes[name] + 1, i))
  return [name for name in sizes if name in mine]


def hashes(root: pathlib.Path, sizes: Mapping[str, int], *,
           share: Share = ALL) -> dict[str, dict[str, Any]]:
  """Size and SHA-256 of one share of the files, flushed to the disk."""
  names = share_of(sizes, share)
  found = _each(root, lambda name: paths.sha256(root / name, sync=True), names)
  return {name: {"bytes": sizes[name], "sha256": digest}
          for name, digest in zip(names, found, strict=True)}


def _each(root: pathlib.Path, work: Callable[[str], Any],
          names: list[str]) -> Iterable[Any]:
  """`work` on each; in a bucket on several at a time."""
  if not paths.is_remote(root):
    yield from map(work, names)
    return
  with futures.ThreadPoolExecutor(_STREAMS) as pool:
    running = [pool.submit(work, name) for name in names]
    try:
      yield from (f.result() for f in running)
    finally:
      for future in running:
        future.cancel()


def write_json(path: pathlib.Path, value: object) -> None:
  """Writes `value` and flushes it to the disk."""
  text = json.dumps(value, indent=1, default=str)
  if paths.is_remote(path):
    paths.write_bytes(path, text.encode())
    return
  with open(path, "w") as f:
    f.write(text)
    f.flush()
    os.fsync(f.fileno())


# -------------------------------------------------------------------- reading


def read_json(path: pathlib.Path) -> dict:
  """Reads a dictionary.

  Raises:
    CheckpointError: it is missing or not one.
    StorageError: the bucket cannot be read.
  """
  try:
    value = json.loads(paths.read_bytes(path).decode())
  except FileNotFoundError as e:
    raise CheckpointError(
        f"{path} is missing: not a checkpoint of this project, or an"
        " incomplete one") from e
  except paths.StorageError:
    raise
  except (ValueError, OSError) as e:
    raise CheckpointError(f"{path} cannot be read: {e}") from e
  if not isinstance(value, dict):
    raise CheckpointError(f"{path} is not a checkpoint's {path.name}")
  return value


def verify(path: pathlib.Path, *, skip: str | None = None) -> dict:
  """Checks every file's size and hash; returns the description.

  All processes call it, each reads its share, and all raise or none.

  Args:
    path: the checkpoint.
    skip: a folder inside it that is not needed and not read.

  Raises:
    CheckpointError: a missing, truncated or altered file, or a format that
      this version does not know; the file is named.
    StorageError: the bucket cannot be read.
  """
  description: dict = {}

  def work() -> list:
    try:
      description.update(check(path, skip=skip, share=agree.share()))
      return []
    except _Fault as e:
      return [e.position, str(e)]
    except CheckpointError as e:
      return [-1, str(e)]

  faults = [fault for fault in agree.everywhere("verify", work) if fault]
  if faults:
    raise CheckpointError(min(faults)[1])
  return description


class _Fault(CheckpointError):
  """A fault of one file, with its position in the list."""

  def __init__(self, position: int, text: str):
    super().__init__(text)
    self.position = position


def check(path: pathlib.Path, *, skip: str | None = None,
          share: Share = ALL) -> dict:
  """Checks one share of a checkpoint; the rest as `verify`."""
  sums = read_json(path / CHECKSUMS)
  if sums.get("format_version") != FORMAT_VERSION:
    raise CheckpointError(
        f"{path / CHECKSUMS} has format version {sums.get('format_version')!r}"
        f" but this version reads {FORMAT_VERSION}")
  files = sums.get("files")
  if not isinstance(files, dict) or DESCRIPTION not in files or not all(
      isinstance(a, dict) and isinstance(a.get("bytes"), int)
      for a in files.values()):
    raise CheckpointError(f"{path / CHECKSUMS} is not a list of checksums")
  needed = {name: about for name, about in files.items()
            if not (skip and name.startswith(skip + "/"))}
  position = {name: i for i, name in enumerate(needed)}
  mine = share_of({n: about["bytes"] for n, about in needed.items()}, share)
  sizes = paths.files(path) if paths.is_remote(path) else None

  def one(name: str) -> str | None:
    try:
      size = _size(path / name) if sizes is None else sizes.get(name)
      return _fault(path / name, needed[name], size)
    except FileNotFoundError:  # It went while we looked.
      return f"{path / name} is missing from the checkpoint"

  for name, fault in zip(mine, _each(path, one, mine), strict=True):
    if fault:
      raise _Fault(position[name], fault)
  try:
    return read_json(path / DESCRIPTION)
  except CheckpointError as e:  # Whose share it is says more of it.
    raise _Fault(len(position), str(e)) from e


def _size(file: pathlib.Path) -> int | None:
  return file.stat().st_size if file.is_file() else None


def _fault(file: pathlib.Path, expected: Mapping[str, Any],
           size: int | None) -> str | None:
  """What is wrong with a file of this size (None: there is none)."""
  if size is None:
    return f"{file} is missing from the checkpoint"
  if size != expected["bytes"]:
    return (f"{file} is truncated or altered: {size} bytes instead of"
            f" {expected['bytes']}")
  if paths.sha256(file) != expected.get("sha256"):
    return f"{file} is corrupt: its checksum does not match"
  return None


def _sync(folder: pathlib.Path) -> None:
  handle = os.open(folder, os.O_RDONLY)
  try:
    os.fsync(handle)
  finally:
    os.close(handle)
