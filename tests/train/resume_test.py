"""Law 8: killed, terminated and resumed == uninterrupted, bit for bit."""

import os
import pathlib
import signal
import subprocess
import sys

import jax
from tests.train import resume_main
from tests.train import toy

from lm import optim
from lm import train
from lm.train import files

ROOT = pathlib.Path(__file__).resolve().parents[2]


def run(folder, *args):
  return subprocess.run(
      [sys.executable, "-m", "tests.train.resume_main", str(folder),
       *map(str, args)], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
      capture_output=True, text=True, timeout=200, check=False)


def batches(folder):
  lines = (folder / "batches.txt").read_text().splitlines()
  return [tuple(line.split()) for line in lines]


def last_state(folder):
  like = train.init_state(toy.Toy(), optim.muon(1e-2), jax.random.key(0))
  return train.Checkpointer(folder, description={}).restore(like)


def test_killed_then_terminated_then_resumed(tmp_path):
  whole, broken = tmp_path / "whole", tmp_path / "broken"
  whole.mkdir()
  broken.mkdir()
  final = resume_main.main(whole)

  killed = run(broken, 7, int(signal.SIGKILL))
  assert killed.returncode == -signal.SIGKILL, killed.stderr
  saved = files.steps(broken / "checkpoints")
  assert saved and saved[-1] in (3, 6), saved  # 6 may not have been finished.

  terminated = run(broken, 10, int(signal.SIGTERM))
  assert terminated.returncode == 143, terminated.stderr
  assert "Traceback" not in terminated.stderr
  saved = files.steps(broken / "checkpoints")[-1]
  assert saved in (10, 11), "what SIGTERM interrupted was not saved"
  assert train.read_metrics(broken)[-1]["step"] == saved

  resumed = run(broken)
  assert resumed.returncode == 0, resumed.stderr

  expected, position = last_state(whole)
  toy.trees_equal(expected, final)
  found, found_position = last_state(broken)
  toy.trees_equal(found, expected)
  assert found_position == position == {"step": resume_main.STEPS}
  assert int(found.step) == resume_main.STEPS

  given = batches(whole)
  assert len(given) == resume_main.STEPS == len({d for _, d in given})
  assert set(batches(broken)) == set(given)
  assert len(batches(broken)) > len(given)  # It did go back.
  assert train.read_metrics(broken) == train.read_metrics(whole)

  again = run(broken)  # Complete: the same command has nothing left to do.
  assert again.returncode == 0, again.stderr
  assert len(batches(whole)) == resume_main.STEPS
  toy.trees_equal(last_state(broken)[0], expected)
