"""What the tests of `lm tpu` share: a cloud, a checkout, the command."""

import argparse
import pathlib
import subprocess
import sys

from lm.launch.tpu import command
from lm.types import UserError
from tests.launch import fake_gcloud

WORKDIR = "gs://bucket/run"
ZONE = "--zone=us-east5-b"
UP = ("up", "demo", ZONE, "--accelerator=v6e-8", f"--workdir={WORKDIR}")
TRAIN = ("python", "-m", "experiments.pretrain.run", "--config=configs/a.py")


def lm(*words: str) -> int:
  """Runs `lm tpu WORDS` in this process as the `lm` command would."""
  if words[0] != "trace" and "--poll" not in " ".join(words):
    words = (*words[:2], "--poll=0.02", *words[2:])
  parser = argparse.ArgumentParser(prog="lm")
  command.add(parser.add_subparsers(required=True))
  args, rest = parser.parse_known_args(["tpu", *words])
  assert not rest, rest
  try:
    return args.call(args) or 0
  except UserError as e:
    print(f"error: {e}", file=sys.stderr)
    return 2


def checkout(folder: pathlib.Path) -> pathlib.Path:
  """A git checkout with one commit."""
  folder.mkdir()
  (folder / "setup.py").write_text("# Nothing.\n")
  for words in (["init", "-q"], ["add", "."], [
      "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "first"]):
    subprocess.run(["git", *words], cwd=folder, check=True)
  return folder


def made(tmp_path: pathlib.Path, monkeypatch, *,
         processes: bool = False) -> fake_gcloud.Cloud:
  """A cloud on PATH; the current folder is a checkout.

  Args:
    tmp_path: for both.
    monkeypatch: puts them there.
    processes: every gcloud is one, as in life, and as slow.
  """
  monkeypatch.chdir(checkout(tmp_path / "repo"))
  cloud = fake_gcloud.Cloud(tmp_path / "cloud")
  return (cloud.install if processes else cloud.inside)(monkeypatch)


def one_line(capsys) -> str:
  """What stderr says: one line."""
  text = capsys.readouterr().err
  assert text.count("\n") == 1 and text.startswith("error: "), text
  return text
