"""The `lm` command: every sub-command on a small input, and bad ones."""

import pathlib
import subprocess
import sys

import house
import jax
from lm import cli
from lm import model
from lm import train
from lm.data import vocab as vocab_lib
import optax
import pytest


@pytest.fixture
def text(tmp_path):
  folder = tmp_path / "text"
  folder.mkdir()
  for i in range(4):
    (folder / f"{i}.txt").write_text(
        "The quick brown fox jumps over the lazy dog.\n" * 50)
  return folder


def test_vocab_train_and_show(text, tmp_path, capsys):
  out = tmp_path / "v.model"
  assert cli.main(["vocab", "train", str(text), "--size=310", f"--out={out}",
                   "--symbol=fox"]) == 0
  assert "310 pieces" in capsys.readouterr().out
  assert cli.main(["vocab", "show", str(out), "a fox"]) == 0
  assert "'fox':" in capsys.readouterr().out


def test_game24_symbols_are_one_piece(text, tmp_path, capsys):
  out = tmp_path / "v.model"
  assert cli.main(["vocab", "train", str(text), "--size=550", f"--out={out}",
                   "--game24"]) == 0
  capsys.readouterr()
  assert cli.main(["vocab", "show", str(out), "13"]) == 0
  assert len(capsys.readouterr().out.split()) == 1


def test_corpus_show(text, capsys):
  assert cli.main(["corpus", "show", str(text), "--holdout=0.5"]) == 0
  out = capsys.readouterr().out
  documents = [int(line.split()[1]) for line in out.splitlines()[-2:]]
  assert sum(documents) == 4


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
  """A tiny untrained model over bytes."""
  folder = tmp_path_factory.mktemp("run")
  vocab = vocab_lib.ByteVocab()
  vocab.save(folder / "vocab.json")
  config = model.size("test", vocab_size=vocab.size)
  state = train.init_state(model.LanguageModel(config), optax.sgd(0.1),
                           jax.random.key(0))
  train.Checkpointer(
      folder, vocab_file=folder / "vocab.json",
      description={"model": config.to_dict(), "vocab": {"hash": vocab.hash}},
  ).save(1, state, wait=True)
  return folder


def test_sample_continues_a_prompt(checkpoint, capsys):
  command = ["sample", f"--ckpt={checkpoint}", "--max_tokens=8"]
  assert cli.main([*command, "--prompt=hello ", "--samples=2", "--top_k=5",
                   "--repetition_penalty=1.1", "--prompt="]) == 0
  out = capsys.readouterr().out
  samples = out.split("---\n")
  assert len(samples) == 4
  assert all(s.startswith("hello ") for s in samples[:2])
  assert cli.main([*command, "--prompt=hello ", "--temperature=0"]) == 0
  first = capsys.readouterr().out
  assert cli.main([*command, "--prompt=hello ", "--temperature=0",
                   "--seed=5"]) == 0
  assert capsys.readouterr().out == first  # Greedy needs no seed.


def test_sample_chat_with_a_thinking_budget(checkpoint, capsys):
  assert cli.main(["sample", f"--ckpt={checkpoint}", "--chat", "--prompt=hi",
                   "--system=be brief", "--max_tokens=20", "--think=4",
                   "--temperature=0"]) == 0
  assert "Answer:" in capsys.readouterr().out  # Forced: it cannot know it.


def test_sample_refuses_what_does_not_fit(checkpoint, tmp_path, capsys):
  assert cli.main(["sample", f"--ckpt={checkpoint}",
                   f"--prompt={'x' * 70}"]) == 2
  assert "context" in capsys.readouterr().err
  assert cli.main(["sample", f"--ckpt={tmp_path}", "--prompt=x"]) == 2
  assert str(tmp_path) in capsys.readouterr().err


@pytest.mark.parametrize("args, words", [
    (["vocab", "train", "nowhere", "--out=x"], "nowhere"),
    (["vocab", "show", "nowhere", "x"], "nowhere"),
    (["corpus", "show", "nowhere"], "nowhere"),
    (["corpus", "debian", "out", "--name=nothing"], "nothing"),
    (["ablate", "nowhere"], "no config file"),
    (["ablate", "nowhere", "--seeds=0"], "--seeds"),
])
def test_bad_input_is_one_line(args, words, capsys):
  assert cli.main(args) == 2
  err = capsys.readouterr().err
  assert err.startswith("error: ") and words in err
  assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize("args", [
    [], ["nothing"], ["vocab"], ["corpus", "show", "x", "--config.a=1"],
    ["ablate", "x", "stray"]])
def test_bad_commands_show_the_usage(args, capsys):
  with pytest.raises(SystemExit) as e:
    cli.main(args)
  assert e.value.code == 2 and "usage: lm" in capsys.readouterr().err


def test_the_installed_command_finds_the_configs(tmp_path):
  """From a checkout's root, as the README says, not by python -m."""
  command = pathlib.Path(sys.executable).with_name("lm")
  process = subprocess.run(
      [command, "ablate", "configs/ablations/qk_norm", "--seeds=1",
       f"--workdir={tmp_path}", "--config.nothing=1"],
      cwd=house.ROOT, text=True, capture_output=True)
  assert process.returncode == 2
  assert "has no field 'nothing'" in process.stderr, process.stderr
