"""The command `lm tpu`: its sub-commands and flags; `actions` does the work."""

import argparse

_TEXT = ("Launches runs on Cloud TPU VMs through gcloud; docs/tpu.md tells the"
         " whole way.")


class _Splitting(argparse.ArgumentParser):
  """Takes what follows the first "--" as the command to run, untouched."""

  def parse_known_args(self, args=None, namespace=None):
    args = list(args or [])
    at = args.index("--") if "--" in args else len(args)
    namespace, rest = super().parse_known_args(args[:at], namespace)
    namespace.command = args[at + 1:]
    return namespace, rest


def add(commands) -> None:
  """Adds the sub-command to argparse's `commands`."""
  parser = commands.add_parser("tpu", help=_TEXT, description=_TEXT)
  sub = parser.add_subparsers(required=True, metavar="COMMAND",
                              parser_class=_Splitting)
  _add_up(sub)
  run = _add(sub, "run", "Runs a command of this commit on all VMs and watches"
             " over it. --workdir, --distributed and --supervise are added to"
             " a training run.", changes=True)
  run.usage = ("lm tpu run NAME --zone=ZONE [--fetch=gs://BUCKET/FOLDER]"
               " [--detach] [--down] [--dry-run] [-- COMMAND ...]")
  run.add_argument("--fetch", action="append", metavar="GS_FOLDER", help=(
      "every VM first copies it to /opt/lm/data/NAME; may be repeated"))
  run.add_argument("--detach", action="store_true",
                   help="do not watch; what is preempted stays so")
  _add_down_flag(run)
  _add(sub, "status", "Shows what there is, how far the run is, what it costs.")
  logs = _add(sub, "logs", "Shows the log of a VM's run.")
  logs.add_argument("--worker", type=int, default=0, help="of a slice, from 0")
  logs.add_argument("--slice", type=int, default=0, help="from 0")
  logs.add_argument("--follow", action="store_true", help="until Ctrl-C")
  watch = _add(sub, "watch", "Keeps a run alive until it has ended: deletes"
               " what was preempted and asks for the same again.", changes=True)
  _add_down_flag(watch)
  trace = _add(sub, "trace", "Asks a running experiment for an XProf trace,"
               " which appears in WORKDIR/traces.", changes=True)
  trace.add_argument("--steps", type=int, default=5,
                     help="how many to trace, by default 5")
  _add(sub, "down", "Deletes the TPUs and the controller, never the files in"
       " the bucket; checks that nothing is left.", changes=True)


def _add_up(sub) -> None:
  up = _add(sub, "up", "Asks for TPU VMs and waits for them; the same again"
            " goes on waiting.", changes=True)
  up.add_argument("--accelerator", required=True, help=(
      "a slice: v6e-8, v5litepod-256, v5p-128 or v5p:4x4x4"))
  up.add_argument("--slices", type=int, default=1, help="how many of it")
  up.add_argument("--spot", action="store_true",
                  help="cheaper, and may be preempted")
  up.add_argument("--reserved", action="store_true",
                  help="from the project's reservation")
  up.add_argument("--runtime_version", default="", help=(
      "of the VMs; by default what Google names for JAX"))
  up.add_argument("--service_account", default="",
                  help="that the VMs act as, its e-mail address")
  up.add_argument("--network", default="")
  up.add_argument("--subnetwork", default="")
  up.add_argument("--controller", action="store_true", help=(
      "also make a small VM that watches, so that the laptop may be closed"))
  _add_down_flag(up)


def _add_down_flag(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--down", action="store_true", help=(
      "delete everything when the run has ended"))


def _add(sub, name: str, text: str, *, changes: bool = False):
  def call(args: argparse.Namespace) -> int:
    from lm.launch.tpu import actions
    if args.command:
      from lm.types import UserError
      if name != "run":
        raise UserError(f"lm tpu {name} takes no command after --")
    return getattr(actions, name)(args)

  parser = sub.add_parser(name, help=text, description=text)
  parser.set_defaults(call=call, takes_overrides=False, dry_run=False)
  parser.add_argument("name", metavar="NAME", help="of the launch")
  parser.add_argument("--zone", help="for instance us-east5-b")
  parser.add_argument("--workdir", help=(
      "gs://BUCKET/FOLDER of the run; needed by up, and where the TPUs are not"
      " there at the moment"))
  parser.add_argument("--project", default="", help="by default gcloud's own")
  parser.add_argument("--poll", type=float, default=30.0, metavar="SECONDS",
                      help="between two looks, by default 30")
  if changes:
    parser.add_argument("--dry-run", action="store_true", dest="dry_run", help=(
        "show the commands that would change something, change nothing"))
  return parser
