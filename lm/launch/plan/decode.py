"""Planning of serving: prefill, and one step of batched decoding.

A server holds the weights in bfloat16 and every row's keys and values, and
reads all of them for each token. So HBM bounds a step, and the layout is
another than in training: all chips lie on tensor, and no weights are gathered.
"""

import collections
from collections.abc import Mapping
import dataclasses
import json as json_lib
import math
import pathlib
import re
import sys
import textwrap
import typing
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

if typing.TYPE_CHECKING:
  import rich.console

VERSION = 1  # Of the JSON.
# With a cache the layers are unrolled. A step of 80 takes the compiler two
# minutes, a prefill half an hour: two depths of it draw a line.
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
    document = {"decode_plan": VERSION, **dataclasses.asdict(self)}
    return json_lib.dumps(document, indent=2) + "\n"


def from_json(text: str) -> DecodePlan:
  """The plan that `DecodePlan.to_json` wrote.

  Raises:
    UserError: it is something else, or of another version.
  """
  try:
    document = json_lib.loads(text)
    if document.pop("decode_plan") != VERSION:
      raise ValueError
    for name in ("prefill", "step"):
      phase = document[name]
      phase["depths"] = tuple(phase["depths"])
      phase["plan"] = report.from_json(json_lib.dumps(
          {"plan": report.VERSION, **phase["plan"]}))
      document[name] = Phase(**phase)
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
  place = topology_lib.parse(topology, slices)
  made = plan(programs, config, name=name, topology=place, rows=rows,
              length=length)
  if json:
    path = pathlib.Path(json)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(made.to_json())
  console = rich.console.Console(width=None if sys.stdout.isatty() else 100)
  console.print(render(made))
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
    depths = (PREFILL_DEPTHS if model.num_layers > max(PREFILL_DEPTHS)
              else step)
    prefill = {}
    for n in depths:
      begin, shapes = _prefill(model.replace(num_layers=n), parts, length)
      prefill[n] = jax.jit(begin).lower(*shapes)
  size = planner.device_bytes
  weights, cache = size(params), size((state.cache.k_BKSH, state.cache.v_BKSH))
  # Of an untied table a step reads a row for each token.
  read = weights - (0 if own.tied else size(params["embed"]))
  bandwidth = topology.chip.hbm_bandwidth
  forward = estimate.training(own, batch=parts, length=length).model_flops / 3
  # Only the last token of a prompt has logits.
  forward -= 2 * own.d_model * own.padded_vocab * parts * (length - 1)
  common: dict[str, Any] = dict(
      topology=topology, layers=own.num_layers, parts=parts, weights=weights,
      cache=cache, about=dict(config=name, mesh=dict(mesh.shape)))
  steps = _phase(
      step, **common, rows=rows, read_seconds=(read + cache) / bandwidth,
      workload=Workload(rows * own.flops_per_token(length), rows))
  prefills = _phase(
      prefill, **common, rows=parts, read_seconds=read / bandwidth,
      workload=Workload(forward, parts * length),
      waiting=cache - cache * parts // rows)
  return DecodePlan(
      rows, length, prefills, steps,
      notes=(*_on_heads(own, model, tensor),
             *_on_room(prefills, steps, topology, length)))


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
  def step(params, state):
    return engine.step(LanguageModel(model), params, state,
                       rules=sampling.GREEDY, eos_id=0)
  best = jax.tree.map(lambda x: Format(Layout.AUTO, x.sharding), params)
  same = jax.tree.map(lambda x: x.sharding, state)
  return jax.jit(step, donate_argnums=1, in_shardings=(best, same)).lower(
      params, state)


def _phase(
    lowered: Mapping[int, Any], *, topology: Topology, about: Mapping[str, Any],
    layers: int, parts: int, weights: int, cache: int, rows: int,
    read_seconds: float, workload: Workload, waiting: int = 0) -> Phase:
  """Compiles a program, by its number of layers, and sets it beside its bounds.

  `waiting` bytes are the cache of rows that it does not work on; with any, its
  own rows come on top of the cache of all. `read_seconds`: of HBM, once.
  """
  hbm = topology.chip.hbm
  with planner._working(f"compiling for {topology.name}, some minutes"):
    made = {n: compiler.compile_for(x, topology, {})
            for n, x in lowered.items()}
  refusal = made[max(made)].refusal
  shortage = report.out_of_memory(refusal)
  if refusal and not shortage:
    raise UserError(f"the compiler refused: {refusal.splitlines()[0]}")
  peak = waiting + (
      shortage.needed_bytes if shortage else
      round(on_line({n: c.peak for n, c in made.items()}, layers)))
  bounds = {"HBM": read_seconds, "FLOPs": workload.model_flops / (
      topology.chip.flops * topology.num_devices)}
  bound_by = max(bounds, key=lambda name: bounds[name])
  modelled = None
  if not shortage and peak <= hbm:
    facts = at_depth({n: hlo.read(c.text) for n, c in made.items()}, layers)
    modelled = _modelled(facts, topology, workload, bounds[bound_by], bound_by)
  fixed = weights + (cache if waiting else 0)
  most = int((hbm - fixed) * rows / max(1, peak - fixed))
  plan = report.Plan(
      **about, topology=topology.name, cloud_name=topology.cloud_name,
      chips=topology.chips, slices=topology.slices, options={},
      versions=compiler.versions(), fits=modelled is not None,
      peak_bytes=peak, granted_bytes=hbm,
      memory_bytes={"weights": weights, "cache": cache,
                    "temporaries": max(0, peak - weights - cache)},
      compile_seconds=sum(c.seconds for c in made.values()),
      model_flops=workload.model_flops, modelled=modelled)
  return Phase(plan, rows, max(0, most // parts * parts), tuple(made),
               bounds[bound_by], bound_by)


def _modelled(facts: hlo.Facts, topology: Topology, workload: Workload,
              bound: float, bound_by: str) -> report.Modelled:
  made = estimate.estimate(facts, topology, workload=workload)
  if (slower := bound / made.step_seconds) > 1:
    made = dataclasses.replace(
        made, step_seconds=bound, mfu=made.mfu / slower, binds=bound_by,
        tokens_per_chip_second=made.tokens_per_chip_second / slower)
  charged = estimate.charges(facts, topology)
  return report.Modelled(
      estimate=made, collectives=estimate.by_kind(charged),
      exposed=estimate.by_source(charged),
      budget=estimate.budget(1e6, made, topology=topology))


def at_depth(facts: Mapping[int, hlo.Facts], layers: int) -> hlo.Facts:
  """The facts of a program of `layers`, from those of one depth or two."""
  line = lambda of: on_line({n: of(f) for n, f in facts.items()}, layers)  # noqa: E731
  deepest = facts[max(facts)]

  def taken_on(x, of):
    """A collective or kernel, as often as those of its kind and line."""
    def count(f):
      return sum(y.count for y in of(f) if y.source == x.source
                 and getattr(y, "kind", "") == getattr(x, "kind", ""))
    return dataclasses.replace(x, count=x.count * line(count) / count(deepest))

  return dataclasses.replace(
      deepest, flops=line(lambda f: f.flops), cycles=line(lambda f: f.cycles),
      **{name: tuple(taken_on(x, of) for x in of(deepest)) for name, of in (
          ("collectives", lambda f: f.collectives),
          ("kernels", lambda f: f.kernels))})


def on_line(values: Mapping[int, float], layers: int) -> float:
  """The value at `layers` of the line through those at one depth or two."""
  low, high = min(values), max(values)
  slope = (values[high] - values[low]) / max(1, high - low)
  return values[high] + slope * (layers - high)


def _on_heads(own: ModelConfig, model: ModelConfig,
              tensor: int) -> tuple[str, ...]:
  kv, held = own.num_kv_heads, model.num_kv_heads
  if held != kv:
    return (f"its {kv} kv heads are held {held // kv} times, as tensor={tensor}"
            " wants: repeat the checkpoint's k and v along heads",)
  if kv % tensor:
    return (f"its {kv} kv heads do not divide over tensor={tensor}: all chips"
            " hold the cache of all, and gather the weights of all heads; try"
            f" tensor={math.gcd(kv, tensor)} and the rest on data",)
  return ()


def _on_room(prefill: Phase, step: Phase, topology: Topology,
             length: int) -> tuple[str, ...]:
  if prefill.plan.fits and step.plan.fits:
    return ()
  needed = max(prefill.plan.peak_bytes, step.plan.peak_bytes)
  hbm, chips = topology.chip.hbm, math.prod(topology.shape)
  ways = ([f"--plan_decode={step.most_rows}x{length}"]
          if 0 < step.most_rows < step.rows else [])
  # A multiple, so that what the chips divide now they still divide.
  ways += [f"take {dataclasses.replace(topology, shape=shape).name}"
           for shape in topology_lib.shapes(topology.chip)
           if math.prod(shape) % chips == 0
           and math.prod(shape) * hbm >= chips * needed][:1]
  return (f"{needed / _GIB:.2f} GiB needed, {hbm / _GIB:.2f} granted; by"
          f" arithmetic: {', or '.join(ways) or 'lower the length'}",)


def render(plan: DecodePlan) -> "rich.console.RenderableType":
  """The plan for a screen of 100 columns, the verdict first."""
  import rich.console
  import rich.table
  import rich.text
  facts = rich.table.Table.grid(padding=(0, 2))
  for key, value in _rows(plan):
    facts.add_row(rich.text.Text(key, style="bold"), rich.text.Text(value))
  headline = rich.text.Text(_verdict(plan), style="bold")
  notes = [rich.text.Text(note, style="yellow") for note in plan.notes]
  return rich.console.Group(headline, facts, *notes)


def lines(plan: DecodePlan) -> list[str]:
  """The plan for a config's docstring: a few lines of up to 78 columns."""
  told = [f"{key}: {value}" for key, value in _rows(plan)]
  said = [_verdict(plan), *told, *plan.notes]
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
        (name, f"{of.rows:,} rows in {report._memory(of.plan)} ({kinds}); by"
         f" arithmetic {of.most_rows:,} fit; bound"
         f" {report._seconds(of.bound_seconds)} by {of.bound_by}")]
    if m := of.plan.modelled:
      e, cost = m.estimate, m.budget
      rate = e.tokens_per_chip_second
      usd = ("no list price" if cost is None or cost.usd is None else
             f"${cost.usd:.3g} a million tokens at list price")
      waits = ", ".join(f"{t.source or 'unknown'} {t.kind}"
                        f" {report._seconds(t.exposed_seconds)}"
                        for t in m.exposed[:_SHOWN])
      rows += [
          (f"{name} (modelled)", f"{report._seconds(e.step_seconds)},"
           f" {rate:,.3g} tokens/s/chip, {rate * of.plan.chips / of.rows:,.3g}"
           f" a row; {usd}; {e.binds} binds; waits: {waits or 'none'}")]
  step, prefill = plan.step.plan, plan.prefill
  took = step.compile_seconds + prefill.plan.compile_seconds
  return [
      *rows, ("mesh", " x ".join(
          f"{axis} {size}" for axis, size in step.mesh.items())),
      ("compiled", f"in {took:.0f} s by {report._versions(step)}; prefill with"
       f" {' and '.join(map(str, prefill.depths))} layers")]
