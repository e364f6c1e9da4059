"""Queued resources of Cloud TPU and their nodes: make, wait for, delete.

Pages below docs.cloud.google.com/sdk/gcloud/reference/compute/tpus:
queued-resources/{create,describe,delete,list}, tpu-vm/{list,ssh},
accelerator-types/list, locations/list. States of a queued resource:
docs.cloud.google.com/tpu/docs/queued-resources and, with those of a node,
docs.cloud.google.com/tpu/docs/reference/rest/v2. A preempted node becomes
PREEMPTED (docs.cloud.google.com/tpu/docs/preemptible), its queued resource
SUSPENDED.
"""

from collections.abc import Callable
import concurrent.futures
import contextlib
import pathlib
import tempfile
import time
from typing import Any

from lm.launch.tpu import bootstrap
from lm.launch.tpu import errors
from lm.launch.tpu import gcloud as gcloud_lib
from lm.launch.tpu import spec as spec_lib
from lm.types import UserError

# The request is over, without or after having had its nodes.
DEAD = ("FAILED", "SUSPENDED")
# A node that does not come back by itself.
LOST = ("PREEMPTED", "TERMINATED")
_SPEC_KEY = "lm-spec"  # Of the nodes' metadata.
_WORKDIR_KEY = "lm-workdir"
_AT_ONCE = 16  # gclouds side by side.

_QUEUED = ["compute", "tpus", "queued-resources"]
Report = Callable[[str], None]


def find(gcloud: gcloud_lib.Gcloud, name: str, zone: str) -> Any:
  """The queued resource as the API describes it; None if there is none."""
  return gcloud.find([*_QUEUED, "describe", name, f"--zone={zone}"],
                     what=f"look up {name}", zone=zone)


def state(found: Any) -> str:
  """ACTIVE, WAITING_FOR_RESOURCES, ...; GONE for None."""
  return found.get("state", {}).get("state", "UNKNOWN") if found else "GONE"


def spec_of(found: Any) -> spec_lib.Spec | None:
  """The request that made a queued resource; None if it was not ours."""
  for node in (found or {}).get("tpu", {}).get("nodeSpec", []):
    text = node.get("node", {}).get("metadata", {}).get(_SPEC_KEY)
    if text:
      return spec_lib.from_json(text, where=found.get("name", "it"))
  return None


def create_words(spec: spec_lib.Spec) -> list[str]:
  """The command that asks for the slices, without their metadata."""
  words = [*_QUEUED, "create", spec.name, f"--zone={spec.zone}",
           f"--accelerator-type={spec.accelerator}",
           f"--runtime-version={spec.runtime_version}"]
  if spec.slices == 1:
    words.append(f"--node-id={spec.name}")
  else:
    words += [f"--node-count={spec.slices}", f"--node-prefix={spec.name}"]
  words += ["--spot"] if spec.spot else []
  words += ["--reserved"] if spec.reserved else []
  for flag, value in (("service-account", spec.service_account),
                      ("network", spec.network),
                      ("subnetwork", spec.subnetwork)):
    words += [f"--{flag}={value}"] if value else []
  # What a VM may do is then said by the roles of its account alone.
  return [*words, "--scopes=https://www.googleapis.com/auth/cloud-platform"]


@contextlib.contextmanager
def _metadata(spec: spec_lib.Spec):
  """Flags for the nodes' metadata, whose values are in files meanwhile."""
  with tempfile.TemporaryDirectory(prefix="lm-tpu-") as scratch:
    script = pathlib.Path(scratch) / "bootstrap.sh"
    script.write_text(bootstrap.script(spec.workdir))
    request = pathlib.Path(scratch) / "spec.json"
    request.write_text(spec.to_json())
    yield [f"--metadata={_WORKDIR_KEY}={spec.workdir}",
           "--metadata-from-file="
           f"startup-script={script},{_SPEC_KEY}={request}"]


