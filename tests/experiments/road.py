"""Short stages, run in this process as their commands would."""

import contextlib
import io
import json
import pathlib

import house
from lm.launch import main as launch_main

from experiments.instruct import run as instruct
from experiments.pretrain import run as pretrain
from experiments.value import run as value

STAGES = {"pretrain": pretrain, "instruct": instruct, "value": value}
TEXT = ("The quick brown fox jumps over the lazy dog, and the dog sleeps on.\n"
        "def double(number):\n  return number + number\n")


def text_folder(folder: pathlib.Path) -> pathlib.Path:
  """A folder of small documents, some of which are held out."""
  folder.mkdir()
  for i in range(20):
    (folder / f"{i}.txt").write_text(TEXT * 8 + f"Document {i}.\n")
  return folder


def arguments(stage: str, workdir: pathlib.Path, *more: str,
              text: pathlib.Path | None = None,
              init: pathlib.Path | None = None) -> list[str]:
  """The command line of a stage of two steps on next to no data."""
  args = [f"--config={house.ROOT}/configs/quick/{stage}.py",
          f"--workdir={workdir}", "--config.steps=2",
          "--config.optimizer.warmup=1", "--config.batch=2"]
  if stage == "pretrain":
    args += ["--config.length=64", f"--config.data.sources.text.path={text}",
             "--config.data.sources.text.share=1.0",
             "--config.data.sources.text.holdout=0.2",
             "--config.data.sources.games.count=200",
             "--config.vocab.size=520"]
  else:
    args += [f"--config.init={init}", "--config.data.sources.games.count=800",
             "--config.evaluate.batches=2"]
  if stage == "instruct":
    # Reading all documentation takes seconds; one test does.
    args += ["--config.data.sources.documentation.rate=0.0",
             "--config.evaluate.questions=3", "--config.evaluate.max_tokens=16"]
  return [*args, *more]


def float32(folder: pathlib.Path) -> str:
  """The flag of the quick pre-training in float32, in a file of its own."""
  path = folder / "float32.py"
  path.write_text(
      "from configs.quick import pretrain\ndef get_config():\n"
      "  c = pretrain.get_config()\n  c.model.dtype = 'float32'\n  return c\n")
  return f"--config={path}"


def run(stage: str, *args) -> tuple[int, str]:
  """Runs a stage here; returns its status and what it wrote to stderr."""
  err = io.StringIO()
  with contextlib.redirect_stderr(err):
    status = launch_main.execute(STAGES[stage].run, [stage, *map(str, args)])
  return status, err.getvalue()


def result(workdir: pathlib.Path) -> dict:
  return json.loads((workdir / "result.json").read_text())
