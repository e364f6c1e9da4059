"""A search through its command: several tasks, reports, answers, refusals."""

import json
import math
import pathlib

import house
from lm import model
from lm import train
from lm.data import problems as problems_lib
from lm.data import vocab as vocab_lib
from lm.data.problems import game24
from lm.launch import main as launch_main
from lm.search import draw_file
from lm.types import UserError
import numpy as np
import pytest
from tests.experiments import untrained
from tests.search import scripted

from experiments.search import run as search_run

CONFIG = """
from configs.search import grid
def get_config():
  c = grid.get_config()
  c.line_tokens = 12
  c.answer_tokens = 12
  c.batch = 2
  c.trees = 1
  c.answer = "tot"
  c.methods = dict(
      greedy=dict(kind="greedy"), tot=dict(kind="tot", b=1, k=2),
      vote=dict(kind="self_consistency", n=2,
                budget=dict(generated_tokens=9)))
  task = lambda name, methods: dict(
      task=name, dials={{}}, split="test", count=2, methods=methods)
  c.tasks = dict(numbers=task("countdown", ("*",)),
                 games=task("game24", ("greedy", "vote")))
  {more}
  return c
"""


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
  folder = tmp_path_factory.mktemp("checkpoints")
  vocab = problems_lib.vocabulary()
  untrained.save(folder / "valued", vocab)
  untrained.save(folder / "plain", vocab, scalar_head=False)
  return folder


@pytest.fixture
def go(checkpoints, tmp_path):
  """Runs the search here: go(flags...) -> status."""
  def run(*flags, more="", init="valued"):
    path = tmp_path / "config.py"
    path.write_text(CONFIG.format(more=more))
    return launch_main.execute(search_run.run, [
        "search", f"--config={path}", f"--workdir={tmp_path / 'run'}",
        f"--config.init={checkpoints / init}", *flags])
  yield run
  for name in ("problems", "json"):  # They are absl's, and outlive a run.
    search_run.flags.FLAGS[name].unparse()


def report(tmp_path):
  return json.loads((tmp_path / "run" / "report.json").read_text())


def script(problems):
  """A writer that knows every faultless line, and which of them win."""
  thoughts, answers = {}, {}

  def walk(problem, state, lines):
    text = f"{problem.prompt()}:{''.join(lines)}"
    answers[text] = [(problem.answer(lines), -0.1, 0.0)]
    thoughts[text] = [
        (line, -1.0, 2.0 if problem.winnable(after) else -2.0)
        for line, after in problem.options(state)]
    for line, after in problem.options(state):
      walk(problem, after, [*lines, line])

  for problem in problems:
    walk(problem, problem.start(), [])
  return scripted.Script(thoughts, answers)


def test_right_answers_are_counted_drawn_and_calibrated(
    go, tmp_path, monkeypatch, capsys):
  """The step beam goes two ways, and is sure of what it should be sure of."""
  task = problems_lib.make_task("star_graph", arms=2, length=2)
  problems = task.problems("test", 4)
  monkeypatch.setattr(
      search_run.search, "Writer", lambda *_, **__: script(problems))
  status = go("--config.trees=3", more=(
      "c.tasks = {}; c.task = 'star_graph'; c.dials = dict(arms=2, length=2)"
      "; c.problems = 4; c.methods.tot.b = 2"))
  assert status == 0, capsys.readouterr().err
  found = report(tmp_path)
  assert found["outcomes"]["tot"] == [True] * 4
  # Without a thought it goes nowhere.
  assert found["outcomes"]["greedy"] == [False] * 4
  trees = draw_file.read(tmp_path / "run" / "report.json")
  assert len(trees) == 3 and all(t.correct for t in trees)
  section = found["calibration"]
  assert sorted(section["outcomes"]) == [0] * 4 + [1] * 4
  assert section["accuracy"] == 1 and section["brier"] == pytest.approx(
      (1 / (1 + math.exp(2))) ** 2)
  figure = tmp_path / "run" / "calibration.png"
  assert figure.stat().st_size > 10_000