def create(gcloud: gcloud_lib.Gcloud, spec: spec_lib.Spec) -> None:
  """Asks for the slices; leaves nothing behind if that is refused.

  Raises:
    GcloudError: refused.
  """
  try:
    with _metadata(spec) as flags:
      gcloud.change([*create_words(spec), *flags], what=f"create {spec.name}",
                    accelerator=spec.accelerator, zone=spec.zone)
  except errors.GcloudError as e:
    # A request that was taken and then failed still counts against the quota.
    found = None
    with contextlib.suppress(UserError):
      found = find(gcloud, spec.name, spec.zone)
    if state(found) in DEAD and spec_of(found) == spec:
      delete(gcloud, spec, poll=1.0)
    raise with_zones(gcloud, spec, e) from e


def with_zones(gcloud: gcloud_lib.Gcloud, spec: spec_lib.Spec,
                error: errors.GcloudError) -> errors.GcloudError:
  """Names the zones that have the accelerator, if it is that."""
  zones = []
  if error.kind == "zone":
    with contextlib.suppress(UserError):
      zones = zones_with(gcloud, spec.accelerator)
  if not zones:
    return error
  others = f", or {', '.join(zones[1:])}" if zones[1:] else ""
  return errors.GcloudError(
      f"{spec.accelerator} cannot be had in {spec.zone} ({error.said}): give"
      f" --zone={zones[0]}{others}", kind="zone", said=error.said)


def zones_with(gcloud: gcloud_lib.Gcloud, accelerator: str) -> list[str]:
  """Zones in which an accelerator type is offered."""
  rows = gcloud.json(["compute", "tpus", "locations", "list"],
                     what="list the zones")
  zones = sorted(row["locationId"] for row in rows or [])

  def has(zone: str) -> bool:
    with contextlib.suppress(UserError):
      types = gcloud.json(
          ["compute", "tpus", "accelerator-types", "list", f"--zone={zone}"],
          what="list accelerator types", zone=zone)
      return any(t.get("type") == accelerator for t in types or [])
    return False

  with concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as pool:
    return [zone for zone, it in zip(zones, pool.map(has, zones)) if it]


class Patience:
  """Bears failed looks of a kind that passes, such as a lost network."""

  LIMIT = 120  # In a row: an hour at the usual pace.

  def __init__(self):
    self._failed = 0

  def bear(self, error: errors.GcloudError) -> str:
    """A line to report; raises the error when it will not pass."""
    self._failed += 1
    if error.kind != "other" or self._failed >= self.LIMIT:
      raise error
    return f"trying again: {error}"

  def renew(self) -> None:
    """A look has succeeded."""
    self._failed = 0


def wait(gcloud: gcloud_lib.Gcloud, spec: spec_lib.Spec, *, poll: float,
         report: Report) -> None:
  """Waits until the slices are there.

  Args:
    gcloud: to ask.
    spec: what was asked for.
    poll: seconds between two looks.
    report: called at each look with the state, and how long it has lasted.

  Raises:
    GcloudError: the request failed; it is still there and to be deleted.
    UserError: it was deleted by somebody else.
  """
  before, since, patience = "", time.monotonic(), Patience()
  while True:
    try:
      found = find(gcloud, spec.name, spec.zone)
    except errors.GcloudError as e:
      report(patience.bear(e))
      time.sleep(poll)
      continue
    patience.renew()
    now = state(found)
    if now != before:
      before, since = now, time.monotonic()
    report(f"{spec.name}: {now} for {duration(time.monotonic() - since)}")
    if now == "ACTIVE":
      return
    if now in DEAD:
      raise with_zones(gcloud, spec, failure(found, spec))
    if now in ("GONE", "DELETING"):
      raise UserError(f"{spec.name} was deleted while it was waited for: run"
                      " lm tpu up again")
    time.sleep(poll)


