"""The command: its flags, and all checks in their order."""

import argparse
import os
import socket
import sys

from lm.launch.doctor import devices
from lm.launch.doctor import finding
from lm.launch.doctor import machine as machine_lib
from lm.launch.doctor import packages
from lm.launch.doctor import storage

_TEXT = ("Checks this machine, or with the flags of a run all hosts together:"
         " packages, accelerators, disk, clock, working folder, and a timed sum"
         " over all devices. Each fault comes with its fix. Exits with 1 if"
         " there is a fault.")


def add(commands) -> None:
  """Adds the sub-command to argparse's `commands`."""
  parser = commands.add_parser("doctor", help=_TEXT, description=_TEXT)
  parser.set_defaults(call=run, takes_overrides=False)
  flags(parser)


def flags(parser: argparse.ArgumentParser) -> None:
  """Defines the flags; those of hosts are as of a training run."""
  env = os.environ
  parser.add_argument("--workdir", help="a run's folder or gs://BUCKET/NAME, to"
                      " see whether it can be written")
  parser.add_argument("--json", action="store_true", help="print JSON instead")
  parser.add_argument("--distributed", action="store_true", help=(
      "join the other hosts of a Cloud TPU pod, Slurm or Kubernetes job; run it"
      " on all of them"))
  parser.add_argument("--coordinator", metavar="HOST:PORT",
                      default=env.get("JAX_COORDINATOR_ADDRESS"), help=(
                          "of process 0, where hosts cannot be found"))
  parser.add_argument("--num_processes", type=int,
                      default=env.get("JAX_NUM_PROCESSES", "1"),
                      help="how many, with --coordinator")
  parser.add_argument("--process_id", type=int,
                      default=env.get("JAX_PROCESS_ID", "0"),
                      help="which of them this is")
  parser.add_argument("--timeout", type=float, default=120, metavar="SECONDS",
                      help="for JAX to start, and for all hosts to come; by"
                      " default 120")
  parser.add_argument("--topology", help=(
      "what there should be, for instance v5e-256; by default as the TPU says"))


def run(args: argparse.Namespace) -> int:
  """Makes all checks and shows them; returns 1 if there is a fault, else 0.

  Raises:
    UserError: there is no such --topology.
  """
  # Looked at before the checks: a wrong flag is no fault of the machine.
  slices = int(os.environ.get("MEGASCALE_NUM_SLICES") or 1)
  expected = None
  if args.topology:
    from lm.launch.plan import topology
    expected = topology.parse(args.topology, slices)
  findings = [*machine_findings(args), *device_findings(args, expected, slices)]
  host = socket.gethostname()
  if args.json:
    sys.stdout.write(finding.as_json(findings, host=host) + "\n")
  else:
    title = f"lm doctor on {host}"
    if args.num_processes > 1:
      title += f", process {args.process_id} of {args.num_processes}"
    finding.report(findings, title=title,
                   width=None if sys.stdout.isatty() else 100)
  return 1 if finding.faults(findings) else 0


def machine_findings(args: argparse.Namespace) -> list[finding.Finding]:
  """What can be seen without JAX."""
  checked = finding.checked
  found = packages.installed()

  return [
      checked("python", packages.python),
      checked("jax", packages.jax, found),
      checked("libtpu", packages.libtpu, found),
      checked("requirements", packages.requirements, found),
      checked("duplicates", packages.duplicates, found),
      checked("memory", machine_lib.memory),
      checked("disk", storage.disk, args.workdir),
      checked("cache", storage.cache),
      checked("tmp", storage.tmp),
      checked("workdir", storage.workdir, args.workdir),
      checked("clock", machine_lib.clock),
  ]


def device_findings(args: argparse.Namespace, expected,
                    slices: int) -> list[finding.Finding]:
  """What JAX sees, alone or with the other hosts.

  Args:
    args: the flags.
    expected: the topology that --topology names, if it is given.
    slices: how many of them.
  """
  machine = machine_lib.look()
  # Before JAX is started, which takes the lock itself.
  lock = finding.checked("tpu lock", machine_lib.lock, machine)
  expected, workers = slice_of(machine, expected, slices)
  several = args.distributed or args.num_processes > 1
  made = devices.probe(_joining(args), timeout=args.timeout)
  return [
      lock,
      finding.checked("accelerator", devices.accelerator, made, machine,
                      distributed=several, workers=len(workers)),
      finding.checked("hosts", devices.hosts, made, expected=expected,
                      workers=workers),
      finding.checked("all-reduce", devices.all_reduce, made),
  ]


def slice_of(machine: machine_lib.Machine, expected, slices: int, *,
             ask=machine_lib.metadata):
  """The slice that this machine is a part of, as far as it is known.

  Args:
    machine: of `machine.look`.
    expected: the topology, if it is known already.
    slices: how many.
    ask: key -> attribute of the VM, or None.

  Returns:
    The topology or None, and the names of the hosts of this slice.
  """
  if not machine.tpu:
    return expected, []
  kind = machine.environment.get("TPU_ACCELERATOR_TYPE") or ask(
      "accelerator-type")
  if kind and expected is None:
    from lm.launch.plan import topology
    try:
      expected = topology.parse(kind, slices)
    except ValueError:  # v2 and v3, which are not in the table.
      pass
  names = machine.environment.get("TPU_WORKER_HOSTNAMES") or ask(
      "worker-network-endpoints") or ""
  # Either HOST or NAME:NUMBER:ADDRESS.
  workers = [n.rpartition(":")[2].strip() for n in names.split(",") if n]
  return expected, workers


def _joining(args: argparse.Namespace) -> list[str]:
  given = ["--distributed"] if args.distributed else []
  if args.num_processes > 1:
    given += [f"--num_processes={args.num_processes}",
              f"--process_id={args.process_id}"]
  if args.coordinator:
    given.append(f"--coordinator={args.coordinator}")
  return given
