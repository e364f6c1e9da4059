"""Several seeds become one table with paired differences."""

import json

import fabricated
import pytest

from experiments.search import summary


@pytest.fixture
def roads(tmp_path):
  folders = [tmp_path / str(seed) for seed in range(3)]
  for seed, folder in enumerate(folders):
    fabricated.demo(folder, seed=seed)
  return folders


def test_tables_figures_and_numbers(roads, tmp_path, capsys):
  out = tmp_path / "results"
  assert summary.main([*map(str, roads), f"--out={out}"]) == 0
  text = (out / "RESULTS.md").read_text()
  assert capsys.readouterr().out == text
  assert "3 seeds (0, 1, 2), 1.2M parameters" in text
  # 1.8 cores for 260.4 + 95 + 230 + 40 + 100 seconds.
  assert "0.36 to 0.36 CPU-hours" in text
  line = next(x for x in text.splitlines()
              if x.startswith("| ToT, value head, b=5 k=12 |"))
  assert "| 95.0 % |" in line and "| 95, 95, 95 |" in line
  assert (out / "thinking.png").stat().st_size > 10_000
  found = json.loads((out / "results.json").read_text())
  assert found["seeds"] == [0, 1, 2] and found["games"] == 100


def test_differences_are_of_the_same_tree_and_of_equal_tokens(roads):
  found = summary.summarise([summary.load(r) for r in roads])
  pairs = {(d["a"], d["b"]): d for d in found["differences"]}
  same = pairs["ToT, value head, b=5 k=5", "ToT, random, b=5 k=5"]
  assert same["mean"] == pytest.approx(0.88 - 0.17)
  assert same["interval"][0] < same["mean"] < same["interval"][1]
  assert same["tokens"][0] == same["tokens"][1]
  rival = pairs["ToT, value head, b=5 k=5", "Best of 4"]
  assert rival["tokens"][1] <= 1.1 * rival["tokens"][0]


def test_a_seed_counts_once_and_methods_must_agree(roads, tmp_path, capsys):
  out = tmp_path / "results"
  assert summary.main([str(roads[0]), str(roads[0]), f"--out={out}"]) == 2
  assert "counts once" in capsys.readouterr().err
  path = roads[1] / "search" / "report.json"
  report = json.loads(path.read_text())
  del report["outcomes"]["greedy"]
  path.write_text(json.dumps(report))
  assert summary.main([*map(str, roads), f"--out={out}"]) == 2
  assert "different methods" in capsys.readouterr().err
  assert not out.exists()


def test_an_unfinished_road_is_named(roads, tmp_path, capsys):
  missing = roads[1] / "value" / "result.json"
  missing.unlink()
  out = tmp_path / "results"
  assert summary.main([*map(str, roads), f"--out={out}"]) == 2
  assert str(missing) in capsys.readouterr().err
  assert not out.exists()
