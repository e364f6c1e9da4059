"""Writes every BUILD file from what the code imports.

    python tests/build_files.py

One BUILD a room, one native py_library a room (visibility = the layering), one
py_test a test file. `build_test.py` reads the files back and checks them
against the imports, so a stale one fails.
"""

import pathlib
import re

import house

HEAD = {
    "lm": "The foundation (types, sharding, masked), the optimizers, and the"
          " `lm` command.",
    "tests": "One py_test for each test file, run by pytest.",
    "configs": "get_config() files: what the experiments run.",
    "experiments": "The package that holds the experiments.",
    "benchmarks": "One script per figure.",
}
TREE = ["house", "build_files"]  # Tests that import these read every file.


def rooms() -> dict[str, list[pathlib.Path]]:
  """The files of each room."""
  result: dict[str, list[pathlib.Path]] = {}
  for path in house.files():
    label = house.room(path)
    if label and label != "//tests":
      result.setdefault(label, []).append(path)
  return result


def target(label: str) -> str:
  return label.split(":")[1] if ":" in label else label.split("/")[-1]


def visibility(label: str) -> list[str]:
  """Who may depend on a room: the rooms of higher levels."""
  if label == "//lm:cli":
    return ["//:__pkg__", "//tests:__pkg__"]
  if label.startswith("//lm"):
    return [f"//:above_{house.level(label)}"]
  if label.startswith("//experiments"):
    return ["//experiments:__subpackages__", "//tests:__pkg__"]
  return ["//configs:__pkg__", "//tests:__pkg__"]


def listed(items) -> str:
  """A list of strings as Bazel's formatter writes it."""
  items = [f'"{i}"' for i in items]
  if len(items) < 2:
    return f"[{''.join(items)}]"
  return "[\n" + "".join(f"        {i},\n" for i in items) + "    ]"


def sources(label: str, files: list[pathlib.Path]) -> str:
  """The srcs of a library: a glob where the folder is the room."""
  folder = pathlib.Path(house.package(label))
  if ":" in label or label == "//experiments":
    return listed(p.relative_to(folder) for p in files)
  return 'glob(["**/*.py"])'


def library(label: str, files: list[pathlib.Path], deps: set[str]) -> str:
  data = ""
  if ":" not in label and label.startswith("//lm/"):
    data = ('    data = glob(["**/*"], exclude = ["**/*.py", "**/*.pyc",'
            ' "**/BUILD"]),\n')
  return (
      "py_library(\n"
      f'    name = "{target(label)}",\n'
      f"    srcs = {sources(label, files)},\n{data}"
      f"    visibility = {listed(visibility(label))},\n"
      f"    deps = {listed(sorted(deps))},\n"
      ")\n")


def binary(path: pathlib.Path, label: str) -> str:
  return (
      "py_binary(\n"
      f'    name = "{path.stem}_main",\n'
      f'    srcs = ["{path.name}"],\n'
      f'    main = "{path.name}",\n'
      f'    deps = [":{target(label)}"],\n'
      ")\n")


def test_dependencies(path: pathlib.Path, everything: set[str]) -> set[str]:
  """What a test imports, and the experiments that it starts by name."""
  deps, todo, seen = set(), [path], set()
  while todo:
    for other in house.our_files(todo.pop()):
      label = house.room(other)
      if label == "//tests" and other not in seen:
        seen.add(other)
        todo.append(other)
      elif label and label != "//tests":
        deps.add(label)
  names = house.imports(path)
  if any(n.split(".")[0] in TREE for n in names):
    return everything
  text = (house.ROOT / path).read_text()
  for name in re.findall(r"experiments[./](\w+)", text):
    if f"//experiments/{name}" in everything:
      deps.add(f"//experiments/{name}")
  if "configs/" in text and "//configs" in everything:
    deps.add("//configs")
  return deps


def tests() -> list[pathlib.Path]:
  return [p for p in house.files()
          if p.parts[0] == "tests" and p.name.endswith("_test.py")]


def test_package() -> str:
  everything = set(rooms())
  helpers = [p.relative_to("tests") for p in house.files()
             if p.parts[0] == "tests" and not p.name.endswith("_test.py")]
  text = ['load("//tests:defs.bzl", "pytest_test")\n',
          'test_suite(\n    name = "suite",\n'
          '    visibility = ["//visibility:public"],\n)\n',
          'py_library(\n    name = "helpers",\n    testonly = True,\n'
          f"    srcs = {listed(helpers)},\n"
          '    data = ["//:files"],\n)\n']
  for path in tests():
    name = str(path.relative_to("tests").with_suffix(""))
    deps = sorted(test_dependencies(path, everything))
    text.append(
        f'pytest_test(\n    name = "{name}",\n    deps = {listed(deps)},\n)\n')
  return "\n".join(text)


def root_package() -> str:
  """Aliases, the test suite, and the levels as package groups."""
  labels = sorted(rooms())
  text = ['# The levels of the house: a room at level N is visible above it,'
          ' and to\n# the aliases here, which are for the command line.\n']
  for n in sorted({house.level(k) for k in labels if k.startswith("//lm")}):
    packages = {house.package(k) for k in labels if house.level(k) > n}
    # lm/ itself holds the command at level 5 and the optimizers at level 1.
    packages |= {"configs", "benchmarks", "tests"}
    if n == 5:
      packages -= {"lm"}
    shown = [f"//{p}" for p in sorted(packages)
             if p != "experiments" and not p.startswith("experiments/")]
    text.append(f'package_group(\n    name = "above_{n}",\n    packages ='
                f' {listed(["//", *shown, "//experiments/..."])},\n)\n')
  text.append('filegroup(\n    name = "files",\n    srcs = glob(["*"],'
              ' exclude = ["bazel-*"], exclude_directories = 1),\n'
              '    visibility = ["//tests:__pkg__"],\n)\n')
  for label in labels:
    if label.startswith("//lm"):
      text.append(f'alias(\n    name = "{target(label)}",\n'
                  f'    actual = "{label}",\n)\n')
  text.append('test_suite(\n    name = "all_tests",\n'
              '    tests = ["//tests:suite"],\n)\n')
  return "\n".join(text)


def build_files() -> dict[pathlib.Path, str]:
  """The text of each BUILD file by its path."""
  result: dict[pathlib.Path, list[str]] = {}
  dependencies = house.dependencies()
  for label, files in sorted(rooms().items()):
    folder = pathlib.Path(house.package(label))
    entry = result.setdefault(folder / "BUILD", [])
    if not entry:
      note = HEAD.get(str(folder))
      entry.append(f"# {note}\n" if note else "# " + _first_line(files) + "\n")
    entry.append(library(label, files, dependencies[label]))
    for path in files:
      if path.parts[0] == "experiments" and path.name == "run.py":
        entry.append(binary(path, label))
      elif str(path) == "lm/cli.py":
        entry.append(binary(path, label))
  result[pathlib.Path("tests/BUILD")] = [f"# {HEAD['tests']}\n", test_package()]
  result[pathlib.Path("BUILD")] = [
      "# Written by tests/build_files.py, as are the BUILD files of the rooms."
      "\n", root_package()]
  return {path: "\n".join(text) for path, text in result.items()}


def _first_line(files: list[pathlib.Path]) -> str:
  for path in sorted(files, key=lambda p: p.name not in (
      "__init__.py", "run.py")):
    text = (house.ROOT / path).read_text()
    if text.startswith('"""') and text[3:].strip():
      return text[3:].splitlines()[0].removesuffix('"""')
  return "A room."


if __name__ == "__main__":
  for where, content in build_files().items():
    (house.ROOT / where).write_text(content)
