"""A small VM that watches a launch, so that no laptop has to stay open.

docs.cloud.google.com/sdk/gcloud/reference/compute/instances/{create,list,
delete}. Its account needs the roles that docs/tpu.md lists, for it deletes and
makes queued resources.
"""

import pathlib
import tempfile
from typing import Any

from lm.launch.tpu import bootstrap
from lm.launch.tpu import gcloud as gcloud_lib
from lm.launch.tpu import spec as spec_lib
from lm.launch.tpu import store as store_lib

_INSTANCES = ["compute", "instances"]


_WORKDIR_KEY = "lm-workdir"  # Of its metadata.


def name_of(name: str) -> str:
  """Of the controller of a launch."""
  return f"{name}-controller"


def find(gcloud: gcloud_lib.Gcloud, name: str, zone: str) -> Any:
  """The controller of launch `name`, as gcloud lists it; None if none."""
  rows = gcloud.json(
      [*_INSTANCES, "list", f"--zones={zone}",
       f"--filter=name={name_of(name)}"],
      what=f"look up {name_of(name)}", zone=zone)
  for row in rows or []:
    if row.get("name") == name_of(name):
      return row
  return None


def workdir_of(found: Any) -> str | None:
  """WORKDIR of the launch that a controller watches."""
  for item in (found or {}).get("metadata", {}).get("items", []):
    if item.get("key") == _WORKDIR_KEY:
      return item.get("value")
  return None


def command(spec: spec_lib.Spec, *, down: bool) -> list[str]:
  """What it runs."""
  words = ["lm", "tpu", "watch", spec.name, f"--zone={spec.zone}",
           f"--workdir={spec.workdir}"]
  words += [f"--project={spec.project}"] if spec.project else []
  return [*words, "--down"] if down else words


def create(gcloud: gcloud_lib.Gcloud, spec: spec_lib.Spec, commit: str, *,
           down: bool) -> None:
  """Makes it, unless it is there.

  Args:
    gcloud: to ask.
    spec: what it watches.
    commit: that it installs, uploaded.
    down: whether it deletes everything when the run has finished.
  """
  if find(gcloud, spec.name, spec.zone):
    return
  store = store_lib.Store(gcloud, spec.workdir)
  store.write_run(command(spec, down=down), commit, store_lib.CONTROLLER)
  with tempfile.TemporaryDirectory(prefix="lm-tpu-") as scratch:
    script = pathlib.Path(scratch) / "bootstrap.sh"
    script.write_text(bootstrap.script(
        spec.workdir, run_file=store_lib.CONTROLLER, extras=""))
    words = [*_INSTANCES, "create", name_of(spec.name), f"--zone={spec.zone}",
             "--machine-type=e2-small", "--image-family=debian-12",
             "--image-project=debian-cloud", "--boot-disk-size=30GB",
             "--scopes=cloud-platform",
             f"--metadata={_WORKDIR_KEY}={spec.workdir}",
             f"--metadata-from-file=startup-script={script}"]
    for flag, value in (("service-account", spec.service_account),
                        ("network", spec.network),
                        ("subnet", spec.subnetwork)):
      words += [f"--{flag}={value}"] if value else []
    gcloud.change(words, what=f"create {name_of(spec.name)}", zone=spec.zone)


def delete(gcloud: gcloud_lib.Gcloud, spec: spec_lib.Spec) -> bool:
  """Deletes it; returns whether there was one."""
  if not find(gcloud, spec.name, spec.zone):
    return False
  gcloud.change([*_INSTANCES, "delete", name_of(spec.name),
                 f"--zone={spec.zone}"],
                what=f"delete {name_of(spec.name)}", zone=spec.zone)
  return True