def test_two_tasks_in_one_report(go, tmp_path, capsys):
  assert go() == 0, capsys.readouterr().err
  found = report(tmp_path)
  assert set(found["tasks"]) == {"numbers", "games"}
  numbers, games = found["tasks"]["numbers"], found["tasks"]["games"]
  assert {r["name"] for r in numbers["methods"]} == {"greedy", "tot", "vote"}
  assert {r["name"] for r in games["methods"]} == {"greedy", "vote"}
  assert games["task"] == "game24" and numbers["split"] == "test"
  for section in (numbers, games):
    for row in section["methods"]:
      costs = section["costs"][row["name"]]
      assert len(section["outcomes"][row["name"]]) == row["n"] == 2
      assert sum(costs["flops"]) / 2 == pytest.approx(row["flops"])
      assert all(0 < g < f for g, f in zip(
          costs["generated_tokens"], costs["forward_tokens"], strict=True))
  vote = next(r for r in numbers["methods"] if r["name"] == "vote")
  assert vote["budget"] == 9
  assert max(numbers["costs"]["vote"]["generated_tokens"]) <= 9
  assert [t["task"] for t in found["trees"]] == ["numbers"]
  assert "<svg" in draw_file.render(
      draw_file.read(tmp_path / "run" / "report.json"), 0, ".svg")
  result = json.loads((tmp_path / "run" / "result.json").read_text())
  assert result["numbers/tot/accuracy"] == result["numbers/accuracy"]
  printed = capsys.readouterr().out
  assert "numbers" in printed and "games" in printed


def test_an_interrupted_search_goes_on_with_the_next_task(
    go, tmp_path, monkeypatch, capsys):
  solve, asked = search_run.solve, []

  def counted(method, writer, problems, *args, **kwargs):
    asked.append(problems[0].prompt().split()[1])
    if len(asked) == 3:  # Two methods for games; this is the next task's first.
      raise KeyboardInterrupt
    return solve(method, writer, problems, *args, **kwargs)

  monkeypatch.setattr(search_run, "solve", counted)
  assert go() == 130
  assert not (tmp_path / "run" / "report.json").exists()
  assert go() == 0, capsys.readouterr().err
  assert asked[:2] == ["24", "24"] and len(asked) == 3 + 3
  whole = report(tmp_path)
  assert set(whole["tasks"]) == {"numbers", "games"}
  assert go() == 0 and len(asked) == 6 and report(tmp_path) == whole
  (tmp_path / "run" / "tasks" / "games.json").write_text("{")
  assert go() == 0 and len(asked) == 8  # Damaged: searched again.
  assert go("--config.seed=1") == 0 and len(asked) == 8 + 5  # Another one.


def test_one_task_is_as_the_summary_reads_it(go, tmp_path, capsys):
  more = "c.tasks = {}; c.task = 'game24'; c.problems = 2"
  status = go("--config.budget.generated_tokens=20",
              more=f"{more}; c.answer = 'greedy'; del c.methods['tot']")
  assert status == 0, capsys.readouterr().err
  found = report(tmp_path)
  assert set(found["outcomes"]) == {"greedy", "vote"}
  assert {r["budget"] for r in found["methods"]} == {9, 20}
  assert set(found["overlap"]) == {"2", "3"}
  assert [t["rank"] for t in found["trees"]] == [902]
  result = json.loads((tmp_path / "run" / "result.json").read_text())
  assert result["accuracy"] == result["greedy/accuracy"]


def test_a_value_head_of_another_checkpoint(go, checkpoints, tmp_path, capsys):
  more = "c.tasks = dict(numbers=c.tasks.numbers.to_dict())"
  status = go(f"--config.value_init={checkpoints / 'valued'}", init="plain",
              more=more)
  assert status == 0, capsys.readouterr().err
  nodes = report(tmp_path)["trees"][0]["result"]["nodes"]
  assert len({n["value"] for n in nodes}) > 1  # Of its own head: none.


def test_a_critic_judges_what_another_model_writes(
    go, checkpoints, tmp_path, capsys):
  more = ("c.tasks = dict(numbers=c.tasks.numbers.to_dict());"
          "c.methods.tot.evaluate = 'critic'")
  flag = f"--config.critic={checkpoints / 'valued'}"
  assert go(flag, init="plain", more=more) == 0, capsys.readouterr().err
  nodes = report(tmp_path)["trees"][0]["result"]["nodes"]
  assert {n["value"] for n in nodes} == {0.0}  # The writer has no head.
  assert go(f"--config.critic={checkpoints / 'plain'}", more=more) == 2
  assert "has no value head" in capsys.readouterr().err


def loaded(vocab, width, head=True):
  params = {"embed": {"table": np.zeros((8, width))}}
  if head:
    params["value"] = {"value": np.ones(width)}
  return train.Loaded(
      config=model.size("test", vocab_size=8, scalar_head=head), params=params,
      vocab=vocab, description={}, step=1, path=pathlib.Path(f"run{width}"))


