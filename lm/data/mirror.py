"""Prepared data in a bucket, and its copy in the cache of this machine.

The copy of each version of the data has a folder of its own, and its files
are checked while they come, so that what is there is whole and is not fetched
again.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
import contextlib
import hashlib
import os
import pathlib
import shutil
from typing import Any

from lm import paths
from lm.types import UserError

_STREAMS = 4  # Files under way at a time.
_LONG = 256 << 20  # Bytes that take long enough to show how far it is.
Entries = Sequence[dict[str, Any]]  # {"name", "size", "sha256"} of each file.


def missing(file: Any) -> UserError:
  return UserError(f"{file} is missing since the data was prepared: restore it"
                   " or prepare the folder again")


def changed(file: Any) -> UserError:
  return UserError(f"{file} has changed since the data was prepared: restore it"
                   " or prepare the folder again")


def place(folder: Any, version: str) -> pathlib.Path:
  """Where the copy of a version of a `gs://` folder lies."""
  return paths.cache_folder() / "data" / f"{folder.name}-{version}"


def fetch(
    folder: Any, manifest: bytes, manifest_name: str, entries: Entries, *,
    verify: bool = True,
) -> pathlib.Path:
  """Copies a folder here, but for what is here already; returns the copy.

  Args:
    folder: a `gs://` path.
    manifest: the bytes of its manifest.
    manifest_name: the name of the manifest.
    entries: the files that it lists.
    verify: whether to compare checksums of what is here already.

  Raises:
    UserError: a file is missing or changed in the bucket, and is named.
    OSError: the disk is full.
  """
  version = hashlib.sha256(os.fspath(folder).encode() + manifest).hexdigest()
  local = place(folder, version[:16])
  local.mkdir(parents=True, exist_ok=True)
  needed = [e for e in entries if not _whole(local / _name(e), e, verify)]
  with _shown(f"fetching {folder}", needed) as advance:
    _each(lambda e: _fetch(folder / e["name"], local / e["name"], e, advance),
          needed)
  if not (local / manifest_name).is_file():
    paths.write_bytes(local / manifest_name, manifest)
  return local


def send(
    local: pathlib.Path, folder: Any, manifest_name: str, entries: Entries
) -> None:
  """Copies prepared data to a `gs://` path, the manifest last; moves the copy.

  What was made here then is what `fetch` finds, without another transfer.
  """
  with _shown(f"sending {folder}", entries) as advance:
    def one(entry):
      paths.copy(local / entry["name"], folder / entry["name"])
      advance(entry["size"])
    _each(one, entries)
  manifest = (local / manifest_name).read_bytes()
  paths.write_bytes(folder / manifest_name, manifest)
  version = hashlib.sha256(os.fspath(folder).encode() + manifest).hexdigest()
  try:
    os.rename(local, place(folder, version[:16]))
  except OSError:  # There is one already; `fetch` looks whether it is whole.
    shutil.rmtree(local, ignore_errors=True)


def _name(entry: dict[str, Any]) -> str:
  """A file's name; what comes from a bucket does not choose its folder."""
  name = str(entry["name"])
  if name != pathlib.PurePosixPath(name).name or name in ("", "."):
    raise UserError(f"the manifest names a file {name!r}, which is no name of"
                    " prepared data: prepare the folder again")
  return name


def _whole(file: pathlib.Path, entry: dict[str, Any], verify: bool) -> bool:
  return (file.is_file() and file.stat().st_size == entry["size"]
          and (not verify or paths.sha256(file) == entry["sha256"]))


def _fetch(source: Any, target: pathlib.Path, entry: dict[str, Any],
           advance: Callable[[int], None]) -> None:
  partial = target.with_name(f"{target.name}.{os.getpid()}.tmp")
  digest = hashlib.sha256()
  try:
    with open(partial, "wb") as f:
      for part in paths.chunks(source):
        digest.update(part)
        f.write(part)
        advance(len(part))
      f.flush()
      os.fsync(f.fileno())
    if digest.hexdigest() != entry["sha256"]:
      raise changed(source)
    os.replace(partial, target)
  except FileNotFoundError as e:
    raise missing(source) from e
  finally:
    partial.unlink(missing_ok=True)


def _each(work: Callable[[dict[str, Any]], None], entries: Entries) -> None:
  with futures.ThreadPoolExecutor(_STREAMS) as pool:
    running = [pool.submit(work, entry) for entry in entries]
    try:
      for future in running:
        future.result()
    finally:
      for future in running:
        future.cancel()


@contextlib.contextmanager
def _shown(what: str, entries: Entries) -> Iterator[Callable[[int], None]]:
  """A progress bar for what takes long, on a terminal."""
  total = sum(int(e["size"]) for e in entries)
  if total < _LONG:
    yield lambda count: None
    return
  from rich import console  # pylint: disable=g-import-not-at-top
  from rich import progress  # pylint: disable=g-import-not-at-top
  with progress.Progress(
      *progress.Progress.get_default_columns(), progress.DownloadColumn(),
      console=console.Console(stderr=True), transient=True) as bar:
    task = bar.add_task(what, total=total)
    yield lambda count: bar.advance(task, count)
