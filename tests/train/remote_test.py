"""Runs in a bucket: checkpoints and metrics, and what happens to them."""

import json
import os
import pathlib
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests import bucket as bucket_lib
from tests.train import toy

from lm import model
from lm import objectives
from lm import optim
from lm import paths
from lm import train
from lm.data import vocab as vocab_lib
from lm.train import files
from lm.train import loading
from lm.train import metrics as metrics_lib
from lm.types import TrainState, UserError

CONFIG = model.ModelConfig(
    vocab_size=260, d_model=16, num_layers=2, num_heads=2, num_kv_heads=1,
    head_dim=8, d_mlp=16, max_length=16)
ROOT = pathlib.Path(__file__).resolve().parents[2]
STEPS = "run/checkpoints/step_{:08d}/"


@pytest.fixture
def bucket():
  return bucket_lib.Bucket()


def state(n):
  w = jax.random.normal(jax.random.key(n), (40, 40))
  return TrainState(jnp.int32(n), {"w": w}, {"m": w + 1})


def checkpointer(bucket, **kwargs):
  return train.Checkpointer(bucket.url + "/run", description={}, **kwargs)


def save(bucket, steps, **kwargs):
  made = checkpointer(bucket, **kwargs)
  for n in steps:
    made.save(n, state(n), {"step": n}, {"eval/bits_per_byte": abs(n - 2.0)})
  made.wait()
  return made


def test_what_is_saved_comes_back_bit_for_bit(bucket):
  made = save(bucket, [7])
  found, position = checkpointer(bucket).restore(state(0))
  assert position == {"step": 7}
  toy.trees_equal(found, state(7))
  assert str(made.last_path) == f"{bucket.url}/{STEPS.format(7)[:-1]}"
  assert all(n.startswith(STEPS.format(7)) for n in bucket.names())


def test_there_is_nothing_to_restore_at_first(bucket):
  assert checkpointer(bucket).restore(state(0)) is None
  with pytest.raises(UserError, match=f"no checkpoint in {bucket.url}/run"):
    train.load(bucket.url + "/run")


def test_the_checksums_are_the_last_that_is_written(bucket):
  save(bucket, [1])
  sums = json.loads(bucket.read(STEPS.format(1) + files.CHECKSUMS))["files"]
  assert sorted(bucket.names()) == sorted(
      STEPS.format(1) + name for name in (*sums, files.CHECKSUMS))
  assert bucket.in_order()[-1] == STEPS.format(1) + files.CHECKSUMS


def test_the_last_and_the_best_are_kept_and_nothing_of_the_others(bucket):
  made = save(bucket, [1, 2, 3, 4, 5], keep_last=2, keep_best=1)
  assert files.steps(made.folder) == [2, 4, 5]
  left = {name.split("/")[2] for name in bucket.names()}
  assert left == {"step_00000002", "step_00000004", "step_00000005"}
  assert train.find(bucket.url + "/run")[1]["step"] == 5
  assert train.find(bucket.url + "/run", which="best")[1]["step"] == 2
  assert train.find(f"{bucket.url}/{STEPS.format(4)}")[1]["step"] == 4


def test_a_checkpoint_is_never_half_deleted(bucket):
  made = save(bucket, [1, 2])
  inside = STEPS.format(1).replace("/", "%2F")
  gone = f"{inside}{files.CHECKSUMS}"
  keep = lambda method, path: method != "GET" and gone not in path
  with bucket.refusing(keep), pytest.raises(UserError, match="refuses"):
    files.remove(made.folder, 1)
  assert len(bucket.names(STEPS.format(1))) > 5  # As if it were killed there.
  assert files.steps(made.folder) == [2]
  assert checkpointer(bucket).restore(state(0))[1] == {"step": 2}
  assert not bucket.names(STEPS.format(1))


