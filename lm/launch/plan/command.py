"""What `lm plan` does: plans in child processes, and reads compiled texts."""

from collections.abc import Mapping, Sequence
import ast
import os
import pathlib
import re
import subprocess
import sys

from lm.launch import config_file
from lm.launch.plan import topology as topology_lib
from lm.types import UserError


def experiment(path: str) -> str:
  """The module that runs a config, as the command in its docstring says it.

  Raises:
    UserError: there is no such config, or it shows no command.
  """
  config = config_file.load(path)
  if config.get("experiment"):
    return config.experiment
  text = ast.get_docstring(ast.parse(pathlib.Path(path).read_text())) or ""
  found = re.search(r"python -m (\S+)\s+--config=", text)
  if not found:
    raise UserError(f"{path}: its docstring shows no command 'python -m MODULE"
                    " --config=...' that would say what runs it: add one")
  return found[1]


def child(path: str, topology: str, *, slices: int = 1, json: str | None = None,
          decode: str | None = None, overrides: Sequence[str] = (),
          quiet: bool = False) -> subprocess.CompletedProcess:
  """Plans a config in a process of its own, for the compiler may end it.

  Args:
    path: of the config.
    topology: of each slice.
    slices: how many.
    json: a file to write the plan to.
    decode: plan decoding instead, of "ROWSxLENGTH".
    overrides: --config.KEY=VALUE.
    quiet: keep what it says instead of showing it.
  """
  # Refused here, at once, rather than in a process that takes seconds to start.
  place = topology_lib.parse(topology, slices)
  command = [sys.executable, "-m", experiment(path), f"--config={path}",
             f"--plan={place.name}", f"--plan_slices={slices}"]
  command += [f"--plan_json={json}"] if json else []
  command += [f"--plan_decode={decode}"] if decode else []
  return subprocess.run(
      [*command, *overrides], env=_environment(), text=True,
      capture_output=quiet, check=False)


def _environment() -> Mapping[str, str]:
  here = os.environ.get("PYTHONPATH")
  path = os.pathsep.join([str(pathlib.Path.cwd()), *([here] if here else [])])
  return os.environ | topology_lib.environment() | {"PYTHONPATH": path}


def status(process: subprocess.CompletedProcess) -> int:
  """The exit status of a child; one line if the compiler ended it."""
  if process.returncode < 0:
    raise UserError(
        f"the TPU compiler ended with signal {-process.returncode}: it may be a"
        " fault of its own; try another mesh, or fewer compiler_options")
  return process.returncode


def of_text(path: str, topology: str, *, slices: int = 1,
            json: str | None = None) -> None:
  """Prints (and writes) what the time model makes of a compiled program."""
  import rich.console
  from lm.launch.plan import planner
  from lm.launch.plan import report
  place = topology_lib.parse(topology, slices)
  try:
    text = pathlib.Path(path).read_text(encoding="utf-8")
  except (OSError, UnicodeDecodeError) as e:
    raise UserError(f"--hlo={path} cannot be read as text: give a file of"
                    f" compiled.as_text() ({type(e).__name__})") from e
  console = rich.console.Console(width=None if sys.stdout.isatty() else 100)
  plan = planner.of_text(text, place, name=path)
  if json:
    report.save(plan, json)
  console.print(report.render(plan))
