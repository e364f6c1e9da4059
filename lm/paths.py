"""Paths on the local disk and in a bucket (`gs://`), and what differs.

`path(text)` is a `pathlib.Path`, or for `gs://` an `epath.Path`, which joins
and names in the same way. Reading, writing and listing go through the functions
below. In a bucket there are no folders, only objects: one write replaces a
whole object and is seen by everyone at once, nothing is appended or renamed.
Nothing here imports TensorFlow, and a local path imports nothing at all.
"""

from collections.abc import Iterator
import contextlib
import hashlib
import os
import pathlib
import re
import shutil
from typing import Any

from lm.types import UserError

_CANNOT = "the bucket cannot be reached"
_SCHEME = "gs://"
_CHUNK = 16 << 20  # Bytes in one request.
_LOGIN = "gcloud auth application-default login"
_ROLE = "roles/storage.objectAdmin"
# What is said of a refused request, by gcsfs, Google's libraries, tensorstore.
_UNKNOWN = re.compile(r"\b401\b|unauthenticated|anonymous caller|credentials"
                      "|unauthorized")
_REFUSED = re.compile(r"\b403\b|forbidden|permission|does not have storage")
_NO_BUCKET = re.compile(r"\b404\b|not_found|bucket does not exist")


class StorageError(UserError):
  """A bucket that is not there, refuses, or cannot be reached."""


class Unreachable(StorageError):
  """A bucket that does not answer for now."""


def is_remote(where: str | os.PathLike) -> bool:
  """Whether it lies in a bucket."""
  return os.fspath(where).startswith(_SCHEME)


def path(where: str | os.PathLike) -> Any:
  """A path to join with `/`; a path is given back as it is.

  Raises:
    UserError: a `gs://` path and no library for it.
  """
  if not is_remote(where):
    return where if isinstance(where, pathlib.Path) else pathlib.Path(where)
  _filesystem()
  from etils import epath  # Only where it is used.
  return where if isinstance(where, epath.Path) else epath.Path(where)


def absolute(where: str | os.PathLike) -> Any:
  """As `path`, no longer relative to the current folder."""
  return path(where) if is_remote(where) else pathlib.Path(where).absolute()


def cache_folder() -> pathlib.Path:
  """Where things that only save time live: $LM_CACHE or ~/.cache/lm."""
  return pathlib.Path(
      os.environ.get("LM_CACHE") or pathlib.Path.home() / ".cache" / "lm")


# ------------------------------------------------------------------- reading


def read_bytes(where: str | os.PathLike) -> bytes:
  """A whole file.

  Raises:
    OSError: of the local disk; FileNotFoundError also of a bucket.
    StorageError: the bucket is not there, refuses or cannot be reached.
  """
  if not is_remote(where):
    return path(where).read_bytes()
  with explained(where):
    return _filesystem().cat_file(os.fspath(where))


def chunks(where: str | os.PathLike) -> Iterator[bytes]:
  """A file in parts of some megabytes; errors as `read_bytes`."""
  if not is_remote(where):
    with open(where, "rb") as f:
      while part := f.read(_CHUNK):
        yield part
    return
  with explained(where):
    size = _filesystem().info(os.fspath(where))["size"]
  for start in range(0, size, _CHUNK):
    with explained(where):
      part = _filesystem().cat_file(
          os.fspath(where), start=start, end=min(start + _CHUNK, size))
    yield part


def sha256(where: str | os.PathLike, *, sync: bool = False) -> str:
  """A file's SHA-256; `sync` also flushes a local one to the disk."""
  if is_remote(where):
    digest = hashlib.sha256()
    for part in chunks(where):
      digest.update(part)
    return digest.hexdigest()
  with open(where, "rb") as f:
    if sync:
      os.fsync(f.fileno())
    return hashlib.file_digest(f, "sha256").hexdigest()