KILLED = """
import os, sys
from tests.train import remote_test
from lm import train
from lm.train import files
made = train.Checkpointer(sys.argv[1] + "/run", description={})
made.save(1, remote_test.state(1), {"step": 1}, wait=True)
files.hashes = lambda *args, **kwargs: os._exit(9)
made.save(2, remote_test.state(2), {"step": 2}, wait=True)
"""


def test_what_a_killed_save_leaves_is_ignored_and_removed(bucket):
  done = subprocess.run(
      [sys.executable, "-c", KILLED, bucket.url], cwd=ROOT, check=False,
      env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True,
      text=True)
  assert done.returncode == 9, done.stderr
  assert len(bucket.names(STEPS.format(2))) > 5
  folder = paths.path(bucket.url + "/run/checkpoints")
  assert files.steps(folder) == [1]
  assert train.find(bucket.url + "/run")[1]["step"] == 1
  assert checkpointer(bucket).restore(state(0))[1] == {"step": 1}
  assert not bucket.names(STEPS.format(2)) and bucket.names(STEPS.format(1))


@pytest.mark.parametrize("harm, what", [
    (bucket_lib.truncated, "truncated or altered"),
    (bucket_lib.flipped, "corrupt"),
    (bucket_lib.missing, "missing")])
def test_any_damaged_object_is_named_and_the_one_before_used(
    bucket, harm, what):
  save(bucket, [1, 2])
  names = [n for n in bucket.names(STEPS.format(2))
           if bucket.read(n) and not n.endswith(files.CHECKSUMS)]
  assert len(names) > 8
  folder = checkpointer(bucket).folder
  for name in names:
    with bucket.harmed(name, harm), pytest.warns(UserWarning) as caught:
      path, description, damaged = loading.good(folder)
    text = str(caught[0].message)
    assert f"{bucket.url}/{name}" in text and what in text
    assert description["step"] == 1 and path.name == "step_00000001"
    assert damaged == [2]
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    assert checkpointer(bucket).restore(state(0))[1] == {"step": 2}
  bucket.change(names[0], harm(bucket.read(names[0])))
  with pytest.warns(UserWarning, match=names[0]):
    found, position = checkpointer(bucket).restore(state(0))
  assert position == {"step": 1}
  toy.trees_equal(found, state(1))


def test_a_damaged_one_is_replaced_when_its_step_is_saved_again(bucket):
  save(bucket, [1, 2])
  name = next(n for n in bucket.names(STEPS.format(2)) if "/d/" in n)
  bucket.change(name, bucket_lib.flipped(bucket.read(name)))
  again = checkpointer(bucket)
  with pytest.warns(UserWarning, match=name):
    again.restore(state(0))
  again.save(2, state(2), {"step": 2}, wait=True)
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    assert checkpointer(bucket).restore(state(0))[1] == {"step": 2}


def test_no_good_checkpoint_is_an_error_not_a_fresh_start(bucket):
  save(bucket, [1])
  bucket.change(STEPS.format(1) + files.DESCRIPTION, b"{}")
  with pytest.raises(UserError, match="is good.*_00000001/description.json"):
    checkpointer(bucket).restore(state(0))


@pytest.mark.parametrize("part", ["all", "arrays", "ocdbt", "checksums"])
def test_a_bucket_that_refuses_leaves_the_last_good_one(
    bucket, part, monkeypatch):
  made = save(bucket, [1])
  before = {name: bucket.read(name) for name in bucket.names()}
  hashed = []
  original = files.hashes
  monkeypatch.setattr(files, "hashes", lambda *args, **kwargs: (
      hashed.append(original(*args, **kwargs)) or hashed[0]))

  def refused(method, path):
    now = {"all": True, "checksums": hashed}.get(part, part in path)
    return bucket_lib.writes(method, path) and now

  with bucket.refusing(refused), pytest.raises(UserError) as caught:
    made.save(3, state(3), {"step": 3}, wait=True)
  assert bool(hashed) == (part == "checksums")
  text = str(caught.value)
  assert text.startswith(
      f"could not write the checkpoint of step 3 to {bucket.url}/run")
  assert "the last good checkpoint is step 1." in text
  assert f"roles/storage.objectAdmin on {bucket.url}" in text
  assert "\n" not in text and len(text) < 700
  assert files.steps(made.folder) == [1]
  assert checkpointer(bucket).restore(state(0))[1] == {"step": 1}
  assert {name: bucket.read(name) for name in bucket.names()} == before


