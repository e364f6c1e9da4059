"""Prepare: restartable, atomic, and checked before the first step."""

import functools
import json
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest

from lm.data import pipeline, prepare, store, tasks
from lm.data import vocab as vocab_lib
from lm.types import UserError

VOCAB = vocab_lib.ByteVocab()
ROOT = pathlib.Path(__file__).resolve().parents[2]


def rows(count=60, kill_in=None):
  """Dialogues; kills the process in shard 3, when three are done in a folder.
  """
  for i in range(count):
    if kill_in and i == 30 and len(list(kill_in.glob("*.json"))) == 3:
      os.kill(os.getpid(), signal.SIGKILL)
    yield {"messages": [{"role": "user", "content": f"{i} " * (i % 7 + 1)},
                        {"role": "assistant", "content": f"answer {i}"}]}


def task(kill_in=None, kind="examples", count=60, shards=6):
  return tasks.generated(
      "talk", VOCAB, rows=functools.partial(rows, count, kill_in), key="v1",
      kind=kind, num_shards=shards)


def _bytes(folder):
  return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.mark.parametrize("kind", ["examples", "tokens"])
def test_killed_half_way_and_run_again_gives_the_same_bytes(tmp_path, kind):
  lengths = [64] if kind == "examples" else []
  prepare.write(task(kind=kind), tmp_path / "whole", lengths=lengths,
                processes=1)
  folder = tmp_path / "killed"
  code = ("import pathlib, sys; sys.path.insert(0, 'tests/data');"
          " import prepare_test as t; from lm.data import prepare;"
          f" folder = pathlib.Path({str(folder)!r});"
          f" prepare.write(t.task(folder, {kind!r}), folder, processes=1)")
  run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False,
                       capture_output=True)
  assert run.returncode == -signal.SIGKILL, run.stderr
  assert len(list(folder.glob("*.json"))) == 3
  assert list(folder.glob("*.tmp"))  # It was torn in the middle of a shard.
  with pytest.raises(UserError, match="run prepare again"):
    store.open_folder(folder, kind)
  prepare.write(task(kind=kind), folder, lengths=lengths, processes=1)
  assert _bytes(folder) == _bytes(tmp_path / "whole")


def test_finished_shards_are_not_written_again(tmp_path, monkeypatch):
  whole = prepare.write(task(), tmp_path / "whole", processes=1)
  folder = tmp_path / "part"
  written = []
  real = store.write_shard

  def stop_after_three(path, *args, **kwargs):
    if len(written) == 3:
      raise KeyboardInterrupt
    written.append(path.name)
    return real(path, *args, **kwargs)

  monkeypatch.setattr(store, "write_shard", stop_after_three)
  with pytest.raises(KeyboardInterrupt):
    prepare.write(task(), folder, processes=1)
  # One finished shard is damaged meanwhile: it alone is done again.
  damaged = folder / written[1]
  damaged.write_bytes(damaged.read_bytes()[:-1])
  again = []
  monkeypatch.setattr(store, "write_shard", lambda path, *args, **kwargs: (
      again.append(path.name), real(path, *args, **kwargs))[1])
  assert prepare.write(task(), folder, processes=1) == whole
  assert sorted(again) == sorted({f["name"] for f in whole.files}
                                 - {written[0], written[2]})
  again.clear()
  prepare.write(task(), folder, processes=1)
  assert not again
  assert _bytes(folder) == _bytes(tmp_path / "whole")


def test_processes_do_not_change_the_bytes(tmp_path):
  prepare.write(task(), tmp_path / "one", processes=1)
  prepare.write(task(), tmp_path / "two", processes=2)
  assert _bytes(tmp_path / "one") == _bytes(tmp_path / "two")


def test_errors_in_other_processes_reach_the_user(tmp_path):
  path = tmp_path / "rows"
  path.mkdir()
  for i in range(4):
    (path / f"{i}.jsonl").write_text(json.dumps(next(rows())) + "\n")
  (path / "2.jsonl").write_text('{"messages": []}\n')
  with pytest.raises(UserError, match=r"2\.jsonl:1"):
    prepare.write(tasks.dialogues("talk", VOCAB, files=path), tmp_path / "out",
                  processes=2)
  assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.fixture(name="folder")
def _folder(tmp_path):
  prepare.write(task(shards=2), tmp_path / "data", processes=1, lengths=[64])
  return tmp_path / "data"


