"""Planning of serving: prefill, and one step of batched decoding.

A server holds the weights in bfloat16 and every row's keys and values, and
reads all of them for each token. So HBM bounds a step, and the layout is
another than in training: all chips lie on tensor, and no weights are gathered.
"""

from collections.abc import Mapping
import dataclasses
import functools
import json as json_lib
import math
import pathlib
import re
import sys
import textwrap
from typing import Any

import jax
from jax.experimental.layout import Format, Layout
import jax.numpy as jnp

from lm import sharding
from lm.decode import engine
from lm.decode import sampling
from lm.launch.plan import compiler
from lm.launch.plan import estimate
from lm.launch.plan import hlo
from lm.launch.plan import planner
from lm.launch.plan import report
from lm.launch.plan import topology as topology_lib
from lm.launch.plan.estimate import Workload
from lm.launch.plan.topology import Topology
from lm.model import LanguageModel
from lm.model.config import ModelConfig
from lm.types import UserError

VERSION = 1  # Of the JSON.
# With a cache the layers are unrolled. A step of 80 takes the compiler two
# minutes, a prefill half an hour: two depths of it draw a line. Such a line of
# a step (70B, v5e:4x4) is 4 % low in memory and 10 % in time.
PREFILL_DEPTHS = (2, 4)
_GIB = 2**30
_WIDTH = 78  # Of a docstring's lines.
_SHOWN = 3  # Lines that wait, on the screen; the JSON has all.


@dataclasses.dataclass(frozen=True)
class Phase:
  """One of the two programs.

  Attributes:
    plan: of it, with the weights and the cache of all rows. The modelled time
      is never below the bound; the budget is of a million tokens.
    rows: that it works on at a time.
    most_rows: that would fit at a time, by arithmetic.
    depths: layers of what was compiled. If not the model's, the figures are
      on the line through those.
    bound_seconds: no run is faster, by arithmetic.
    bound_by: 'HBM' (weights and cache are read once) or 'FLOPs'.
  """

  plan: report.Plan
  rows: int
  most_rows: int
  depths: tuple[int, ...]
  bound_seconds: float
  bound_by: str


@dataclasses.dataclass(frozen=True)
class DecodePlan:
  """What is known of serving a model before there is a TPU.

  Attributes:
    rows: that are decoded together.
    length: slots of the cache of each.
    prefill: of one prompt of that length for each part of the batch.
    step: of all rows.
    notes: what to know, or to do.
  """

  rows: int
  length: int
  prefill: Phase
  step: Phase
  notes: tuple[str, ...] = ()

  @property
  def fits(self) -> bool:
    return self.prefill.plan.fits and self.step.plan.fits

  def to_json(self) -> str:
    """The field names are the keys, and say the units."""
    return json_lib.dumps(
        {"decode_plan": VERSION, **dataclasses.asdict(self)}, indent=2) + "\n"


def from_json(text: str) -> DecodePlan:
  """The plan that `DecodePlan.to_json` wrote; a UserError if it is another."""
  try:
    document = json_lib.loads(text)
    if document.pop("decode_plan") != VERSION:
      raise ValueError
    for name in ("prefill", "step"):
      of = document[name]
      made = json_lib.dumps({"plan": report.VERSION, **of["plan"]})
      document[name] = Phase(**of | {
          "depths": tuple(of["depths"]), "plan": report.from_json(made)})
    document["notes"] = tuple(document["notes"])
    return DecodePlan(**document)
  except (AttributeError, KeyError, TypeError, ValueError) as e:
    raise UserError(f"this is no decode plan of version {VERSION}: write it"
                    " again with --plan_decode=32x4096 --plan_json=FILE") from e


def run(programs: planner.Programs, config: Mapping[str, Any], *, name: str,
        topology: str, decode: str, slices: int = 1,
        json: str | None = None) -> bool:
  """As `planner.run`, of serving `decode`: "ROWSxLENGTH"."""
  import rich.console
  rows, length = parse(decode)
  made = plan(programs, config, name=name, rows=rows, length=length,
              topology=topology_lib.parse(topology, slices))
  if json:
    path = pathlib.Path(json)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(made.to_json())
  width = None if sys.stdout.isatty() else 100
  rich.console.Console(width=width).print(render(made))
  return made.fits


