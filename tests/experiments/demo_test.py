"""The demo's machinery and its report; the quick demo itself is a slow test."""

from html import parser
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import fabricated
import house
from experiments.demo import report
from experiments.demo import run as demo
from experiments.demo import stages
from lm.types import UserError
import pytest

PRETEND = '''
import pathlib, signal, sys, time
folder = pathlib.Path(next(
    a for a in sys.argv if a.startswith("--workdir=")).partition("=")[2])
(folder / "argv").write_text("\\n".join(sys.argv[1:]))
with open(folder / "runs", "a") as f:
  f.write("x")
sleep = folder / "sleep"
if sleep.exists():
  sleep.unlink()
  def save(number, frame):
    (folder / "saved").write_text(str(number))
    sys.exit(0 if (folder / "was_done").exists() else 128 + number)
  for s in (signal.SIGINT, signal.SIGTERM):
    signal.signal(s, save)
  (folder / "ready").touch()
  time.sleep(60)
if (folder / "fail").exists():
  (folder / "fail").unlink()
  sys.exit(2)
'''
CONFIG = """
import ml_collections
def get_config():
  return ml_collections.ConfigDict(dict(seed=0, init="", steps={steps}))
"""


@pytest.fixture
def plan(tmp_path, monkeypatch):
  """Two stages of a program that only counts how often it runs."""
  (tmp_path / "pretend.py").write_text(PRETEND)
  monkeypatch.setenv("PYTHONPATH", str(tmp_path))
  monkeypatch.chdir(tmp_path)
  for name in ("one", "two"):
    pathlib.Path(f"{name}.py").write_text(CONFIG.format(steps=3))
  return [stages.Stage("one", "", "pretend", "one.py"),
          stages.Stage("two", "", "pretend", "two.py", ("one",), ("--x=1",))]


def go(plan, root):
  for stage, mark in zip(plan, stages.check(plan, root), strict=True):
    stages.run(stage, root, mark)


def runs(root, name):
  path = root / name / "runs"
  return len(path.read_text()) if path.exists() else 0


def test_stages_run_once_and_in_a_chain(plan, tmp_path):
  root = tmp_path / "demo"
  go(plan, root)
  go(plan, root)
  assert [runs(root, n) for n in ("one", "two")] == [1, 1]
  assert (root / "two" / "argv").read_text().splitlines() == [
      "--config=two.py", f"--workdir={root / 'two'}",
      f"--config.init={root / 'one'}", "--x=1"]


def test_another_config_is_noticed_downstream_too(plan, tmp_path):
  root = tmp_path / "demo"
  go(plan, root)
  pathlib.Path("two.py").write_text(CONFIG.format(steps=4))
  with pytest.raises(UserError, match=f"rm -r {root / 'two'},"):
    stages.check(plan, root)
  pathlib.Path("one.py").write_text(CONFIG.format(steps=4))
  pathlib.Path("two.py").write_text(CONFIG.format(steps=3))
  with pytest.raises(UserError,
                     match=f"rm -r {root / 'one'} {root / 'two'},"):
    stages.check(plan, root)
  with pytest.raises(UserError, match="no such config"):
    stages.check([stages.Stage("z", "", "pretend", "none.py")], root)


def test_a_failed_stage_is_run_again_and_its_time_counts(plan, tmp_path):
  root = tmp_path / "demo"
  (root / "one").mkdir(parents=True)
  (root / "one" / "fail").touch()
  with pytest.raises(stages.Ended) as e:
    go(plan, root)
  assert e.value.status == 2 and runs(root, "two") == 0
  spent = stages.marker(root / "one")["seconds"]
  assert spent > 0 and not stages.marker(root / "one")["done"]
  go(plan, root)
  assert runs(root, "one") == 2 and runs(root, "two") == 1
  assert stages.marker(root / "one")["seconds"] > spent


@pytest.mark.parametrize("number, was_done", [
    (signal.SIGINT, False), (signal.SIGTERM, False), (signal.SIGINT, True)])
def test_a_signal_reaches_the_stage_which_saves(
    plan, tmp_path, number, was_done):
  root = tmp_path / "demo"
  (root / "one").mkdir(parents=True)
  (root / "one" / "sleep").touch()
  if was_done:  # The signal comes after the last step: we stop all the same.
    (root / "one" / "was_done").touch()
  code = (
      "import pathlib, sys; from experiments.demo import stages\n"
      "stage = stages.Stage('one', '', 'pretend', 'one.py')\n"
      "root = pathlib.Path('demo')\n"
      "try: stages.run(stage, root, stages.check([stage], root)[0])\n"
      "except stages.Ended as e: sys.exit(e.status)\n")
  path = os.pathsep.join([str(house.ROOT), str(tmp_path)])
  process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path,
                             env={**os.environ, "PYTHONPATH": path})
  try:
    deadline = time.monotonic() + 30
    while not (root / "one" / "ready").exists():
      assert time.monotonic() < deadline and process.poll() is None
      time.sleep(0.02)
    process.send_signal(number)
    assert process.wait(timeout=20) == 128 + number
  finally:
    process.kill()
  # The stage gets a SIGTERM either way.
  assert (root / "one" / "saved").read_text() == "15"
  go(plan, root)
  assert runs(root, "one") == (1 if was_done else 2)


