"""The `lm` command: every sub-command on a small input, and bad ones."""

from lm import cli
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


@pytest.mark.parametrize("args, words", [
    (["vocab", "train", "nowhere", "--out=x"], "nowhere"),
    (["vocab", "show", "nowhere", "x"], "nowhere"),
    (["corpus", "show", "nowhere"], "nowhere"),
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
