"""`lm plan --search`: which layouts of a config's step fit, and how fast.

Candidates that seem to fit come first, by a rough guess of their speed, then
those that seem least short; what fits, and what does not, spares others the
compiler. The batch stays as it is, for it belongs to the experiment; so does
every field that the command line sets or that the config lacks.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
import dataclasses
import itertools
import json
import math
import pathlib
import tempfile
from typing import Any

from absl import flags

from lm import sharding
from lm.launch import config_file
from lm.launch import main
from lm.launch import stage
from lm.launch.plan import command
from lm.launch.plan import report
from lm.launch.plan import topology as topology_lib
from lm.launch.plan.topology import Topology
from lm.model import splash
from lm.model.config import ModelConfig
from lm.model.remat import REMAT
from lm.model.remat import kept_numbers
from lm.types import UserError

Mesh = tuple[int, ...]  # Sizes in the order of `sharding.AXES`.
_GIB = 2**30
_SAME_FAULTS = 3  # At the start: then it is not the candidates' fault.
# A step's time by what is computed again, if nothing is in 1 (by FLOPs); what
# goes to the host comes last, since its transfers are not charged.
REMATS = {"none": 1.0, "save_matmuls": 1.06, "save_attention": 1.16,
          "save_qkv": 1.19, "save_qk": 1.22, "full": 1.28, "offload": 1.3}
# Options of the compiler that matter: a step's time, and what they cost.
FLAGS = {
    "": (1.2, ""),
    "xla_tpu_scoped_vmem_limit_kib=32768"
    " xla_tpu_async_collective_fusion_with_start_done_only=true":
        (1.0, "  # Compiling takes longer."),
}
MICROBATCHES = (1, 2, 4, 8)
_REFERENCE_TIME = 1.5  # Without the attention kernel.
# What a doubling adds. All times are guesses, to order the trials.
_DOUBLED = {"data": 0.1, "fsdp": 0.0, "context": 0.05, "tensor": 0.05,
            "microbatches": 0.15}


@dataclasses.dataclass(frozen=True)
class Candidate:
  """What is tried: values of the config's fields of these names."""

  mesh: Mesh
  remat: str
  ring: int | None
  attention: str
  microbatches: int
  compiler_options: str

  @property
  def axes(self) -> dict[str, int]:
    return dict(zip(sharding.AXES, self.mesh, strict=True))

  @property
  def fields(self) -> dict[str, Any]:
    """By their names in the config."""
    return {**{f"mesh.{axis}": size for axis, size in self.axes.items()},
            "model.remat": self.remat, "model.ring": self.ring,
            "model.attention": self.attention,
            "microbatches": self.microbatches,
            "compiler_options": self.compiler_options}

  def changes(self, own: "Candidate") -> dict[str, Any]:
    """The fields that differ from those of a config."""
    return {k: v for k, v in self.fields.items() if v != own.fields[k]}

  def lines(self, own: "Candidate") -> list[str]:
    """What to write into that config."""
    sizes = ", ".join(f"{axis}={size}" for axis, size in self.axes.items())
    lines = [f"c.mesh = dict({sizes})"] if self.mesh != own.mesh else []
    lines += [f"c.{k} = {json.dumps(v)}" for k, v in self.changes(own).items()
              if not k.startswith("mesh.")]
    if self.compiler_options != own.compiler_options:  # The last line.
      lines[-1] += FLAGS.get(self.compiler_options, (1.0, ""))[1]
    return lines


