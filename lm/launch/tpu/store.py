"""The launch's files in WORKDIR: all of its state, for any laptop to read.

    launch.json                   the request (`spec`), and if it is wanted
    launch/bootstrap.sh           what the VMs run at every boot
    launch/COMMIT.tar.gz          the repository
    launch/run.json               {"id", "commit", "command", "fetch"}: the run
    launch/controller.json        the same for the controller
    launch/finished/ID/HOST.json  that a run has ended on a host for good

Commands: docs.cloud.google.com/sdk/gcloud/reference/storage/{cp,cat,ls}; a "-"
as the source is the standard input.
"""

from collections.abc import Sequence
import json
import pathlib
import time
from typing import Any
import uuid

from lm.launch.tpu import errors
from lm.launch.tpu import gcloud as gcloud_lib
from lm.launch.tpu import spec as spec_lib
from lm.types import UserError

LAUNCH = "launch.json"
RUN = "launch/run.json"
CONTROLLER = "launch/controller.json"
BOOTSTRAP = "launch/bootstrap.sh"


class Store:
  """Files of one WORKDIR.

  Attributes:
    workdir: gs://BUCKET/FOLDER.
  """

  def __init__(self, gcloud: gcloud_lib.Gcloud, workdir: str):
    self._gcloud, self.workdir = gcloud, spec_lib.check_workdir(workdir)

  def url(self, name: str) -> str:
    return f"{self.workdir}/{name}"

  def text(self, name: str, *, last_bytes: int | None = None) -> str | None:
    """A file's text, or all of a wildcard's; None if there is none.

    Args:
      name: below WORKDIR.
      last_bytes: of the file, only so many at its end.
    """
    end = [f"--range=-{last_bytes}"] if last_bytes else []
    try:
      return self._gcloud.read(["storage", "cat", self.url(name), *end],
                               what=f"read {self.url(name)}",
                               where=self.workdir)
    except errors.GcloudError as e:
      if e.kind == "missing":
        return None
      raise

  def json(self, name: str) -> Any:
    """A file's JSON; None if there is no such file."""
    text = self.text(name)
    if text is None:
      return None
    try:
      return json.loads(text)
    except ValueError as e:
      raise UserError(f"{self.url(name)} is not JSON: remove it with gcloud"
                      " storage rm, then begin with lm tpu up") from e

  def names(self, folder: str) -> list[str]:
    """What lies in a folder, by name; folders end with a slash."""
    url = self.url(folder).rstrip("/") + "/"
    try:
      listed = self._gcloud.read(["storage", "ls", url], what=f"list {url}",
                                 where=self.workdir)
    except errors.GcloudError as e:
      if e.kind == "missing":
        return []
      raise
    found = [line.strip().removeprefix(url) for line in listed.splitlines()]
    return [name for name in found if name]

  def write(self, name: str, text: str) -> None:
    self._gcloud.change(["storage", "cp", "-", self.url(name)], text=text,
                        what=f"write {self.url(name)}", where=self.workdir)

  def upload(self, file: pathlib.Path, name: str) -> None:
    """Copies a local file, unless the name is there already."""
    self._gcloud.change(
        ["storage", "cp", str(file), self.url(name), "--no-clobber"],
        what=f"write {self.url(name)}", where=self.workdir)

  # ---------------------------------------------------------- what they mean

  def request(self) -> tuple[spec_lib.Spec, bool] | None:
    """The request of launch.json, and whether it is wanted; None if none."""
    text = self.text(LAUNCH)
    if text is None:
      return None
    spec = spec_lib.from_json(text, where=self.url(LAUNCH))
    return spec, bool(json.loads(text).get("wanted", True))

  def write_request(self, spec: spec_lib.Spec, *, wanted: bool) -> None:
    fields = json.loads(spec.to_json()) | {"wanted": wanted}
    self.write(LAUNCH, json.dumps(fields, indent=1, sort_keys=True) + "\n")

  def write_run(self, command: Sequence[str], commit: str,
                name: str = RUN, *, fetch: Sequence[str] = ()) -> str:
    """Says what shall run; returns the run's id, a new one each time.

    Args:
      command: an argument list.
      commit: whose archive is there.
      name: of the file.
      fetch: gs:// folders that a VM copies before it starts.
    """
    now = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    run_id = f"{now}-{uuid.uuid4().hex[:6]}"
    self.write(name, json.dumps(
        {"id": run_id, "commit": commit, "command": list(command),
         "fetch": list(fetch)}) + "\n")
    return run_id

  def ended(self, run_id: str) -> list[dict[str, Any]]:
    """What the hosts noted of a run that has ended for good."""
    text = self.text(f"launch/finished/{run_id}/*.json") or ""
    rows = []
    for line in text.splitlines():
      try:
        rows.append(json.loads(line))
      except ValueError:
        continue
    return [row for row in rows if isinstance(row, dict)]
