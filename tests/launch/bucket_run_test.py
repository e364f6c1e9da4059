"""Whole stages whose working folder lies in a bucket, on one host and two."""

import json

from lm import paths
from lm import train
from lm.launch import events
import pod
import pytest
from tests import bucket as bucket_lib
from tests.experiments import road


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("LM_CACHE", str(tmp_path / "cache"))


def arguments(stage, url, *more, **options):
  found = road.arguments(stage, url, *more, **options)
  if stage == "instruct":
    found.append("--config.evaluate.questions=0")
  return found


def test_a_run_in_a_bucket_resumes_and_is_gone_on_from(tmp_path):
  bucket = bucket_lib.Bucket()
  text = road.text_folder(tmp_path / "text")
  first, second = f"{bucket.url}/pretrain", f"{bucket.url}/instruct"
  for steps in (2, 4):  # The same command, later with more to do.
    status, err = road.run("pretrain", *arguments(
        "pretrain", first, f"--config.steps={steps}",
        "--config.optimizer.schedule=constant", text=text))
    assert status == 0, err
  result = json.loads(bucket.read("pretrain/result.json"))
  assert result["steps"] == 4
  rows = [r for r in train.read_metrics(first) if "loss" in r]
  assert [r["step"] for r in rows] == [1, 2, 3, 4]
  names = [e["event"] for e in events.read(paths.path(first))]
  assert names == ["started", "finished"] * 2
  assert train.load(first).step == 4
  assert bucket.names("pretrain/tensorboard/")

  # Two hosts go on from it, and share nothing but the bucket.
  command = ["experiments.instruct.run", *(
      a for a in arguments("instruct", second, "--config.mesh.fsdp=-1",
                           init=first) if not a.startswith("--workdir"))]
  with pod.start(command, tmp_path / "run", 2, where=second) as run:
    assert run.wait() == [0, 0], run.log(0) + run.log(1)
  assert json.loads(bucket.read("instruct/result.json"))["steps"] == 2
  assert set(json.loads(bucket.read("instruct/hosts.json"))["hosts"]) == {
      "0", "1"}


@pytest.mark.parametrize("args, words", [
    (("--workdir=gs://no-such-bucket/run",), "there is no bucket"),
    (("--config.init=gs://no-such-bucket/run",), "no-such-bucket"),
])
def test_a_bucket_that_is_not_there_is_one_line(tmp_path, args, words):
  bucket = bucket_lib.Bucket()
  found = arguments("value", f"{bucket.url}/run", *args,
                    init=f"{bucket.url}/nothing")
  status, err = road.run("value", *found)
  assert status == 2, err
  line = err.strip().splitlines()[-1]
  assert line.startswith("error: ") and words in line
  assert "Traceback" not in err
