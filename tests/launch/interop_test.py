"""`lm import` and `lm export`: into a working folder, and out of one."""

import argparse
import json
import os
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import train
from lm.data import vocab as vocab_lib
from lm.interop import huggingface
from lm.launch import interop
from lm.launch import interop_command
from lm.launch import stage
from lm.types import TrainState, UserError
from tests.model import tiny

VOCAB = vocab_lib.ByteVocab()
CONFIG = tiny.config(vocab_size=VOCAB.size, num_heads=4, num_kv_heads=2)


@pytest.fixture(autouse=True)
def quick_compile():
  """XLA without its costly optimisations: each program runs once."""
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
  """A Hugging Face folder and its parameters."""
  folder = tmp_path_factory.mktemp("theirs") / "model"
  params = tiny.params(CONFIG)
  huggingface.export(folder, CONFIG, params, VOCAB)
  return folder, params


def lm(*args):
  parser = argparse.ArgumentParser(prog="lm")
  interop_command.add(parser.add_subparsers(required=True))
  args = parser.parse_args([str(a) for a in args])
  return args.call(args) or 0


def equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_imported_model_is_a_checkpoint_to_go_on_from(
    theirs, tmp_path, capsys, dtype):
  folder, params = theirs
  work = tmp_path / "work"
  assert lm("import", folder, "--out", work, "--dtype", dtype) == 0
  out = capsys.readouterr()
  assert f"--config.init={work}" in out.out and not out.err

  loaded = train.load(work)
  assert loaded.step == 0
  assert loaded.config == CONFIG.replace(vocab_multiple=128, dtype="auto")
  assert {x.dtype for x in jax.tree.leaves(loaded.params)} == {
      np.dtype("float32")}
  stored = jax.tree.map(lambda x: x.astype(dtype).astype(np.float32),
                        params["layers"])
  equal(loaded.params["layers"], stored)
  text = "Say <|user|> caf\u00e9"
  assert loaded.vocab.encode(text) == VOCAB.encode(text)
  about = loaded.description
  assert about["stage"] == "import" and about["imported"] == {
      "format": "Hugging Face", "source": str(folder), "dtype": dtype}
  assert {kind for _, kind in about["arrays"]["params"].values()} == {dtype}

  # What the stages do with it: a model, then a step from its parameters.
  before = stage.init_from(str(work))
  assert stage.base_model(str(work), max_length=32).max_length == 32
  state = train.state_of(before.params, stage.optimizer(
      dict(name="adamw", learning_rate=1e-3, schedule="constant"), steps=2))
  equal(state.params, before.params)
  # And out again: the very file that came in, as far as its type can hold it.
  assert lm("export", work, "--out", tmp_path / "out") == 0
  there, back = huggingface.Weights(folder), huggingface.Weights(
      tmp_path / "out")
  assert there.shapes == back.shapes
  for name in there.shapes:
    assert back.read(name).dtype == jnp.dtype(dtype)
    np.testing.assert_array_equal(
        there.read(name).astype(jnp.dtype(dtype)), back.read(name))


def test_a_folder_with_checkpoints_is_refused(theirs, tmp_path):
  interop.import_model(theirs[0], tmp_path, max_length=17)
  assert train.load(tmp_path).config.max_length == 17
  with pytest.raises(UserError, match="name another --out"):
    interop.import_model(theirs[0], tmp_path)


def test_what_fails_leaves_nothing(theirs, tmp_path, monkeypatch):
  bad = tmp_path / "bad"
  shutil.copytree(theirs[0], bad)
  (bad / "model.safetensors").unlink()
  work = tmp_path / "work"
  with pytest.raises(UserError, match="safetensors"):
    interop.import_model(bad, work)
  with monkeypatch.context() as patch:
    patch.setattr(shutil, "disk_usage",
                  lambda _: types.SimpleNamespace(free=1000))
    with pytest.raises(UserError, match="No space left"):
      interop.import_model(theirs[0], work)
  assert not any(p.is_file() for p in work.rglob("*"))
  # As a kill leaves it: the next one clears up.
  (work / "checkpoints" / ".writing_00000000" / "arrays").mkdir(parents=True)
  interop.import_model(theirs[0], work)
  assert os.listdir(work / "checkpoints") == ["step_00000000"]


@pytest.mark.parametrize("name, words", [
    ("meta/llama", "hf download"), ("file.bin", "neither"),
    ("gs://bucket/model", "gcloud storage"), ("file.gguf", "file.gguf")])
