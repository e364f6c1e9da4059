"""The commands of every README exist, parse, and the quick ones run."""

import os
import pathlib
import subprocess
import sys

import commands
import house
import pytest

READMES = sorted(
    p.relative_to(house.ROOT) for p in [
        *house.ROOT.glob("*.md"), *house.ROOT.glob("experiments/**/*.md"),
        *house.ROOT.glob("configs/**/*.md"), *house.ROOT.glob("docs/**/*.md")])
SHOWN = [(str(p), c) for p in READMES
         for c in commands.from_markdown((house.ROOT / p).read_text())]
RUN = [(str(p), c) for p in READMES
       for c in commands.runnable((house.ROOT / p).read_text())]


@pytest.mark.parametrize("where, command", SHOWN)
def test_command_parses(where, command):
  commands.check(command)


@pytest.mark.parametrize("where, command", RUN)
def test_command_runs(where, command, tmp_path):
  """In a copy's stead: the project's files by link, an empty runs/."""
  for path in house.ROOT.iterdir():
    if path.name not in ("runs", ".git", "report", "data"):
      (tmp_path / path.name).symlink_to(path)
  folder = str(pathlib.Path(sys.executable).parent)
  process = subprocess.run(
      command, shell=True, cwd=tmp_path, text=True, capture_output=True,
      timeout=600,
      env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"})
  assert process.returncode == 0, process.stdout + process.stderr


@pytest.mark.parametrize("target", sorted(commands.make_targets()))
def test_make_can_read_every_target(target):
  process = subprocess.run(["make", "-n", target], cwd=house.ROOT, text=True,
                           capture_output=True)
  assert process.returncode == 0, process.stderr


@pytest.mark.parametrize("path", READMES, ids=str)
def test_links_lead_somewhere(path):
  import re
  text = (house.ROOT / path).read_text()
  for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
    assert ((house.ROOT / path).parent / link).exists(), f"{path}: {link}"


@pytest.mark.parametrize("command", [
    "make nothing", "lm nothing", "python -m lm.nothing", "rm -rf /",
    "python -m experiments.nowhere.run --config=configs/none.py",
    "lm ablate configs/ablations/nothing-like-this"])
def test_the_check_can_fail(command):
  with pytest.raises(AssertionError):
    commands.check(command)


def test_the_parser_finds_commands():
  text = "\n```bash\n# a note\n$ make demo \\\n    QUICK=1\nlm --help\n```\n"
  assert commands.from_markdown(text) == ["make demo QUICK=1", "lm --help"]
  assert commands.runnable(text) == []
  text = "<!-- tested: runs -->\n```bash\nmake lint\n```\n"
  assert commands.runnable(text) == ["make lint"]
  doc = "Text.\n\n    python -m experiments.a.run --config=c\n        --x=1\n"
  assert commands.from_text(doc) == [
      "python -m experiments.a.run --config=c --x=1"]
