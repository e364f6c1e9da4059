"""A plan: what the compiler says of a training step, and what it would cost.

What is read from the compiled program and what is modelled stay apart, in the
JSON (everything under "modelled") as on the screen (labelled so).
"""

from collections.abc import Mapping
import dataclasses
import json
import math
import pathlib
import re
import textwrap
import typing
from typing import Any

from lm.launch.plan import topology as topology_lib
from lm.launch.plan.estimate import Budget, Estimate, OPTIMAL_TOKENS, Traffic
from lm.launch.plan.topology import Topology
from lm.model import remat
from lm.model.config import ModelConfig
from lm.types import UserError

if typing.TYPE_CHECKING:
  import rich.console
  import rich.table

VERSION = 1  # Of the JSON.
_GIB = 2**30
_WIDTH = 78  # Of a docstring's lines.
_SHOWN = 5  # Exposed source lines on the screen; the JSON has all.
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": _GIB, "T": 2**40}
_SHORTAGE = re.compile(
    r"memory (?:on|in memory space) HBM\b.*?(\d+(?:\.\d+)?)([KMGT]?)B?\b"
    r".*?(\d+(?:\.\d+)?)([KMGT]?)B?\b", re.DOTALL | re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Modelled:
  """What no chip has confirmed.

  Attributes:
    estimate: the time of a step.
    collectives: a row for each kind.
    exposed: a row for each line of our code that waits, the longest first.
    budget: of the config's tokens; None if it does not train.
    optimal: of the compute-optimal number of tokens; likewise.
  """

  estimate: Estimate
  collectives: tuple[Traffic, ...] = ()
  exposed: tuple[Traffic, ...] = ()
  budget: Budget | None = None
  optimal: Budget | None = None


@dataclasses.dataclass(frozen=True)
class Plan:
  """What is known of a step before there is a TPU.

  Attributes:
    config: its file.
    topology: of one slice, as the compiler calls it.
    cloud_name: as Google Cloud does.
    chips: of all slices.
    slices: how many.
    mesh: size of each axis.
    versions: of jax and libtpu.
    options: the compiler's, where they are not the defaults.
    fits: whether the compiler takes it.
    peak_bytes: of a device's HBM; if it does not fit, what was asked for.
    granted_bytes: that the compiler grants a device.
    memory_bytes: of a device at the peak, by kind (parameters, ...).
    compile_seconds: that the compiler took here.
    model_flops: that the model needs in a step, on all devices.
    program_flops: that the program does, kernels included; None if unknown.
    host_bytes: moved between a device and its host in a step.
    modelled: None if it does not fit.
    notes: what to do, if anything.
  """

  config: str
  topology: str
  cloud_name: str
  chips: int
  slices: int
  mesh: Mapping[str, int]
  versions: Mapping[str, str]
  options: Mapping[str, str]
  fits: bool
  peak_bytes: int
  granted_bytes: int
  memory_bytes: Mapping[str, int]
  compile_seconds: float
  model_flops: float
  program_flops: float | None = None
  host_bytes: float = 0.0
  modelled: Modelled | None = None
  notes: tuple[str, ...] = ()

  def to_json(self) -> str:
    """The field names are the keys, and say the units."""
    document = {"plan": VERSION, **dataclasses.asdict(self)}
    return json.dumps(document, indent=2) + "\n"

  @property
  def place(self) -> str:
    """What it runs on: 4 x v5p:8x8x8 (v5p-1024)."""
    times = f"{self.slices} x " if self.slices > 1 else ""
    return f"{times}{self.topology} ({self.cloud_name})"

  @property
  def not_charged(self) -> tuple[str, ...]:
    """What the modelled time leaves out."""
    host = (f"{self.host_bytes / 1e9:.1f} GB between chip and host",)
    return ((self.modelled.estimate.uncharged if self.modelled else ())
            + (host if self.host_bytes else ()))


def save(plan: Plan, path: str) -> None:
  """Writes a plan as JSON, and the folder it is to be in."""
  file = pathlib.Path(path)
  file.parent.mkdir(parents=True, exist_ok=True)
  file.write_text(plan.to_json())


def from_json(text: str) -> Plan:
  """The plan that `Plan.to_json` wrote.

  Raises:
    UserError: it is something else, or of another version.
  """
  try:
    document = json.loads(text)
    if document.pop("plan") != VERSION:
      raise ValueError
    if found := document["modelled"]:
      found["estimate"]["uncharged"] = tuple(found["estimate"]["uncharged"])
      document["modelled"] = Modelled(
          estimate=Estimate(**found["estimate"]),
          collectives=tuple(Traffic(**row) for row in found["collectives"]),
          exposed=tuple(Traffic(**row) for row in found["exposed"]),
          budget=found["budget"] and Budget(**found["budget"]),
          optimal=found["optimal"] and Budget(**found["optimal"]))
    document["notes"] = tuple(document["notes"])
    return Plan(**document)
  except (AttributeError, KeyError, TypeError, ValueError) as e:
    raise UserError(f"this is no plan of version {VERSION}: write it again with"
                    " lm plan --json=FILE") from e


def render(plan: Plan) -> "rich.console.RenderableType":
  """The plan for a screen of 100 columns, the verdict first."""
  import rich.console
  import rich.table
  import rich.text
  verdict = ("FITS", "bold green") if plan.fits else ("DOES NOT FIT",
                                                      "bold red")
  where = f"{plan.config} on {plan.place}, {plan.chips:,} chips"
  headline = (rich.text.Text.assemble(
      verdict, f"  {memory_text(plan)}: {where}") if plan.memory_bytes
      else rich.text.Text(f"A compiled text: {where}", style="bold"))
  facts = rich.table.Table.grid(padding=(0, 2))
  for key, value in _rows(plan):
    facts.add_row(rich.text.Text(key, style="bold"), rich.text.Text(value))
  shown: list[Any] = [headline, facts]
  if plan.modelled and plan.modelled.collectives:
    shown += [_kinds(plan.modelled.collectives)]
  if plan.modelled and plan.modelled.exposed:
    shown += [_sources(plan.modelled.exposed[:_SHOWN])]
  shown += [rich.text.Text(note, style="yellow") for note in plan.notes]
  return rich.console.Group(*shown)


def _rows(plan: Plan) -> list[tuple[str, str]]:
  """(key, value) of what is told in words."""
  rows = []
  if plan.modelled:
    e = plan.modelled.estimate
    rows += [
        ("step (modelled)",
         f"{seconds_text(e.step_seconds)} = compute"
         f" {seconds_text(e.compute_seconds)} + attention"
         f" {seconds_text(e.attention_seconds)} + exposed ICI"
         f" {seconds_text(e.ici_seconds)} and DCN"
         f" {seconds_text(e.dcn_seconds)}"),
        ("speed (modelled)",
         f"{_speed(e)}; roofline bound {seconds_text(e.bound_seconds)} a step"),
        ("binds (modelled)", e.binds)]
    if plan.modelled.budget:
      rows += [("cost (modelled)", budget_text(plan.modelled.budget))]
    if plan.modelled.optimal:
      rows += [("optimum (modelled)", f"{budget_text(plan.modelled.optimal)}"
                f" ({OPTIMAL_TOKENS} a parameter)")]
  if plan.memory_bytes:
    rows += [("memory", ", ".join(
        f"{kind} {size / _GIB:.2f}" for kind, size in
        plan.memory_bytes.items()) + " GiB")]
  flops = []
  if plan.model_flops:  # Not known of a text alone.
    flops += [f"model {plan.model_flops:.3g} a step"]
  if plan.program_flops:
    flops += [f"program {plan.program_flops:.3g}"]
  if plan.model_flops and plan.program_flops:
    flops[-1] += f" ({plan.program_flops / plan.model_flops:.2f} times)"
  rows += [("FLOPs", ", ".join(flops))]
  if plan.not_charged:
    rows += [("not charged", "; ".join(plan.not_charged))]
  if plan.mesh:
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
    rows += [("mesh", mesh), ("compiled", f"in {plan.compile_seconds:.0f} s by"
                              f" {versions_text(plan)}")]
  if plan.options:
    rows += [("options", " ".join(f"{k}={v}" for k, v in plan.options.items()))]
  return rows


def _kinds(rows: tuple[Traffic, ...]) -> "rich.table.Table":
  table = _table("collectives: what a device sends in a step")
  for name in ("kind", "network"):
    table.add_column(name)
  for name in ("count", "GB", "overlapped GB (modelled)",
               "exposed GB (modelled)"):
    table.add_column(name, justify="right")
  for row in rows:
    table.add_row(
        row.kind, row.network, f"{row.count:,.0f}", f"{row.bytes / 1e9:.2f}",
        f"{(row.bytes - row.exposed_bytes) / 1e9:.2f}",
        f"{row.exposed_bytes / 1e9:.2f}")
  return table


def _sources(rows: tuple[Traffic, ...]) -> "rich.table.Table":
  import rich.text
  table = _table("exposed longest (modelled)")
  for name in ("line", "kind", "network"):
    table.add_column(name)
  for name in ("exposed GB", "exposed s"):
    table.add_column(name, justify="right")
  for row in rows:
    table.add_row(
        rich.text.Text(row.source or "unknown"), row.kind, row.network,
        f"{row.exposed_bytes / 1e9:.2f}", f"{row.exposed_seconds:.3f}")
  return table


def _table(title: str) -> "rich.table.Table":
  import rich.box
  import rich.table
  return rich.table.Table(title=title, title_justify="left",
                          box=rich.box.SIMPLE_HEAD, pad_edge=False)


def lines(plan: Plan) -> list[str]:
  """The plan for a config's docstring: a few lines of up to 78 columns."""
  if plan.modelled:
    e = plan.modelled.estimate
    said = (
        f"Planned (modelled; {versions_text(plan)}) for {plan.place}:"
        f" {memory_text(plan)}; {seconds_text(e.step_seconds)} a step,"
        f" {_speed(e)}; {e.binds} binds.")
    if plan.modelled.budget:
      said += f" {budget_text(plan.modelled.budget)}."
  else:
    verdict = "fits" if plan.fits else "does not fit"
    said = (f"Planned ({versions_text(plan)}) for {plan.place}: {verdict},"
            f" {memory_text(plan)}.")
    said += "".join(f" {note}." for note in plan.notes)
  return textwrap.wrap(said, _WIDTH, break_on_hyphens=False)


def versions_text(plan: Plan) -> str:
  return ", ".join(f"{name} {v}" for name, v in plan.versions.items())


def memory_text(plan: Plan) -> str:
  return (f"{plan.peak_bytes / _GIB:.2f} of"
          f" {plan.granted_bytes / _GIB:.2f} GiB")


def _speed(e: Estimate) -> str:
  if not e.tokens_per_chip_second:  # A text does not tell its tokens.
    return f"{100 * e.mfu:.0f} % of the hardware's FLOP/s used"
  return (f"{e.tokens_per_chip_second:,.0f} tokens/s/chip,"
          f" {100 * e.mfu:.0f} % MFU")


def seconds_text(seconds: float) -> str:
  return f"{seconds:.3g} s" if seconds >= 0.1 else f"{seconds * 1e3:.3g} ms"


def budget_text(of: Budget) -> str:
  usd = ("no list price" if of.usd is None
         else f"${_round(of.usd)} at list price")
  return (f"{_count(of.tokens)} tokens in {_round(of.days)} days,"
          f" {_round(of.chip_hours)} chip-hours, {usd}")


def _round(x: float) -> str:
  """Three digits are more than the model is good for."""
  digits = float(f"{x:.3g}")
  return f"{digits:,.0f}" if digits >= 100 else f"{digits:g}"


def _count(n: float) -> str:
  for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6)):
    if n >= size:
      return f"{n / size:.3g}{unit}"
  return f"{n:,.0f}"