def failure(found: Any, spec: spec_lib.Spec) -> errors.GcloudError:
  """Why a request is dead."""
  about = found["state"]
  said = about.get("failedData", {}).get("error", {}).get("message", "")
  return errors.explained(said or f"the request is {state(found)}",
                          what=f"get {spec.accelerator}",
                          accelerator=spec.accelerator, zone=spec.zone)


def delete(gcloud: gcloud_lib.Gcloud, spec: spec_lib.Spec, *, poll: float,
           report: Report = lambda line: None) -> bool:
  """Deletes a queued resource with its nodes and waits until all are gone.

  Args:
    gcloud: to ask.
    spec: whose name, zone and slices.
    poll: seconds between two looks.
    report: called with a line at each look.

  Returns:
    Whether there was one.
  """
  found = find(gcloud, spec.name, spec.zone)
  if not found:
    return False
  if state(found) != "DELETING":
    try:
      gcloud.change(
          [*_QUEUED, "delete", spec.name, f"--zone={spec.zone}", "--force",
           "--async"], what=f"delete {spec.name}", zone=spec.zone)
    except errors.GcloudError as e:
      if e.kind != "missing":  # Somebody else was quicker.
        raise
  since = time.monotonic()
  while not gcloud.dry_run:
    found = find(gcloud, spec.name, spec.zone)
    left = nodes(gcloud, spec)
    if not found and not left:
      break
    report(f"{spec.name}: {state(found)}, {len(left)} nodes left, after"
           f" {duration(time.monotonic() - since)}")
    time.sleep(poll)
  return True


def nodes(gcloud: gcloud_lib.Gcloud, spec: spec_lib.Spec) -> list[Any]:
  """The nodes there are of a request, in the order of its slices."""
  rows = gcloud.json(
      ["compute", "tpus", "tpu-vm", "list", f"--zone={spec.zone}"],
      what=f"list the nodes of {spec.name}", zone=spec.zone)
  by_name = {node_name(row): row for row in rows or []}
  return [by_name[name] for name in spec.nodes if name in by_name]


def node_name(node: Any) -> str:
  """Without its project and zone; also of a queued resource."""
  return node.get("name", "").rpartition("/")[2]


def left_over(gcloud: gcloud_lib.Gcloud, spec: spec_lib.Spec) -> list[str]:
  """Whatever queued resource or node of that name is still listed."""
  rows = gcloud.json([*_QUEUED, "list", f"--zone={spec.zone}"],
                     what="list the queued resources", zone=spec.zone)
  found = [f"queued resource {spec.name}" for row in rows or []
           if node_name(row) == spec.name]
  return found + [f"node {node_name(n)}" for n in nodes(gcloud, spec)]


def ssh_words(node: str, zone: str, command: str, *,
              worker: str = "all") -> list[str]:
  """The command that runs another one on workers of a node."""
  return ["compute", "tpus", "tpu-vm", "ssh", node, f"--zone={zone}",
          f"--worker={worker}", f"--command={command}"]


def ssh_everywhere(gcloud: gcloud_lib.Gcloud, spec: spec_lib.Spec,
                   command: str) -> None:
  """Runs a command on all workers of all slices, side by side.

  Raises:
    GcloudError: it failed on one; the others have done it.
  """
  def one(node: str, command=command, worker="all") -> None:
    gcloud.change(ssh_words(node, spec.zone, command, worker=worker),
                  what=f"run on {node}", zone=spec.zone)

  if spec.slices > 1:  # The very first ssh makes the user's key.
    one(spec.nodes[0], "true", "0")
  at_once = 1 if gcloud.dry_run else _AT_ONCE  # A dry run shows an order.
  with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
    for done in [pool.submit(one, node) for node in spec.nodes]:
      done.result()


def duration(seconds: float) -> str:
  """Of seconds, for people."""
  minutes, rest = divmod(int(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return (f"{hours} h {minutes} min" if hours else
          f"{minutes} min {rest} s" if minutes else f"{rest} s")
