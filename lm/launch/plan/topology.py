"""TPU chips, the slices they are sold in, and the names of both.

A slice is named as the compiler does, CHIP:AxBxC in chips ("v5p:8x8x8"), or as
Google Cloud does, by a count ("v5p-1024"; v4, v5p and tpu7x count TensorCores,
two a chip). Nothing here needs a TPU; only `Topology.devices` needs libtpu.
"""

from collections.abc import Iterable
from collections.abc import Sequence
import dataclasses
import difflib
import functools
import math
import re
import typing

from lm.types import UserError

if typing.TYPE_CHECKING:
  import jax

_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """One generation of TPU.

  A chip is one JAX device, except tpu7x, whose two halves are two devices.

  Attributes:
    name: as the compiler calls it.
    cloud: as Google Cloud's names of slices begin.
    flops: bfloat16 FLOP/s of a device.
    hbm_bandwidth: bytes/s of a device.
    hbm: bytes a device has for one program: what the compiler grants, not what
      is on the chip.
    ici: bytes/s of one link to a neighbouring chip, one way.
    links: of a chip, one each way along every dimension of the torus; its
      devices share them.
    clock: Hz; the compiler's cycles are of this clock.
    dcn: bytes/s from a chip to chips of other slices.
    usd: list price of a chip-hour on demand; None if there is none.
    cores: TensorCores of a chip.
    devices: JAX devices of a chip.
    host_chips: chips of a host VM, as slices over several VMs have them.
    pod: chips of the largest slice.
  """

  name: str
  cloud: str
  flops: float
  hbm_bandwidth: float
  hbm: int
  ici: float
  links: int
  clock: float
  dcn: float
  usd: float | None
  cores: int
  devices: int
  host_chips: int
  pod: int

  @property
  def dimensions(self) -> int:
    """Of the torus: 2 or 3."""
    return self.links // 2


# Where the figures are from:
#   flops, hbm_bandwidth, pod: docs.cloud.google.com/tpu/docs/{v4,...,tpu7x}.
#     v4's bandwidth: JAX's own table (1.23 TB/s; Google rounds to 1.2). v5p:
#     of the pod, Google schedules at most 6,144 chips for a job. tpu7x: halves
#     of a chip's 2,307 TFLOP/s and 7,380 GB/s.
#   hbm: "exceeds available HBM (15.75G)" and so on, of libtpu 0.0.42.1.
#   ici: jax-ml.github.io/scaling-book/tpus (what is reached, 90 % of what is
#     stated). tpu7x is not there; Google states the same for it as for v5p.
#   clock: that at which the matrix units' FLOPs a cycle give `flops`. tpu7x: if
#     a half does as many as v6e; inferred, not published.
#   dcn: Google's pages of v5p (50 Gbit/s a chip), tpu7x (100, and for v6e) and
#     v5e (6.4 Tbit/s for 256 chips); v4: the scaling book.
#   usd: Google's billing catalogue in SkyPilot's copy (skypilot-catalog,
#     catalogs/v8/gcp/vms.csv at commit 006059e; read from a stored copy on
#     2026-11-25): v4 in us-central2, v5e in us-central1, v5p in us-east5, v6e
#     in us-east1. No list price of tpu7x was found.
CHIPS = {chip.name: chip for chip in (
    Chip(name="v4", cloud="v4", flops=275e12, hbm_bandwidth=1228e9,
         hbm=int(30.75 * _GIB), ici=45e9, links=6, clock=1.05e9, dcn=6.25e9,
         usd=3.22, cores=2, devices=1, host_chips=4, pod=4096),
    Chip(name="v5e", cloud="v5litepod", flops=197e12, hbm_bandwidth=819e9,
         hbm=int(15.75 * _GIB), ici=45e9, links=4, clock=1.5e9, dcn=3.125e9,
         usd=1.20, cores=1, devices=1, host_chips=4, pod=256),
    Chip(name="v5p", cloud="v5p", flops=459e12, hbm_bandwidth=2765e9,
         hbm=int(95.74 * _GIB), ici=90e9, links=6, clock=1.75e9, dcn=6.25e9,
         usd=4.20, cores=2, devices=1, host_chips=4, pod=8960),
    Chip(name="v6e", cloud="v6e", flops=918e12, hbm_bandwidth=1638e9,
         hbm=int(31.25 * _GIB), ici=90e9, links=4, clock=1.75e9, dcn=12.5e9,
         usd=2.70, cores=1, devices=1, host_chips=4, pod=256),
    Chip(name="tpu7x", cloud="tpu7x", flops=1153.5e12, hbm_bandwidth=3690e9,
         hbm=int(94.75 * _GIB), ici=90e9, links=6, clock=2.2e9, dcn=12.5e9,
         usd=None, cores=2, devices=2, host_chips=4, pod=9216),
)}

