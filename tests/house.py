"""What the code imports, and which room may import which: for the tests.

A room is a folder of `lm` (or one of the few files beside them), an experiment,
the configs, the benchmarks or the tests. It is named by its Bazel label.
"""

import ast
from collections.abc import Iterator
import pathlib

ROOT = pathlib.Path(__file__).resolve().parent.parent

# A room imports only from rooms of lower levels (and from itself).
LEVELS = {
    "//lm:core": 0,
    "//lm/model": 1, "//lm/data": 1, "//lm/objectives": 1, "//lm:optim": 1,
    "//lm/decode": 2, "//lm/train": 2, "//lm/interop": 2,
    "//lm/search": 3, "//lm/rl": 3, "//lm/evals": 3, "//lm/agent": 3,
    "//lm/safety": 3,
    "//lm/serve": 4, "//lm/launch": 4,
    "//lm:cli": 5,
}
TOP = 6  # Experiments, configs, benchmarks and tests.
CORE = ("__init__", "types", "sharding", "masked", "paths")
SOURCES = ("lm", "experiments", "configs", "benchmarks", "tests")


def files() -> list[pathlib.Path]:
  """Every Python file of the project, relative to its root."""
  found = [pathlib.Path("setup.py")]
  for top in SOURCES:
    found += (p.relative_to(ROOT) for p in (ROOT / top).rglob("*.py"))
  return sorted(p for p in found if not any(
      part.startswith(".") or part == "__pycache__" for part in p.parts))


def room(path: pathlib.Path) -> str | None:
  """The label of the room that a file belongs to; None for setup.py."""
  parts = path.with_suffix("").parts
  if len(parts) == 1:
    return None
  if parts[0] == "lm":
    if len(parts) == 2:
      return "//lm:core" if parts[1] in CORE else f"//lm:{parts[1]}"
    return f"//lm/{parts[1]}"
  if parts[0] == "experiments" and len(parts) > 2:
    return f"//experiments/{parts[1]}"
  return f"//{parts[0]}"


def level(label: str) -> int:
  if label.startswith("//lm"):
    return LEVELS[label]
  return TOP


def package(label: str) -> str:
  """The folder that holds the room's BUILD file."""
  return label.removeprefix("//").split(":")[0]


def imports(path: pathlib.Path, *, top_level_only=False) -> set[str]:
  """The dotted names that a file imports, wherever in it.

  `from lm import train` counts as both lm and lm.train, as it may be either.
  """
  tree = ast.parse((ROOT / path).read_text(), str(path))
  nodes = tree.body if top_level_only else ast.walk(tree)
  here = path.with_suffix("").parts
  names: set[str] = set()
  for node in nodes:
    if isinstance(node, ast.Import):
      names.update(alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      base = here[:len(here) - node.level] if node.level else ()
      base = ".".join((*base, *filter(None, [node.module])))
      names.add(base)
      names.update(f"{base}.{alias.name}" for alias in node.names)
  return names


def our_files(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """The project's files that a file imports."""
  for name in imports(path):
    stem = pathlib.Path(*name.split("."))
    for candidate in (stem.with_suffix(".py"), stem / "__init__.py"):
      if stem.parts[0] in SOURCES and (ROOT / candidate).is_file():
        # `from lm import model` does not make lm/__init__.py a dependency.
        if candidate != pathlib.Path("lm/__init__.py"):
          yield candidate


def dependencies() -> dict[str, set[str]]:
  """For each room the rooms that it imports."""
  result: dict[str, set[str]] = {}
  for path in files():
    label = room(path)
    if label:
      found = {room(p) for p in our_files(path)} - {label, None}
      result.setdefault(label, set()).update(f for f in found if f)
  return result
