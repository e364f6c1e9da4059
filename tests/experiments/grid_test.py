"""Many reports become tables, a trade, crossings and figures."""

import json

from configs.search import grid as grid_config
from configs.search import grid_quick
from lm.evals import curves
import numpy as np
import pytest

from experiments.search import comparisons
from experiments.search import findings
from experiments.search import grid
from lm.launch import methods
from experiments.search import tasks

SIZES = {"small": 400_000, "large": 3_300_000}
SKILL = {"small": 0, "large": 30}
BUDGETS = (64, 256, 1024)


def section(size, seed, skill):
  """One task's; of 100 problems `skill` and more are solved."""
  rng = np.random.default_rng(seed)
  rows, outcomes = [], {}

  def add(family, budget, solved, tokens):
    name = f"{family}_{budget}" if budget else family
    solved += int(rng.integers(0, 3))
    outcomes[name] = [i < solved for i in range(100)]
    rows.append(curves.row(
        name, outcomes[name], label=name, family=family,
        generated_tokens=[tokens] * 100, seconds=1.0,
        flops=[2.0 * SIZES[size] * tokens] * 100) | {"budget": budget})

  add("greedy", None, 10 + skill, 44)
  for step, budget in enumerate(BUDGETS):
    add("best_of_n", budget, 12 + 10 * step + skill, budget - 9)
    add("tot_value", budget, 12 + 20 * step + skill, budget - 4)
    add("mcts", budget, 2 + 10 * step + skill, budget)
  add("tot_oracle", 256, 97, 256)  # A bound, which must not count.
  return {"task": "countdown", "dials": {}, "split": "test_targets",
          "overlap": {"3": 0.5}, "methods": rows, "outcomes": outcomes}


