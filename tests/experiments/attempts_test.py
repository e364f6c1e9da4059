"""The model's own games: every chain once, judged line by line, resumable."""

import json

import house
from lm import search
from lm.data import corpus
from lm.data import vocab as vocab_lib
from lm.data.problems import game24
from lm.launch import main as launch_main
import pytest
from tests.experiments import untrained as untrained_lib

from experiments.attempts import run as attempts


def node(parent, text, value=0.0):
  return search.Node(parent, 1, text, None, 0.0, value, value)


def test_chains_are_the_paths_to_every_end():
  nodes = [node(None, "a\n"), node(None, "b\n"), node(0, "c\n"),
           node(2, ""), node(0, "d\n"), node(None, "")]
  result = search.Result(None, "", search.Cost(), nodes)
  assert attempts.chains(result) == [
      ["b\n"], ["a\n", "c\n"], ["a\n", "d\n"]]


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
  """A checkpoint over bytes that has learnt nothing."""
  return untrained_lib.save(
      tmp_path_factory.mktemp("value"), vocab_lib.ByteVocab())


def play(workdir, init, *more):
  return launch_main.execute(attempts.run, [
      "attempts", f"--config={house.ROOT}/configs/quick/attempts.py",
      f"--workdir={workdir}", f"--config.init={init}", "--config.puzzles=6",
      "--config.batch=4", "--config.samples=3", *more])


def test_games_are_training_games_and_a_finished_part_is_kept(
    untrained, tmp_path, capsys):
  # A part that an interrupted run left behind.
  row = {"prompt": "Make 24 from 1 1 1 8", "lines": ["kept\n"],
         "labels": [0.0], "imitate": [0.0], "done": False}
  (tmp_path / "part-0.json").write_text(json.dumps([row]))
  assert play(tmp_path, untrained) == 0, capsys.readouterr().err
  rows = [json.loads(line) for line in
          (tmp_path / "attempts.jsonl").read_text().splitlines()]
  assert rows[0] == row
  prompts = {r["prompt"] for r in rows[1:]}
  known = {game24.prompt(p) for p in game24.train_puzzles()}
  assert prompts and prompts <= known
  assert all(corpus.split_of(p, 0.04) == "train" for p in prompts)
  for r in rows[1:]:
    numbers = tuple(map(int, r["prompt"].split()[3:]))
    assert (r["labels"], r["imitate"]) == game24.judge(numbers, r["lines"])
    assert not any(r["labels"])  # It knows nothing.
  assert len({(r["prompt"], *r["lines"]) for r in rows}) == len(rows)
  assert json.loads((tmp_path / "result.json").read_text())["attempts"] == (
      len(rows))
  assert not list(tmp_path.glob("part-*"))
  before = (tmp_path / "attempts.jsonl").stat().st_mtime_ns
  assert play(tmp_path, untrained) == 0
  assert (tmp_path / "attempts.jsonl").stat().st_mtime_ns == before


def test_games_of_another_config_are_not_mixed_in(
    untrained, tmp_path, capsys):
  assert play(tmp_path, untrained) == 0
  assert play(tmp_path, untrained, "--config.temperature=0.7") == 2
  assert "another config" in capsys.readouterr().err


def test_bad_input_is_one_line(untrained, tmp_path, capsys):
  assert play(tmp_path, tmp_path / "nothing") == 2
  assert "nothing" in capsys.readouterr().err
  assert play(tmp_path, untrained, "--config.sample=3") == 2
  assert "samples" in capsys.readouterr().err
  assert not (tmp_path / "attempts.jsonl").exists()