@dataclasses.dataclass(frozen=True)
class Shortage:
  """Of a device's HBM, as the compiler refuses a program."""

  needed_bytes: int
  available_bytes: int


def out_of_memory(message: str) -> Shortage | None:
  """The shortage that an error of the compiler tells; None if it is another.

  It tells of vector memory (VMEM), which a kernel runs out of, in like words.
  """
  match = _SHORTAGE.search(message)
  if not match:
    return None
  needed, unit, available, its_unit = match.groups()
  return Shortage(
      round(float(needed) * _UNITS[unit.upper()]),
      round(float(available) * _UNITS[its_unit.upper()]))


def advice(
    shortage: Shortage, topology: Topology, *, model: ModelConfig,
    mesh: Mapping[str, int], batch: int, length: int, microbatches: int,
    fixed_bytes: int,
) -> str:
  """One line: which fields of the config to change, and to what.

  By arithmetic, not by compiling: what is not fixed is taken to shrink with
  the rows that a device works on at a time, and all with the number of chips.

  Args:
    shortage: what the compiler said.
    topology: where it does not fit.
    model: its `remat` is what to strengthen.
    mesh: size of each axis.
    batch: rows of a step, on all devices.
    length: tokens of a row.
    microbatches: parts that a step is done in.
    fixed_bytes: of a device, whatever the batch: parameters, optimizer,
      gradients.
  """
  needed, available = shortage.needed_bytes, shortage.available_bytes
  ways = []
  shards = mesh.get("data", 1) * mesh.get("fsdp", 1)
  rows = batch // shards  # Of a device in a step.
  share = (available - fixed_bytes) / max(1, needed - fixed_bytes)
  fit = math.ceil(rows / microbatches * share) - 1  # At a time; some to spare.
  if fit > 0:
    parts = next(k for k in range(microbatches + 1, rows + 1)
                 if rows % k == 0 and rows // k <= fit)
    ways += [f"set config.microbatches={parts}", "lower config.batch from"
             f" {batch} to {shards * microbatches * fit}"]
  tokens = rows * length * shards / math.prod(mesh.values()) / microbatches
  excess = (needed - available) / (2 * model.num_layers * tokens)
  kept = {name: remat.kept_numbers(name, model) for name in remat.REMAT}
  if stronger := next((name for name in kept
                       if kept[model.remat] - kept[name] >= excess), None):
    ways += [f"set config.model.remat={stronger!r}"]
  chips = math.prod(topology.shape)
  # A multiple, so that what the chips divide now they still divide.
  if larger := next((s for s in topology_lib.shapes(topology.chip)
                     if math.prod(s) % chips == 0
                     and math.prod(s) * available >= chips * needed), None):
    other = dataclasses.replace(topology, shape=larger)
    ways += [f"take {other.name} ({other.cloud_name})"]
  if not ways:
    ways = ["take chips with more memory, or lower config.length"]
  return (f"{needed / _GIB:.2f} GiB needed, {available / _GIB:.2f} granted, of"
          f" which {fixed_bytes / _GIB:.2f} are fixed; by arithmetic:"
          f" {', or '.join(ways)}")
