"""Runs one experiment from one config file; every run.py ends in `main(run)`.

    python -m experiments.pretrain.run --config=configs/pretrain/tiny.py
        --workdir=runs/tiny --config.seed=1

`run(config, workdir, mesh)` is called with the locked config, the existing
working folder and the mesh that `config.mesh` asks for, already set. With
--plan=TOPOLOGY it is not called: the step that `program(config)` is made of is
compiled for a TPU that need not be there (`lm.launch.plan`). Faults of
the input (`UserError`, a bad flag, an unknown config key, a full disk) end in
one line on stderr and exit status 2; other hosts that are missing or gone in
status 75, a stall in 124, SIGTERM, after a checkpoint, in 143. Several hosts
end together, and the log of process 0 says what ended any of them.
"""

from collections.abc import Callable, Mapping, Sequence
import errno
import json
import os
import pathlib
import signal
import sys
import textwrap
import traceback
from typing import Any

from absl import flags
from absl import logging
import jax
import ml_collections
from ml_collections import config_flags

from lm import paths
from lm import sharding
from lm import train
from lm.launch import config_file
from lm.launch import events
from lm.launch import hosts
from lm.launch import peers
from lm.launch import runtime
from lm.launch import supervise
from lm.launch import watch
from lm.launch.plan import topology
from lm.types import UserError

Run = Callable[[ml_collections.ConfigDict, pathlib.Path, jax.sharding.Mesh],
               object]
Program = Callable[[Mapping[str, Any]], Any]
DOES_NOT_FIT_STATUS = 1
BUG_STATUS = 1
USER_ERROR_STATUS = 2
INTERRUPTED_STATUS = 130


def main(run: Run, program: Program | None = None,
         argv: Sequence[str] | None = None) -> None:
  """Parses the command line, prepares JAX and calls `run`; then exits.

  Args:
    run: trains.
    program: config -> `stage.Program`; None if there is no step to plan.
    argv: by default the process's own.
  """
  if argv is None:
    runtime.restart_with(
        topology.environment() if planning(sys.argv) else runtime.ALLOCATOR)
  sys.exit(execute(run, list(sys.argv if argv is None else argv), program))


def planning(argv: Sequence[str]) -> bool:
  """Whether a command line asks for a plan."""
  return any(a.lstrip("-").partition("=")[0] == "plan" for a in argv[1:]
             if a.startswith("-"))


def execute(run: Run, argv: Sequence[str],
            program: Program | None = None) -> int:
  """As `main`, but returns the exit status."""
  try:
    if any(a in ("-h", "--help", "-help", "--helpfull") for a in argv[1:]):
      sys.stdout.write(help_text(run, argv))
      return 0
    values = parse(argv)
    if values.plan:
      return _plan(program, values, _config_path(argv))
    if values.supervise:
      return supervise.supervise(
          paths.path(values.workdir),
          several=values.distributed or values.num_processes > 1)
    return _execute(run, values)
  except (Exception, KeyboardInterrupt) as e:
    return _say(fault(e))


def fault(error: BaseException, index: int = 0, *,
          hosts_count: int = 1) -> peers.Failure:
  """One line and an exit status for what went wrong; a bug also has a stack."""
  text, status, stack = str(error), USER_ERROR_STATUS, ""
  if isinstance(error, hosts.LostHosts) or (
      hosts_count > 1 and watch.lost_contact(error)):
    status = peers.LOST_STATUS
    text = text if isinstance(error, UserError) else text.splitlines()[0]
  elif isinstance(error, KeyboardInterrupt):
    text, status = "interrupted", INTERRUPTED_STATUS
  elif isinstance(error, paths.Unreachable):
    status = BUG_STATUS  # Nobody's fault, and it may pass.
  elif isinstance(error, OSError) and error.errno == errno.ENOSPC:
    text = (f"no space left on the disk ({error.filename or error.strerror}):"
            " free some, then run the same command again to resume")
  elif not isinstance(error, (UserError, flags.Error)):
    status, stack = BUG_STATUS, "".join(traceback.format_exception(error))
    text = f"{type(error).__name__}: {error}"
  return peers.Failure(index, text, status, stack)


def _say(failure: peers.Failure) -> int:
  sys.stderr.write(failure.stack or f"error: {failure.text}\n")
  return failure.status


