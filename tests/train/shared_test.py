"""Two processes save together, verify in shares, and agree on what is good."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import pytest
from tests import bucket as bucket_lib

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", params=["disk", "bucket"])
def found(request, tmp_path_factory):
  """What each of the two processes found."""
  out = tmp_path_factory.mktemp("shared")
  bucket_lib.serve()
  folder = (out / "run" if request.param == "disk"
            else bucket_lib.Bucket().url + "/run")
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
  running = [subprocess.Popen(
      [sys.executable, "-m", "tests.train.shared_main", str(folder), str(out),
       str(port), str(i)], cwd=ROOT, env=env, stdout=subprocess.DEVNULL,
      stderr=subprocess.PIPE, text=True) for i in range(2)]
  try:
    said = [process.communicate(timeout=240)[1] for process in running]
  finally:
    for process in running:
      process.kill()
  assert [p.returncode for p in running] == [0, 0], "\n".join(
      text[-3000:] for text in said)
  return [json.loads((out / f"found-{i}.json").read_text()) for i in range(2)]


def names(files):
  """Names inside the checkpoint, whatever its folder was called meanwhile."""
  return [f.partition("_00000002/")[2] for f in files]


def test_each_hashes_its_share_of_what_was_saved(found):
  shares = [names(each["hashed"]) for each in found]
  assert sorted(sum(shares, [])) == found[0]["files"] == found[1]["files"]
  assert all(len(share) > 3 for share in shares)


def test_each_verifies_its_share_of_a_whole_one(found):
  shares = [names(each["whole"]["hashed"]) for each in found]
  assert sorted(sum(shares, [])) == found[0]["files"]
  for each in found:
    assert each["whole"]["step"] == 2 and each["whole"]["right"]
    assert each["whole"]["warnings"] == []


def test_a_fault_in_the_share_of_one_is_everyones(found):
  victim = found[0]["victim"]
  assert victim in names(found[1]["whole"]["hashed"])
  assert victim not in names(found[0]["whole"]["hashed"])
  for each in found:
    assert each["harmed"]["step"] == 1 and each["harmed"]["right"]
    text, = each["harmed"]["warnings"]
    assert victim in text and "corrupt" in text
    assert text.endswith("using step_00000001 instead")
    assert each["mended"]["step"] == 2 and each["mended"]["right"]


def test_an_error_of_one_is_everyones_and_no_checkpoint_results(found):
  for each in found:
    assert each["failed"].startswith("could not write the checkpoint of step 3")
    assert "last good checkpoint is step 2" in each["failed"]
    assert "No space left on device" in each["failed"]
    assert each["left"] == [1, 2]