def test_value_heads_of_other_models_are_refused():
  ours, foreign = problems_lib.vocabulary(), vocab_lib.ByteVocab()
  plain = loaded(ours, 4, head=False)
  found = search_run.with_value_head(plain, loaded(ours, 4))
  assert found.config.scalar_head and not plain.config.scalar_head
  assert found.params["value"]["value"].sum() == 4
  assert "value" not in plain.params
  for other, words in [(loaded(ours, 5), "another model: its shapes"),
                       (loaded(foreign, 4), "another model: its vocabulary"),
                       (plain, "has no value head")]:
    with pytest.raises(UserError, match=f"config.value_init=run.*{words}"):
      search_run.with_value_head(plain, other)


@pytest.mark.parametrize("more, flags, words", [
    ("", ["--config.answer=top"], "'top' is none of config.methods"),
    ("c.budgets = {}", [], "did you mean 'budget'?"),
    ("c.budget = dict(generated_token=3)", [], "config.budget has no field"),
    ("c.methods.tot.kk = 3", [], "config.methods.tot has no field 'kk'"),
    ("c.methods.tot.evaluate = 'oracl'", [], "did you mean 'oracle'?"),
    ("c.methods.tot.evaluate = 'critic'", [], "by config.critic"),
    ("c.tasks.numbers.split = 'tset'", [], "no split 'tset'"),
    ("c.tasks.games.methods = ('gready',)", [], "did you mean 'greedy'?"),
    ("", ["--config.value_init=nowhere"], "no such folder"),
])
def test_bad_config_is_one_line(go, tmp_path, capsys, more, flags, words):
  assert go(*flags, more=more) == 2
  err = capsys.readouterr().err.strip()
  assert words in err.splitlines()[-1] and "Traceback" not in err
  assert not (tmp_path / "run" / "report.json").exists()


def test_a_model_without_a_value_head_is_refused_before_anything_runs(
    go, tmp_path, capsys):
  assert go(init="plain") == 2
  assert "config.methods.tot needs a value head" in capsys.readouterr().err
  assert not (tmp_path / "run" / "report.json").exists()


def test_problems_of_ones_own(go, tmp_path, capsys):
  mine, out = tmp_path / "mine.jsonl", tmp_path / "answers.jsonl"
  mine.write_text('{"numbers": [3, 14, 25, 62], "target": 57}\n\n'
                  '{"numbers": "1 2 3", "target": 6}\n')
  assert go("--config.answer=greedy", f"--problems={mine}",
            f"--json={out}") == 0, capsys.readouterr().err
  rows = [json.loads(line) for line in out.read_text().splitlines()]
  assert len(rows) == 2 and "62" in rows[0]["prompt"]
  assert all(r["generated_tokens"] > 0 and r["correct"] is False for r in rows)
  assert not (tmp_path / "run" / "report.json").exists()


@pytest.mark.parametrize("task, row, words", [
    ("game24", '{"numbers": [1, 2, 3]}', "must be 4 whole numbers"),
    ("countdown", '{"numbers": [1, 2, 3]}', '"target" must be'),
    ("words", '{"prompt": "Ann has 3 pens. Ben has 2 more pens than Ann. How'
     ' many pens does Ben have?", "answer": 6}', "wrong answer key"),
    ("star_graph", '{"prompt": "Path from 1 to 3: 1>2 2>3", "answer": "1 3"}',
     "wrong answer key"),
])
def test_a_bad_row_is_named_by_file_and_line(go, tmp_path, capsys, task, row,
                                             words):
  mine = tmp_path / "mine.jsonl"
  mine.write_text(f"\n{row}\n")
  assert go(f"--config.task={task}", f"--problems={mine}") == 2
  last = capsys.readouterr().err.strip().splitlines()[-1]
  assert last.startswith(f"error: {mine}:2: ") and words in last


def test_the_readmes_methods_are_still_there():
  from configs.search import demo
  c = demo.get_config()
  assert set(c.methods) == {
      "greedy", "best_of_5", "best_of_16", "best_of_40", "vote_5", "vote_16",
      "vote_40", *(f"tot_{e}_{w}" for e in ("value", "log_prob", "random")
                   for w in ("b1_k5", "b5_k5", "b5_wide", "b5_wider"))}
  assert (c.task, c.split, c.problems) == ("game24", "test", 100)
  assert len(game24.test_puzzles()) == 100
  assert (house.ROOT / "experiments/search/results/RESULTS.md").is_file()
