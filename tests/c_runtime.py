"""Compiles lm/interop/run.c once for all tests of a process."""

import functools
import pathlib
import shutil
import subprocess
import tempfile

import house
import pytest

_FLAGS = {"plain": ("-O2", "-march=native", "-fopenmp"),
          "sanitized": ("-O1", "-g", "-fopenmp",
                        "-fno-sanitize-recover=all",
                        "-fsanitize=address,undefined")}


@functools.cache
def _folder() -> tempfile.TemporaryDirectory:
  return tempfile.TemporaryDirectory(prefix="run_c_")


@functools.cache
def program(kind: str = "plain") -> pathlib.Path:
  """The compiled program; skips the test where there is no C compiler."""
  compiler = shutil.which("cc")
  if compiler is None:
    pytest.skip("there is no C compiler: install one to run these tests")
  out = pathlib.Path(_folder().name) / kind
  done = subprocess.run(
      [compiler, "-std=c99", "-Wall", "-Wextra", "-Werror", *_FLAGS[kind],
       str(house.ROOT / "lm/interop/run.c"), "-lm", "-o", str(out)],
      capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  return out
