"""Paths on the disk and in a bucket, against a real server of the API."""

import os
import pathlib
import subprocess
import sys

import pytest
from tests import bucket as bucket_lib

from lm import paths
from lm.types import UserError

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture
def bucket():
  return bucket_lib.Bucket()


def test_a_path_stays_what_it_is(tmp_path, bucket):
  local = paths.path(str(tmp_path))
  assert local == tmp_path and isinstance(local, pathlib.Path)
  assert paths.path(tmp_path) is tmp_path
  assert not paths.is_remote(tmp_path) and not paths.is_remote("runs/gs:/x")
  remote = paths.path(bucket.url + "/run")
  assert paths.path(remote) is remote
  assert paths.is_remote(remote) and paths.is_remote(str(remote))
  assert str(remote / "a" / "b.txt") == f"{bucket.url}/run/a/b.txt"
  assert (remote / "a" / "b.txt").name == "b.txt"
  assert str(paths.absolute(remote)) == f"{bucket.url}/run"
  assert paths.absolute("x") == pathlib.Path.cwd() / "x"


@pytest.mark.parametrize("where", ["disk", "bucket"])
def test_disk_and_bucket_do_the_same(tmp_path, bucket, where):
  root = tmp_path if where == "disk" else paths.path(bucket.url + "/run")
  paths.make(root / "a")
  big = os.urandom(3 * 1000 * 1000) + b"."
  for name, raw in (("a/one", b"1"), ("a/empty", b""), ("top", big)):
    paths.write_bytes(root / name, raw)
    assert paths.read_bytes(root / name) == raw
    assert b"".join(paths.chunks(root / name)) == raw
  assert paths.files(root) == {"a/empty": 0, "a/one": 1, "top": len(big)}
  assert paths.folders(root) == ["a"] and paths.folders(root / "b") == []
  assert paths.is_file(root / "top") and not paths.is_file(root / "a")
  assert paths.is_dir(root / "a") and not paths.is_dir(root / "to")
  paths.write_bytes(root / "a/one", b"22")
  assert paths.read_bytes(root / "a/one") == b"22"
  for name in ("here", "there"):
    paths.copy(root / "top", tmp_path / f"{where}-{name}")
    paths.copy(tmp_path / f"{where}-{name}", root / name)
    paths.copy(root / name, root / f"{name}-again")
    assert paths.read_bytes(root / f"{name}-again") == big
  assert paths.sha256(root / "top") == paths.sha256(root / "there-again")
  assert paths.sha256(root / "top") != paths.sha256(root / "a/empty")
  paths.remove(root / "top")
  paths.remove(root / "top")
  with pytest.raises(FileNotFoundError):
    paths.read_bytes(root / "top")
  paths.remove_tree(root / "a")
  paths.remove_tree(root / "a")
  assert not paths.is_dir(root / "a") and paths.is_file(root / "here")


def test_a_chunked_hash_is_that_of_the_whole(bucket, monkeypatch):
  where = bucket.url + "/x"
  paths.write_bytes(where, bytes(range(256)))
  whole = paths.sha256(where)
  monkeypatch.setattr(paths, "_CHUNK", 7)
  with bucket.requests() as asked:
    assert paths.sha256(where) == whole
  assert len(asked) > 256 // 7


def test_what_others_write_is_seen_at_once(bucket):
  root = paths.path(bucket.url)
  paths.write_bytes(root / "a/one", b"1")
  assert paths.files(root) == {"a/one": 1}
  bucket.change("a/one", b"longer")
  assert paths.files(root) == {"a/one": 6}
  assert paths.read_bytes(root / "a/one") == b"longer"
  bucket.change("a/one", None)
  assert not paths.is_file(root / "a/one") and paths.folders(root) == []


def test_no_bucket_is_said_in_one_line():
  bucket_lib.serve()
  where = "gs://there-is-none/run"
  for attempt in (lambda: paths.make(where),
                  lambda: paths.write_bytes(where, b"1"),
                  lambda: paths.read_bytes(where),
                  lambda: paths.files(where),
                  lambda: paths.is_file(where)):
    with pytest.raises(paths.StorageError) as caught:
      attempt()
    text = str(caught.value)
    assert text.startswith(where) and "\n" not in text
    assert "gcloud storage buckets create gs://there-is-none" in text


def test_a_refusal_names_the_role(bucket):
  where = f"{bucket.url}/run/x"
  with bucket.refusing(lambda method, path: True):
    for attempt in (lambda: paths.write_bytes(where, b"1"),
                    lambda: paths.read_bytes(where),
                    lambda: paths.make(where),
                    lambda: paths.copy(__file__, where)):
      with pytest.raises(paths.StorageError) as caught:
        attempt()
      assert str(caught.value).startswith(f"{where}: the bucket refuses")
      assert f"roles/storage.objectAdmin on {bucket.url}" in str(caught.value)
      assert "\n" not in str(caught.value)


@pytest.mark.parametrize("said, mend", [
    ("Anonymous caller does not have storage.objects.get access", "gcloud auth"
     " application-default login"),
    ("Invalid Credentials, 401", "gcloud auth application-default login"),
    ("Forbidden: https://storage", "roles/storage.objectAdmin on gs://b"),
    ("PERMISSION_DENIED: code: 403", "roles/storage.objectAdmin on gs://b"),
    ("The specified bucket does not exist., 404", "buckets create gs://b "),
    ("Cannot connect to host storage.googleapis.com:443", "check the network"),
    ("reading b/step_00000403/x: timed out", "check the network"),
])
def test_each_kind_of_error_says_how_to_mend_it(said, mend):
  line = paths.explain("gs://b/step_00000403/x", RuntimeError(said))
  assert mend in line and line.startswith("gs://b/step_00000403/x: ")
  assert said[:20] in line or "buckets create" in line


def test_without_the_library_it_says_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, "gcsfs", None)
  with pytest.raises(UserError, match=r"pip install 'deliberate-lm\[tpu\]'"):
    paths.path("gs://bucket/run")
  assert paths.path("runs/x") == pathlib.Path("runs/x")


def test_a_bucket_needs_no_tensorflow_and_a_disk_no_library(bucket):
  paths.write_bytes(bucket.url + "/x", b"1")
  code = f"""
import sys
from etils import epath
from lm import paths
assert epath.Path("runs/x").exists() is False  # It looks for TensorFlow.
paths.path("runs/x")
early = [m for m in ("fsspec", "gcsfs") if m in sys.modules]
p = paths.path("{bucket.url}/x")
assert p.exists() and p.read_bytes() == paths.read_bytes(p) == b"1"
late = [m for m in ("tensorflow",) if m in sys.modules]
sys.exit(" ".join(early + late) or 0)
"""
  done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False,
                        capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