def test_manifest_says_what_is_inside(folder):
  manifest = store.open_folder(folder, "examples")
  examples = [e for i in range(2) for e in task(shards=2).examples(i)]
  assert manifest.vocab == {"hash": VOCAB.hash, "size": VOCAB.size,
                            "eos_id": VOCAB.eos_id}
  assert manifest.counts == {
      "documents": 60, "tokens": sum(len(e["tokens"]) for e in examples),
      "trained_tokens": int(sum(sum(e["weights"]) for e in examples)),
      "text_bytes": 0, "longest": max(len(e["tokens"]) for e in examples)}
  assert manifest.source["generator"].endswith("prepare_test.rows")
  for want, got in zip(examples, store.read_examples(manifest), strict=True):
    assert got["tokens"].tolist() == want["tokens"]
    assert got["weights"].tolist() == want["weights"]


def _flip(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


@pytest.mark.parametrize("damage, reason", [
    (_flip, "has changed"),
    (lambda p: p.write_bytes(p.read_bytes()[:-7]), "has changed"),
    (lambda p: p.unlink(), "is missing"),
    (lambda p: (p.parent / "manifest.json").unlink(), "manifest.json is miss"),
    (lambda p: (p.parent / "manifest.json").write_text("{"), "not a manifest"),
    (lambda p: (p.parent / "manifest.json").write_text("{}"), "not a manifest"),
])
def test_damaged_data_is_refused_before_the_first_step(folder, damage, reason):
  pipeline.packed(folder, length=64, batch=2)()
  path = sorted(folder.glob("*.array_record"))[1]
  damage(path)
  with pytest.raises(UserError, match=reason) as e:
    pipeline.packed(folder, length=64, batch=2)
  assert ("manifest" if "manifest" in reason else path.name) in str(e.value)


def test_a_future_format_is_refused(folder):
  path = folder / "manifest.json"
  path.write_text(path.read_text().replace('"format_version": 1',
                                           '"format_version": 9'))
  with pytest.raises(UserError, match="format 9"):
    pipeline.packed(folder, length=64, batch=2)


def test_other_data_is_not_overwritten_by_accident(folder):
  other = tasks.generated("talk", VOCAB, rows=functools.partial(rows, 61),
                          key="v2", num_shards=2)
  with pytest.raises(UserError, match="holds other data"):
    prepare.write(other, folder)
  done = prepare.write(other, folder, overwrite=True, processes=1)
  assert done.counts["documents"] == 61
  assert not list(folder.glob("plan-*"))
  another_vocab = tasks.generated(
      "talk", vocab_lib.ByteVocab(["x"]), rows=functools.partial(rows, 61),
      key="v2", num_shards=2)
  with pytest.raises(UserError, match="holds other data"):
    prepare.write(another_vocab, folder)


def test_empty_tasks_are_refused(tmp_path):
  with pytest.raises(UserError, match="talk has no data"):
    prepare.write(task(count=0), tmp_path)


def _wild(vocab, row):
  del vocab
  return row


@pytest.mark.parametrize("row, reason", [
    ({"tokens": [1, 2, 100_000]}, "vocabulary of 260"),
    ({"tokens": [1, -1]}, "token ids -1"),
    ({"tokens": [1, 2], "weights": [1.0]}, "2 tokens but 1 weights"),
])
def test_impossible_examples_are_refused(tmp_path, row, reason):
  bad = tasks.generated("bad", VOCAB, rows=lambda: [row], key="1",
                        convert=_wild)
  with pytest.raises(UserError, match=reason):
    prepare.write(bad, tmp_path)


def test_records_keep_every_feature_exactly():
  rng = np.random.default_rng(0)
  for dtype, top in ((np.dtype("<u2"), 1 << 16), (np.dtype("<u4"), 1 << 17)):
    for n in (1, 5, 1000):
      example = {"tokens": rng.integers(0, top, n),
                 **{f: rng.normal(size=n).astype("f4") for f in store.FEATURES}}
      again = store.decode_example(store.encode_example(example, dtype))
      for key, value in example.items():
        np.testing.assert_array_equal(again[key], value)
  plain = store.decode_example(
      store.encode_example({"tokens": [3, 0]}, np.dtype("<u2")))
  assert plain["weights"].tolist() == [1, 1] and len(plain) == 2