@dataclasses.dataclass(frozen=True)
class Space:
  """What there is to choose from.

  Attributes:
    own: what the config says; its mesh need not be one of this topology.
    model: the config's.
    batch, length: rows of a step, tokens of a row.
    topology: where it is to run.
    fixed: fields that stay as they are ("mesh.data", "model.remat"), and why.
  """

  own: Candidate
  model: ModelConfig
  batch: int
  length: int
  topology: Topology
  fixed: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def refusal(self, mesh: Mesh) -> str:
    """Why a mesh is not tried at all; "" if it is."""
    (data, fsdp, context, tensor), model = mesh, self.model
    for axis, size, own in zip(sharding.AXES, mesh, self.own.mesh, strict=True):
      if f"mesh.{axis}" in self.fixed and size != own:
        return f"{axis}={own} stays as it is"
    heads, slices = model.num_kv_heads, self.topology.slices
    ring = "model.ring" in self.fixed and self.own.ring or 1
    rules = {
        f"data is no multiple of the {slices} slices": data % slices,
        f"data x fsdp does not divide the {self.batch:,} rows":
            self.batch % (data * fsdp),
        f"tensor does not divide {heads} heads of keys or d_mlp={model.d_mlp}":
            heads % tensor or model.d_mlp % tensor,
        f"fsdp does not divide d_model={model.d_model}": model.d_model % fsdp,
        f"context x tensor does not divide the {self.length:,} tokens":
            self.length % (context * tensor),
        f"ring={ring} does not divide fsdp": fsdp % ring,
    }
    return next((reason for reason, rest in rules.items() if rest), "")

  def candidates(self) -> tuple[list[Candidate], Counter[str]]:
    """Those to try, the most promising first; meshes not tried, by reason."""
    skipped, found = Counter(), []
    for mesh in meshes(self.topology.num_devices):
      if reason := self.refusal(mesh):
        skipped[f"meshes not tried: {reason}"] += 1
        continue
      rows = self.batch // (mesh[0] * mesh[1])
      ring = self.own.ring
      if ring and "model.ring" not in self.fixed:  # A side of the torus.
        ring = math.gcd(self.topology.shape[0], mesh[1])
      found += [
          Candidate(mesh, remat, ring, attention, parts, options)
          for remat in self._choices("model.remat", REMATS)
          for attention in self._attentions(remat)
          for parts in self._choices("microbatches", MICROBATCHES)
          if parts > 0 and rows % parts == 0
          for options in self._choices("compiler_options", FLAGS)]
    hbm = self.topology.chip.hbm
    found.sort(key=lambda c: (max(0, self.bytes(c) - hbm), self.time(c)))
    return found, skipped

  def time(self, c: Candidate) -> float:
    """Of a step, as guessed."""
    doubled = c.axes | {"microbatches": c.microbatches,
                        "data": c.mesh[0] // self.topology.slices}
    return (REMATS[c.remat] * FLAGS.get(c.compiler_options, (1.0, ""))[0]
            * (_REFERENCE_TIME if c.attention == "reference" else 1.0)
            * (1 + sum(_DOUBLED[k] * math.log2(n) for k, n in doubled.items())))

  def bytes(self, c: Candidate) -> float:
    """Of a device's HBM, as guessed."""
    (_, fsdp, _, tensor), model = c.mesh, self.model
    tokens = self.batch * self.length / math.prod(c.mesh) / c.microbatches
    # In float32: parameters, two moments, gradients.
    state = 4 * 4 * model.num_params / (fsdp * tensor)
    gathered = 2 * 2 * model.layer_params / tensor  # This layer, and the next.
    kept = 2 * model.num_layers * tokens * kept_numbers(c.remat, model)
    scores = 4 * model.num_heads * self.length * tokens
    return state + gathered + kept + scores * (c.attention == "reference")

  def _choices(self, field: str, values) -> list[Any]:
    own = self.own.fields[field]
    return [own] if field in self.fixed else list(dict.fromkeys((own, *values)))

  def _attentions(self, remat: str) -> list[str]:
    own = self.own.attention
    if "model.attention" in self.fixed or self.length % splash.LANES:
      return [own]  # Without a kernel "auto" is the reference already.
    kernel = "auto" if own == "reference" else own
    # The reference names nothing "attention": it would be "save_qkv" again.
    return [kernel] + ["reference"] * (remat != "save_attention")


def meshes(devices: int) -> list[Mesh]:
  """Every mesh of so many devices."""
  sizes = [n for n in range(1, devices + 1) if devices % n == 0]
  return [mesh for mesh in itertools.product(sizes, repeat=len(sharding.AXES))
          if math.prod(mesh) == devices]


@dataclasses.dataclass(frozen=True)
class Trial:
  """What came of a candidate: a plan, or a fault."""

  candidate: Candidate
  plan: report.Plan | None = None
  fault: str = ""

  def __str__(self) -> str:
    if self.plan is None:
      return f"failed: {self.fault}"
    said = ("does not fit" if not self.plan.fits else
            f"{self.plan.modelled.estimate.step_seconds:.3g} s")
    return (f"{said}, {self.plan.peak_bytes / _GIB:.2f} of"
            f" {self.plan.granted_bytes / _GIB:.2f} GiB")


def needless(c: Candidate, trials: Sequence[Trial], model: ModelConfig) -> str:
  """Why a candidate need not be compiled after these trials; "" if it must."""
  for trial in trials:
    other = trial.candidate
    if trial.plan is None or c.mesh != other.mesh:
      continue
    # Flags hardly change what is in HBM; the reference adds its scores.
    if (not trial.plan.fits and c.microbatches == other.microbatches
        and c.attention in (other.attention, "reference")
        and kept_numbers(c.remat, model) >= kept_numbers(other.remat, model)):
      return "keep no less in memory than one that does not fit"
    alike = dataclasses.replace(
        other, remat=c.remat, microbatches=c.microbatches)
    if (trial.plan.fits and c == alike and c.microbatches >= other.microbatches
        and set(REMAT[c.remat].device) <= set(REMAT[other.remat].device)):
      return "compute or gather again what one that fits does not"
  return ""


def explore(
    candidates: Sequence[Candidate], plan: Callable[[Candidate], report.Plan],
    *, model: ModelConfig, limit: int,
    on_trial: Callable[[Sequence[Trial]], None] = lambda trials: None,
) -> tuple[list[Trial], Counter[str]]:
  """Plans candidates in turn, but for those that earlier ones make needless.

  Args:
    candidates: the most promising first.
    plan: raises UserError if a candidate cannot be planned.
    model: the config's.
    limit: how many to plan.
    on_trial: called after each with all so far.

  Returns:
    The trials (at Ctrl-C, until then), and how many were not made, by reason.

  Raises:
    UserError: the first few all end in the same fault.
  """
  trials, skipped, stopped = [], Counter(), ""
  for candidate in candidates:
    reason = needless(candidate, trials, model) or stopped
    try:
      if not reason:
        trials.append(Trial(candidate, plan(candidate)))
    except UserError as e:
      trials.append(Trial(candidate, fault=str(e)))
    except KeyboardInterrupt:
      reason = stopped = "left when the search was interrupted"
    if reason:
      skipped[f"candidates not tried: {reason}"] += 1
      continue
    on_trial(trials)
    fault = trials[0].fault
    if fault and [t.fault for t in trials] == [fault] * _SAME_FAULTS:
      raise UserError(fault)
    if len(trials) == limit:
      stopped = f"less promising, left by --limit={limit}"
  return trials, skipped


def ranked(trials: Sequence[Trial]) -> list[Trial]:
  """Those that fit, the fastest first."""
  return sorted((t for t in trials if t.plan and t.plan.fits),
                key=lambda t: t.plan.modelled.estimate.step_seconds)


def render(trials: Sequence[Trial], skipped: Counter[str], space: Space) -> str:
  """The ranked table, or what comes nearest; then what was not tried."""
  text = []
  if best := ranked(trials):
    text += ["  #    step s  tokens/s/chip  MFU %  exposed GB | peak GiB"
             "   (left of |: modelled)"]
  for rank, trial in enumerate(best, 1):
    modelled, e = trial.plan.modelled, trial.plan.modelled.estimate
    exposed = math.fsum(t.exposed_bytes for t in modelled.collectives)
    row = (f"{rank:>3}{e.step_seconds:>10.3g}{e.tokens_per_chip_second:>15,.0f}"
           f"{100 * e.mfu:>7.0f}{exposed / 1e9:>12.3g} |"
           f"{trial.plan.peak_bytes / _GIB:>9.2f}")
    text += _lines(trial, space.own, row)
  short = [t for t in trials if t.plan and not t.plan.fits]
  if short and not best:
    least = min(short, key=lambda t: t.plan.peak_bytes)
    text += ["nothing fits; the least short:", *_lines(least, space.own),
             *least.plan.notes]
  untried = Counter(str(trial) for trial in trials if trial.fault) + skipped
  text += [f"{why} ({n:,})" for why, n in untried.items()]
  return "\n".join([*text, *(f"config.{field} was not searched: {why}"
                             for field, why in space.fixed.items())])


def _lines(trial: Trial, own: Candidate, said: str = "") -> list[str]:
  """What came of a trial, over the lines of its config."""
  lines = trial.candidate.lines(own) or ["the config as it is"]
  return [said or str(trial), *(f"      {line}" for line in lines)]


def run(path: str, topology: str, *, slices: int, limit: int,
        overrides: Sequence[str]) -> int:
  """Searches, and prints what was found; 0 if anything fits, else 1."""
  import rich.console
  from rich import progress as bars
  if limit < 1:
    raise UserError(f"--limit={limit}: compile at least 1")
  place = topology_lib.parse(topology, slices)
  space = space_of(path, place, overrides)
  candidates, skipped = space.candidates()
  if not candidates:
    raise UserError(f"no layout of {path} divides on {place.name}: change"
                    f" config.batch ({'; '.join(skipped) or 'microbatches'})")
  columns = (bars.TextColumn("{task.description}"), bars.BarColumn(),
             bars.MofNCompleteColumn(), bars.TimeRemainingColumn())
  with bars.Progress(*columns, console=rich.console.Console(stderr=True),
                     speed_estimate_period=3600) as bar:
    task = bar.add_task("compiling", total=min(limit, len(candidates)))

    def show(trials: Sequence[Trial]) -> None:
      bar.console.out(*_lines(trials[-1], space.own), sep="\n")
      best = f"best: {ranked(trials)[0]}" if ranked(trials) else "none fits yet"
      bar.update(task, advance=1, description=best)

    trials, left = explore(
        candidates, _planner(path, place, space.own, overrides),
        model=space.model, limit=limit, on_trial=show)
  text = render(trials, skipped + left, space)
  rich.console.Console().out(text, highlight=False)
  return 0 if ranked(trials) else 1


def space_of(path: str, topology: Topology, overrides: Sequence[str]) -> Space:
  """What a config leaves to choose; a UserError if that is no layout."""
  argv = ["lm", f"--config={path}", f"--plan={topology.name}", *overrides]
  try:
    found = main.parse(argv).config
  except flags.Error as e:
    raise UserError(str(e)) from e
  known = config_file.fields(found)
  if not {"model", "mesh.fsdp"} <= known.keys():
    raise UserError(f"{path} has no c.model and c.mesh = dict(fsdp=-1, ..) to"
                    " search: take the config that pre-trains its model")
  config = stage.by_the_dial(found.to_dict())
  model = stage.model_config(
      config["model"], config["vocab"]["size"], length=config["length"])
  if model.remat not in REMATS:
    raise UserError(f"model.remat={model.remat!r}: {', '.join(REMATS)} exist")
  sizes = [config["mesh"].get(axis, 1) for axis in sharding.AXES]
  rest = topology.num_devices // math.prod(n for n in sizes if n > 0)
  own = Candidate(
      tuple(rest if n == -1 else n for n in sizes), model.remat, model.ring,
      model.attention, config["microbatches"], config["compiler_options"])
  named = {arg.removeprefix("--config.").partition("=")[0] for arg in overrides}
  fixed = {field: "the command line sets it" if field in named
           else "the config file must set it first" for field in own.fields
           if field in named or field not in known}
  return Space(own, model, config["batch"], config["length"], topology, fixed)


def _planner(path: str, place: Topology, own: Candidate,
             overrides: Sequence[str]) -> Callable[[Candidate], report.Plan]:
  def plan(candidate: Candidate) -> report.Plan:
    with tempfile.TemporaryDirectory() as folder:
      file = pathlib.Path(folder, "plan.json")
      done = command.child(
          path, place.name, slices=place.slices, json=str(file), quiet=True,
          overrides=[*overrides, *(f"--config.{key}={value}" for key, value
                                   in candidate.changes(own).items())])
      if file.exists():
        return report.from_json(file.read_text())
    command.status(done)  # Raises if the compiler crashed.
    said = [line for line in done.stderr.splitlines() if "rror: " in line]
    raise UserError(said[-1].removeprefix("error: ") if said else
                    f"no plan, and exit status {done.returncode}")
  return plan