def parse(argv: Sequence[str]) -> flags.FlagValues:
  """Parses our flags; the rest goes to absl's global flags.

  Raises:
    UserError: no or no such config file, an unknown config key (the nearest
      known one is named), a left-over argument.
    flags.Error: an unknown flag or a value of the wrong type.
  """
  argv = list(argv)
  values = _define(argv)
  path = _config_path(argv)
  if not path:
    raise UserError("--config=FILE is needed, for instance"
                    " --config=configs/pretrain/tiny.py (see --help)")
  if not pathlib.Path(path.split(":")[0]).is_file():
    raise UserError(f"no such config file: {path.split(':')[0]}")
  try:
    rest = values(argv, known_only=True)
  except (AttributeError, KeyError) as e:
    _raise_unknown_key(path, argv)
    raise e
  rest = flags.FLAGS(rest)
  if len(rest) > 1:
    raise UserError(f"unexpected argument {rest[1]!r}: flags begin with --")
  if not isinstance(values.config, ml_collections.ConfigDict):
    raise UserError(f"{path}: get_config() must return a ConfigDict, not"
                    f" {type(values.config).__name__}")
  if not values.workdir and not values.plan:
    raise UserError("--workdir=FOLDER is needed, for instance"
                    " --workdir=runs/first (see --help)")
  return values


def _define(argv: list[str]) -> flags.FlagValues:
  """Our flags, on flag values of their own: nothing is defined at import."""
  values = flags.FlagValues()
  values.set_gnu_getopt(True)
  config_flags.DEFINE_config_file(
      "config", None, "Config file; --config.KEY=VALUE overrides a field.",
      flag_values=values, sys_argv=argv)
  flags.DEFINE_string(
      "workdir", None, "Folder for checkpoints, metrics and results; the same"
      " command with the same folder resumes.", flag_values=values)
  flags.DEFINE_bool(
      "supervise", False, "Run in a child process and restart it from its last"
      " checkpoint when it dies.", flag_values=values)
  flags.DEFINE_bool(
      "distributed", False, "Join the other hosts of a Cloud TPU pod, Slurm or"
      " Kubernetes job (found automatically).", flag_values=values)
  flags.DEFINE_string(
      "coordinator", os.environ.get("JAX_COORDINATOR_ADDRESS"),
      "host:port of process 0, where hosts cannot be found automatically.",
      flag_values=values)
  flags.DEFINE_integer(
      "num_processes", int(os.environ.get("JAX_NUM_PROCESSES", 1)),
      "How many processes there are, with --coordinator.", flag_values=values)
  flags.DEFINE_integer(
      "process_id", int(os.environ.get("JAX_PROCESS_ID", 0)),
      "Which of them this is, with --coordinator.", flag_values=values)
  flags.DEFINE_integer(
      "join_timeout", 300, "Seconds to wait for all hosts at the start; those"
      " that are missing are named.", flag_values=values, lower_bound=1)
  flags.DEFINE_integer(
      "stall_timeout", 900, "Seconds without a finished step after which the"
      " run ends, saying which host is behind and where each one waits; 0 ="
      " never.", flag_values=values, lower_bound=0)
  flags.DEFINE_string(
      "plan", None, "Compile the step for a TPU slice, such as v5p:8x8x8 or"
      " v5e-256, and say whether it fits, how fast it would be and what it"
      " would cost; no TPU is needed, nothing is trained.", flag_values=values)
  flags.DEFINE_integer(
      "plan_slices", 1, "How many such slices, with --plan.",
      flag_values=values, lower_bound=1)
  flags.DEFINE_string(
      "plan_json", None, "A file to write the plan to, with --plan.",
      flag_values=values)
  flags.DEFINE_string(
      "plan_decode", None, "ROWSxLENGTH: plan decoding so many rows with a"
      " cache of so many tokens instead, with --plan.", flag_values=values)
  flags.DEFINE_integer(
      "cpu_devices", None, "Pretend that the CPU is so many devices, to try a"
      " pod's mesh on a laptop.", flag_values=values, lower_bound=1)
  return values


def _plan(program: Program | None, values: flags.FlagValues,
          path: str | None) -> int:
  from lm.launch.plan import decode
  from lm.launch.plan import planner
  if program is None:
    raise UserError("this experiment has no training step to plan: plan a"
                    " stage that trains, such as experiments.pretrain")
  about = dict(name=path or "", topology=values.plan,
               slices=values.plan_slices, json=values.plan_json)
  if values.plan_decode:
    fits = decode.run(program, values.config.to_dict(),
                      decode=values.plan_decode, **about)
  else:
    fits = planner.run(program, values.config.to_dict(), **about)
  return 0 if fits else DOES_NOT_FIT_STATUS