def parse(text: str) -> tuple[int, int]:
  """(rows, length) of "ROWSxLENGTH"."""
  match = re.fullmatch(r"([1-9]\d{0,6})x([1-9]\d{0,7})", text.strip().lower())
  if not match or match[2] == "1":
    raise UserError(f"--plan_decode={text!r}: write it as ROWSxLENGTH, with 2"
                    " tokens a row or more; try 32x4096")
  return int(match[1]), int(match[2])


def plan(programs: planner.Programs, config: Mapping[str, Any], *, name: str,
         topology: Topology, rows: int, length: int) -> DecodePlan:
  """The plan of serving a config's model to `rows` rows of `length` tokens.

  The mesh is the config's if none of it lies on fsdp, where each step would
  gather the weights; else all chips of a slice lie on tensor.

  Raises:
    UserError: a mesh that is not of so many devices, rows that do not divide
      among them, a length past the model's context, no libtpu.
  """
  shape = config["mesh"]
  if not isinstance(shape, Mapping) or shape.get("fsdp", 1) != 1:
    shape = {"data": topology.slices, "tensor": -1}
  mesh = sharding.make_mesh(shape, devices=topology.devices())
  parts, tensor = mesh.shape["data"], mesh.shape["tensor"]
  if rows % parts:
    raise UserError(f"{rows} rows do not divide over data={parts}: try"
                    f" --plan_decode={-(-rows // parts) * parts}x{length}")
  with jax.set_mesh(mesh):
    own = programs({**config, "length": length}).model.config
    model = repeat_heads(own, tensor)
    # Prompts of one token, and a cache of the length.
    begin, shapes = _prefill(model, rows, 1, max_tokens=length - 1)
    params, state = shapes[0], _laid_out(jax.eval_shape(begin, *shapes))
    step = {model.num_layers: _lower_step(model, params, state)}
    prefill = {}
    for n in PREFILL_DEPTHS if model.num_layers > PREFILL_DEPTHS[-1] else step:
      begin, shapes = _prefill(model.replace(num_layers=n), parts, length)
      prefill[n] = jax.jit(begin).lower(*shapes)
  size = planner.device_bytes
  weights, cache = size(params), size((state.cache.k_BKSH, state.cache.v_BKSH))
  # Of an untied table a step reads a row for each token.
  read = weights - (0 if own.tied else size(params["embed"]))
  forward = estimate.training(own, batch=parts, length=length).model_flops / 3
  # Only the last token of a prompt has logits.
  forward -= 2 * own.d_model * own.padded_vocab * parts * (length - 1)
  common: dict[str, Any] = dict(
      topology=topology, layers=own.num_layers, parts=parts, weights=weights,
      cache=cache, about=dict(
          config=name, mesh=dict(mesh.shape), topology=topology.name,
          cloud_name=topology.cloud_name, chips=topology.chips, options={},
          slices=topology.slices, versions=compiler.versions(),
          granted_bytes=topology.chip.hbm))
  steps = _phase(
      step, **common, rows=rows, read_bytes=read + cache,
      workload=Workload(rows * own.flops_per_token(length), rows))
  prefills = _phase(
      prefill, **common, rows=parts, read_bytes=read,
      workload=Workload(forward, parts * length),
      waiting=cache - cache * parts // rows)
  notes = (_on_heads(own.num_kv_heads, model.num_kv_heads, tensor)
           + _on_room(prefills, steps, topology, length))
  return DecodePlan(rows, length, prefills, steps, notes)


def repeat_heads(model: ModelConfig, tensor: int) -> ModelConfig:
  """The same function with a kv head for each device, if it has fewer.

  They would all be held by all devices, and the queries' too (`Attention`).
  """
  kv = model.num_kv_heads
  if tensor > kv and tensor % kv == 0 and model.num_heads % tensor == 0:
    return model.replace(num_kv_heads=tensor)
  return model


def _laid_out(tree: Any) -> Any:
  """Shapes on devices, from those of `jax.eval_shape` on the set mesh."""
  return jax.tree.map(
      lambda leaf, layout: jax.ShapeDtypeStruct(
          leaf.shape, leaf.dtype, sharding=layout),
      tree, sharding.concrete_shardings(tree, jax.sharding.get_mesh()))


def _prefill(model: ModelConfig, rows: int, length: int, max_tokens: int = 0):
  """(`engine.prefill`, its arguments' shapes: bfloat16 parameters, prompts)."""
  net = LanguageModel(model)
  def prefill(params, tokens_BT, lengths_B):
    return engine.prefill(net, params, tokens_BT, lengths_B,
                          max_tokens=max_tokens, key=jax.random.key(0))

  params = jax.eval_shape(lambda: jax.tree.map(
      lambda x: x.astype(jnp.bfloat16), net.init(jax.random.key(0))))
  ints = [jax.ShapeDtypeStruct(s, jnp.int32) for s in ((rows, length), (rows,))]
  return prefill, _laid_out((params, *ints))


def _lower_step(model: ModelConfig, params: Any, state: Any) -> Any:
  """A greedy step; each kernel's dimensions are in the order that it likes.

  In any other it would be copied in each step. A loop of steps does it once.
  """
  step = functools.partial(engine.step, LanguageModel(model),
                           rules=sampling.GREEDY, eos_id=0)
  best = jax.tree.map(lambda x: Format(Layout.AUTO, x.sharding), params)
  same = jax.tree.map(lambda x: x.sharding, state)
  return jax.jit(step, donate_argnums=1, in_shardings=(best, same)).lower(
      params, state)


def _phase(
    lowered: Mapping[int, Any], *, topology: Topology, about: Mapping[str, Any],
    layers: int, parts: int, weights: int, cache: int, rows: int,
    read_bytes: int, workload: Workload, waiting: int = 0) -> Phase:
  """Compiles a program, by its number of layers, and sets it beside its bounds.

  `waiting` bytes are the cache of rows that it does not work on; with any, its
  own rows come on top of the cache of all. It reads `read_bytes` of HBM once.
  """
  hbm = topology.chip.hbm
  with planner.working(f"compiling for {topology.name}, some minutes"):
    made = {n: compiler.compile_for(lowered[n], topology, {}) for n in lowered}
  refusal = made[max(made)].refusal
  shortage = report.out_of_memory(refusal)
  if refusal and not shortage:
    raise UserError(f"the compiler refused: {refusal.splitlines()[0]}")
  peak = waiting + (
      shortage.needed_bytes if shortage else
      round(on_line({n: c.peak for n, c in made.items()}, layers)))
  flops = topology.chip.flops * topology.num_devices
  bound, by = max((read_bytes / topology.chip.hbm_bandwidth, "HBM"),
                  (workload.model_flops / flops, "FLOPs"))
  modelled = None
  if not shortage and peak <= hbm:
    facts = at_depth({n: hlo.read(c.text) for n, c in made.items()}, layers)
    modelled = _modelled(facts, topology, workload, bound, by)
  fixed = weights + (cache if waiting else 0)
  most = max(0, int((hbm - fixed) * rows / max(1, peak - fixed)))
  plan = report.Plan(
      **about, fits=modelled is not None, peak_bytes=peak,
      memory_bytes={"weights": weights, "cache": cache,
                    "temporaries": max(0, peak - weights - cache)},
      compile_seconds=sum(c.seconds for c in made.values()),
      model_flops=workload.model_flops, modelled=modelled)
  return Phase(plan, rows, most - most % parts, tuple(made), bound, by)


def _modelled(facts: hlo.Facts, topology: Topology, workload: Workload,
              bound: float, by: str) -> report.Modelled:
  made = estimate.estimate(facts, topology, workload=workload)
  if (slower := bound / made.step_seconds) > 1:
    made = dataclasses.replace(
        made, step_seconds=bound, mfu=made.mfu / slower, binds=by,
        tokens_per_chip_second=made.tokens_per_chip_second / slower)
  charged = estimate.charges(facts, topology)
  return report.Modelled(
      estimate=made, collectives=estimate.by_kind(charged),
      exposed=estimate.by_source(charged),
      budget=estimate.budget(1e6, made, topology=topology))


def at_depth(facts: Mapping[int, hlo.Facts], layers: int) -> hlo.Facts:
  """The facts of a program of `layers`, from those of one depth or two."""
  deepest = facts[max(facts)]
  sort = lambda x: (getattr(x, "kind", "kernel"), x.source)  # noqa: E731

  def line(value):
    return on_line({n: value(f) for n, f in facts.items()}, layers)

  def taken_on(x):
    """A collective or kernel, as often as all of its kind and line."""
    def count(f):
      return sum(y.count for y in (*f.collectives, *f.kernels)
                 if sort(y) == sort(x))
    return dataclasses.replace(x, count=x.count * line(count) / count(deepest))

  return dataclasses.replace(
      deepest, flops=line(lambda f: f.flops), cycles=line(lambda f: f.cycles),
      collectives=tuple(map(taken_on, deepest.collectives)),
      kernels=tuple(map(taken_on, deepest.kernels)))


def on_line(values: Mapping[int, float], layers: int) -> float:
  """The value at `layers` of the line through those at one depth or two."""
  low, high = min(values), max(values)
  slope = (values[high] - values[low]) / max(1, high - low)
  return values[high] + slope * (layers - high)


def _on_heads(kv: int, held: int, tensor: int) -> tuple[str, ...]:
  if held != kv:
    return (f"as tensor={tensor}, its {kv} kv heads are held {held // kv} times"
            " each: repeat the checkpoint's k and v along heads",)
  if kv % tensor:
    return (f"its {kv} kv heads do not divide over tensor={tensor}: all chips"
            f" hold the cache of all; try tensor={math.gcd(kv, tensor)}",)
  return ()


def _on_room(prefill: Phase, step: Phase, topology: Topology,
             length: int) -> tuple[str, ...]:
  if prefill.plan.fits and step.plan.fits:
    return ()
  needed = max(prefill.plan.peak_bytes, step.plan.peak_bytes)
  hbm, chips = topology.chip.hbm, math.prod(topology.shape)
  fit = step.most_rows
  ways = [f"--plan_decode={fit}x{length}"] if 0 < fit < step.rows else []
  # A multiple, so that what the chips divide now they still divide.
  ways += [f"take {dataclasses.replace(topology, shape=shape).name}"
           for shape in topology_lib.shapes(topology.chip)
           if math.prod(shape) % chips == 0
           and math.prod(shape) * hbm >= chips * needed][:1]
  return (f"{needed / _GIB:.2f} GiB needed, {hbm / _GIB:.2f} granted; by"
          f" arithmetic: {', or '.join(ways) or 'lower the length'}",)


def render(plan: DecodePlan) -> Any:
  """The plan for a screen of 100 columns, the verdict first."""
  import rich.console
  import rich.table
  import rich.text
  facts = rich.table.Table.grid(padding=(0, 2))
  for key, value in _rows(plan):
    facts.add_row(rich.text.Text(key, style="bold"), rich.text.Text(value))
  notes = [rich.text.Text(note, style="yellow") for note in plan.notes]
  return rich.console.Group(rich.text.Text(_verdict(plan)), facts, *notes)


def lines(plan: DecodePlan) -> list[str]:
  """The plan for a config's docstring: a few lines of up to 78 columns."""
  said = [_verdict(plan), *map(": ".join, _rows(plan)), *plan.notes]
  return textwrap.wrap(". ".join(said) + ".", _WIDTH, break_on_hyphens=False)


def _verdict(plan: DecodePlan) -> str:
  step = plan.step.plan
  return (f"{'FITS' if plan.fits else 'DOES NOT FIT'}  decoding {plan.rows:,}"
          f" rows of {plan.length:,} tokens: {step.config} on {step.place},"
          f" {step.chips:,} chips")


def _rows(plan: DecodePlan) -> list[tuple[str, str]]:
  """(key, value) of what is told in words."""
  rows = []
  for name, of in (("step", plan.step), ("prefill", plan.prefill)):
    kinds = ", ".join(f"{kind} {size / _GIB:.2f}"
                      for kind, size in of.plan.memory_bytes.items())
    rows += [
        (name, f"{of.rows:,} rows in {report.memory_text(of.plan)} ({kinds});"
         f" by arithmetic {of.most_rows:,} fit; bound"
         f" {report.seconds_text(of.bound_seconds)} by {of.bound_by}")]
    if m := of.plan.modelled:
      e, rate = m.estimate, m.estimate.tokens_per_chip_second
      waits = ", ".join(f"{t.source or 'unknown'} {t.kind}"
                        f" {report.seconds_text(t.exposed_seconds)}"
                        for t in m.exposed[:_SHOWN])
      rows += [
          (f"{name} (modelled)", f"{report.seconds_text(e.step_seconds)},"
           f" {rate:,.3g} tokens/s/chip, {rate * of.plan.chips / of.rows:,.3g}"
           f" a row; {e.binds} binds; waits: {waits or 'none'}"),
          ("cost (modelled)", m.budget and report.budget_text(m.budget) or "")]
  step, prefill = plan.step.plan, plan.prefill
  took = step.compile_seconds + prefill.plan.compile_seconds
  mesh = " x ".join(f"{axis} {size}" for axis, size in step.mesh.items())
  return [*rows, ("mesh", mesh), (
      "compiled", f"in {took:.0f} s by {report.versions_text(step)}; prefill"
      f" from {' and '.join(map(str, prefill.depths))} layers")]
