"""How long a compiled step would take, by a model that is easy to check.

The parts run one after another: the cycles that the compiler expects, the
attention kernels at an assumed share of the peak, and what of the exchanges
nothing hides. All of it is modelled: no chip has been asked.
"""

from collections.abc import Callable, Hashable, Iterable
import dataclasses
import itertools
import math
import re

from lm.launch.plan.hlo import Collective, Facts, Kernel
from lm.launch.plan.topology import Topology
from lm.model.config import ModelConfig
from lm.types import UserError

# Of the peak FLOP/s, what attention kernels are taken to reach.
KERNEL_EFFICIENCY = 0.5
# Hoffmann et al. 2203.15556, Table 3: about 20 tokens a parameter.
OPTIMAL_TOKENS = 20
_LANES = 128  # A smaller head is padded to what the matrix unit takes.
_SPLASH = re.compile(r"splash_m[hq]a_(fwd|dq|dkv)")
# Products of queries with keys, or the like, in each kernel. The backward one
# does all five if it also writes the gradient of the queries.
_PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4}
_FUSED_PRODUCTS = 5


@dataclasses.dataclass(frozen=True)
class Workload:
  """What one step achieves, on all chips together.

  Attributes:
    model_flops: that the model needs; what is computed twice counts once.
    tokens: that the step trains on, or yields.
    window: keys that a query sees, itself included; None: all before it.
  """

  model_flops: float
  tokens: int
  window: int | None = None


@dataclasses.dataclass(frozen=True)
class Charge:
  """What one collective costs in a step.

  Attributes:
    collective: which.
    share: of its chip's links to that network, those that it can use.
    wire_seconds: that it is on its way.
    exposed_seconds: of these, those in which nothing is computed.
  """

  collective: Collective
  share: float
  wire_seconds: float
  exposed_seconds: float

  @property
  def bytes(self) -> float:
    """That a device sends in a step."""
    return self.collective.count * self.collective.bytes

  @property
  def exposed_bytes(self) -> float:
    """Those sent while nothing is computed."""
    if not self.wire_seconds:
      return 0.0
    return self.bytes * self.exposed_seconds / self.wire_seconds


@dataclasses.dataclass(frozen=True)
class Traffic:
  """What a device sends in a step by collectives of one sort.

  Attributes:
    kind: 'all-gather', ...
    network: 'ici' or 'dcn'.
    source: file:line of our code; "" for those of all lines, or if unknown.
    count: of collectives.
    bytes: sent.
    exposed_bytes: of these, those sent while nothing is computed.
    exposed_seconds: that these take.
  """

  kind: str
  network: str
  source: str
  count: float
  bytes: float
  exposed_bytes: float
  exposed_seconds: float


@dataclasses.dataclass(frozen=True)
class Estimate:
  """The modelled speed of a step.

  Attributes:
    compute_seconds: of all but kernels.
    attention_seconds: of the attention kernels.
    ici_seconds: of exposed exchanges inside of a slice.
    dcn_seconds: of exposed exchanges between slices.
    step_seconds: the sum of these four.
    bound_seconds: no step of this program is faster (roofline): its FLOPs at
      the peak, or its bytes over all links. HBM traffic is not known.
    tokens_per_chip_second: of a chip, which on tpu7x is two devices.
    mfu: model FLOPs against those that all devices could do in the time.
    binds: 'compute', 'attention', 'ici' or 'dcn': which takes longest.
    uncharged: what runs but is in none of these figures.
  """

  compute_seconds: float
  attention_seconds: float
  ici_seconds: float
  dcn_seconds: float
  step_seconds: float
  bound_seconds: float
  tokens_per_chip_second: float
  mfu: float
  binds: str
  uncharged: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Budget:
  """What training on so many tokens takes; usd is None without a list price."""

  tokens: float
  days: float
  chip_hours: float
  usd: float | None


def training(config: ModelConfig, *, batch: int, length: int) -> Workload:
  """The workload of a training step on `batch` rows of `length` tokens."""
  tokens = batch * length
  keys = _mean_keys(length, config.window)
  return Workload(config.flops_per_token(keys, training=True) * tokens, tokens,
                  config.window)


