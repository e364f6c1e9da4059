"""`lm ablate` on a pretend experiment: resumes, aggregates, checks ranges."""

import json
import statistics
import sys

from lm import cli
from lm.launch import ablate
from lm.types import UserError
import pytest

BASE = """
from ml_collections import ConfigDict
def get_config():
  return ConfigDict(dict(
      experiment="pretend_experiment", metric="loss", seed=0, scale=1.0,
      steps=10, fail_on_seed=-1, expect={"loss": (0.9, 1.3)}))
"""
OTHER = """
import pathlib, runpy
def get_config():
  c = runpy.run_path(str(pathlib.Path(__file__).parent / "base.py"))[
      "get_config"]()
  c.scale = 0.5
  c.expect = {"loss": (0.4, 0.7)}
  return c
"""
# Without JAX, which takes a second to import; main_test.py holds the real one.
EXPERIMENT = """
import ast, json, pathlib, runpy, sys
flags = dict(a[2:].split("=", 1) for a in sys.argv[1:])
config = runpy.run_path(flags.pop("config"))["get_config"]()
workdir = pathlib.Path(flags.pop("workdir"))
for name, value in flags.items():
  config[name.removeprefix("config.")] = ast.literal_eval(value)
assert config.seed != config.fail_on_seed, "told to fail"
with open(workdir / "starts", "a") as f:
  f.write("x")
(workdir / "metrics.jsonl").write_text('{"step": 1}\\n')
loss = config.scale * (1 + 0.1 * config.seed)
(workdir / "result.json").write_text(json.dumps(
    {"loss": loss, "steps": config.steps, "note": "text"}))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
  (tmp_path / "pretend_experiment.py").write_text(EXPERIMENT)
  cells = tmp_path / "cells"
  cells.mkdir()
  (cells / "base.py").write_text(BASE)
  (cells / "another.py").write_text(OTHER)
  monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{':'.join(sys.path)}")
  monkeypatch.chdir(tmp_path)
  return cells


def test_runs_every_cell_with_every_seed_once(folder, capsys):
  work = folder.parent / "work"
  command = ["ablate", str(folder), "--seeds=2", f"--workdir={work}"]
  assert cli.main(command) == 0
  table = json.loads((work / "table.json").read_text())
  assert table["seeds"] == [0, 1] and list(table["cells"]) == ["base",
                                                               "another"]
  other = table["cells"]["another"]
  assert other["changes"] == {"scale": 0.5}
  assert other["metrics"]["loss"]["mean"] == pytest.approx(0.525)
  # Paired by seed: -0.5 and -0.55, t(0.975, 1) = 12.706.
  assert other["difference"]["loss"]["mean"] == pytest.approx(-0.525)
  assert other["difference"]["loss"]["half_width"] == pytest.approx(
      12.706 * 0.025, rel=1e-3)
  text = (work / "table.md").read_text()
  assert "| another | scale=0.5 | 0.525 ±" in text
  assert "0.525" in capsys.readouterr().out
  # A third seed runs only what is new.
  assert cli.main([*command[:2], "--seeds=3", command[3], "--record"]) == 0
  for cell in ("base", "another"):
    for seed in range(3):
      assert (work / cell / f"seed{seed}" / "starts").read_text() == "x"
  assert (folder / "RESULTS.md").exists() and (folder / "results.json").exists()


def test_a_mean_outside_of_its_range_is_status_1(folder, capsys):
  path = folder / "another.py"
  path.write_text(OTHER.replace("(0.4, 0.7)", "(0.6, 0.7)"))
  command = ["ablate", str(folder), "--seeds=1", "--workdir=work"]
  assert cli.main(command) == 1
  assert "another: loss is 0.5, expected 0.6 to 0.7" in " ".join(
      capsys.readouterr().out.split())
  assert "Unexpected: another: loss" in open("work/table.md").read()


def test_overrides_reach_every_run_and_lift_the_ranges(folder):
  assert cli.main(["ablate", str(folder), "--seeds=1", "--workdir=work",
                   "--config.steps=2", "--config.scale=9.0"]) == 0
  result = json.loads(open("work/base/seed0/result.json").read())
  assert result["steps"] == 2 and result["loss"] == 9


def test_a_failed_run_is_named_and_runs_again(folder, capsys):
  bad = BASE.replace("fail_on_seed=-1", "fail_on_seed=1")
  (folder / "base.py").write_text(bad)
  command = ["ablate", str(folder), "--seeds=2", "--workdir=work"]
  assert cli.main(command) == 2
  err = capsys.readouterr().err
  assert "with seed 1 ended with status 1" in err and "told to fail" in err
  assert len(err.strip().splitlines()) == 1
  (folder / "base.py").write_text(BASE)
  assert cli.main(command) == 2  # Seed 0 was made by another config.
  assert "another config" in capsys.readouterr().err


@pytest.mark.parametrize("text, words", [
    (None, "holds no config file"),
    (BASE.replace('experiment="pretend_experiment", ', ""), "does not say"),
    (BASE.replace('metric="loss"', 'metric="los"'), "did you mean 'loss'?"),
])
def test_bad_folders(folder, capsys, text, words):
  for path in folder.glob("*.py"):
    path.unlink()
  if text:
    (folder / "base.py").write_text(text)
  assert cli.main(["ablate", str(folder), "--seeds=1", "--workdir=w"]) == 2
  assert words in capsys.readouterr().err


def test_interval_is_students_t():
  values = (1.0, 2.0, 4.0)
  spread = statistics.stdev(values) / 3 ** 0.5
  estimate = ablate.Estimate(values)
  assert estimate.half_width == pytest.approx(4.302653 * spread)
  assert ablate.Estimate((1.0,)).half_width is None


def test_expectation_of_an_unknown_metric(folder):
  cells = ablate.load_cells(folder)
  with pytest.raises(UserError, match="loss"):
    ablate.summarise(cells, {c.name: [{"lost": 1.0}] for c in cells})