def _execute(run: Run, values: flags.FlagValues) -> int:
  config, workdir = values.config, paths.path(values.workdir)
  try:
    paths.make(workdir)
  except (FileExistsError, NotADirectoryError) as e:
    raise UserError(f"--workdir={workdir} is a file, not a folder") from e
  logging.use_absl_handler()
  runtime.quiet()
  runtime.quiet_without_accelerator()
  runtime.cpu_devices(values.cpu_devices)
  runtime.compilation_cache()
  place = hosts.find(
      auto=values.distributed, coordinator=values.coordinator,
      num_processes=values.num_processes, process_id=values.process_id,
      timeout=values.join_timeout)
  names = hosts.join(place, workdir=workdir, timeout=values.join_timeout,
                     about={"config": config.to_dict()})
  index = 0 if place is None else place.index
  watching = watch.begin(
      names, index, stall_timeout=values.stall_timeout,
      record=lambda failure: events.record(
          workdir, "error", host=names.get(failure.index),
          process=failure.index, text=failure.text))
  first = index == 0
  if not first:
    logging.set_verbosity(logging.WARNING)
  try:
    _run(run, config, workdir)
  except train.Stopped as e:  # Saved, on all hosts.
    if first:
      events.record(workdir, "stopped", step=e.step,
                    signal=signal.Signals(e.status - 128).name)
    status = e.status
  except (Exception, KeyboardInterrupt) as e:
    mine = fault(e, index, hosts_count=len(names))
    status = watching.failed(mine, lost=mine.status == peers.LOST_STATUS)
    if len(names) > 1:  # No farewell: the others may wait in a collective.
      sys.stdout.flush()
      sys.stderr.flush()
      os._exit(status)
  else:
    status = 0
    if first:
      events.record(workdir, "finished")
  watching.stop()
  return status


def _run(run: Run, config: ml_collections.ConfigDict, workdir) -> None:
  """Lays out the mesh, notes what is run, and runs it."""
  shape = config.get("mesh")
  if isinstance(shape, ml_collections.ConfigDict):
    shape = shape.to_dict()
  mesh = sharding.make_mesh(shape)
  if jax.process_index() == 0:
    text = json.dumps(config.to_dict(), indent=2, default=str)
    paths.write_bytes(workdir / "config.json", f"{text}\n".encode())
    events.record(workdir, "started", processes=jax.process_count(),
                  devices=mesh.size, kind=jax.devices()[0].device_kind)
  logging.info("%d x %s, mesh %s", mesh.size, jax.devices()[0].device_kind,
               dict(mesh.shape))
  with jax.set_mesh(mesh):
    run(config, workdir, mesh)


def _config_path(argv: Sequence[str]) -> str | None:
  for i, arg in enumerate(argv):
    name, _, value = arg.partition("=")
    if name in ("-config", "--config"):
      return value or (argv[i + 1] if i + 1 < len(argv) else None)
  return None


def _raise_unknown_key(path: str, argv: Sequence[str]) -> None:
  """Raises UserError if an override names a field that is not there."""
  known = config_file.fields(config_file.load(path))
  for arg in argv:
    name = arg.lstrip("-").partition("=")[0]
    for prefix in ("config.", "noconfig."):
      if arg.startswith("-") and name.startswith(prefix):
        key = name.removeprefix(prefix)
        if key not in known:
          raise UserError(f"{path} has no field {key!r}:"
                          f" {config_file.nearest(key, known)}")


def help_text(run: Run, argv: Sequence[str]) -> str:
  """The experiment's docstring, the flags, and the fields of --config."""
  module = sys.modules.get(run.__module__)
  spec = getattr(module, "__spec__", None)
  program = f"python -m {spec.name}" if spec else f"python {argv[0]}"
  doc = (getattr(module, "__doc__", "") or "").strip()
  text = [f"usage: {program} --config=FILE --workdir=FOLDER"
          " [--config.KEY=VALUE ...]\n", doc, "", "flags:"]
  values = _define([argv[0]])
  own = [flags.FLAGS[n] for n in sorted(flags.FLAGS)
         if module and flags.FLAGS.find_module_defining_flag(n)
         in (module.__name__, argv[0])]
  for flag in [values[n] for n in sorted(values)] + own:
    text += textwrap.wrap(f"--{flag.name}: {flag.help}", 78,
                          initial_indent="  ", subsequent_indent="      ")
  path = _config_path(argv)
  if path and pathlib.Path(path.split(":")[0]).is_file():
    text += ["", f"fields of {path}:"]
    for name, value in config_file.fields(config_file.load(path)).items():
      if not isinstance(value, ml_collections.ConfigDict):
        text.append(f"  --config.{name}={value!r}")
  else:
    text += ["", "With --config=FILE --help, the config's fields follow here."]
  return "\n".join(text) + "\n"
