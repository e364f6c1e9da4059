"""Every config file instantiates, and so does the model that it describes."""

import ast
import pathlib

import commands
import house
from lm import model
from lm.launch import ablate
from lm.launch import config_file
import ml_collections
import pytest

CONFIGS = sorted(
    p.relative_to(house.ROOT) for p in (house.ROOT / "configs").rglob("*.py")
    if not p.name.startswith("_"))
CELLS = sorted({p.parent for p in CONFIGS
                if p.parts[:2] == ("configs", "ablations")})


def model_config(fields: dict) -> model.ModelConfig:
  fields = dict(fields)
  fields.pop("remat_policy", None)
  if fields.get("size"):
    return model.size(fields.pop("size"), **fields)
  if fields.get("depth"):
    return model.depth(fields.pop("depth"), **fields)
  return model.ModelConfig.from_dict({"vocab_size": 256, **fields})


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
  monkeypatch.chdir(house.ROOT)


@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_config_instantiates(path):
  config = config_file.load(path)
  again = config_file.load(path)
  assert config.to_dict() == again.to_dict()
  assert config.is_locked
  for name, value in config_file.fields(config).items():
    assert "." not in name.rpartition(".")[2]
    assert isinstance(value, (int, float, str, bool, tuple, list, type(None),
                              ml_collections.ConfigDict)), name
  if config.get("model"):
    built = model_config(config.model.to_dict())
    assert built.num_params > 0


@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_config_tells_its_command(path):
  """The docstring holds a command that parses, and names this file."""
  text = ast.get_docstring(ast.parse(path.read_text()))
  assert text, f"{path} has no docstring: command, wall time, result"
  found = commands.from_text(text)
  where = path.parent if path.parent in CELLS else path
  assert any(str(where) in c for c in found), (
      f"the docstring of {path} holds no command with it: {found}")
  for command in found:
    commands.check(command)


@pytest.mark.parametrize("folder", CELLS, ids=str)
def test_ablation_changes_few_fields_of_its_base(folder):
  cells = ablate.load_cells(folder)
  assert len(cells) >= 2
  for i, cell in enumerate(cells):
    tree = ast.parse(cell.path.read_text())
    names = {n.module or "" for n in ast.walk(tree)
             if isinstance(n, ast.ImportFrom)} | {
        a.name for n in ast.walk(tree) if isinstance(n, ast.Import)
        for a in n.names}
    assert any(n.startswith("configs") for n in names), (
        f"{cell.path} does not import its base")
    module = pathlib.Path(*cell.config.experiment.split("."))
    assert module.with_suffix(".py").is_file(), cell.config.experiment
    if i:
      assert 1 <= len(cell.changes) <= 3, (cell.path, cell.changes)
    for name, (low, high) in (cell.config.get("expect") or {}).items():
      assert low < high, (cell.path, name)


def test_the_checks_can_fail(tmp_path):
  with pytest.raises(Exception, match="did you mean"):
    model_config({"size": "nano", "num_layer": 3})
  with pytest.raises(AssertionError):
    commands.check("python -m experiments.nowhere.run --config=x")
