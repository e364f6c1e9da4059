"""What a compiled TPU program does in one run, read from its scheduled text.

The compiler writes its own estimate of every fusion's cycles into the text; the
trip counts of the loops, the true FLOPs, what each collective sends and what
runs meanwhile have to be read out of the schedule. Nothing here knows a chip:
cycles and bytes become seconds in `estimate`.
"""

from collections.abc import Iterator, Mapping
import dataclasses
import math
import re
from typing import TypeVar

from lm.launch.plan import hlo_text
from lm.launch.plan.hlo_text import Instruction, Module
from lm.types import UserError

KINDS = frozenset((
    "all-gather", "all-reduce", "all-to-all", "collective-broadcast",
    "collective-permute", "ragged-all-to-all", "reduce-scatter"))
# These run another computation once, in the place where they stand.
_CALLERS = frozenset((
    "async-start", "call", "call-start", "custom-call", "fusion", "map"))
_HOST_MOVES = frozenset((
    "copy", "dynamic-slice", "dynamic-update-slice", "slice"))
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_CHAIN_DONE = "async-collective-done"
_CHAIN = re.compile(r'\bchain_id="(\d+)"')
_TARGET = re.compile(r'\bcustom_call_target="([^"]*)"')
_DCN_KIND = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_RENDEZVOUS = re.compile(r'_xla_host_transfer_rendezvous="([^"]*)"')

_DCN_KINDS = {"ONE_TO_ONE": "collective-permute"}
_T = TypeVar("_T", "Collective", "Kernel")

Operand = tuple[str, tuple[int, ...]]  # (dtype, shape)


@dataclasses.dataclass(frozen=True)
class Collective:
  """One exchange between chips.

  Attributes:
    kind: 'all-gather', 'reduce-scatter', 'all-reduce', ...
    count: how often it runs in a step.
    bytes: that each chip sends in one of them on a ring of the group.
    group: chips (of slices, over DCN) that take part; None for a permute.
    overlapped: whether anything is computed between its start and its end; not
      whether that takes long enough, which depends on the network.
    window: cycles computed meanwhile: 0 if it is synchronous, inf if fusions
      that compute carry it, for then it is in their cycles.
    network: 'ici', or 'dcn' between slices.
    source: file:line of our code, "" if unknown.
    op_name: JAX's name of it.
  """

  kind: str
  count: float
  bytes: float
  group: int | None
  overlapped: bool
  window: float
  network: str
  source: str
  op_name: str


@dataclasses.dataclass(frozen=True)
class Kernel:
  """A Pallas kernel, of which the compiler knows neither cycles nor FLOPs."""

  name: str
  count: float
  operands: tuple[Operand, ...]
  results: tuple[Operand, ...]
  source: str
  op_name: str


@dataclasses.dataclass(frozen=True)
class Facts:
  """What one chip does in one run of the program.

  Attributes:
    flops: of all matrix products; those of kernels are not included.
    cycles: the compiler's estimate of all that runs in sequence.
    cycles_by_source: the same for each line of our code, "" if unknown.
    collectives: each once, however many pieces it is scheduled in; those of
      which all fields are the same are one entry.
    kernels: each place that runs one.
    host_bytes: moved between the chip's memory and the host's.
    unknown_trips: loops whose count the text does not tell, taken to run once.
  """

  flops: float
  cycles: float
  cycles_by_source: Mapping[str, float]
  collectives: tuple[Collective, ...]
  kernels: tuple[Kernel, ...]
  host_bytes: float
  unknown_trips: tuple[str, ...]

  def bytes(self, kind: str | None = None, *, overlapped: bool | None = None,
            network: str = "ici") -> float:
    """That a chip sends in a step, of one kind or of all."""
    return sum(
        c.count * c.bytes for c in self.collectives
        if c.network == network and kind in (None, c.kind)
        and overlapped in (None, c.overlapped))


@dataclasses.dataclass(frozen=True)
class _Visit:
  """A computation that runs.

  Attributes:
    computation: its name.
    times: a step.
    mode: 'sequence' (its cycles add up), 'fused' or 'async'.
    caller: the instruction that runs it, and the visit which that is in.
  """

  computation: str
  times: float
  mode: str
  caller: "tuple[_Visit, Instruction] | None" = None