def test_two_demos_do_not_share_a_folder(tmp_path):
  with stages.alone(tmp_path / "demo"):
    with pytest.raises(UserError, match="another demo"):
      with stages.alone(tmp_path / "demo"):
        pass
  with stages.alone(tmp_path / "demo"):
    pass
  (tmp_path / "file").touch()
  with pytest.raises(UserError, match="is a file"):
    with stages.alone(tmp_path / "file"):
      pass


def test_a_damaged_marker_is_named(tmp_path):
  (tmp_path / stages.MARKER).write_text("{")
  with pytest.raises(UserError, match="demo.json is damaged"):
    stages.marker(tmp_path)


@pytest.mark.parametrize("size", list(demo.SIZES))
def test_the_road_leads_through_real_configs(size, monkeypatch, tmp_path):
  monkeypatch.chdir(house.ROOT)
  plan = demo.road(tmp_path, size, seed=3)
  assert [s.name for s in plan] == [
      "pretrain", "instruct", "value", "attempts", "judge", "search",
      "samples"]
  for stage in plan:
    assert (house.ROOT / pathlib.Path(*stage.module.split("."))
            ).with_suffix(".py").is_file()
    if stage.config:
      assert "--config.seed=3" in stage.command(tmp_path)
  assert len(set(stages.check(plan, tmp_path))) == len(plan)


# --- The report ---------------------------------------------------------------


class Page(parser.HTMLParser):
  """Text, and everything that the page would fetch."""

  def __init__(self, html):
    super().__init__()
    self.text, self.fetched, self.tags = [], [], []
    self.feed(html)

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.fetched += [v for k, v in attrs if k in ("src", "href", "srcset")
                     and not v.startswith("data:")]

  def handle_data(self, data):
    self.text.append(data)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  root = tmp_path_factory.mktemp("demo")
  fabricated.demo(root)
  found = report.collect(root)
  return root, found, report.write(found, root)


def test_report_is_self_contained(finished):
  _, _, path = finished
  html = path.read_text()
  page = Page(html)
  assert page.fetched == [] and "script" not in page.tags
  assert "@import" not in html and "url(" not in html
  assert page.tags.count("svg") == 2 and page.tags.count("img") == 2
  assert len(html) < 3e6


def test_report_says_what_was_measured(finished):
  root, found, path = finished
  text = " ".join(" ".join(Page(path.read_text()).text).split())
  for m in found["methods"]:
    assert m["label"] in text
  assert "11% of 100 games" in text and "95% interval 89% to 98%" in text
  assert "76% of those with 3 numbers" in text
  assert "exact 0 → 0.12" in text.replace("\xa0", " ")
  assert "14 min 19 s" in text
  assert "13 - 9 = 4 <b>&" in text  # Escaped, so it is text again.
  assert "number 903 of 1,362" in text and "number 902 of 1,362" in text
  assert "quick demo" not in text
  for name in ("thinking.png", "losses.png"):
    assert (root / name).read_bytes().startswith(b"\x89PNG")
  saved = json.loads((root / "report.json").read_text())
  assert saved["methods"] == json.loads(json.dumps(found["methods"]))
  assert saved["seconds"] == pytest.approx(859.4) and saved["seed"] == 0
  assert saved["machine"]["cores"] >= 1 and saved["machine"]["jax"]


def test_a_quick_report_says_so(finished):
  root, _, _ = finished
  path = report.write(report.collect(root, "quick"), root)
  assert "its numbers say nothing" in " ".join(path.read_text().split())


def test_report_without_trees_or_tree_methods(finished):
  root, found, _ = finished
  found = {**found, "trees": [], "overlap": {},
           "methods": [m for m in found["methods"] if m["family"] == "greedy"]}
  page = Page(report.write(found, root).read_text())
  assert "svg" not in page.tags


def test_report_needs_finished_stages(tmp_path):
  with pytest.raises(UserError, match="search/report.json"):
    report.collect(tmp_path)
  (tmp_path / "search").mkdir()
  (tmp_path / "search" / "report.json").write_text("{")
  with pytest.raises(UserError, match="damaged"):
    report.collect(tmp_path)


@pytest.mark.parametrize("seconds, text", [
    (None, "?"), (0.4, "0 s"), (59.6, "1 min 0 s"), (719.4, "11 min 59 s"),
    (7260, "2 h 1 min")])
def test_durations(seconds, text):
  assert report.duration(seconds) == text


def test_budgets_name_the_best_affordable_method():
  found = [(b["budget"], b["method"]["name"])
           for b in report.budgets(fabricated.methods())]
  assert found == [(50, "greedy"), (200, "tot_value_b1_k5"),
                   (600, "tot_value_b5_k5"), (2000, "tot_value_b5_k12")]


def test_bad_options_are_one_line(tmp_path, capsys):
  (tmp_path / "file").touch()
  assert demo.main(["--size=quick", f"--workdir={tmp_path / 'file'}"]) == 2
  err = capsys.readouterr().err
  assert err.startswith("error: ") and len(err.strip().splitlines()) == 1
