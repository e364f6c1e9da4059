"""What the sub-commands of `lm tpu` do; each returns an exit status."""

import argparse
from collections.abc import Iterator, Sequence
import contextlib
import re
import shlex

from lm.launch.tpu import bootstrap
from lm.launch.tpu import bundle
from lm.launch.tpu import controller
from lm.launch.tpu import errors
from lm.launch.tpu import gcloud as gcloud_lib
from lm.launch.tpu import resources
from lm.launch.tpu import spec as spec_lib
from lm.launch.tpu import status as status_lib
from lm.launch.tpu import store as store_lib
from lm.launch.tpu import watch as watch_lib
from lm.types import UserError

INTERRUPTED = 130
say = gcloud_lib.say


def up(args: argparse.Namespace) -> int:
  """Asks for TPU VMs, or goes on with the same request, and waits for them.

  Raises:
    UserError: it is refused, and then nothing is left of it; or there is one
      of the name that was asked for otherwise.
  """
  if not args.zone or not args.workdir:
    raise UserError("lm tpu up needs --zone=ZONE and"
                    " --workdir=gs://BUCKET/FOLDER")
  spec = spec_lib.Spec(
      name=args.name, zone=args.zone, accelerator=args.accelerator,
      workdir=args.workdir, project=args.project,
      runtime_version=args.runtime_version, slices=args.slices, spot=args.spot,
      reserved=args.reserved, service_account=args.service_account,
      network=args.network, subnetwork=args.subnetwork)
  gcloud = gcloud_lib.Gcloud(spec.project, dry_run=args.dry_run)
  store = store_lib.Store(gcloud, spec.workdir)
  try:
    found = resources.find(gcloud, spec.name, spec.zone)
  except errors.GcloudError as e:
    raise resources.with_zones(gcloud, spec, e) from e
  request = store.request()
  _check_same(spec, found, request)
  _check_free(spec, request)
  commit = bundle.send(store) if args.controller else ""
  store.write(store_lib.BOOTSTRAP, bootstrap.script(spec.workdir))
  store.write_request(spec, wanted=True)
  try:
    if found and resources.state(found) in resources.DEAD:
      say(f"{spec.name} is {resources.state(found)}: asking again")
      resources.delete(gcloud, spec, poll=args.poll)
      found = None
    if args.controller:  # First, since it costs little if it is refused.
      controller.create(gcloud, spec, commit, down=args.down)
    if not found:
      resources.create(gcloud, spec)
  except errors.GcloudError:
    _withdraw(gcloud, spec)
    raise
  if not args.dry_run and not _wait(gcloud, spec, args.poll):
    return INTERRUPTED
  say(f"next: lm tpu run {_again(spec)} -- python -m MODULE --config=FILE")
  return 0


def _withdraw(gcloud: gcloud_lib.Gcloud, spec: spec_lib.Spec) -> None:
  """Leaves nobody behind who would ask again for what was refused."""
  with contextlib.suppress(UserError):
    store_lib.Store(gcloud, spec.workdir).write_request(spec, wanted=False)
  with contextlib.suppress(UserError):
    controller.delete(gcloud, spec)


def _check_same(spec: spec_lib.Spec, found, request) -> None:
  if not found:
    return
  theirs = resources.spec_of(found)
  if theirs is None and request and request[0].name == spec.name:
    theirs = request[0]
  if theirs is None:
    raise UserError(f"{spec.name} in {spec.zone} was not made by lm tpu: take"
                    " another NAME")
  if theirs != spec:
    raise UserError(
        f"{spec.name} is there, asked for otherwise"
        f" ({'; '.join(spec.differences(theirs))}): lm tpu down"
        f" {_again(theirs)} first, or take another NAME")


def _check_free(spec: spec_lib.Spec, request) -> None:
  """Two launches must not write to one folder."""
  if request is None or not request[1]:
    return
  other = request[0]
  if (other.name, other.zone) != (spec.name, spec.zone):
    raise UserError(f"{spec.workdir} belongs to {other.name} in {other.zone}:"
                    f" lm tpu down {_again(other)} first, or take another"
                    " --workdir")


