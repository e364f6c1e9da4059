"""`lm plan` from outside: what it runs, what it writes, what it refuses."""

import os
import pathlib
import shutil
import subprocess
import sys

import house
from lm import cli
from lm.launch import main as launch_main
from lm.launch.plan import command
from lm.launch.plan import record
from lm.launch.plan import report
from lm.types import UserError
import pytest

POD = "configs/pretrain/llama2_7b.py"


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
  monkeypatch.chdir(house.ROOT)


def test_a_config_says_what_runs_it(tmp_path):
  assert command.experiment(POD) == "experiments.pretrain.run"
  assert command.experiment(
      "configs/ablations/qk_norm/base.py") == "experiments.pretrain.run"
  mute = tmp_path / "mute.py"
  mute.write_text('"""Says nothing."""\nfrom configs.pretrain import tiny\n'
                  "get_config = tiny.get_config\n")
  with pytest.raises(UserError, match="shows no command"):
    command.experiment(str(mute))


@pytest.mark.parametrize("args, words", [
    ([], ["--config=FILE is needed"]),
    (["--config=nowhere.py"], ["no such config file"]),
    (["--config=configs/pretrain/tiny.py"], ["give --topology"]),
    ([f"--config={POD}", "--topology=v5e:16x32"], ["16x32", "try v5e:16x16"]),
    ([f"--config={POD}", "--topology=v6p-8"], ["v6p"]),
    ([f"--config={POD}", "--slices=0"], ["slices=0"]),
    (["--hlo=nowhere.hlo"], ["--topology"]),
    (["--hlo=nowhere.hlo", "--topology=v5e:2x2"], ["nowhere.hlo"]),
    (["--hlo=setup.py", "--topology=v5e:2x2"], ["as_text()"]),
    (["--record", "configs/pretrain/tiny.py"], ["c.plan"]),
])
def test_bad_input_is_one_line(capsys, args, words):
  assert cli.main(["plan", *args]) == 2
  out, err = capsys.readouterr()
  assert err.startswith("error: ") and len(err.strip().splitlines()) == 1, err
  assert all(w in err for w in words), err
  assert not out


@pytest.mark.parametrize("changes, words", [
    (["--config.mesh.fsdp=100"], ["config.mesh", "there are 256", "-1"]),
    (["--config.batch=1000"], ["config.batch=1000", "config.batch=1024"]),
    (["--config.compiler_options=fast"], ["NAME=VALUE"]),
    (["--config.model.remat=some"], ["model.remat", "save_qkv"]),
])
def test_a_bad_config_is_one_line_of_the_child(changes, words):
  pytest.importorskip("libtpu")
  done = command.child(POD, "v5e:16x16", overrides=changes, quiet=True)
  err = [line for line in done.stderr.splitlines() if "error: " in line]
  assert done.returncode == 2 and len(err) == 1, done.stderr
  assert all(w in err[0] for w in words), err
  assert "Traceback" not in done.stderr


def test_without_the_compiler_it_says_what_to_install(tmp_path):
  """As where only the core is installed."""
  (tmp_path / "libtpu.py").write_text("raise ImportError('not here')\n")
  done = subprocess.run(
      [sys.executable, "-m", "experiments.pretrain.run", f"--config={POD}",
       "--plan=v5e:2x2"], text=True, capture_output=True,
      env=os.environ | {"PYTHONPATH": str(tmp_path)})
  assert done.returncode == 2, done.stderr
  assert "pip install 'deliberate-lm[plan]'" in done.stderr.splitlines()[-1]


def test_an_experiment_that_does_not_train_has_no_plan(capsys):
  argv = ["run", f"--config={POD}", "--plan=v5e:2x2"]
  assert launch_main.planning(argv) and not launch_main.planning(
      ["run", "--workdir=plan", "plan"])
  assert launch_main.execute(lambda *_: None, argv) == 2
  assert "no training step to plan" in capsys.readouterr().err


def test_a_child_that_the_compiler_ended_is_one_line():
  with pytest.raises(UserError, match="ended with signal 6"):
    command.status(subprocess.CompletedProcess([], -6))
  assert command.status(subprocess.CompletedProcess([], 1)) == 1


def test_a_plan_replaces_the_docstrings_paragraph(tmp_path):
  config = tmp_path / "config.py"
  shutil.copy(house.ROOT / POD, config)
  plan = report.from_json((record.FOLDER / "llama2_7b.json").read_text())
  before = config.read_text()
  record.write(config, plan)
  assert config.read_text() == before  # It was recorded.
  other = report.from_json((record.FOLDER / "llama2_70b.json").read_text())
  record.write(config, other)
  assert record.recorded(config) == " ".join(report.lines(other))
  record.write(config, plan)
  assert config.read_text() == before
  bare = tmp_path / "bare.py"
  bare.write_text('"""None."""\n')
  with pytest.raises(UserError, match="no paragraph"):
    record.write(bare, plan)


def test_the_table_is_that_of_the_recorded_plans(tmp_path):
  shutil.copytree(record.FOLDER, tmp_path / "plans")
  readme = tmp_path / "plans" / "README.md"
  before = readme.read_text()
  record.write_table(tmp_path / "plans")
  assert readme.read_text() == before
  for file in pathlib.Path(record.FOLDER).glob("llama2*.json"):
    assert f"[{file.stem}](../../configs/pretrain/{file.stem}.py)" in before
