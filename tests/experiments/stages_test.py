"""Every stage runs from its quick config, goes on where it was, and refuses."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time

import house
import jax
from lm import train
import numpy as np
import pytest
from tests.experiments import road

RESULTS = {
    "pretrain": {"bits_per_byte", "loss", "steps", "parameters"},
    "instruct": {"loss", "before/loss", "games/format", "games/right",
                 "before/games/format", "before/games/right"},
    "value": {"accuracy", "brier", "calibration_error", "accuracy_line1"},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  """The three stages, two steps each, one after the other."""
  folder = tmp_path_factory.mktemp("road")
  text = road.text_folder(folder / "text")
  before = None
  for stage in road.STAGES:
    status, err = road.run(stage, *road.arguments(
        stage, folder / stage, text=text, init=before))
    assert status == 0, err
    before = folder / stage
  return folder


@pytest.mark.parametrize("stage", road.STAGES)
def test_two_steps_end_in_a_result(runs, stage):
  found = road.result(runs / stage)
  assert RESULTS[stage] <= set(found)
  assert all(math.isfinite(v) for v in found.values()), found
  assert found["steps"] == 2
  losses = [r["loss"] for r in train.read_metrics(runs / stage)
            if "loss" in r]
  assert len(losses) == 2
  assert list((runs / stage / "tensorboard").iterdir())
  description = train.load(runs / stage).description
  assert description["stage"] == stage
  assert description["config"]["batch"] == 2
  assert description["source"]["step"] == 2


def test_each_stage_goes_on_from_the_one_before(runs):
  stages = [train.load(runs / s) for s in road.STAGES]
  assert len({s.vocab.hash for s in stages}) == 1
  assert [s.config.scalar_head for s in stages] == [False, False, True]
  tables = [np.asarray(s.params["embed"]["table"]) for s in stages]
  for i, j in ((0, 1), (1, 2)):
    change = np.abs(tables[i] - tables[j]).max()
    # Two steps with a learning rate of at most 5e-3 move it so far, no more.
    assert 0 < change < 2.5 * 5e-3, (i, j, change)
  assert np.abs(np.asarray(stages[2].params["value"]["value"])).max() > 0


def test_a_finished_run_is_not_run_again(runs, tmp_path):
  workdir = tmp_path / "value"
  shutil.copytree(runs / "value", workdir)
  before = road.result(workdir)
  (workdir / "result.json").unlink()
  rows = (workdir / "metrics.jsonl").read_text()
  status, err = road.run("value", *road.arguments(
      "value", workdir, init=runs / "instruct"))
  assert status == 0, err
  assert road.result(workdir) == before
  assert (workdir / "metrics.jsonl").read_text() == rows
  # Nor does it hang on the metrics: without them the result is measured again.
  (workdir / "metrics.jsonl").unlink()
  status, err = road.run("value", *road.arguments(
      "value", workdir, init=runs / "instruct"))
  assert status == 0, err
  assert road.result(workdir) == pytest.approx(before, rel=1e-6)


def test_killed_and_resumed_is_bit_identical(runs, tmp_path):
  """SIGKILL through the command, then the same command again."""
  steps = 40
  def args(workdir, *more):
    return [*road.arguments("value", workdir, init=runs / "instruct"),
            f"--config.steps={steps}", "--config.checkpoint.every=4", *more]

  whole, broken = tmp_path / "whole", tmp_path / "broken"
  command = [sys.executable, "-m", "experiments.value.run"]
  child = subprocess.Popen(
      command + args(broken), cwd=house.ROOT, stderr=subprocess.PIPE)
  try:
    end = time.monotonic() + 120
    while not list(broken.glob("checkpoints/step_*")):
      assert child.poll() is None and time.monotonic() < end, (
          child.stderr.read())
      time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
  finally:
    child.kill()
    child.stderr.close()
  saved = max(int(p.name[5:]) for p in broken.glob("checkpoints/step_*"))
  assert saved < steps, "it ended before it could be killed"
  assert not (broken / "result.json").exists()

  for workdir in (broken, whole):
    status, err = road.run("value", *args(workdir))
    assert status == 0, err
  a, b = train.load(broken), train.load(whole)
  assert a.step == b.step == steps
  assert a.description["source"] == b.description["source"]
  for x, y in zip(jax.tree.leaves(a.params), jax.tree.leaves(b.params),
                  strict=True):
    np.testing.assert_array_equal(np.asarray(x), np.asarray(y))
  assert road.result(broken) == road.result(whole)
  losses = [[(r["step"], r["loss"]) for r in train.read_metrics(w)
             if "loss" in r and r["step"] > saved] for w in (broken, whole)]
  assert losses[0][-1] == losses[1][-1]


# ----------------------------------------------------------------- bad input


def refused(stage, *args) -> str:
  """Runs a stage that must end with status 2 and one line; returns that."""
  status, err = road.run(stage, *args)
  assert status == 2, err
  lines = [x for x in err.strip().splitlines() if x.startswith("error: ")]
  assert len(lines) == 1 and err.strip().endswith(lines[0]), err
  return lines[0]


@pytest.mark.parametrize("stage, flag, words", [
    ("pretrain", "--config.lenght=3", "did you mean 'length'?"),
    ("pretrain", "--config.data.sources.text.path=nowhere", "nowhere"),
    ("pretrain", "--config.data.sources.games.kind=game42", "'game24'"),
    ("pretrain", "--config.optimizer.name=adam", "did you mean 'adamw'?"),
    ("pretrain", "--config.optimizer.schedule=wds", "did you mean 'wsd'?"),
    ("pretrain", "--config.model.size=nanno", "did you mean 'nano'?"),
    ("pretrain", "--config.length=9999", "model's context"),
    ("pretrain", "--config.mesh.data=3", "config.mesh"),
    ("pretrain", "--config.microbatches=3", "microbatches"),
    ("instruct", "--config.init=", "--config.init=runs/pretrain"),
    ("instruct", "--config.init=nowhere", "no such folder"),
    ("value", "--config.evaluate.max_tokens=3", "max_tokens"),
])
def test_bad_input_is_one_line(runs, tmp_path, stage, flag, words):
  args = road.arguments(stage, tmp_path / "run", text=runs / "text",
                        init=runs / "pretrain")
  assert words in refused(stage, *args, flag)


def test_fields_of_a_config_file_are_checked_too(runs, tmp_path):
  base = "from configs.quick import pretrain\ndef get_config():\n"
  base += "  c = pretrain.get_config()\n"
  for line, words in [
      ("c.stepps = 3", "did you mean 'steps'?"),
      ("c.optimizer = dict(learning_rat=1.0, learning_rate=1.0)",
       "optimizer has no field 'learning_rat': did you mean"),
      ("del c.z_loss", "config.z_loss is missing"),
      ("c.model = dict(size='nano', num_layer=3)", "did you mean 'num_layers'"),
      ("c.model = dict(size='nano', vocab_size=77)", "77"),
      ("c.vocab = dict(path='', siz=3)", "vocab has no field 'siz'"),
      ("c.data.sources = dict(a=dict(kind='text', pth='x'))",
       "data.sources.a has no field 'pth': did you mean 'path'?"),
      ("c.data.sources = dict()", "data.sources is empty"),
      ("c.checkpoint = dict(every=1, keep_last=1, keep_bst=1)", "'keep_best'"),
  ]:
    path = tmp_path / "bad.py"
    path.write_text(f"{base}  {line}\n  return c\n")
    args = [f"--config={path}", f"--workdir={tmp_path / 'run'}"]
    if "sources" not in line:
      args.append(f"--config.data.sources.text.path={runs / 'text'}")
      args.append("--config.data.sources.text.share=1.0")
      args.append("--config.data.sources.games.count=200")
      if "vocab " not in line:
        args.append("--config.vocab.size=520")
    assert words in refused("pretrain", *args), line


def test_an_empty_or_binary_corpus_is_named(tmp_path):
  for content in (b"", b"\x00\x01\xff"):
    folder = tmp_path / f"text{len(content)}"
    folder.mkdir()
    (folder / "a.txt").write_bytes(content)
    assert str(folder / "a.txt") in refused("pretrain", *road.arguments(
        "pretrain", tmp_path / "run", text=folder))


def test_a_malformed_dialogue_is_named_by_file_and_line(runs, tmp_path):
  path = tmp_path / "chats.jsonl"
  good = {"messages": [{"role": "user", "content": "hi"},
                       {"role": "assistant", "content": "hello"}]}
  path.write_text(json.dumps(good) + '\n{"messages": [{"role": "user"}]}\n')
  config = tmp_path / "chats.py"
  config.write_text(
      "from configs.quick import instruct\ndef get_config():\n"
      "  c = instruct.get_config()\n"
      f"  c.data.sources = dict(mine=dict(kind='dialogues', path={str(path)!r},"
      " holdout=0.0))\n  return c\n")
  assert f"{path}:2" in refused(
      "instruct", f"--config={config}", f"--workdir={tmp_path / 'run'}",
      f"--config.init={runs / 'pretrain'}")


def test_another_vocabulary_is_refused(runs, tmp_path):
  from lm.data import vocab
  workdir = tmp_path / "pretrain"
  shutil.copytree(runs / "pretrain", workdir)
  args = road.arguments("pretrain", workdir, text=runs / "text")
  other = tmp_path / "other.model"
  vocab.train([road.TEXT], 400, path=other)
  assert "is not the vocabulary" in refused(
      "pretrain", *args, f"--config.vocab.path={other}")
  # Also when somebody replaced the run's own: the checkpoint knows its hash.
  shutil.copy(other, workdir / "vocab.model")
  assert "another vocabulary" in refused("pretrain", *args) or (
      "vocab_size" in refused("pretrain", *args))


def test_a_damaged_checkpoint_is_refused_by_its_file(runs, tmp_path):
  for damage in ("truncated", "foreign vocabulary"):
    workdir = tmp_path / damage.split()[0]
    shutil.copytree(runs / "pretrain", workdir)
    (checkpoint,) = workdir.glob("checkpoints/step_*")
    if damage == "truncated":
      file = max((p for p in (checkpoint / "arrays" / "params").rglob("*")
                  if p.is_file()), key=lambda p: p.stat().st_size)
      os.truncate(file, file.stat().st_size // 2)
    else:
      from lm.data import vocab
      file = checkpoint / "vocab.model"
      vocab.train([road.TEXT], 400, path=file)
    line = refused("value", *road.arguments(
        "value", tmp_path / "run", init=workdir))
    assert str(file) in line


def test_stages_run_on_a_mesh_of_eight_devices(runs, tmp_path):
  """The same loss as on one device, in a process with fake ones."""
  workdir = tmp_path / "mesh"
  args = road.arguments(
      "value", workdir, "--cpu_devices=8", "--config.mesh.data=2",
      "--config.mesh.fsdp=2", "--config.mesh.tensor=2", "--config.batch=4",
      init=runs / "instruct")
  done = subprocess.run(
      [sys.executable, "-m", "experiments.value.run", *args], cwd=house.ROOT,
      capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  one = tmp_path / "one"
  status, err = road.run("value", *road.arguments(
      "value", one, "--config.batch=4", init=runs / "instruct"))
  assert status == 0, err
  first = [next(r for r in train.read_metrics(w) if "loss" in r)
           for w in (workdir, one)]
  # The matmuls' inputs are bfloat16 on both.
  assert first[0]["loss"] == pytest.approx(first[1]["loss"], rel=2e-3)
  assert first[0]["tokens"] == first[1]["tokens"]
