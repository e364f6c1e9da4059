"""Self-play: what it learns from, that it goes on, and what it refuses."""

import json

import house
from lm import search
from lm.data import problems
from lm.data.problems import task as task_lib
from lm.launch import main as launch_main
from lm.types import UserError
import numpy as np
import pytest

from experiments.selfplay import attempts as attempts_lib
from experiments.selfplay import figure
from experiments.selfplay import run as selfplay

TASK = problems.make_task("game24")


def attempt(text, right, prompt="p"):
  return {"prompt": prompt, "lines": [c + "\n" for c in text], "right": right,
          "count": 1}


def test_formats_are_plays_that_fail_and_hints_say_what_they_answer():
  rows = list(attempts_lib.formats(TASK, 0, 200, hints=False))
  assert len(rows) == 200
  known = {p.prompt(): p for p in TASK.problems("train", 1200)}
  for row in rows:
    asked, said = (m["content"] for m in row["messages"])
    lines = said.splitlines(keepends=True)
    if asked in known:  # Most of the training problems.
      assert not task_lib.outcome(known[asked], lines)
    assert len(lines) == 4
  words = problems.make_task("words")
  hinted = [r["messages"] for r in attempts_lib.formats(
      words, 0, 100, hints=True)]
  with_hint = [m for m in hinted if m[0]["content"].startswith("Hint ")]
  assert 30 < len(with_hint) < 70
  for asked, said in with_hint:
    hint = asked["content"].removeprefix("Hint ").split(":")[0]
    assert said["content"].splitlines()[-1] == f"Answer: {hint}"


def test_a_task_that_blind_play_solves_is_refused():
  easy = problems.make_task("words", steps=1, distractors=0)
  with pytest.raises(UserError, match="turn a dial up"):
    list(attempts_lib.formats(easy, 0, 10, hints=False))


def test_attempts_are_the_ends_of_a_tree_each_once_and_graded():
  problem = TASK.parse({"numbers": [4, 4, 6, 8]})
  good = task_lib.solution(problem, np.random.default_rng(0))
  node = lambda parent, depth, text: search.Node(
      parent, depth, text, None, 0.0, 0.0, 0.0)
  nodes = [node(None, 1, good[0]), node(0, 2, good[1]), node(1, 3, good[2]),
           node(None, 1, "8 - 4 = 4 (left: 4 4 6)\n")]
  answer = problem.read_answer(good[3])
  ends = [search.End(2, good[3], answer), search.End(2, good[3], answer),
          search.End(3, "nonsense", None)]
  result = search.Result(answer, "", search.Cost(), nodes, [0, 1, 2], ends)
  found = attempts_lib.attempts(problem, result)
  assert [a["right"] for a in found] == [True, False]
  assert found[0]["lines"] == good
  assert [a["count"] for a in found] == [2, 1]
  assert attempts_lib.share(found) == pytest.approx(2 / 3)
  assert attempts_lib.share([{**found[0], "hinted": True}, found[1]]) == 0
  assert found[1]["lines"] == ["8 - 4 = 4 (left: 4 4 6)\n", "nonsense"]


def test_labels_pool_what_began_alike():
  every = [attempt("abx", True), attempt("aby", False), attempt("ac", False),
           attempt("d", False), attempt("a", False, prompt="q")]
  mean = attempts_lib.labels(every, "mean")
  assert mean["p", "a\n"] == pytest.approx(1 / 3)
  assert mean["p", "a\n", "b\n"] == 0.5 and mean["p", "d\n"] == 0
  assert mean["q", "a\n"] == 0
  best = attempts_lib.labels(every, "any")
  assert best["p", "a\n"] == 1 and best["p", "a\n", "c\n"] == 0


@pytest.mark.parametrize("how, want", [
    ("outcome", [1, 1, 1]), ("mean", [2 / 3, 0.5, 1]), ("any", [1, 1, 1])])