def estimate(
    facts: Facts, topology: Topology, *, workload: Workload) -> Estimate:
  """The time model: compute + attention + exposed ICI + exposed DCN.

  Facts are of one device; a chip of tpu7x is two, whose links are shared.

  Raises:
    UserError: the program is for more chips than the topology has.
  """
  chip = topology.chip
  flops = [kernel_flops(kernel, workload.window) for kernel in facts.kernels]
  attention = sum(f or 0.0 for f in flops)
  seconds = {
      "compute": facts.cycles / chip.clock,
      "attention": attention / (KERNEL_EFFICIENCY * chip.flops),
  }
  busy = sum(seconds.values())
  paid = charges(facts, topology)
  bounds = [(facts.flops + attention) / chip.flops]
  for network in ("ici", "dcn"):
    own = [c for c in paid if c.collective.network == network]
    seconds[network] = _exposed_seconds(own, busy)
    bounds.append(_least_seconds(own))
  step = sum(seconds.values())
  if not step:
    raise UserError("the program has neither cycles nor kernels nor exchanges"
                    " to time: pass that of a training step")
  unknown: dict[str, float] = {}
  for kernel, known in zip(facts.kernels, flops, strict=True):
    if known is None:
      unknown[kernel.name] = unknown.get(kernel.name, 0.0) + kernel.count
  return Estimate(
      compute_seconds=seconds["compute"],
      attention_seconds=seconds["attention"],
      ici_seconds=seconds["ici"], dcn_seconds=seconds["dcn"],
      step_seconds=step, bound_seconds=max(bounds),
      tokens_per_chip_second=workload.tokens / (step * topology.chips),
      mfu=workload.model_flops / (step * chip.flops * topology.num_devices),
      binds=max(seconds, key=lambda term: seconds[term]),
      uncharged=(
          *(f"kernel {name} x {n:.0f}" for name, n in unknown.items()),
          *(f"loop {name}: trips unknown, counted as 1"
            for name in facts.unknown_trips)))


def program_flops(facts: Facts, *, window: int | None = None) -> float:
  """FLOPs of a device in a step, those of the known kernels included."""
  return facts.flops + sum(
      kernel_flops(kernel, window) or 0.0 for kernel in facts.kernels)


