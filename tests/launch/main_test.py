"""Every fault of the command line is one clear line and exit status 2."""

import json
import os
import pathlib
import subprocess
import sys

import house
from lm.launch import main as launch_main
import pytest

CONFIG = """
from ml_collections import ConfigDict
def get_config():
  return ConfigDict(dict(
      seed=0, steps=3, action="", mesh=dict(fsdp=-1),
      model=dict(size="tiny", depth=4)))
"""
EXPERIMENT = '''"""Says what it was given: a pretend experiment."""
import errno, json, jax
from lm.launch import main
from lm.types import UserError

def run(config, workdir, mesh):
  if config.action == "user":
    raise UserError("the corpus is empty: give another")
  if config.action == "bug":
    raise ValueError("a bug")
  if config.action == "full":
    raise OSError(errno.ENOSPC, "No space left on device", "checkpoint")
  assert jax.sharding.get_abstract_mesh().shape == mesh.shape
  (workdir / "result.json").write_text(json.dumps(
      {"steps": config.steps, "depth": config.model.depth,
       "mesh": dict(mesh.shape), "locked": config.is_locked}))

if __name__ == "__main__":
  main.main(run)
'''


@pytest.fixture(scope="module")
def start(tmp_path_factory):
  """Runs the pretend experiment; returns (status, stdout, stderr, folder)."""
  folder = tmp_path_factory.mktemp("launch")
  (folder / "experiment.py").write_text(EXPERIMENT)
  (folder / "config.py").write_text(CONFIG)

  def call(*args):
    process = subprocess.run(
        [sys.executable, str(folder / "experiment.py"),
         *(a.replace("@", f"{folder}/") for a in args)],
        cwd=house.ROOT, text=True, capture_output=True,
        env={"PYTHONPATH": str(house.ROOT), "PATH": "/usr/bin:/bin",
             "HOME": str(folder), "JAX_PLATFORMS": "cpu"})
    return process.returncode, process.stdout, process.stderr, folder

  return call


def test_runs_with_overrides_on_the_mesh_of_the_config(start):
  status, _, err, folder = start(
      "--config=@config.py", "--workdir=@run", "--config.steps=7",
      "--config.model.depth", "8", "--cpu_devices=4")
  assert status == 0, err
  assert json.loads((folder / "run" / "result.json").read_text()) == {
      "steps": 7, "depth": 8, "locked": True,
      "mesh": {"data": 1, "fsdp": 4, "context": 1, "tensor": 1}}
  written = json.loads((folder / "run" / "config.json").read_text())
  assert written["steps"] == 7 and written["model"]["depth"] == 8
  assert (folder / ".cache" / "lm" / "jax").is_dir()  # The compile cache.


@pytest.mark.parametrize("args, words", [
    ([], ["--config=FILE is needed"]),
    (["--config=@config.py"], ["--workdir=FOLDER is needed"]),
    (["--config=@nowhere.py", "--workdir=@w"], ["no such config file"]),
    (["--config=@empty.py", "--workdir=@w"], ["must return a ConfigDict"]),
    (["--config=@config.py", "--workdir=@w", "--config.stesp=3"],
     ["stesp", "did you mean 'steps'?"]),
    (["--config=@config.py", "--workdir=@w", "--config.model.dpth=3"],
     ["model.dpth", "did you mean 'model.depth'?"]),
    (["--config=@config.py", "--workdir=@w", "--config.steps=few"],
     ["steps", "few"]),
    (["--config=@config.py", "--workdri=@w"], ["workdri"]),
    (["--config=@config.py", "--workdir=@w", "stray"], ["'stray'"]),
    (["--config=@config.py", "--workdir=@config.py"], ["not a folder"]),
    (["--config=@config.py", "--workdir=@w", "--config.mesh.fsdp=3"],
     ["config.mesh", "3 devices"]),
    (["--config=@config.py", "--workdir=@w", "--config.action=user"],
     ["the corpus is empty: give another"]),
    (["--config=@config.py", "--workdir=@w", "--config.action=full"],
     ["no space left", "checkpoint"]),
    (["--config=@config.py", "--workdir=@w", "--num_processes=2"],
     ["--coordinator"]),
    (["--config=@config.py", "--workdir=@w", "--num_processes=2",
      "--process_id=2", "--coordinator=localhost:1"], ["--process_id=2"]),
])
def test_bad_input_is_one_line(tmp_path, capsys, args, words):
  (tmp_path / "config.py").write_text(CONFIG)
  (tmp_path / "empty.py").write_text("def get_config():\n  return {}\n")
  scope = {"__name__": "pretend"}
  exec(EXPERIMENT, scope)
  argv = ["pretend", *(a.replace("@", f"{tmp_path}/") for a in args)]
  status = launch_main.execute(scope["run"], argv)
  out, err = capsys.readouterr()
  assert status == 2, err
  assert err.startswith("error: ") and len(err.strip().splitlines()) == 1, err
  assert all(w in err for w in words), err
  assert not out


def test_bad_input_ends_the_process_with_status_2(start):
  status, _, err, _ = start("--config=@config.py", "--workdir=@w",
                            "--config.stesp=3")
  assert status == 2 and "Traceback" not in err


def test_a_bug_keeps_its_traceback(start):
  status, _, err, _ = start("--config=@config.py", "--workdir=@w",
                            "--config.action=bug")
  assert status == 1 and "Traceback" in err and "a bug" in err


def test_help_shows_the_experiment_and_the_fields(start):
  status, out, _, _ = start("--help")
  assert status == 0
  assert "a pretend experiment" in out and "--workdir" in out
  status, out, _, _ = start("--config=@config.py", "--help")
  assert status == 0
  assert "--config.model.size='tiny'" in out and "--config.steps=3" in out


def test_an_installed_tpu_compiler_is_not_heard_without_a_tpu():
  if any(pathlib.Path("/dev").glob("accel*")) or pathlib.Path(
      "/dev/vfio").exists():
    pytest.skip("there is a TPU")
  env = {k: v for k, v in os.environ.items() if k != "JAX_PLATFORMS"}
  process = subprocess.run(
      [sys.executable, "-c", "from lm.launch import runtime\n"
       "runtime.quiet_without_accelerator()\nimport jax\njax.devices()"],
      cwd=house.ROOT, env=env, text=True, capture_output=True)
  assert (process.returncode, process.stderr) == (0, "")


def test_two_processes_make_one_mesh(start):
  """jax.distributed over localhost: both see the devices of both."""
  import concurrent.futures
  import socket
  with socket.socket() as s:
    s.bind(("localhost", 0))
    port = s.getsockname()[1]
  with concurrent.futures.ThreadPoolExecutor() as pool:
    runs = [pool.submit(
        start, "--config=@config.py", "--workdir=@pod",
        f"--coordinator=localhost:{port}", "--num_processes=2",
        f"--process_id={i}", "--cpu_devices=2") for i in range(2)]
    for future in runs:
      status, _, err, folder = future.result()
      assert status == 0, err
  result = json.loads((folder / "pod" / "result.json").read_text())
  assert result["mesh"]["fsdp"] == 4