# v5e and v6e. The compiler takes some that cannot be had (v6e:16x32), and ends
# the process on others (v5e:16x32).
_FLAT = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
# The others, besides whole cubes of 4x4x4.
_BELOW_A_CUBE = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))


@dataclasses.dataclass(frozen=True)
class Topology:
  """One or several equal slices; one that does not exist cannot be made.

  Attributes:
    chip: of what generation.
    shape: of a slice, in chips.
    slices: of that shape, joined by the data-centre network.

  Raises:
    UserError: there is no such slice; the line names one that there is.
  """

  chip: Chip
  shape: tuple[int, ...]
  slices: int = 1

  def __post_init__(self):
    if self.slices < 1:
      raise UserError(f"slices={self.slices}: a run has at least 1")
    if self.shape not in shapes(self.chip):
      near = _nearest(self.chip, math.prod(self.shape), self.shape)
      raise _refusal(self.name, self.chip, Topology(self.chip, near).name)

  @property
  def name(self) -> str:
    """Of one slice, as the compiler calls it: v5p:8x8x8."""
    return f"{self.chip.name}:{_text(self.shape)}"

  @property
  def cloud_name(self) -> str:
    """Of one slice, as Google Cloud calls it: v5p-1024.

    It means the most compact shape; others of as many chips share the name, and
    are asked for by gcloud's --topology.
    """
    return f"{self.chip.cloud}-{math.prod(self.shape) * self.chip.cores}"

  @property
  def chips(self) -> int:
    """Of all slices."""
    return math.prod(self.shape) * self.slices

  @property
  def num_devices(self) -> int:
    """JAX devices of all slices."""
    return self.chips * self.chip.devices

  @property
  def hosts(self) -> int:
    """VMs of all slices."""
    per_slice = max(1, math.prod(self.shape) // self.chip.host_chips)
    return per_slice * self.slices

  @property
  def wrap(self) -> tuple[bool, bool, bool]:
    """Which of three dimensions are rings.

    The compiler does not infer it (v5p then gets other all-gathers). The links
    of v5e and v6e close at the full 16, those of the others around whole cubes.
    """
    if self.chip.dimensions == 2:
      return self.shape[0] == 16, self.shape[1] == 16, False
    cubes = all(side % 4 == 0 for side in self.shape)
    return cubes, cubes, cubes

  def devices(self) -> "Sequence[jax.Device]":
    """Devices to compile for; nothing runs on them.

    Raises:
      UserError: libtpu, which holds the compiler, is not installed.
    """
    try:
      import libtpu  # noqa: F401
    except ImportError as e:
      raise UserError("planning needs libtpu, the TPU compiler (for Linux): pip"
                      " install 'deliberate-lm[plan]'") from e
    from jax.experimental import topologies
    options: dict[str, typing.Any] = {}
    if self.chip.cores > self.chip.devices:
      # Two TensorCores as one device, which v4 is not by default.
      options["chip_config_name"] = "megacore"
    if math.prod(self.shape) == 1:
      options["chips_per_host_bounds"] = [1, 1, 1]  # By default 2x2x1.
    return topologies.get_topology_desc(
        platform="tpu", topology_name=self.name, num_slices=self.slices,
        wrap=list(self.wrap), **options).devices


def parse(text: str, slices: int = 1) -> Topology:
  """The topology that a name means.

  Args:
    text: "v5p:8x8x8", or Google Cloud's "v5p-1024", "v5litepod-256", "v5e-256".
    slices: how many of it.

  Raises:
    UserError: there is no such slice; the line names one that there is. The
      compiler is not asked: some impossible shapes end the process there.
  """
  text = text.strip().lower()
  match = re.fullmatch(
      r"([a-z0-9]+)(?::([0-9]{1,6}(?:x[0-9]{1,6})+)|-([0-9]{1,9}))", text)
  if not match:
    raise UserError(f"{text!r} names no TPU slice: write it as CHIP:AxBxC or as"
                    " Google Cloud does; try v5p:8x8x8 or v5p-1024")
  name, shape, count = match.groups()
  known = CHIPS | {chip.cloud: chip for chip in CHIPS.values()}
  if name not in known:
    near = CHIPS[difflib.get_close_matches(name, CHIPS, n=1, cutoff=0)[0]]
    raise UserError(f"no TPU is called {name!r}, only {_listed(CHIPS)}; try"
                    f" {Topology(near, _nearest(near, near.host_chips)).name}")
  chip = known[name]
  if shape:
    return Topology(chip, tuple(map(int, shape.split("x"))), slices)
  topology = Topology(chip, _nearest(chip, int(count) / chip.cores), slices)
  if topology.cloud_name != f"{chip.cloud}-{int(count)}":
    raise _refusal(text, chip, topology.cloud_name)
  return topology


@functools.cache
def shapes(chip: Chip) -> tuple[tuple[int, ...], ...]:
  """Every slice of a chip, small before large, compact before long."""
  if chip.dimensions == 2:
    return _FLAT
  n = chip.pod // 64
  cubes = [(4 * a, 4 * b, 4 * c) for a in range(1, n + 1)
           for b in range(a, n // a + 1) for c in range(b, n // (a * b) + 1)]
  single = [(1, 1, 1)] if chip.name == "tpu7x" else []
  return tuple(sorted([*single, *_BELOW_A_CUBE, *cubes],
                      key=lambda shape: (math.prod(shape), sum(shape))))


def _nearest(
    chip: Chip, chips: float, like: tuple[int, ...] = (),
) -> tuple[int, ...]:
  """The slice of about `chips`: `like` in its right order, else compact."""
  return min(shapes(chip), key=lambda shape: (
      abs(math.prod(shape) - chips), sorted(shape) != sorted(like)))


def _refusal(text: str, chip: Chip, instead: str) -> UserError:
  if chip.dimensions == 2:
    exist = f"{_listed(map(_text, _FLAT))} ({chip.pod} chips)"
  else:
    small = [_text(s) for s in shapes(chip) if math.prod(s) < 64]
    exist = (f"{_listed([*small, 'AxBxC'])} of multiples of 4, A <= B <= C, up"
             f" to {chip.pod} chips ({chip.pod * chip.cores} TensorCores)")
  return UserError(f"{text} does not exist: {chip.name} slices are {exist};"
                   f" more chips are more --slices; try {instead}")


def _text(shape: Iterable[int]) -> str:
  return "x".join(map(str, shape))


def _listed(names: Iterable[str]) -> str:
  *most, last = names
  return f"{', '.join(most)} and {last}"


def environment() -> dict[str, str]:
  """What must be in the environment of a planning process before it starts.

  With these the TPU compiler runs on any machine, and several at once.
  """
  return {
      "JAX_PLATFORMS": "cpu",  # Nothing but the compiler looks for a TPU.
      "TPU_SKIP_MDS_QUERY": "1",  # No metadata server to wait for.
      # What the metadata server would have said; any real slice will do, since
      # programs are compiled for the topology that they name.
      "TPU_ACCELERATOR_TYPE": "v5litepod-8",
      "TPU_WORKER_HOSTNAMES": "localhost",
      # The lock is for the chips, of which there are none.
      "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  }
