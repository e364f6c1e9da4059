"""The BUILD files say what the code is: files, dependencies, visibility."""

import os
import pathlib
import shutil
import subprocess

import build_files
import house
import pytest

MEND = "run: make build-files"


class Target(dict):
  """One rule of a BUILD file: its attributes and its label."""

  def __init__(self, kind: str, folder: pathlib.Path, attributes: dict):
    super().__init__(attributes)
    self.kind, self.folder = kind, folder
    name = "" if folder == pathlib.Path(".") else str(folder)
    self.label = f"//{name}:{attributes['name']}"


def full(label: str, folder: pathlib.Path) -> str:
  """`//a/b` and `:b` as `//a/b:b`."""
  if label.startswith(":"):
    return f"//{'' if folder == pathlib.Path('.') else folder}{label}"
  return label if ":" in label else f"{label}:{label.split('/')[-1]}"


def read() -> list[Target]:
  """Every target of every BUILD file, evaluated as the Python that it is."""
  targets = []
  for top in (".", *house.SOURCES):
    pattern = "BUILD" if top == "." else "**/BUILD"
    for path in sorted((house.ROOT / top).glob(pattern)):
      folder = path.parent.relative_to(house.ROOT)

      def glob(patterns, exclude=(), folder=path.parent, **_):
        found = {p for g in patterns for p in folder.glob(g)}
        found -= {p for g in exclude for p in folder.glob(g)}
        return sorted(str(p.relative_to(folder)) for p in found
                      if p.is_file() and "__pycache__" not in p.parts)

      def rule(kind, folder=folder):
        return lambda **kw: targets.append(Target(kind, folder, kw))

      scope = {k: rule(k) for k in (
          "py_library", "py_binary", "alias", "test_suite", "package_group",
          "filegroup", "pytest_test")}
      exec(compile(path.read_text(), str(path), "exec"),
           {**scope, "glob": glob, "load": lambda *_: None})
  return targets


@pytest.fixture(scope="module")
def targets():
  return read()


def test_every_file_is_in_one_target(targets):
  owners: dict[str, list[str]] = {}
  for t in targets:
    if t.kind in ("py_library", "pytest_test"):
      for name in t.get("srcs", [t["name"] + ".py"]):
        owners.setdefault(str(t.folder / name), []).append(t.label)
  want = {str(p) for p in house.files()} - {"setup.py"}
  assert want - set(owners) == set(), f"in no BUILD file; {MEND}"
  assert set(owners) - want == set(), f"do not exist; {MEND}"
  assert {f: o for f, o in owners.items() if len(o) > 1} == {}


def test_dependencies_are_what_is_imported(targets):
  want = {full(k, pathlib.Path(".")): {full(d, pathlib.Path(".")) for d in v}
          for k, v in house.dependencies().items() if k != "//tests"}
  have = {t.label: {full(d, t.folder) for d in t.get("deps", [])}
          for t in targets if t.kind == "py_library"
          and t.label != "//tests:helpers"}
  wrong = {k: (want.get(k), have.get(k)) for k in {*want, *have}
           if want.get(k) != have.get(k)}
  assert not wrong, f"imported, and said in BUILD: {wrong}; {MEND}"


def test_tests_depend_on_what_they_import(targets):
  for t in targets:
    if t.kind == "pytest_test":
      path = t.folder / (t["name"] + ".py")
      want = {full(house.room(p), path) for p in house.our_files(path)
              if house.room(p) != "//tests"}
      have = {full(d, t.folder) for d in t["deps"]}
      assert want <= have, f"{path}: {want - have} missing; {MEND}"


def test_visibility_is_the_layering(targets):
  """A room is visible to the rooms of higher levels and to no other room."""
  groups = {t.label: t["packages"] for t in targets
            if t.kind == "package_group"}
  rooms = list(house.dependencies())
  labels = [k for k in rooms if k.startswith("//lm/")]
  for t in targets:
    if t.kind != "py_library" or t.label in ("//lm:cli", "//tests:helpers"):
      continue
    label = next((k for k in rooms if full(k, pathlib.Path(".")) == t.label),
                 None)
    if not label or not label.startswith("//lm"):
      continue
    packages = {p for v in t["visibility"] for p in groups[full(v, t.folder)]}
    for other in labels:
      allowed = house.level(other) > house.level(label)
      assert (f"//{house.package(other)}" in packages) == allowed, (
          f"{other} may{'' if allowed else ' not'} see {label}; {MEND}")


def test_the_files_are_up_to_date():
  stale = [str(p) for p, text in build_files.build_files().items()
           if not (house.ROOT / p).exists()
           or (house.ROOT / p).read_text() != text]
  assert not stale, f"{stale} differ from the code; {MEND}"


@pytest.mark.skipif(not shutil.which("bazel"), reason="no bazel here")
def test_bazel_reads_the_files_and_refuses_a_planted_import(
    targets, tmp_path):
  source = tmp_path / "source"
  source.mkdir()
  for name in ("WORKSPACE", "BUILD", ".bazelignore"):
    shutil.copy(house.ROOT / name, source)
  for name in house.SOURCES:
    if (house.ROOT / name).exists():
      shutil.copytree(house.ROOT / name, source / name,
                      ignore=shutil.ignore_patterns("__pycache__"))
  user = f"--output_user_root={tmp_path / 'bazel'}"

  def bazel(*args):
    return subprocess.run(
        ["bazel", user, "--batch", *args], cwd=source, text=True,
        capture_output=True, env={**os.environ, "USER": "tests"})

  try:
    query = bazel("query", "//...")
    assert query.returncode == 0, query.stderr
    have = {full(line, pathlib.Path(".")) for line in query.stdout.split()}
    assert {t.label for t in targets if t.kind != "package_group"} <= have
    libraries = [k for k in house.LEVELS
                 if (house.ROOT / house.package(k)).is_dir()
                 and full(k, pathlib.Path(".")) in have]
    # Libraries only: binaries and tests make Bazel fetch its C++ rules.
    build = bazel("build", "--nobuild", *libraries)
    assert build.returncode == 0, build.stderr
    room = source / "lm" / "objectives" / "BUILD"
    room.write_text(room.read_text().replace(
        "deps = [", 'deps = ["//lm/decode", ', 1))
    build = bazel("build", "--nobuild", "//lm/objectives")
    assert build.returncode and "is not visible" in build.stderr, build.stderr
  finally:  # Bazel makes its folders read-only.
    subprocess.run(["chmod", "-R", "u+w", str(tmp_path)], check=False)
