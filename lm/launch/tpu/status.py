"""What there is of a launch, how far its run is, and what it costs an hour."""

import json
import re
from typing import Any

from lm.launch.tpu import controller
from lm.launch.tpu import gcloud as gcloud_lib
from lm.launch.tpu import resources
from lm.launch.tpu import spec as spec_lib
from lm.launch.tpu import store as store_lib

_TAIL = 8192  # Bytes of metrics.jsonl, whose last line is wanted.


def rows(gcloud: gcloud_lib.Gcloud,
         spec: spec_lib.Spec) -> list[tuple[str, str]]:
  """All of it, as (what, value)."""
  store = store_lib.Store(gcloud, spec.workdir)
  found = resources.find(gcloud, spec.name, spec.zone)
  state = resources.state(found)
  if state == "FAILED":
    state += f": {resources.failure(found, spec).said}"
  result = [("request", f"{spec.slices} x {spec.accelerator}, {spec.zone}"
             + (", spot" if spec.spot else "")
             + (", reserved" if spec.reserved else "")),
            ("queued resource", state)]
  present = resources.nodes(gcloud, spec)
  result += [(f"node {resources.node_name(n)}", _node(n)) for n in present]
  watching = controller.find(gcloud, spec.name, spec.zone)
  result += [
      ("controller", watching.get("status", "UNKNOWN") if watching else "none"),
      ("run", _run(store)), ("progress", last_metrics(store)),
      ("newest checkpoint", newest_checkpoint(store)),
      ("cost", cost(spec, bool(present))), ("folder", spec.workdir)]
  return result


def _node(node: Any) -> str:
  hosts = len(node.get("networkEndpoints", []))
  health = node.get("health", "")
  return (node.get("state", "UNKNOWN") + (f", {health}" if health else "")
          + f", {hosts} VM{'' if hosts == 1 else 's'}")


def _run(store: store_lib.Store) -> str:
  run = store.json(store_lib.RUN)
  if not run:
    return "none yet"
  ended = store.ended(run["id"])
  bad = [row for row in ended if row.get("status") != "0"]
  if bad:
    return (f"{run['id']}: ended with status {bad[0].get('status')} on"
            f" {bad[0].get('host')}")
  return f"{run['id']}" + (f": finished on {len(ended)} VMs" if ended else "")


def last_metrics(store: store_lib.Store) -> str:
  """Step and loss of the last whole line of metrics.jsonl that has them."""
  text = store.text("metrics.jsonl", last_bytes=_TAIL) or ""
  for line in reversed(text.splitlines()):
    try:
      row = json.loads(line)
      return f"step {row['step']}, loss {row['loss']:.4g}"
    except (ValueError, KeyError, TypeError):
      continue
  return "nothing yet"


def newest_checkpoint(store: store_lib.Store) -> str:
  """Name of the checkpoint with the highest step."""
  names = [name.rstrip("/") for name in store.names("checkpoints")]
  steps = [name for name in names if re.fullmatch(r"step_\d+", name)]
  return max(steps, key=lambda s: int(s[5:]), default="none yet")


def cost(spec: spec_lib.Spec, running: bool) -> str:
  """Of an hour at list price on demand."""
  usd = spec.usd_per_hour
  if usd is None:
    return f"{spec.place.chips} chips, list price unknown"
  text = f"${usd:,.2f} an hour at list price"
  text += " on demand; spot is less" if spec.spot else ""
  return text if running else f"nothing now; {text}"
