"""Finds the commands that a text shows, and checks that they would parse."""

import functools
import os
import pathlib
import re
import shlex
import subprocess
import sys

import house
from lm import cli
from lm.launch import main as launch_main

PROGRAMS = ("python", "python3", "lm", "make", "pip", "git", "cd", "./.ci/run",
            ".ci/run", "source", "bazel", "tensorboard", "jupyter", "sudo",
            "export", "apt-get", "dpkg", "gcloud", "for", "done", "mkdir", "cc",
            "echo", "run")


def from_markdown(text: str) -> list[str]:
  """The command lines of the shell blocks of a Markdown text."""
  blocks = re.findall(r"^```(?:bash|sh|shell|console)\b.*?\n(.*?)^```", text,
                      re.M | re.S)
  return [c for block in blocks for c in _lines(block)]


def runnable(text: str) -> list[str]:
  """The commands of the blocks that stand below `<!-- tested: runs -->`."""
  blocks = re.findall(
      r"<!-- tested: runs -->\s*^```(?:bash|sh)\b.*?\n(.*?)^```", text,
      re.M | re.S)
  return [c for block in blocks for c in _lines(block)]


def from_text(text: str) -> list[str]:
  """The command lines of a docstring: indented, beginning with a program."""
  text = re.sub(r"\s*\\\n\s*", " ", text)
  # A command may run on over deeper indented lines.
  joined: list[str] = []
  for line in text.splitlines():
    indent = len(line) - len(line.lstrip())
    if joined and indent >= 4 and line.strip().startswith("--"):
      joined[-1] += " " + line.strip()
    else:
      joined.append(line)
  lines = (re.sub(r"^\s*(\$ )?", "", x).strip() for x in joined)
  return [x for x in lines if x.startswith(
      ("python -m ", "lm ", "make ", ".venv/bin/"))]


def _lines(block: str) -> list[str]:
  block = re.sub(r"\s*\\\n\s*", " ", block)
  lines = (re.sub(r"^\$ ", "", x.strip()) for x in block.splitlines())
  return [x for x in lines if x and not x.startswith("#")]


def check(command: str) -> None:
  """Asserts that a command's modules, files, flags and config keys exist."""
  words = shlex.split(command, comments=True)
  while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
    words.pop(0)
  if not words:
    return
  for part in _split(words):
    _check_one(part, command)


def _split(words: list[str]) -> list[list[str]]:
  parts: list[list[str]] = [[]]
  for word in words:
    if word in ("&&", ";", "|", "&"):
      parts.append([])
    else:
      parts[-1].append(word)
  return [p for p in parts if p]


def _check_one(words: list[str], command: str) -> None:
  program = words[0].removeprefix(".venv/bin/").removeprefix("./")
  assert program in PROGRAMS or (house.ROOT / program).is_file(), (
      f"what is {program!r}? in: {command}")
  for word in words[1:]:
    value = word.partition("=")[2] if word.startswith("--") else word
    if re.match(r"(configs|experiments|benchmarks|colabs|tests)/", value):
      path = value.split(":")[0]
      assert (house.ROOT / path).exists(), f"no {path}; in: {command}"
  if program == "make":
    for target in words[1:]:
      if "=" not in target:
        assert target in make_targets(), f"no make {target}; in: {command}"
  elif program == "lm" and words[1:2] != ["--help"]:
    try:
      cli.parse(words[1:])
    except SystemExit as e:
      assert e.code == 0, f"lm refuses: {command}"
  elif program.startswith("python") and words[1:2] == ["-m"]:
    if words[2].startswith(("experiments", "lm")):
      _check_module(words[2], words[3:], command)


def _check_module(module: str, args: list[str], command: str) -> None:
  path = pathlib.Path(*module.split("."))
  assert any((house.ROOT / p).is_file() for p in (
      path.with_suffix(".py"), path / "__main__.py")), (
          f"no module {module}; in: {command}")
  assert help_status(module) == 0, f"python -m {module} --help fails"
  if any(a.startswith("--config=") for a in args) and "--help" not in args:
    mine = [a for a in args if re.match(
        r"--(config|workdir|supervise|distributed|cpu_devices)\b", a)]
    if not any(a.startswith("--workdir") for a in mine):
      mine.append("--workdir=unused")
    here = os.getcwd()
    os.chdir(house.ROOT)
    try:
      launch_main.parse([module, *mine])
    finally:
      os.chdir(here)


@functools.cache
def help_status(module: str) -> int:
  return subprocess.run(
      [sys.executable, "-m", module, "--help"], cwd=house.ROOT,
      capture_output=True).returncode


@functools.cache
def make_targets() -> frozenset[str]:
  text = (house.ROOT / "Makefile").read_text()
  return frozenset(re.findall(r"^([a-z][a-z0-9-]*):", text, re.M))