def read(text: str) -> Facts:
  """Reads `compiled.as_text()` of a TPU program, ours or anybody's.

  Of a conditional the branch with the most cycles is taken.

  Raises:
    UserError: the text is something else; the line says what to pass.
  """
  module = hlo_text.parse(text)
  schedule = _Schedule(module)
  flops, host_bytes = 0.0, 0.0
  by_source: dict[str, float] = {}
  kernels: dict[Kernel, float] = {}
  collectives: dict[Collective, float] = {}
  chains: dict[tuple[str, str], list[tuple[_Visit, Instruction]]] = {}
  for visit in schedule.visits():
    for i in module.computations[visit.computation].values():
      flops += visit.times * module.flops(visit.computation, i)
      host_bytes += visit.times * _host_bytes(module, visit.computation, i)
      if visit.mode == "sequence" and (cycles := _own_cycles(i)):
        source = _origin(module, visit, i)[0]
        by_source[source] = by_source.get(source, 0) + visit.times * cycles
      if i.attribute(_TARGET) == "tpu_custom_call":
        kernel = _kernel(module, visit, i)
        kernels[kernel] = kernels.get(kernel, 0) + visit.times
      if kind := _kind(visit, i):
        chain = i.attribute(_CHAIN)
        if chain and visit.mode == "fused":
          chains.setdefault((kind, chain), []).append((visit, i))
        else:
          one = _collective(schedule, kind, visit, i)
          collectives[one] = collectives.get(one, 0) + visit.times
  for (kind, _), pieces in chains.items():
    one, count = _chain(schedule, kind, pieces)
    collectives[one] = collectives.get(one, 0) + count
  if not (flops or by_source or collectives or kernels):
    raise UserError("the HloModule holds no instruction that a TPU spends time"
                    " on: pass compiled.as_text() of a TPU program")
  return Facts(
      flops=flops, cycles=schedule.cycles(module.entry),
      cycles_by_source=by_source,
      collectives=_counted(collectives), kernels=_counted(kernels),
      host_bytes=host_bytes,
      unknown_trips=tuple(dict.fromkeys(schedule.unknown)))


class _Schedule:
  """Who runs what, how often, and how long the compiler thinks it takes."""

  def __init__(self, module: Module):
    self.module = module
    self.unknown: list[str] = []
    self._cycles: dict[str, float] = {}
    self._windows: dict[str, dict[str, float]] = {}

  def visits(self) -> Iterator[_Visit]:
    """Every computation that runs, from the entry on."""
    waiting = [_Visit(self.module.entry, 1.0, "sequence")]
    while waiting:
      visit = waiting.pop()
      yield visit
      for i in self.module.computations[visit.computation].values():
        mode = visit.mode if visit.mode != "sequence" else _mode(i)
        waiting += [
            _Visit(name, visit.times * times, mode, (visit, i))
            for name, times in self._runs(visit.computation, i) if times]

  def _runs(self, computation: str, i: Instruction) -> list[tuple[str, int]]:
    """The computations that an instruction runs, and how often."""
    called = [name for name in i.called if name in self.module.computations]
    if i.op == "while":
      trips = self.module.trips(computation, i)
      if trips is None:
        self.unknown.append(i.name)
      return [(name, 1 if trips is None else trips) for name in called]
    if i.op == "conditional" and called:
      return [(max(called, key=self.cycles), 1)]
    return [(name, 1) for name in called] if i.op in _CALLERS else []

  def cycles(self, computation: str) -> float:
    """Of one run of a computation."""
    if computation not in self._cycles:
      self._cycles[computation] = sum(
          self._cost(computation, i)
          for i in self.module.computations[computation].values())
    return self._cycles[computation]

  def _cost(self, computation: str, i: Instruction) -> float:
    cycles = _own_cycles(i)
    if _mode(i) == "sequence":
      cycles += sum(times * self.cycles(name)
                    for name, times in self._runs(computation, i))
    return cycles

  def window(self, visit: _Visit, start: Instruction) -> float:
    """Cycles computed between an asynchronous start and its end.

    What is inside of a computation starts as its caller does. One that ends in
    the next turn of a loop has the whole turn.
    """
    while visit.mode != "sequence" and visit.caller:
      visit, start = visit.caller
    computation = visit.computation
    if computation not in self._windows:
      self._windows[computation] = self._find_windows(computation)
    return self._windows[computation].get(start.name, self.cycles(computation))

  def _find_windows(self, computation: str) -> dict[str, float]:
    known = self.module.computations[computation]
    windows: dict[str, float] = {}
    begun: dict[str, float] = {}  # The cycles when each has been launched.
    sent: dict[str | None, Instruction] = {}
    now = 0.0
    for i in known.values():
      # The fusion that ends a chain is known by its name alone.
      done = i.op.endswith("-done") or i.name.startswith(_CHAIN_DONE)
      if done and (launch := _feeder(known, i, "get-tuple-element")):
        if i.op == "recv-done":  # It answers the send of its rendezvous.
          launch = sent.get(launch.attribute(_RENDEZVOUS), launch)
        start: Instruction | None = launch
        # Where there are updates, the data enters at the last of them.
        while start and start.op.endswith("-update"):
          start = _feeder(known, start)
        if start:
          windows[start.name] = now - begun.get(launch.name, now)
      now += self._cost(computation, i)
      begun[i.name] = now
      if i.op == "send":
        sent[i.attribute(_RENDEZVOUS)] = i
    return windows


def _feeder(
    known: hlo_text.Computation, i: Instruction, through: str = "",
) -> Instruction | None:
  """What makes the first operand of an instruction."""
  found = known.get(i.operands[0]) if i.operands else None
  return _feeder(known, found) if found and found.op == through else found


