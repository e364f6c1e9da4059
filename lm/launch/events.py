"""What happened to a run, one line each in WORKDIR/events.jsonl.

    {"time": 1764090000.0, "event": "stopped", "signal": "SIGTERM", "step": 40}

Events: started, stopped (by a signal, saved), error, finished. They outlive the
machines: where the working folder is a bucket, that is where one reads what
ended a run.
"""

import json
import time
from typing import Any

from lm import paths
from lm.types import UserError

FILE = "events.jsonl"


def record(workdir: Any, event: str, **fields: Any) -> None:
  """Adds a line; a folder that cannot be written is not worth a run.

  Args:
    workdir: of the run, local or a bucket's.
    event: see above.
    **fields: anything that JSON can say.
  """
  line = json.dumps({"time": round(time.time(), 3), "event": event, **fields})
  path = workdir / FILE
  try:
    # Objects of a bucket cannot be appended to; there are few lines.
    before = paths.read_bytes(path) if paths.is_file(path) else b""
    paths.write_bytes(path, before + line.encode() + b"\n")
  except (UserError, OSError):
    pass


def read(workdir: Any) -> list[dict[str, Any]]:
  """All events in order; torn lines are left out."""
  path, found = workdir / FILE, []
  try:
    lines = paths.read_bytes(path).decode(errors="replace").splitlines()
  except (UserError, OSError):
    return []
  for line in lines:
    try:
      found.append(json.loads(line))
    except ValueError:
      continue
  return [row for row in found if isinstance(row, dict)]


def starts(workdir: Any) -> int:
  """How often a run was started in this folder."""
  return sum(row.get("event") == "started" for row in read(workdir))
