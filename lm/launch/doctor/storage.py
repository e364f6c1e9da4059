"""Whether a run could write its working folder, on a disk or in a bucket."""

import errno
import os
import pathlib
import socket
import tempfile
from typing import Any

from lm.launch.doctor import machine as machine_lib
from lm.launch.doctor.finding import Finding
from lm.launch.doctor.finding import line
from lm.launch.doctor.finding import split
from lm.launch.doctor.finding import Status
from lm.launch.doctor.finding import within

_DATA = b"written by lm doctor, to be removed"
_ELSEWHERE = "give another --workdir, on a disk that can be written"


def workdir(where: str | None, *, timeout: float = 60,
            files: Any = None) -> Finding:
  """Writes, reads, lists and removes a small file where a run would.

  A local folder that is not there is not made: the one above it is tried.

  Args:
    where: a folder or gs://BUCKET/NAME; None is nothing to check.
    timeout: seconds; a bucket's library tries again for minutes.
    files: as `lm.paths`, which is the default.
  """
  if where is None:
    return Finding("workdir", Status.SKIPPED, "no --workdir is given")
  remote = where.startswith("gs://")
  if not remote and not machine_lib.existing(where).is_dir():
    return Finding("workdir", Status.FAULT, (
        f"{machine_lib.existing(where)} is a file, not a folder"), _ELSEWHERE)
  if files is None:
    from lm import paths as files
  root = where.rstrip("/") if remote else machine_lib.existing(where)
  name = f"lm_doctor.{socket.gethostname()}.{os.getpid()}"
  folder = f"{root}/{name}"  # Several hosts may try the same one at once.
  try:
    within(timeout, lambda: _try(files, folder))
  except TimeoutError as e:
    return Finding("workdir", Status.FAULT, f"{where}: {e}",
                   "see whether this machine's network reaches it")
  except OSError as e:
    return Finding("workdir", Status.FAULT,
                   f"{where} cannot be used: {e.strerror or line(e)}",
                   _mend(e, root))
  except ValueError as e:  # Our UserError, of a bucket: it names the cure.
    what, fix = split(line(e))
    return Finding("workdir", Status.FAULT, what.replace(f"/{name}", ""),
                   fix.removeprefix("run "))
  return Finding("workdir", Status.OK,
                 f"wrote, read, listed and removed a file in {root}")


def _try(files: Any, folder: str) -> None:
  path = f"{folder}/probe"
  files.make(folder)
  try:
    files.write_bytes(path, _DATA)
    if files.read_bytes(path) != _DATA:
      raise OSError(f"{path} reads otherwise than it was written")
    if list(files.files(folder)) != ["probe"]:
      raise OSError(f"{path} was written but is not listed")
    files.remove(path)
    if files.files(folder):
      raise OSError(f"{path} was removed but is still listed")
  finally:
    if not files.is_remote(folder):
      files.remove_tree(folder)


def _mend(error: OSError, root: str | pathlib.Path) -> str:
  if error.errno in (errno.EACCES, errno.EPERM):
    return f"sudo chown -R $USER {root}"
  if error.errno in (errno.ENOSPC, errno.EDQUOT):
    return f"free some space at {root}"
  return _ELSEWHERE


def disk(where: str | None) -> Finding:
  """Free space for checkpoints."""
  if (where or "").startswith("gs://"):
    return Finding("disk", Status.OK, "a bucket has no end")
  return machine_lib.disk("disk", where or ".", (
      "free some space, or give a --workdir on a larger disk"))


def cache() -> Finding:
  """Free space for what only saves time."""
  from lm import paths
  return machine_lib.disk("cache", paths.cache_folder(), (
      "export LM_CACHE=FOLDER, on a disk with space that can be written"))


def tmp() -> Finding:
  """Free space for temporary files."""
  return machine_lib.disk("tmp", tempfile.gettempdir(), (
      "export TMPDIR=FOLDER, on a disk with space that can be written"))
