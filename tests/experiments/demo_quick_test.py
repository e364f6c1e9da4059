"""The quick demo, end to end and in real processes; it is the slowest test."""

import json
import os
import pathlib
import subprocess
import sys
import time

import house
import pytest

FAMILIES = {"greedy", "best_of_n", "self_consistency", "tot_value",
            "tot_log_prob", "tot_random"}


def run(workdir, cwd):
  return subprocess.run(
      [sys.executable, "-m", "experiments.demo.run", "--size=quick",
       f"--workdir={workdir}"], cwd=cwd, text=True, capture_output=True,
      timeout=600, env={**os.environ, "COLUMNS": "120"})


@pytest.mark.slow
def test_the_quick_demo_from_nothing_to_its_report(tmp_path):
  workdir = tmp_path / "demo"
  process = run(workdir, house.ROOT)
  assert process.returncode == 0, process.stdout + process.stderr
  found = json.loads((workdir / "report.json").read_text())
  assert FAMILIES <= {m["family"] for m in found["methods"]}
  for m in found["methods"]:
    assert 0 <= m["interval"][0] <= m["accuracy"] <= m["interval"][1] <= 1
    assert m["generated_tokens"] > 0 and m["flops"] > 0 and m["seconds"] > 0
    assert m["label"] in process.stdout
  assert set(found["overlap"]) == {"2", "3"}
  assert all(s["seconds"] > 0 for s in found["stages"].values())
  html = (workdir / "report.html").read_text()
  assert "<svg" in html and "quick demo" in html
  for name in ("thinking.png", "losses.png"):
    assert (workdir / name).stat().st_size > 10_000
  # The same command again only writes the report.
  stamps = {p: p.stat().st_mtime_ns for p in workdir.rglob("*")
            if p.is_file() and p.parent != workdir}
  start = time.monotonic()
  again = run(workdir, house.ROOT)
  assert again.returncode == 0, again.stdout + again.stderr
  assert time.monotonic() - start < 30
  assert again.stdout.count("already done") == 7
  assert stamps == {p: p.stat().st_mtime_ns for p in map(pathlib.Path, stamps)}