def is_file(where: str | os.PathLike) -> bool:
  """Whether there is a file (an object) of this name."""
  if not is_remote(where):
    return path(where).is_file()
  try:
    with explained(where):
      return _filesystem().info(os.fspath(where))["type"] == "file"
  except FileNotFoundError:
    return False


def is_dir(where: str | os.PathLike) -> bool:
  """Whether there is a folder; in a bucket, anything below that name."""
  if not is_remote(where):
    return path(where).is_dir()
  try:
    with explained(where):
      return _any_below(os.fspath(where))
  except FileNotFoundError:
    return False


def files(folder: str | os.PathLike) -> dict[str, int]:
  """Bytes of all files below a folder, by their names relative to it."""
  if not is_remote(folder):
    root = path(folder)
    return {p.relative_to(root).as_posix(): p.stat().st_size
            for p in sorted(root.rglob("*")) if p.is_file()}
  root = os.fspath(folder).rstrip("/").removeprefix(_SCHEME) + "/"
  with explained(folder):
    found = _filesystem().find(root, detail=True)
  return {name.removeprefix(root): about["size"]
          for name, about in sorted(found.items()) if name != root}


def folders(folder: str | os.PathLike) -> list[str]:
  """Names of the folders in a folder; none if it is not there."""
  if not is_remote(folder):
    root = path(folder)
    return sorted(p.name for p in root.iterdir() if p.is_dir()) if (
        root.is_dir()) else []
  try:
    with explained(folder):
      found = _filesystem().ls(os.fspath(folder), detail=True)
  except FileNotFoundError:
    return []
  return sorted(about["name"].rstrip("/").rpartition("/")[2]
                for about in found if about["type"] == "directory")


# ------------------------------------------------------------------- writing


def make(folder: str | os.PathLike) -> None:
  """Makes a local folder; in a bucket looks whether there is the bucket."""
  if not is_remote(folder):
    path(folder).mkdir(parents=True, exist_ok=True)
    return
  with explained(folder, writing=True):
    _any_below(os.fspath(folder))


def write_bytes(where: str | os.PathLike, data: bytes) -> None:
  """Writes a whole file or nothing, on the disk when it returns.

  Raises:
    OSError: of the local disk.
    StorageError: the bucket is not there, refuses or cannot be reached.
  """
  if is_remote(where):
    with explained(where, writing=True):
      _filesystem().pipe_file(os.fspath(where), data)
    return
  final = path(where)
  partial = final.with_name(f"{final.name}.{os.getpid()}.tmp")
  with open(partial, "wb") as f:
    f.write(data)
    f.flush()
    os.fsync(f.fileno())
  os.replace(partial, final)


def copy(source: str | os.PathLike, target: str | os.PathLike) -> None:
  """Copies one file between any two places; errors as `write_bytes`."""
  if not is_remote(target):
    if not is_remote(source):
      shutil.copyfile(source, target)
      return
    with open(target, "wb") as f:
      f.writelines(chunks(source))
  elif is_remote(source):
    write_bytes(target, read_bytes(source))
  else:
    with explained(target, writing=True):
      _filesystem().put_file(os.fspath(source), os.fspath(target))


def remove(where: str | os.PathLike) -> None:
  """Removes a file, if it is there."""
  if not is_remote(where):
    path(where).unlink(missing_ok=True)
    return
  with contextlib.suppress(FileNotFoundError), explained(where):
    _filesystem().rm_file(os.fspath(where))


def remove_tree(folder: str | os.PathLike) -> None:
  """Removes all below a folder, if it is there; local errors are ignored."""
  if not is_remote(folder):
    shutil.rmtree(folder, ignore_errors=True)
    return
  root = path(folder)
  names = [os.fspath(root / name) for name in files(folder)]
  if names:
    with contextlib.suppress(FileNotFoundError), explained(folder):
      _filesystem().rm(names)


# -------------------------------------------------------------------- errors


