"""Keeps a run alive: what was preempted is deleted and asked for again.

The VMs then continue by themselves, for their startup script looks up in
WORKDIR what shall run. Several may watch the same launch.
"""

import time
from typing import Any

from lm.launch.tpu import controller
from lm.launch.tpu import errors
from lm.launch.tpu import gcloud as gcloud_lib
from lm.launch.tpu import resources
from lm.launch.tpu import spec as spec_lib
from lm.launch.tpu import store as store_lib
from lm.types import UserError

# Requests in a row that do not become active; then it is given up.
_REFUSALS = 5
# Failures that may pass: a quota is free again some time after the old nodes
# are gone, and another one who watches may have been quicker to ask.
_PASSING = ("quota", "capacity", "exists", "other")


def watch(gcloud: gcloud_lib.Gcloud, spec: spec_lib.Spec, *, poll: float,
          report: resources.Report, down: bool = False) -> int:
  """Watches until the run has ended for good or is taken down.

  Args:
    gcloud: to ask.
    spec: the request to repeat.
    poll: seconds between two looks.
    report: called with a line whenever something has changed.
    down: delete everything when the run has ended.

  Returns:
    0 if it finished or was taken down, or after one look of a dry run; 1 if it
    failed for good.

  Raises:
    UserError: the resource cannot be had again.
  """
  watcher = _Watcher(gcloud, spec, poll, report)
  patience = resources.Patience()
  while True:
    try:
      result = watcher.look()
      patience.renew()
    except errors.GcloudError as e:
      report(patience.bear(e))
      result = None
    if result is not None:
      report(result[1])
      if down and result[2]:
        take_down(gcloud, spec, poll=poll, report=report)
      return result[0]
    if gcloud.dry_run:
      return 0
    time.sleep(poll)


class _Watcher:
  """What has been seen so far."""

  def __init__(self, gcloud: gcloud_lib.Gcloud, spec: spec_lib.Spec,
               poll: float, report: resources.Report):
    self._gcloud, self._spec = gcloud, spec
    self._poll, self._report = poll, report
    self._store = store_lib.Store(gcloud, spec.workdir)
    self._before, self._refusals = "", 0

  def look(self) -> tuple[int, str, bool] | None:
    """Looks once, and asks again if need be.

    Returns:
      None to go on; else the exit status, a line, and whether the run ended.
    """
    spec = self._spec
    found = resources.find(self._gcloud, spec.name, spec.zone)
    state = resources.state(found)
    present = (resources.nodes(self._gcloud, spec) if state == "ACTIVE" else [])
    result = _result(self._store, present, spec)
    if result is not None:
      return (*result, True)
    lost = [n for n in present if n.get("state") in resources.LOST]
    line = f"{spec.name}: {state}" + "".join(
        f", {resources.node_name(n)} {n['state']}" for n in lost)
    if line != self._before:
      self._report(line)
      self._before = line
    if state == "ACTIVE" and not lost:
      self._refusals = 0
    if lost or state in (*resources.DEAD, "GONE"):
      if not _wanted(self._store):
        return 0, f"{spec.name} was taken down: not watching any more", False
      refused = _again(self._gcloud, spec, found, poll=self._poll,
                       report=self._report)
      self._refusals += refused is not None
      if refused is not None and self._refusals >= _REFUSALS:
        raise UserError(f"{spec.name} was refused {self._refusals} times in a"
                        f" row: {refused}")
    return None


def _again(gcloud: gcloud_lib.Gcloud, spec: spec_lib.Spec, found: Any, *,
           poll: float,
           report: resources.Report) -> errors.GcloudError | None:
  """Deletes what is left and asks again; returns why that was refused."""
  refused = None
  if found:
    if resources.state(found) == "FAILED":
      refused = resources.failure(found, spec)
    resources.delete(gcloud, spec, poll=poll, report=report)
  try:
    resources.create(gcloud, spec)
  except errors.GcloudError as e:
    if e.kind not in _PASSING:
      raise
    report(f"{spec.name}: refused, trying again: {e.said}")
    return e
  report(f"{spec.name}: asked for again"
         + (f", after: {refused.said}" if refused else ""))
  return refused


def _wanted(store: store_lib.Store) -> bool:
  request = store.request()
  return request is None or request[1]


def _result(store: store_lib.Store, present: list[Any],
            spec: spec_lib.Spec) -> tuple[int, str] | None:
  """Exit status and a line when the run has ended for good, else None."""
  run = store.json(store_lib.RUN)
  if not run:
    return None
  ended = store.ended(run["id"])
  bad = [row for row in ended if row.get("status") != "0"]
  if bad:
    return 1, (f"run {run['id']} ended with status {bad[0].get('status')} on"
               f" {bad[0].get('host')}: lm tpu logs {spec.name}"
               f" --zone={spec.zone} says why")
  # All hosts, since the others may be at their last checkpoint. The nodes say
  # how many there are: a slice of the same name may have more or fewer VMs.
  hosts = sum(len(n.get("networkEndpoints", [])) for n in present)
  if ended and len(ended) >= (hosts or spec.place.hosts):
    return 0, f"run {run['id']} finished: results are in {spec.workdir}"
  return None


def take_down(gcloud: gcloud_lib.Gcloud, spec: spec_lib.Spec, *, poll: float,
              report: resources.Report) -> bool:
  """Deletes the resource, its nodes and the controller; checks by listing.

  Returns:
    Whether there was anything.

  Raises:
    UserError: something is left.
  """
  store = store_lib.Store(gcloud, spec.workdir)
  try:  # First, so that nobody who watches asks for it again.
    request = store.request()
    if request and request[0].name == spec.name and request[1]:
      store.write_request(request[0], wanted=False)
  except UserError as e:  # What costs money is deleted all the same.
    report(f"{store.url(store_lib.LAUNCH)} cannot be changed: {e}")
  had = resources.delete(gcloud, spec, poll=poll, report=report)
  # Last, because the controller may be this very machine.
  had |= controller.delete(gcloud, spec)
  if gcloud.dry_run:
    return had
  left = resources.left_over(gcloud, spec)
  if controller.find(gcloud, spec.name, spec.zone):
    left.append(controller.name_of(spec.name))
  if left:
    raise UserError(f"still there: {', '.join(left)}; run the same again")
  return had