def _wait(gcloud: gcloud_lib.Gcloud, spec: spec_lib.Spec, poll: float) -> bool:
  """Waits until the VMs are there; False after Ctrl-C.

  Raises:
    UserError: the request failed; it is deleted.
  """
  try:
    with _progress() as report:
      resources.wait(gcloud, spec, poll=poll, report=report)
  except KeyboardInterrupt:
    say(f"\n{spec.name} stays requested, and costs from when it is ACTIVE: go"
        " on with the same command, or remove it with lm tpu down"
        f" {_again(spec)}")
    return False
  except errors.GcloudError as e:
    found = resources.find(gcloud, spec.name, spec.zone)
    if resources.state(found) not in resources.DEAD:
      raise
    _withdraw(gcloud, spec)
    resources.delete(gcloud, spec, poll=poll)
    raise UserError(f"{e}; the request was deleted") from e
  return True


@contextlib.contextmanager
def _progress() -> Iterator[resources.Report]:
  """A line that is rewritten; where that cannot be, a line for each state."""
  import rich.console
  console = rich.console.Console()
  if console.is_terminal:
    with console.status("") as status:
      yield lambda line: status.update(line)
    return
  seen: list[str] = []

  def report(line: str) -> None:
    state = line.partition(" for ")[0]
    if seen[-1:] != [state]:
      seen.append(state)
      say(line)

  yield report


def run(args: argparse.Namespace) -> int:
  """Sends the commit, starts the command on all VMs, and watches."""
  gcloud, spec = _known(args)
  store = store_lib.Store(gcloud, spec.workdir)
  before = {} if args.command else store.json(store_lib.RUN) or {}
  command = args.command or before.get("command")
  fetch = args.fetch or before.get("fetch", [])
  for url in fetch:
    if not re.fullmatch(r"gs://[^/]+(/[^/]+)+", url):
      raise UserError(f"--fetch={url} is not gs://BUCKET/FOLDER")
  names = [url.rpartition("/")[2] for url in fetch]
  for name in {n for n in names if names.count(n) > 1}:
    raise UserError(f"--fetch: two folders are called {name}, and both would be"
                    f" /opt/lm/data/{name}: rename one")
  if not command:
    raise UserError(f"nothing has run yet in {spec.workdir}: lm tpu run"
                    f" {_again(spec)} -- python -m MODULE --config=FILE")
  command = completed(command, spec)
  state = resources.state(resources.find(gcloud, spec.name, spec.zone))
  if state in (*resources.DEAD, "GONE", "DELETING"):
    raise UserError(f"{spec.name} is {state}: run lm tpu up first")
  commit = bundle.send(store)
  store.write(store_lib.BOOTSTRAP, bootstrap.script(spec.workdir))
  # Before the VMs are there: they then start it by themselves.
  run_id = store.write_run(command, commit, fetch=fetch)
  if not args.dry_run and not _wait(gcloud, spec, args.poll):
    return INTERRUPTED
  resources.ssh_everywhere(gcloud, spec, bootstrap.remote(spec.workdir))
  if args.dry_run:
    return 0
  say(f"started {run_id} on {', '.join(spec.nodes)}: {shlex.join(command)}")
  if controller.find(gcloud, spec.name, spec.zone):
    say(f"{controller.name_of(spec.name)} watches over it: lm tpu status"
        f" {_again(spec)}")
    return 0
  return 0 if args.detach else _watch(gcloud, spec, args)


def completed(command: Sequence[str], spec: spec_lib.Spec) -> list[str]:
  """A training run's command with the flags that every VM needs.

  Raises:
    UserError: it has another --workdir than the launch.
  """
  given = {word.partition("=")[0].lstrip("-"): word for word in command
           if word.startswith("-")}
  if "config" not in given:
    return list(command)
  named = given.get("workdir", "").partition("=")[2].rstrip("/")
  if "workdir" in given and named != spec.workdir:
    raise UserError(f"{given['workdir']} is not the launch's: leave it out, or"
                    f" say --workdir={spec.workdir}")
  wanted = {"workdir": f"--workdir={spec.workdir}"}
  if spec.place.hosts > 1:
    wanted["distributed"] = "--distributed"
  wanted["supervise"] = "--supervise"
  return [*command, *(w for name, w in wanted.items() if name not in given)]


def watch(args: argparse.Namespace) -> int:
  """Keeps a run alive until it has ended."""
  gcloud, spec = _known(args)
  return _watch(gcloud, spec, args)


def _watch(gcloud: gcloud_lib.Gcloud, spec: spec_lib.Spec, args) -> int:
  try:
    return watch_lib.watch(gcloud, spec, poll=args.poll, report=say,
                           down=args.down)
  except KeyboardInterrupt:
    say(f"\ndetached: the run goes on, but nobody asks again for {spec.name}"
        f" when it is preempted; come back with lm tpu watch {_again(spec)}, or"
        f" end it with lm tpu down {_again(spec)}")
    return 0


