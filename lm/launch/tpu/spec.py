"""What is asked of Cloud TPU, as a plain value that is kept as JSON."""

from collections.abc import Mapping
import dataclasses
import json
import re
from typing import Any

from lm.launch.plan import topology
from lm.types import UserError

# docs.cloud.google.com/tpu/docs/runtimes, "PyTorch and JAX".
RUNTIMES = {"v4": "tpu-ubuntu2204-base", "v5e": "v2-alpha-tpuv5-lite",
            "v5p": "v2-alpha-tpuv5", "v6e": "v2-alpha-tpuv6e"}
# Names of Compute Engine have at most 63 characters; "-controller" and the
# number of a slice are appended.
_NAME = re.compile(r"[a-z](?:[-a-z0-9]{0,48}[a-z0-9])?")
_ZONE = re.compile(r"[a-z]+-[a-z]+[0-9]+-[a-z]")
_WORKDIR = re.compile(r"gs://[a-z0-9][a-z0-9._-]{1,220}[a-z0-9](?:/[^/\s]+)+")


@dataclasses.dataclass(frozen=True)
class Spec:
  """A request for one or several equal slices.

  Attributes:
    name: of the queued resource.
    zone: for instance us-east5-b.
    accelerator: a slice, by Google Cloud's name (v6e-8) or ours (v6e:2x4);
      kept by Google's.
    workdir: gs://BUCKET/FOLDER of the run.
    project: its id; empty is gcloud's default.
    runtime_version: of the VMs; by default what Google names for JAX.
    slices: how many.
    spot: may be preempted, and is cheaper.
    reserved: from the project's reservation.
    service_account: e-mail address that the VMs act as; empty is Compute
      Engine's default.
    network: empty is "default".
    subnetwork: empty is chosen by Google.

  Raises:
    UserError: a field that cannot be.
  """

  name: str
  zone: str
  accelerator: str
  workdir: str
  project: str = ""
  runtime_version: str = ""
  slices: int = 1
  spot: bool = False
  reserved: bool = False
  service_account: str = ""
  network: str = ""
  subnetwork: str = ""

  def __post_init__(self):
    check_name(self.name)
    check_zone(self.zone)
    place = self._check_place()
    object.__setattr__(self, "accelerator", place.cloud_name)
    object.__setattr__(self, "workdir", check_workdir(self.workdir))
    if not self.runtime_version:
      object.__setattr__(self, "runtime_version", RUNTIMES[place.chip.name])
    if self.spot and self.reserved:
      raise UserError("--spot and --reserved exclude each other: reserved"
                      " capacity is not preempted")

  def _check_place(self) -> topology.Topology:
    place = topology.parse(self.accelerator, self.slices)
    if place.chip.name not in RUNTIMES:
      raise UserError(
          f"{self.accelerator}: the Cloud TPU API has no {place.chip.name},"
          f" only {', '.join(RUNTIMES)}; it is to be had on GKE (docs/tpu.md)")
    compact = topology.parse(place.cloud_name, self.slices)
    if compact.shape != place.shape:
      raise UserError(
          f"{self.accelerator}: of slices with as many chips only"
          f" {compact.name} has a name at Google Cloud, {place.cloud_name}:"
          " ask for that one")
    return place

  @property
  def place(self) -> topology.Topology:
    """The slices, for their hosts, chips and price."""
    return topology.parse(self.accelerator, self.slices)

  @property
  def nodes(self) -> tuple[str, ...]:
    """Names of the slices, as Cloud TPU numbers them.

    With --node-prefix=np they are np-0, np-1 and so on, says NodeSpec's
    MultisliceParams, docs.cloud.google.com/tpu/docs/reference/rest/v2/
    projects.locations.queuedResources.
    """
    if self.slices == 1:
      return (self.name,)
    return tuple(f"{self.name}-{i}" for i in range(self.slices))

  @property
  def usd_per_hour(self) -> float | None:
    """List price on demand of all chips; None if it is not known."""
    usd = self.place.chip.usd
    return None if usd is None else usd * self.place.chips

  def to_json(self) -> str:
    return json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True) + "\n"

  def differences(self, other: "Spec") -> list[str]:
    """Fields in which two requests differ, as "field: mine, not theirs"."""
    return [f"{f.name}: {getattr(self, f.name)!r}, not"
            f" {getattr(other, f.name)!r}"
            for f in dataclasses.fields(self)
            if getattr(self, f.name) != getattr(other, f.name)]


def from_json(text: str, *, where: str) -> Spec:
  """Reads what `to_json` wrote; fields that are not ours are ignored.

  Args:
    text: JSON.
    where: it is from, for an error.

  Raises:
    UserError: it is none.
  """
  try:
    fields: Mapping[str, Any] = json.loads(text)
    known = {f.name for f in dataclasses.fields(Spec)}
    return Spec(**{k: v for k, v in fields.items() if k in known})
  except (ValueError, TypeError, AttributeError) as e:
    raise UserError(f"{where} is not a launch of lm tpu ({e}): give another"
                    " NAME or --workdir") from e


def check_name(name: str) -> str:
  if not _NAME.fullmatch(name):
    raise UserError(f"{name!r} cannot be a name: begin with a letter, then"
                    " small letters, digits and hyphens, at most 50")
  return name


def check_zone(zone: str) -> str:
  if not _ZONE.fullmatch(zone):
    raise UserError(f"{zone!r} is not a zone: write it like us-east5-b"
                    " (docs.cloud.google.com/tpu/docs/regions-zones)")
  return zone


def check_workdir(workdir: str) -> str:
  """The folder without a slash at its end."""
  workdir = workdir.rstrip("/")
  if not _WORKDIR.fullmatch(workdir):
    raise UserError(f"--workdir={workdir} is not gs://BUCKET/FOLDER, where all"
                    " VMs and your laptop find the run")
  return workdir