def kernel_flops(kernel: Kernel, window: int | None = None) -> float | None:
  """FLOPs of all runs of a kernel in a step; None if it is not known.

  Known are the splash attention kernels of JAX. Their mask is not in the text:
  queries are taken to see half of the keys, or the band of the window, as they
  do on average; a head is padded to 128.
  """
  match = _SPLASH.match(kernel.name)
  # Behind the tables that say which blocks to skip: queries, keys, values.
  arrays = [shape for dtype, shape in kernel.operands
            if dtype.startswith(("bf", "f")) and len(shape) >= 3]
  if not match or len(arrays) < 2:
    return None
  queries, keys = arrays[:2]
  *outer, head = queries
  products = _PRODUCTS[match[1]]
  # Each block of keys writes its own gradient of the queries.
  if match[1] == "dkv" and any(
      len(shape) > len(queries) for _, shape in kernel.results):
    products = _FUSED_PRODUCTS
  pairs = math.prod(outer) * _mean_keys(keys[-2], window)
  padded = -(-head // _LANES) * _LANES
  return kernel.count * products * 2 * pairs * padded


def _mean_keys(length: int, window: int | None) -> float:
  """Keys that a query sees, on average over a causal sequence."""
  width = min(window or length, length)
  return width * (1 - width / (2 * length))


def links(topology: Topology, group: int | None = None) -> int:
  """The links of a chip that a group of devices can use at a time.

  A group lies along as few dimensions of the torus as it needs. A ring takes
  two links; a line one, for all that reaches its end comes over one. A group
  that is smaller than its dimensions lies on a line in one of them.

  Args:
    topology: where.
    group: devices, of neighbouring chips; by default a whole slice.

  Returns:
    0 for a group inside of one chip.

  Raises:
    UserError: the group is larger than a slice.
  """
  whole = math.prod(topology.shape)
  chips = whole if group is None else -(-group // topology.chip.devices)
  if chips > whole:
    raise UserError(
        f"the program has groups of {group} devices, a slice of"
        f" {topology.name} {whole * topology.chip.devices}: pass the"
        " --topology that it was compiled for")
  if chips == 1:
    return 0
  sides = [(side, 1 + closed) for side, closed in
           zip(topology.shape, topology.wrap, strict=False) if side > 1]
  ways = []  # (dimensions, -links): few of the one, then many of the other.
  for count in range(1, len(sides) + 1):
    for chosen in itertools.combinations(sides, count):
      size = math.prod(side for side, _ in chosen)
      ports = [used for _, used in chosen]
      if size >= chips:
        ways.append((count, (size > chips and 2 in ports) - sum(ports)))
  return -min(ways)[1]


def charges(facts: Facts, topology: Topology) -> tuple[Charge, ...]:
  """What each collective costs, the longest exposed first."""
  found = [_charge(c, topology) for c in facts.collectives]
  return tuple(sorted(found, key=lambda c: -c.exposed_seconds))


def _charge(collective: Collective, topology: Topology) -> Charge:
  """One permute goes over one link; the cycles meanwhile hide the rest."""
  chip = topology.chip
  share, rate = 1.0, chip.dcn
  if collective.network == "ici":
    most = links(topology)
    usable = (min(1, most) if collective.kind == "collective-permute"
              else links(topology, collective.group))
    share, rate = usable / max(1, most), usable * chip.ici
  # What does not leave the chip is not charged.
  sent = collective.count * collective.bytes * chip.devices
  wire = sent / rate if rate else 0.0
  hidden = collective.count * collective.window / chip.clock
  return Charge(collective, share, wire, max(0.0, wire - hidden))


def _least_seconds(own: Iterable[Charge]) -> float:
  """If all links to the network were always busy."""
  return sum((c.share * c.wire_seconds for c in own), 0.0)


def _exposed_seconds(own: list[Charge], busy: float) -> float:
  """That a step waits for one network.

  Several exchanges may count on the same cycles to hide them. Together they
  cannot hide more than all that is computed.
  """
  alone = sum((c.exposed_seconds for c in own), 0.0)
  waiting = [c for c in own if not c.collective.overlapped]
  hiding = [c for c in own if c.collective.overlapped]
  return max(alone, sum(c.exposed_seconds for c in waiting)
             + _least_seconds(hiding) - busy)


def by_kind(paid: Iterable[Charge]) -> tuple[Traffic, ...]:
  """The traffic of every kind of collective, the most bytes first."""
  return _grouped(paid, lambda c: "")


def by_source(paid: Iterable[Charge]) -> tuple[Traffic, ...]:
  """The exposed traffic of every line of our code, the longest first."""
  rows = _grouped(paid, lambda c: c.source)
  return tuple(sorted((t for t in rows if t.exposed_seconds),
                      key=lambda t: -t.exposed_seconds))


def _grouped(paid: Iterable[Charge],
             source: Callable[[Collective], str]) -> tuple[Traffic, ...]:
  groups: dict[Hashable, list[Charge]] = {}
  for c in paid:
    key = c.collective.kind, c.collective.network, source(c.collective)
    groups.setdefault(key, []).append(c)
  rows = [
      Traffic(of[0].collective.kind, of[0].collective.network,
              source(of[0].collective),
              count=sum(c.collective.count for c in of),
              bytes=sum(c.bytes for c in of),
              exposed_bytes=sum(c.exposed_bytes for c in of),
              exposed_seconds=sum(c.exposed_seconds for c in of))
      for of in groups.values()]
  return tuple(sorted(rows, key=lambda t: -t.bytes))


def optimal_tokens(num_params: int) -> int:
  """Of the compute-optimal training run of a model (2203.15556)."""
  return OPTIMAL_TOKENS * num_params


def budget(
    tokens: float, modelled: Estimate, *, topology: Topology) -> Budget:
  """What training on `tokens` takes at the modelled speed, without pauses."""
  hours = tokens / modelled.tokens_per_chip_second / 3600
  usd = topology.chip.usd
  return Budget(tokens, days=hours / topology.chips / 24, chip_hours=hours,
                usd=None if usd is None else hours * usd)
