"""Checkpoint folders on disk: checksums, atomic commits, finding them.

A checkpoint is a folder `step_00000100`. It is written under a hidden name,
its files are hashed into `checksums.json` (the last file written), and it is
then renamed, so that a folder with its final name is complete.
"""

import hashlib
import json
import os
import pathlib
import re
import shutil

from lm.types import UserError

FORMAT_VERSION = 1
CHECKSUMS = "checksums.json"
DESCRIPTION = "description.json"
_NAME = re.compile(r"step_(\d+)$")


class CheckpointError(UserError):
  """A checkpoint that cannot be used; names the file at fault."""


def step_folder(folder: pathlib.Path, step: int) -> pathlib.Path:
  """Where the checkpoint of `step` lies."""
  return folder / f"step_{step:08d}"


def temporary(folder: pathlib.Path, step: int) -> pathlib.Path:
  """Where it is written before it is complete."""
  return folder / f".writing_{step:08d}"


def steps(folder: pathlib.Path) -> list[int]:
  """The steps of which there is a checkpoint, in order."""
  if not folder.is_dir():
    return []
  found = (_NAME.match(p.name) for p in folder.iterdir() if p.is_dir())
  return sorted(int(m.group(1)) for m in found if m)


def clean(folder: pathlib.Path) -> None:
  """Removes what killed saves left behind."""
  for pattern in (".writing_*", ".old_*"):
    for path in folder.glob(pattern):
      shutil.rmtree(path, ignore_errors=True)


def remove(folder: pathlib.Path, step: int) -> None:
  """Deletes a checkpoint; it never shows up half deleted."""
  old = folder / f".old_{step:08d}"
  shutil.rmtree(old, ignore_errors=True)
  os.rename(step_folder(folder, step), old)
  shutil.rmtree(old, ignore_errors=True)


def commit(folder: pathlib.Path, step: int) -> pathlib.Path:
  """Hashes, syncs and renames a written checkpoint; replaces an older one."""
  temp, final = temporary(folder, step), step_folder(folder, step)
  sums = {}
  for path in sorted(p for p in temp.rglob("*") if p.is_file()):
    sums[path.relative_to(temp).as_posix()] = {
        "bytes": path.stat().st_size, "sha256": sha256(path, sync=True)}
  write_json(temp / CHECKSUMS,
             {"format_version": FORMAT_VERSION, "files": sums})
  _sync(temp)
  if final.exists():
    remove(folder, step)
  os.rename(temp, final)
  _sync(folder)
  return final


def sha256(path: pathlib.Path, *, sync: bool = False) -> str:
  """The file's SHA-256; `sync` also flushes it to the disk."""
  with open(path, "rb") as f:
    if sync:
      os.fsync(f.fileno())
    return hashlib.file_digest(f, "sha256").hexdigest()


def write_json(path: pathlib.Path, value: object) -> None:
  """Writes `value` and flushes it to the disk."""
  with open(path, "w") as f:
    json.dump(value, f, indent=1, default=str)
    f.flush()
    os.fsync(f.fileno())


def read_json(path: pathlib.Path) -> dict:
  """Reads a dictionary.

  Raises:
    CheckpointError: it is missing or not one.
  """
  try:
    value = json.loads(path.read_text())
  except FileNotFoundError as e:
    raise CheckpointError(
        f"{path} is missing: not a checkpoint of this project, or an"
        " incomplete one") from e
  except (ValueError, OSError) as e:
    raise CheckpointError(f"{path} cannot be read: {e}") from e
  if not isinstance(value, dict):
    raise CheckpointError(f"{path} is not a checkpoint's {path.name}")
  return value


def verify(path: pathlib.Path, *, skip: str | None = None) -> dict:
  """Checks every file's size and hash; returns the description.

  Args:
    path: the checkpoint.
    skip: a folder inside it that is not needed and not read.

  Raises:
    CheckpointError: a missing, truncated or altered file, or a format that
      this version does not know; the file is named.
  """
  sums = read_json(path / CHECKSUMS)
  if sums.get("format_version") != FORMAT_VERSION:
    raise CheckpointError(
        f"{path / CHECKSUMS} has format version {sums.get('format_version')!r}"
        f" but this version reads {FORMAT_VERSION}")
  files = sums.get("files")
  if not isinstance(files, dict) or DESCRIPTION not in files:
    raise CheckpointError(f"{path / CHECKSUMS} is not a list of checksums")
  for name, expected in files.items():
    if skip and name.startswith(skip + "/"):
      continue
    file = path / name
    if not file.is_file():
      raise CheckpointError(f"{file} is missing from the checkpoint")
    size = file.stat().st_size
    if size != expected["bytes"]:
      raise CheckpointError(f"{file} is truncated or altered: {size} bytes"
                            f" instead of {expected['bytes']}")
    if sha256(file) != expected["sha256"]:
      raise CheckpointError(f"{file} is corrupt: its checksum does not match")
  return read_json(path / DESCRIPTION)


def _sync(folder: pathlib.Path) -> None:
  handle = os.open(folder, os.O_RDONLY)
  try:
    os.fsync(handle)
  finally:
    os.close(handle)
