"""The notebooks run from top to bottom, at toy size."""

import os
import pathlib
import sys

import house
import jax
from lm import model
from lm import train
from lm.data import vocab as vocab_lib
import nbclient
import nbformat
import optax
import pytest

COLABS = sorted((house.ROOT / "colabs").glob("*.ipynb"))


def execute(name, monkeypatch, **environment):
  """Runs a notebook in a child process; returns its code cells."""
  for key, value in environment.items():
    monkeypatch.setenv(key, str(value))
  folder = str(pathlib.Path(sys.executable).parent)
  monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
  notebook = nbformat.read(house.ROOT / "colabs" / f"{name}.ipynb", 4)
  nbclient.NotebookClient(
      notebook, timeout=900, kernel_name="python3",
      resources={"metadata": {"path": str(house.ROOT / "colabs")}}).execute()
  return [c for c in notebook.cells if c.cell_type == "code"]


def text(cell):
  return "".join(o.get("text", "") for o in cell.outputs)


def shown(cells, kind):
  return [o["data"][kind] for c in cells for o in c.outputs
          if kind in o.get("data", {})]


@pytest.mark.parametrize("path", COLABS, ids=lambda p: p.stem)
def test_notebook_is_clean_and_thin(path):
  notebook = nbformat.read(path, 4)
  nbformat.validate(notebook)
  code = [c for c in notebook.cells if c.cell_type == "code"]
  assert not any(c.outputs or c.execution_count for c in code)
  assert "jax.devices()" in code[0].source  # The accelerator comes first.
  for cell in code:
    assert "def " not in cell.source.replace('"def ', "")
    assert "class " not in cell.source
  assert path.stem in ("quickstart", "tree_of_thoughts"), "give it a test"


def test_quickstart(monkeypatch, tmp_path):
  cells = execute("quickstart", monkeypatch, LM_WORKDIR=tmp_path / "run",
                  LM_CONFIG="configs/quick/pretrain.py")
  assert "This runtime has 1 x cpu (cpu)." in text(cells[0])
  assert len(shown(cells, "image/png")) == 1
  assert "def read(self, size=-1):" in text(cells[-1])
  assert train.load(tmp_path / "run").step > 0


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
  """An untrained model with a value head, over bytes."""
  folder = tmp_path_factory.mktemp("value")
  vocab = vocab_lib.ByteVocab()
  vocab.save(folder / "vocab.json")
  config = model.size("test", vocab_size=vocab.size, max_length=512,
                      scalar_head=True)
  state = train.init_state(model.LanguageModel(config), optax.sgd(0.1),
                           jax.random.key(0))
  train.Checkpointer(
      folder, vocab_file=folder / "vocab.json",
      description={"model": config.to_dict(), "vocab": {"hash": vocab.hash}},
  ).save(1, state, wait=True)
  return folder


def test_tree_of_thoughts(monkeypatch, checkpoint):
  cells = execute("tree_of_thoughts", monkeypatch, LM_CHECKPOINT=checkpoint,
                  LM_GAMES=2, LM_DEMO="--refuse-to-train")
  assert "This runtime has 1 x cpu (cpu)." in text(cells[0])
  tree, = shown(cells, "image/svg+xml")
  assert "Make 24 from 4 5 6 10" in tree
  assert len(shown(cells, "image/png")) == 1
  lines = [x for x in text(cells[-2]).splitlines() if "tokens a game" in x]
  assert len(lines) == 8


def test_a_failing_command_stops_the_notebook(monkeypatch, tmp_path):
  with pytest.raises(nbclient.exceptions.CellExecutionError, match="no such"):
    execute("quickstart", monkeypatch, LM_WORKDIR=tmp_path / "run",
            LM_CONFIG="configs/nothing.py")