@pytest.fixture
def runs(tmp_path):
  for size, parameters in SIZES.items():
    for seed in range(2):
      write(tmp_path / "runs" / size / str(seed), {
          "seed": seed, "parameters": parameters, "tasks": {
              "numbers": section(size, seed, SKILL[size]),
              "games": section(size, seed + 7, SKILL[size] // 2)}})
  return tmp_path / "runs"


def write(folder, report):
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "report.json").write_text(json.dumps(report))


def compare(runs):
  return comparisons.compare(grid.load(runs), samples=300)


def change(path, edit):
  """Edits a report."""
  report = json.loads(path.read_text())
  edit(report)
  path.write_text(json.dumps(report))


def test_tables_figures_and_numbers(runs, tmp_path, capsys):
  out = tmp_path / "out"
  assert grid.main([str(runs), f"--out={out}", "--samples=200"]) == 0
  text = (out / "RESULTS.md").read_text()
  assert capsys.readouterr().out == text
  assert text.index("small (0.40M") < text.index("large (3.30M")
  assert "| tree of thoughts, value head | small |" in text
  assert "tree of thoughts, oracle (a bound)" in text
  assert max(len(line) for line in text.splitlines()
             if line.startswith("|")) < 200
  for name in ("numbers", "games"):
    assert f"## {name}" in text
    assert (out / f"frontier_{name}.png").stat().st_size > 10_000
  found = json.loads((out / "results.json").read_text())
  assert found["sizes"]["small"] == {"parameters": 400_000, "seeds": [0, 1]}
  assert "outcomes" not in found["tasks"]["numbers"]["methods"][0]


def test_equal_budgets_are_compared_with_a_verdict(runs):
  task = compare(runs)["tasks"]["numbers"]
  against = {(d["family"], d["size"], d["budget"]): d
             for d in task["against_best_of_n"]}
  assert set(against) == {
      (f, s, b) for f in ("tot_value", "mcts") for s in SIZES for b in BUDGETS}
  won, lost = against["tot_value", "small", 1024], against["mcts", "small", 64]
  assert won["verdict"] == "wins" and won["interval"][0] > 0
  assert lost["verdict"] == "loses" and lost["interval"][1] < 0
  assert against["tot_value", "small", 64]["verdict"] == "open"
  assert won["mean"] == pytest.approx(
      won["accuracies"][0] - won["accuracies"][1])
  assert won["tokens"] == [1020, 1015]
  beam = {(d["family"], d["budget"]): d["mean"]
          for d in task["against_step_beam"] if d["size"] == "large"}
  assert set(beam) == {("mcts", b) for b in BUDGETS}
  assert beam["mcts", 1024] == pytest.approx(-0.3, abs=0.03)


def test_the_trade_and_the_crossings_leave_the_oracle_out(runs):
  task = compare(runs)["tasks"]["numbers"]
  assert set(task["trade"]) == {"best_of_n", "tot_value", "mcts"}
  assert task["trade"]["tot_value"]["per_tokens"] > 0
  at = {c["family"]: c["crossing"] for c in task["crossings"]}
  assert set(at) == {"best_of_n", "tot_value", "mcts", "any"}
  # Large answers 40 to 42 greedily; small gets there by search alone.
  assert at["mcts"] is None and at["best_of_n"] is None
  small = [r["flops"] for r in task["methods"] if r["size"] == "small"
           and r["family"] == "tot_value"]
  for family in ("tot_value", "any"):
    assert small[1] < at[family]["flops"] <= small[2]


def test_one_size_has_no_trade_and_no_crossing(runs, capsys, tmp_path):
  for path in (runs / "large").rglob("*.json"):
    path.unlink()
  for folder in (runs / "large").iterdir():
    folder.rmdir()
  assert grid.main([str(runs), f"--out={tmp_path / 'out'}",
                    "--samples=200"]) == 0
  text = capsys.readouterr().out
  assert "No trade of parameters for thinking" in text
  assert "No crossing" in text


@pytest.mark.parametrize("edit, words", [
    (lambda r: r.update(seed=0), "seeds [0, 0]"),
    (lambda r: r.update(parameters=5), "models of [5, 400000] parameters"),
    (lambda r: r["tasks"].pop("games"), "tasks numbers, not games, numbers"),
    (lambda r: r["tasks"]["games"]["outcomes"].pop("greedy"),
     "other methods on games (greedy)"),
    (lambda r: r["tasks"]["games"].update(split="test"), "other problems of g"),
    (lambda r: r.pop("tasks"), "no report of this version"),
])
def test_reports_that_do_not_fit_are_refused(runs, tmp_path, capsys, edit,
                                             words):
  change(runs / "small" / "1" / "report.json", edit)
  out = tmp_path / "out"
  assert grid.main([str(runs), f"--out={out}"]) == 2
  err = capsys.readouterr().err
  assert words in err and err.startswith("error: ") and err.count("\n") == 1
  assert not out.exists()


def test_missing_and_damaged_reports_are_named(runs, tmp_path, capsys):
  out = f"--out={tmp_path / 'out'}"
  path = runs / "large" / "0" / "report.json"
  path.write_text("{")
  assert grid.main([str(runs), out]) == 2
  assert f"{path} is damaged" in capsys.readouterr().err
  path.unlink()
  assert grid.main([str(runs), out]) == 2
  assert f"no {path}" in capsys.readouterr().err
  assert grid.main([str(runs), out, "--samples=0"]) == 2
  assert "--samples=0" in capsys.readouterr().err
  assert grid.main([str(tmp_path / "nowhere"), out]) == 2
  assert "no folder" in capsys.readouterr().err
  (tmp_path / "empty").mkdir()
  assert grid.main([str(tmp_path / "empty"), out]) == 2
  assert "holds no SIZE/SEED/report.json" in capsys.readouterr().err


def test_an_output_that_is_a_file_is_one_line(runs, tmp_path, capsys):
  out = tmp_path / "out"
  out.touch()
  assert grid.main([str(runs), f"--out={out}", "--samples=9"]) == 2
  assert "cannot be written" in capsys.readouterr().err


def test_the_grid_is_as_announced():
  c = grid_config.get_config().to_dict()
  made = {n: methods.make(n, m) for n, m in c["methods"].items()}
  for budget in grid_config.BUDGETS:
    at = [m for m in made.values() if m.name.endswith(f"_{budget}")]
    assert {m.kind for m in at} == {
        "self_consistency", "best_of_n", "tot", "depth_first", "best_first",
        "mcts"}
    assert {m.budget.generated_tokens for m in at} == {budget}
  controls = {m.family for m in made.values() if m.kind == "tot"}
  assert controls == {"tot_value", *(f"tot_{e}" for e in grid_config.CONTROLS)}
  # A step beam has thoughts for most of its budget, and not for much more.
  for budget, (b, ks) in grid_config.TOT.items():
    first, *later = ks
    tokens = 9.3 * (first + min(b, first) * sum(later)) + 16
    assert 0.75 * budget < tokens <= budget
  # The guided ones have rounds for more than all of it.
  for budget, ((first, later), rounds) in grid_config.GUIDED.items():
    assert 9.3 * (first + (rounds - 1) * later) > budget
  small = {name: {**task, "count": 2} for name, task in c["tasks"].items()}
  found = {j.name: j for j in tasks.jobs({**c, "tasks": small}, made)}
  assert found["countdown"].methods == tuple(made)
  assert all(p.target in range(10, 101) for p in found["countdown"].problems)
  assert len(found["words"].methods) == len(found["star_graph"].methods) == 9
  for job in found.values():
    assert c["answer"] in job.methods
    for name in job.methods:
      methods.check(made[name], job.problems, has_values=True)
  quick = grid_quick.get_config().to_dict()
  assert set(quick["methods"]) == {"greedy", "tot_128"}
  assert all(t["count"] == 12 for t in quick["tasks"].values())


def test_rows_know_their_budget():
  from lm import search
  method = methods.make("v", dict(kind="self_consistency", n=2,
                                  budget=dict(generated_tokens=7)))
  results = [search.Result("1", "", search.Cost(3, 9, 10.0, 0.1)),
             search.Result(None, "", search.Cost(5, 11, 20.0, 0.1))]
  row = findings.row(method, [True, False], results, seconds=2.0)
  assert (row["budget"], row["family"]) == (7, "self_consistency")
  assert (row["generated_tokens"], row["forward_tokens"]) == (4, 10)
  assert (row["flops"], row["seconds"], row["accuracy"]) == (15, 1, 0.5)
