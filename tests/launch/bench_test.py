"""`lm bench`: the machine, and a model's share of it."""

import json

from lm import cli
from lm.launch import bench_command


def test_rows_of_the_smallest_model(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr("lm.launch.runtime.ALLOCATOR", {})  # No new process.
  out = tmp_path / "bench.json"
  assert cli.main(["bench", "--size", "test", "--json", str(out)]) == 0
  rows = json.loads(out.read_text())
  products = {r["name"]: r["flops"] for r in rows if "product" in r["name"]}
  assert len(products) == 2 and min(products.values()) > 1e8
  (memory,) = [r for r in rows if r["name"] == "reading memory"]
  training, reading, writing = [r for r in rows if "tokens" in r]
  for row in (training, reading):
    assert 0 < row["share"] == row["flops"] / max(products.values()) < 1
  # A token that trains costs three that are only read.
  assert 2.5 < (training["flops"] / training["tokens"]) / (
      reading["flops"] / reading["tokens"]) < 3.5
  assert writing["share"] == writing["bytes"] / memory["bytes"]
  shown = capsys.readouterr().out
  assert all(r["name"] in shown for r in rows)


def test_the_weights_that_one_token_reads():
  from lm import model
  config = model.size("test")
  _, write, weights = bench_command._decoding(config, 8)
  # Everything but the table, of which it reads a row; at most 4 bytes each.
  own = config.num_params  # Tied: the head is the table.
  assert write > 0 and 2 * own <= weights <= 4.2 * own


def test_an_unknown_size_is_one_line(capsys, monkeypatch):
  monkeypatch.setattr("lm.launch.runtime.ALLOCATOR", {})
  assert cli.main(["bench", "--size", "smollm3"]) == 2
  error = capsys.readouterr().err
  assert error.count("\n") == 1 and "smollm2-135m" in error


def test_a_file_that_cannot_be_written_is_one_line(capsys, monkeypatch,
                                                   tmp_path):
  monkeypatch.setattr("lm.launch.runtime.ALLOCATOR", {})
  monkeypatch.setattr(bench_command, "measure", lambda *a: iter(()))
  assert cli.main(["bench", "--json", str(tmp_path / "no" / "x.json")]) == 2
  assert "no/x.json cannot be written" in capsys.readouterr().err