def test_sources_that_are_none(tmp_path, monkeypatch, name, words):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "file.bin").write_bytes(b"x")
  (tmp_path / "file.gguf").write_bytes(b"x")
  with pytest.raises(UserError, match=words):
    interop.import_model(name, tmp_path / "work")
  assert not (tmp_path / "work" / "checkpoints").exists()


def test_a_model_without_tokenizer_says_so(tmp_path, capsys):
  config = tiny.config()
  huggingface.export(tmp_path / "in", config, tiny.params(config), None)
  assert lm("import", tmp_path / "in", "--out", tmp_path / "work") == 0
  assert "no tokenizer" in capsys.readouterr().err
  assert train.load(tmp_path / "work").vocab is None
  with pytest.raises(UserError, match="no vocabulary"):
    stage.init_from(str(tmp_path / "work"))
  assert lm("export", tmp_path / "work", "--out", tmp_path / "out") == 0
  assert "no tokenizer is written" in capsys.readouterr().err
  with pytest.raises(UserError, match="no vocabulary"):
    lm("export", tmp_path / "work", "--out", tmp_path / "two", "--format",
       "two-file")


def test_a_gguf_file_comes_in(tmp_path, monkeypatch):
  """The reader has its own tests: here, what becomes of what it gives."""
  from lm.interop import gguf
  params = jax.tree.map(jnp.asarray, tiny.params(CONFIG))
  opened = types.SimpleNamespace(
      config=CONFIG, vocab=VOCAB, source={"format": "GGUF", "name": "N"},
      params=lambda dtype, tick: [tick("a"), tick("b"), params][-1])
  monkeypatch.setattr(gguf, "open_gguf", lambda path: opened)
  (tmp_path / "x.gguf").touch()
  seen = []
  made = interop.import_model(tmp_path / "x.gguf", tmp_path / "work",
                              progress=lambda *at: seen.append(at))
  assert [done for done, _ in seen] == [1, 2] and made.notes == []
  loaded = train.load(tmp_path / "work")
  assert loaded.vocab.hash == VOCAB.hash
  assert loaded.description["imported"] == {
      "format": "GGUF", "name": "N", "dtype": "float32",
      "source": str(tmp_path / "x.gguf")}
  equal(loaded.params, params)


@pytest.mark.parametrize("name", ["instruct", "value"])
def test_stages_go_out_with_and_without_a_scalar_head(tmp_path, capsys, name):
  """Checkpoints as a run writes them, with an optimizer beside."""
  scalar = name == "value"
  config = CONFIG.replace(scalar_head=scalar)
  params = jax.tree.map(jnp.asarray, tiny.params(config))
  VOCAB.save(tmp_path / "vocab.model")
  checkpointer = train.Checkpointer(
      tmp_path, vocab_file=tmp_path / "vocab.model", description={
          "stage": name, "model": config.to_dict(),
          "vocab": {"hash": VOCAB.hash, "size": VOCAB.size}})
  tx = stage.optimizer(
      dict(name="adamw", learning_rate=1e-3, schedule="constant"), steps=9)
  state = TrainState(jnp.int32(7), params, tx.init(params))
  checkpointer.save(7, state, wait=True)

  out = tmp_path / "out"
  assert lm("export", tmp_path, "--out", out, "--dtype", "bfloat16",
            "--shard_gb", "2e-5") == 0
  printed = capsys.readouterr()
  assert printed.out.strip() == str(out)
  assert ("scalar head" in printed.err) == scalar
  assert len(printed.err.splitlines()) == scalar
  assert (out / "model.safetensors.index.json").exists()
  assert json.loads((out / "config.json").read_text())["eos_token_id"] == (
      VOCAB.eos_id)
  assert (out / "tokenizer.json").exists()
  back, found, vocab = huggingface.load(out)
  assert not back.scalar_head and vocab.eos_id == VOCAB.eos_id
  equal(found["layers"], jax.tree.map(
      lambda x: x.astype(jnp.bfloat16).astype(np.float32), params["layers"]))
  two = tmp_path / "two"
  assert lm("export", tmp_path, "--out", two, "--format", "two-file") == 0
  assert sorted(os.listdir(two)) == ["model.bin", "run.c"]
  for kind in interop_command.FORMATS:
    with pytest.raises(UserError, match="not empty"):
      lm("export", tmp_path, "--out", out, "--format", kind)