def _mode(i: Instruction) -> str:
  return {"fusion": "fused", "async-start": "async",
          "call-start": "async"}.get(i.op, "sequence")


def _own_cycles(i: Instruction) -> float:
  return float(i.attribute(_CYCLES) or 0)


def _host_bytes(module: Module, computation: str, i: Instruction) -> float:
  if i.op.removesuffix("-start") not in _HOST_MOVES:
    return 0.0
  moved = [a for a in (*module.operands(computation, i),
                       *hlo_text.arrays(i.type)) if a.shape]
  if len({a.host for a in moved}) < 2:
    return 0.0
  # A slice is smaller than what it is cut from or put into.
  return min(a.bytes for a in moved)


def _kernel(module: Module, visit: _Visit, i: Instruction) -> Kernel:
  """The kernel of a custom call; its count is the caller's to say."""
  source, op_name = _origin(module, visit, i)
  name = i.name.rstrip("0123456789.")
  if name in ("custom-call", "tpu_custom_call"):  # It was given no name.
    name = op_name.removesuffix("/pallas_call").rpartition("/")[2] or name
  operands, results = (
      tuple((a.dtype, a.shape) for a in found) for found in
      (module.operands(visit.computation, i), hlo_text.arrays(i.type)))
  return Kernel(name, 0.0, operands, results, source, op_name)


def _origin(module: Module, visit: _Visit, i: Instruction) -> tuple[str, str]:
  """(file:line, op_name) of an instruction.

  One that the compiler made itself has neither: it is named after what it
  fuses, then after what feeds it, then after what runs it.
  """
  known = module.computations[visit.computation]
  step: Instruction | None = i
  while step:
    inner = [x for name in step.called if step.op in _CALLERS
             for x in module.computations.get(name, {}).values()]
    inner.sort(key=lambda x: (x.op != "convolution", not x.root))
    for x in (step, *inner):
      if source := module.source(x):
        return source, i.op_name or x.op_name
    step = _feeder(known, step)
  if visit.caller and visit.mode != "sequence":
    source, op_name = _origin(module, *visit.caller)
    return source, i.op_name or op_name
  return "", i.op_name


def _kind(visit: _Visit, i: Instruction) -> str | None:
  """What an instruction sends to other chips, or a piece of it; else None."""
  if i.op == "send" and (dcn := i.attribute(_DCN_KIND)):
    return _DCN_KINDS.get(dcn) or dcn.lower().replace("_", "-")
  kind = i.op.removesuffix("-start")
  # An all-reduce of which each chip keeps a slice, fused: a reduce-scatter.
  if kind == "all-reduce" and "all-reduce-scatter" in visit.computation:
    return "reduce-scatter"
  return kind if kind in KINDS else None


def _collective(
    schedule: _Schedule, kind: str, visit: _Visit, i: Instruction,
) -> Collective:
  """One that is a single instruction; its count is the caller's to say."""
  module = schedule.module
  size = sum(a.bytes for a in module.operands(visit.computation, i))
  members = None if kind == "collective-permute" else module.members(i)
  if members:
    size *= members if kind == "all-gather" else 1
    size *= (members - 1) / members * (2 if kind == "all-reduce" else 1)
  network, window = "dcn" if i.op == "send" else "ici", 0.0
  if visit.mode == "async" or network == "dcn" or i.op.endswith("-start"):
    window = schedule.window(visit, i)
  source, op_name = _origin(module, visit, i)
  return Collective(kind, 0.0, size, members, window > 0, window, network,
                    source, op_name)


def _chain(
    schedule: _Schedule, kind: str, pieces: list[tuple[_Visit, Instruction]],
) -> tuple[Collective, float]:
  """(collective, count) of one that is cut into fusions.

  The first fusion starts it, the last ends it, and those between carry it along
  with what they compute. Without carriers it runs beside what is scheduled
  meanwhile; without a start either it is stepped, turn by turn, in a loop.
  """
  found = [_collective(schedule, kind, *piece) for piece in pieces]
  named = next((c for c in found if c.source), found[0])
  starts, carried = [], False
  for visit, i in pieces:
    targets = {x.attribute(_TARGET) for x in
               schedule.module.computations[visit.computation].values()}
    if "AsyncCollectiveStart" in targets:
      starts.append((visit, i))
    elif "AsyncCollectiveDone" not in targets:
      carried = True
  window = math.inf if carried else min(
      (schedule.window(*start) for start in starts), default=0.0)
  count = (sum(visit.times for visit, _ in starts)
           or min(visit.times for visit, _ in pieces))
  return dataclasses.replace(
      named, overlapped=window > 0, window=window), count


def _counted(counts: dict[_T, float]) -> tuple[_T, ...]:
  return tuple(dataclasses.replace(one, count=count)
               for one, count in counts.items())
