"""The rules of the house: who imports whom, and how long files get."""

import ast
import json
import pathlib
import re
import subprocess
import sys

import house
import pytest

HEAVY = ("tensorflow", "seqio", "grain", "orbax", "tensorflow_datasets",
         "torch", "transformers")
# Rooms that decoding, search and serving import: no TensorFlow on the way.
QUICK = ("lm.model", "lm.decode", "lm.search", "lm.train")


def test_every_room_has_a_level():
  known = {"//experiments", "//configs", "//benchmarks", "//tests"}
  for path in house.files():
    label = house.room(path)
    if label is None or label in known:
      continue
    if label.startswith("//experiments/"):
      continue
    assert label in house.LEVELS, (
        f"{path} is in no room of the plan: give {label} a level in"
        " tests/house.py, and in the layout of the README")


def test_rooms_import_only_from_lower_levels():
  wrong = []
  for path in house.files():
    here = house.room(path)
    if here is None or house.level(here) == house.TOP:
      continue
    for other in house.our_files(path):
      there = house.room(other)
      if there != here and house.level(there) >= house.level(here):
        wrong.append(f"{path} (level {house.level(here)}) imports {other}"
                     f" (level {house.level(there)})")
  assert not wrong, "\n".join(wrong)


def test_lm_knows_no_experiment_and_no_config():
  """Nor by a string that an import or a child process would be made from."""
  wrong = []
  for path in house.files():
    if path.parts[0] != "lm":
      continue
    for name in house.imports(path):
      if name.split(".")[0] in ("experiments", "configs", "tests",
                                "benchmarks", "importlib", "gin"):
        wrong.append(f"{path} imports {name}")
    tree = ast.parse((house.ROOT / path).read_text())
    docs = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
    for node in ast.walk(tree):
      if (isinstance(node, ast.Constant) and isinstance(node.value, str)
          and id(node) not in docs
          and re.fullmatch(r"(experiments|configs)\.\w+(\.\w+)*", node.value)):
        wrong.append(f"{path}:{node.lineno} names {node.value}")
  assert not wrong, "\n".join(wrong)


def test_experiments_do_not_import_each_other():
  wrong = []
  for path in house.files():
    here = house.room(path)
    if here is None or not here.startswith("//experiments"):
      continue
    for other in house.our_files(path):
      there = house.room(other)
      if (there.startswith("//experiments/") and there != here) or (
          there in ("//tests", "//benchmarks")):
        wrong.append(f"{path} imports {other}")
  assert not wrong, "\n".join(wrong)


def test_heavy_libraries_only_where_they_belong():
  """TensorFlow and seqio: in lm.data only, and not when it is imported."""
  wrong = []
  for path in house.files():
    if path.parts[0] != "lm":
      continue
    for name in house.imports(path):
      if name.split(".")[0] in ("tensorflow", "seqio", "tensorflow_datasets",
                                "tensorflow_text"):
        if path.parts[:2] != ("lm", "data"):
          wrong.append(f"{path} imports {name}")
    for name in house.imports(path, top_level_only=True):
      if name.split(".")[0] in HEAVY[:2]:
        wrong.append(f"{path} imports {name} at import time")
  assert not wrong, "\n".join(wrong)


def test_quick_imports_load_no_tensorflow():
  code = (
      "import json, sys, time; start = time.perf_counter()\n"
      + "".join(f"import {m}\n" for m in QUICK)
      + "seconds = time.perf_counter() - start\n"
      f"loaded = [m for m in {HEAVY!r} if m in sys.modules]\n"
      "print(json.dumps([seconds, loaded]))")
  out = subprocess.run([sys.executable, "-c", code], cwd=house.ROOT, text=True,
                       capture_output=True, check=True).stdout
  seconds, loaded = json.loads(out.splitlines()[-1])
  print(f"importing {', '.join(QUICK)}: {seconds:.2f} s")
  assert not set(loaded) & {"tensorflow", "seqio", "tensorflow_datasets"}


@pytest.mark.parametrize("module", ["lm", "lm.cli", "lm.launch.main",
                                    "lm.types"])
def test_entry_points_load_no_tensorflow(module):
  code = (f"import sys, {module}; "
          f"sys.exit(' '.join(m for m in {HEAVY!r} if m in sys.modules) or 0)")
  subprocess.run([sys.executable, "-c", code], cwd=house.ROOT, check=True)


def test_no_long_files():
  long = {str(p): n for p in house.files()
          if (n := len((house.ROOT / p).read_text().splitlines())) > 400}
  assert not long, f"over 400 lines, split them: {long}"


def test_no_print_in_the_library():
  allowed = ("lm/cli.py", "lm/launch")
  wrong = []
  for path in house.files():
    if path.parts[0] != "lm" or str(path).startswith(allowed):
      continue
    for node in ast.walk(ast.parse((house.ROOT / path).read_text())):
      if (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
          and node.func.id in ("print", "breakpoint")):
        wrong.append(f"{path}:{node.lineno} calls {node.func.id}")
  assert not wrong, "\n".join(wrong)


def test_no_class_of_many_methods():
  wrong = []
  for path in house.files():
    for node in ast.walk(ast.parse((house.ROOT / path).read_text())):
      if isinstance(node, ast.ClassDef):
        count = sum(isinstance(n, ast.FunctionDef) for n in node.body)
        if count > 15:
          wrong.append(f"{path}: {node.name} has {count} methods")
  assert not wrong, "\n".join(wrong)


def test_the_rules_can_fail(tmp_path, monkeypatch):
  """The checks above see what they are meant to see, on a planted house."""
  (tmp_path / "lm" / "model").mkdir(parents=True)
  (tmp_path / "lm" / "train").mkdir()
  (tmp_path / "setup.py").touch()
  (tmp_path / "lm" / "train" / "__init__.py").touch()
  (tmp_path / "lm" / "model" / "__init__.py").write_text(
      "def f():\n  from lm.train import x\n  import tensorflow as tf\n"
      "  print(tf, x, 'experiments.x.run')\n")
  monkeypatch.setattr(house, "ROOT", pathlib.Path(tmp_path))
  for rule in (test_rooms_import_only_from_lower_levels,
               test_lm_knows_no_experiment_and_no_config,
               test_heavy_libraries_only_where_they_belong,
               test_no_print_in_the_library):
    with pytest.raises(AssertionError):
      rule()