def test_when_nothing_at_all_is_allowed_it_still_says_which_is_good(bucket):
  made = save(bucket, [1])
  with bucket.refusing(lambda method, path: True):
    with pytest.raises(UserError, match="good checkpoint is step 1. .*refuses"):
      made.save(2, state(2), {"step": 2}, wait=True)
    with pytest.raises(UserError, match="the bucket refuses"):
      checkpointer(bucket).restore(state(0))  # Not: begin afresh.
  assert checkpointer(bucket).restore(state(0))[1] == {"step": 1}


def test_no_bucket_is_said_before_anything_is_trained():
  bucket_lib.serve()
  with pytest.raises(UserError, match="gcloud storage buckets create gs://no"):
    train.Checkpointer("gs://no-such-bucket/run", description={})


@pytest.mark.parametrize("inner", ["", "/checkpoints",
                                   "/checkpoints/step_00000005"])
def test_the_folder_is_all_that_is_needed(bucket, inner):
  vocab = vocab_lib.ByteVocab(["twenty"])
  url = bucket.url + "/run"
  vocab.save(url + "/vocab.model")
  params = model.LanguageModel(CONFIG).init(jax.random.key(1))
  made = train.Checkpointer(
      url, vocab_file=url + "/vocab.model",
      description={"model": CONFIG.to_dict(), "vocab": {"hash": vocab.hash}})
  tx = optim.adamw(1e-3)
  made.save(5, TrainState(jnp.int32(5), params, tx.init(params)), {"step": 5},
            wait=True)
  bucket.change("run/vocab.model", None)
  loaded = train.load(url + inner)
  assert loaded.config == CONFIG and loaded.step == 5
  toy.trees_equal(loaded.params, params)
  assert loaded.vocab.hash == vocab.hash


# ------------------------------------------------------------ a run, metrics


def fit(bucket, steps, *hooks, every=2):
  made = train.Checkpointer(bucket.url + "/run", description={})
  tx, source = optim.adamw(1e-2), toy.Source()
  net = toy.Toy()
  begun = train.begin(made, source, model=net, tx=tx, key=jax.random.key(0))
  step = train.make_step(
      objectives.next_token_and_value(net.apply, z_loss=0.0), tx, seed=0)
  return train.fit(begun, source, step, steps, [
      train.JsonLines(bucket.url + "/run"), *hooks,
      train.Checkpoint(made, every=every)])


def test_a_run_resumes_as_if_it_had_not_stopped(bucket):
  other = bucket_lib.Bucket()
  fit(bucket, 2)
  resumed = fit(bucket, 5)
  toy.trees_equal(resumed, fit(other, 5))
  rows, whole = (train.read_metrics(b.url + "/run") for b in (bucket, other))
  assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
  assert [row["loss"] for row in rows] == [row["loss"] for row in whole]


def test_rows_are_written_at_evaluations_and_now_and_then(bucket, monkeypatch):
  seen = {}
  monkeypatch.setattr(metrics_lib, "_EVERY", 1e9)

  class Look(train.Hook):
    """Notes which rows are in the bucket, once the last upload is done."""

    def after_step(self, run):
      for hook in run._hooks:
        upload = getattr(hook, "_upload", None)
        if upload is not None and upload._next is not None:
          upload._next.result()
      rows = train.read_metrics(bucket.url + "/run")
      seen[run.step] = [row["step"] for row in rows]

  hooks = [train.TensorBoard(bucket.url + "/run", every=1),
           train.Evaluate(lambda params: {"x": 1.0}, every=3), Look()]
  fit(bucket, 5, *hooks)
  assert seen[2] == [] and seen[3] == [1, 2, 3, 3] and seen[4] == [1, 2, 3, 3]
  assert [r["step"] for r in train.read_metrics(bucket.url + "/run")] == [
      1, 2, 3, 3, 4, 5, 5]
  events = bucket.names("run/tensorboard/")
  assert len(events) == 1 and b"train/loss" in bucket.read(events[0])
  assert b"eval/x" in bucket.read(events[0])
  monkeypatch.setattr(metrics_lib, "_EVERY", 0.0)
  fit(bucket, 7, Look())
  assert seen[7][-2:] == [5, 6]  # Metrics are read one step late.