@contextlib.contextmanager
def explained(
    where: str | os.PathLike, *, writing: bool = False
) -> Iterator[None]:
  """Turns what a bucket's libraries raise into a StorageError of one line.

  Args:
    where: the `gs://` path at hand.
    writing: nothing can be missing then but the bucket; otherwise a
      FileNotFoundError passes.
  """
  try:
    yield
  except UserError:
    raise
  except FileNotFoundError as e:
    if not writing and _has_bucket(where):
      raise
    raise StorageError(_no_bucket(where)) from e
  except Exception as e:  # Of five libraries; nothing of ours runs in here.
    text = explain(where, e)
    kind = Unreachable if _CANNOT in text else StorageError
    raise kind(text) from e


def explain(where: str | os.PathLike, error: BaseException) -> str:
  """One line: what is wrong with a bucket, and how to mend it."""
  reason = " ".join(str(error).split()) or type(error).__name__
  low = f"{getattr(error, 'code', '')} {reason}".lower()
  low = low.replace(os.fspath(where).lower(), "")  # It may hold such words.
  # What went on stands first in what libraries say, and why last.
  short = reason if len(reason) <= 240 else f"{reason[:80]} ... {reason[-160:]}"
  if _UNKNOWN.search(low):
    return (f"{where}: not logged in to Google Cloud ({short}); on a machine"
            f" of yours run `{_LOGIN}`, on a TPU VM give its service account"
            f" {_ROLE} on the bucket")
  if _REFUSED.search(low):
    return (f"{where}: the bucket refuses ({short}); give your account, or the"
            f" TPU VM's service account, {_ROLE} on {bucket(where)}")
  if _NO_BUCKET.search(low):
    return _no_bucket(where)
  return (f"{where}: {_CANNOT} ({short}); check the network, then run the same"
          " command again")


def bucket(where: str | os.PathLike) -> str:
  """`gs://name` of a path in a bucket."""
  return _SCHEME + os.fspath(where).removeprefix(_SCHEME).partition("/")[0]


def _no_bucket(where: str | os.PathLike) -> str:
  return (f"{where}: there is no bucket {bucket(where)}; make it with `gcloud"
          f" storage buckets create {bucket(where)} --location=REGION` in the"
          " region of the TPUs")


def _has_bucket(where: str | os.PathLike) -> bool:
  with explained(where, writing=True):
    _any_below(bucket(where))
  return True


# ------------------------------------------------------------------ back end


def _any_below(folder: str) -> bool:
  """Whether there is an object below; FileNotFoundError without bucket."""
  name, _, key = folder.removeprefix(_SCHEME).rstrip("/").partition("/")
  # Not by `exists`: it needs the right to see the bucket's own settings.
  found = _filesystem().call(
      "GET", "b/{}/o", name, prefix=key + "/" if key else "", maxResults=1,
      json_out=True)
  return bool(found.get("items"))


def _filesystem() -> Any:
  """gcsfs: for our own calls and, shared, for those of epath and orbax.

  Raises:
    UserError: it is not installed.
  """
  # epath would take TensorFlow, and it looks here once, at its first use.
  if os.environ.setdefault("EPATH_USE_TF", "false") == "false":
    _forget_tensorflow()
  # The plain interface serves every kind of bucket and asks for no right to
  # look at the bucket's own settings.
  os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
  try:
    import fsspec  # These take a second.
    import gcsfs  # noqa: F401  pylint: disable=unused-import
  except ImportError as e:
    raise UserError("gs:// paths need gcsfs: run pip install"
                    " 'deliberate-lm[tpu]'") from e
  import logging
  # It logs a page for each error that it raises to us as well.
  logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
  # Other hosts write too: a remembered listing would be wrong.
  fsspec.config.conf.setdefault("gs", {})["use_listings_cache"] = False
  return fsspec.filesystem("gcs", finalize_on_close=True)


def _forget_tensorflow() -> None:
  """Makes epath look again, if it looked for a local path before."""
  from etils.epath import gpath
  looked = getattr(gpath, "_is_tf_installed", None)
  if hasattr(looked, "cache_clear"):
    looked.cache_clear()