def status(args: argparse.Namespace) -> int:
  """Shows a table."""
  import rich.console
  import rich.table
  gcloud, spec = _known(args)
  table = rich.table.Table(spec.name, "", show_lines=False)
  for row in status_lib.rows(gcloud, spec):
    table.add_row(*row)
  rich.console.Console(soft_wrap=True).print(table, highlight=False,
                                             markup=False)
  return 0


def logs(args: argparse.Namespace) -> int:
  """Shows the journal of the unit on one VM."""
  gcloud, spec = _known(args)
  if not 0 <= args.slice < spec.slices or args.worker < 0:
    raise UserError(f"--slice={args.slice} --worker={args.worker}: {spec.name}"
                    f" has slices 0 to {spec.slices - 1}, workers from 0")
  command = ["sudo", "journalctl", f"--unit={bootstrap.UNIT}", "--no-pager",
             "--lines=200", *(["--follow"] if args.follow else [])]
  try:
    return gcloud.stream(resources.ssh_words(
        spec.nodes[args.slice], spec.zone, shlex.join(command),
        worker=str(args.worker)))
  except KeyboardInterrupt:
    return 0


def trace(args: argparse.Namespace) -> int:
  """Leaves a note for the running experiment."""
  if args.steps < 1:
    raise UserError(f"--steps={args.steps}: trace at least 1")
  gcloud, spec = _known(args)
  store_lib.Store(gcloud, spec.workdir).write(
      "trace.json", f'{{"steps": {args.steps}}}\n')
  say(f"asked for {args.steps} steps; the trace appears in"
      f" {spec.workdir}/traces")
  return 0


def down(args: argparse.Namespace) -> int:
  """Deletes TPUs and controller; safe to repeat."""
  gcloud, spec = _find(args)
  if spec is None:
    say(f"nothing is called {args.name} in {args.zone or args.workdir}: there"
        " is nothing to delete")
    return 0
  with _progress() as report:
    had = watch_lib.take_down(gcloud, spec, poll=args.poll, report=report)
  if not args.dry_run:
    say(f"{spec.name}: " + ("deleted, and nothing of it is left" if had else
                            "nothing was there") + f"; {spec.workdir} keeps its"
        f" files (gcloud storage ls {spec.workdir})")
  return 0


def _again(spec: spec_lib.Spec) -> str:
  """How to name the launch in another command."""
  project = f" --project={spec.project}" if spec.project else ""
  return f"{spec.name} --zone={spec.zone} --workdir={spec.workdir}{project}"


def _known(args) -> tuple[gcloud_lib.Gcloud, spec_lib.Spec]:
  """As `_find`; it must be there."""
  gcloud, spec = _find(args)
  if spec is None:
    raise UserError(f"nothing is called {args.name} in"
                    f" {args.zone or args.workdir}: lm tpu up makes it; of one"
                    " that is not there at the moment give --workdir")
  return gcloud, spec


def _find(args) -> tuple[gcloud_lib.Gcloud, spec_lib.Spec | None]:
  """A launch by its name and zone or --workdir: the cloud knows the rest.

  Raises:
    UserError: neither is given, or what is there is another one.
  """
  spec_lib.check_name(args.name)
  gcloud = gcloud_lib.Gcloud(args.project, dry_run=args.dry_run)
  spec = None
  if args.zone:
    spec_lib.check_zone(args.zone)
    found = resources.find(gcloud, args.name, args.zone)
    spec = resources.spec_of(found)
    if found and spec is None and not args.workdir:
      raise UserError(f"{args.name} in {args.zone} does not say that lm tpu"
                      " made it: give its --workdir, or use gcloud for it")
  elif not args.workdir:
    raise UserError(f"where is {args.name}? give --zone=ZONE, or"
                    " --workdir=gs://BUCKET/FOLDER")
  if spec is None:
    workdir = args.workdir or controller.workdir_of(
        controller.find(gcloud, args.name, args.zone))
    request = (store_lib.Store(gcloud, workdir).request() if workdir else None)
    spec = request[0] if request else None
  if spec is None:
    return gcloud, None
  for what, given, theirs in (
      ("called", args.name, spec.name), ("in", args.zone, spec.zone),
      ("kept in", (args.workdir or "").rstrip("/"), spec.workdir)):
    if given and given != theirs:
      raise UserError(f"this launch is {what} {theirs}, not {given}: lm tpu"
                      f" status {_again(spec)} shows it")
  return gcloud_lib.Gcloud(args.project or spec.project,
                           dry_run=args.dry_run), spec