def test_lessons_imitate_what_was_right_and_label_every_line(how, want):
  every = [attempt("abx", True), attempt("aby", False), attempt("ac", True)]
  rng = np.random.default_rng(0)
  right, wrong = attempts_lib.lessons(
      every, every, how=how, most=9, failures=1, rng=rng)
  assert len(right) == 2 and len(wrong) == 1
  row = next(r for r in right if len(r["lines"]) == 3)
  assert row["labels"] == pytest.approx(want) and row["imitate"] == [1, 1, 1]
  assert not any(wrong[0]["imitate"])
  assert wrong[0]["labels"][-1] == 0
  few, _ = attempts_lib.lessons(every, every, how=how, most=1, failures=1,
                                rng=rng)
  assert len(few) == 1


def test_under_visits_only_answer_lines_are_imitated():
  every = [attempt("abx", True), attempt("aby", False)]
  right, wrong = attempts_lib.lessons(
      every, every, how="any", most=9, failures=1, imitate=False,
      rng=np.random.default_rng(0))
  assert right[0]["imitate"] == [0, 0, 1] and wrong[0]["imitate"] == [0, 0, 0]


def test_visits_are_shares_among_siblings():
  node = lambda parent, depth, text, n: search.Node(
      parent, depth, text, None, 0.0, 0.0, 0.0, visits=n)
  nodes = [node(None, 1, "a\n", 3), node(None, 1, "b\n", 1),
           node(0, 2, "c\n", 2), node(0, 2, "d\n", 0)]
  rows = attempts_lib.visits(TASK.parse({"numbers": [4, 4, 6, 8]}),
                             search.Result(None, "", search.Cost(), nodes))
  assert [(r["lines"][-1], r["imitate"]) for r in rows] == [
      ("a\n", [0.75]), ("b\n", [0.25]), ("c\n", [0.0, 1.0])]


def play(workdir, *more):
  return launch_main.execute(selfplay.run, [
      "selfplay", f"--config={house.ROOT}/configs/selfplay/quick.py",
      f"--workdir={workdir}", *more])


@pytest.fixture(scope="module")
def played(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("selfplay")
  assert play(workdir) == 0
  return workdir


def test_rounds_leave_results_and_a_figure(played):
  done = json.loads((played / "curve.json").read_text())
  assert [d["round"] for d in done] == [0, 1, 2]
  assert all(0 <= d["greedy"] <= 1 and 0 <= d["search"] <= 1 for d in done)
  assert all(d["play_tokens"] > 0 for d in done[1:])
  assert (played / "curve.png").stat().st_size > 5000
  rows = (played / "round-01" / "played.jsonl").read_text().splitlines()
  assert {json.loads(r)["prompt"] for r in rows} <= {
      p.prompt() for p in problems.make_task(
          "words", steps=2, distractors=3).problems("train", 60)}
  lessons = {p.name.partition("-")[0]
             for p in (played / "round-01" / "data").iterdir()}
  assert "formats" in lessons  # It is practised on.


def test_it_goes_on_where_it_was(played, capsys):
  """The last round again, from its parts, gives the same."""
  before = (played / "round-02" / "result.json").read_text()
  asked = (played / "round-02" / "played.jsonl").read_text()
  (played / "round-02" / "result.json").unlink()
  (played / "result.json").unlink()
  assert play(played) == 0, capsys.readouterr().err
  assert (played / "round-02" / "result.json").read_text() == before
  assert (played / "round-02" / "played.jsonl").read_text() == asked


@pytest.mark.parametrize("change, message", [
    ("--config.labels=best", "outcome, mean, any"),
    ("--config.targets=visits", "config.play.kind='mcts'"),
    ("--config.play.evaluate=critic", "experiments.search"),
    ("--config.task=chess", "game24"),
    ("--config.practice=1.0", "from 0 to less than 1"),
    ("--config.play.kind=whole", "whole_tree"),
    ("--config.rounds=3", "another config")])
def test_what_cannot_be_is_refused_in_one_line(
    played, change, message, capsys):
  assert play(played, change) == 2
  err = capsys.readouterr().err.strip()
  assert message in err and err.count("\n") == 0


def test_hints_need_a_key(tmp_path, capsys):
  assert play(tmp_path, "--config.rationalize=True", "--config.task=game24",
              "--config.dials={}") == 2
  assert "answer key" in capsys.readouterr().err


def test_a_figure_of_nothing_is_refused():
  with pytest.raises(ValueError, match="no round"):
    figure.rounds([])