def test_metrics_that_cannot_be_written_do_not_end_the_run(bucket):
  class Refuse(train.Hook):
    def start(self, run):
      self.refusing = bucket.refusing(bucket_lib.writes)
      self.refusing.__enter__()

    def close(self):  # Hooks are closed in reverse: before the metrics'.
      pass

  refuse = Refuse()
  made = toy.Toy()
  tx = optim.adamw(1e-2)
  step = train.make_step(
      objectives.next_token_and_value(made.apply, z_loss=0.0), tx, seed=0)
  with pytest.warns(UserWarning, match="metrics.jsonl, the run goes on: .*ref"):
    done = train.fit(
        train.init_state(made, tx, jax.random.key(0)), toy.Source(), step, 3,
        [train.JsonLines(bucket.url + "/run"),
         train.TensorBoard(bucket.url + "/run", every=1), refuse])
  refuse.refusing.__exit__(None, None, None)
  assert int(done.step) == 3 and bucket.names() == []


# -------------------------------------------------------------- shared work


def test_shares_are_even_disjoint_and_the_same_for_all():
  rng = np.random.default_rng(0)
  sizes = {f"file{i}": int(s) for i, s in enumerate(
      rng.integers(0, 1000, 300))}
  shares = [files.share_of(sizes, (i, 7)) for i in range(7)]
  assert sorted(sum(shares, [])) == sorted(sizes)
  loads = [sum(sizes[n] for n in share) for share in shares]
  assert max(loads) - min(loads) < 10
  shuffled = dict(sorted(sizes.items(), reverse=True))
  assert [set(files.share_of(shuffled, (i, 7))) for i in range(7)] == [
      set(share) for share in shares]
  assert files.share_of(sizes, files.ALL) == list(sizes)
  assert files.share_of({"one": 5}, (1, 2)) == []


def test_a_share_is_all_that_is_read(bucket):
  made = save(bucket, [1])
  path = files.step_folder(made.folder, 1)
  sizes = {n: s for n, s in paths.files(path).items() if n != files.CHECKSUMS}
  mine = files.share_of(sizes, (1, 3))
  with bucket.requests() as asked:
    files.check(path, share=(1, 3))
  read = "".join(p for _, p in asked if "alt=media" in p)
  for name in sizes:
    quoted = f"step_00000001/{name}".replace("/", "%2F")
    if sizes[name] and name != files.DESCRIPTION:
      assert (quoted in read) == (name in mine), name
  # A fault is seen by the one whose share it is, and by no other.
  victim = next(n for n in mine if sizes[n])
  bucket.change(STEPS.format(1) + victim, b"x" * sizes[victim])
  for i in (0, 2):
    files.check(path, share=(i, 3))
  with pytest.raises(files.CheckpointError, match=victim):
    files.check(path, share=(1, 3))


def test_what_cannot_be_pruned_costs_nothing(bucket):
  made = save(bucket, [10], keep_last=1)
  with bucket.refusing(lambda method, path: method == "DELETE"), (
      warnings.catch_warnings(record=True)) as caught:
    warnings.simplefilter("always")
    made.save(20, state(20), {"step": 20}, {})
    made.wait()
  assert any("could not delete" in str(w.message) for w in caught)
  assert checkpointer(bucket).restore(state(0))[1] == {"step": 20}
