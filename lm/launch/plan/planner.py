"""From a config to a plan: the step it would train, compiled for a topology."""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import math
import sys
from typing import Any

import jax

from lm import sharding
from lm import train
from lm.launch import stage
from lm.launch.plan import compiler
from lm.launch.plan import estimate
from lm.launch.plan import hlo
from lm.launch.plan import report
from lm.launch.plan import topology as topology_lib
from lm.launch.plan.topology import Topology
from lm.types import Batch, TrainState, UserError

Programs = Callable[[Mapping[str, Any]], stage.Program]


def run(programs: Programs, config: Mapping[str, Any], *, name: str,
        topology: str, slices: int = 1, json: str | None = None) -> bool:
  """Plans a config, prints the plan, and writes it if asked to.

  Args:
    programs: config -> its model and loss; of an experiment's `run.py`.
    config: the whole of it.
    name: of its file.
    topology: what to plan for; see `topology.parse`.
    slices: how many of it.
    json: a file to write the plan to.

  Returns:
    Whether it fits.
  """
  import rich.console
  place = topology_lib.parse(topology, slices)
  made = plan(programs, config, name=name, topology=place)
  if json:
    report.save(made, json)
  console = rich.console.Console(
      width=None if sys.stdout.isatty() else 100)
  console.print(report.render(made))
  return made.fits


def plan(programs: Programs, config: Mapping[str, Any], *, name: str,
         topology: Topology) -> report.Plan:
  """The plan of a training config.

  Raises:
    UserError: a mesh that is not of so many devices, a batch that does not
      divide among them, no libtpu.
  """
  with working(f"lowering {name}"):
    mesh = sharding.make_mesh(config["mesh"], devices=topology.devices())
    with jax.set_mesh(mesh):
      program = programs(config)
      config = stage.by_the_dial(config)
      lowered, state, batch = lower(program, config, mesh)
      memory = {"parameters": device_bytes(state.params),
                "optimizer": device_bytes(state.opt_state),
                "saved activations": _saved(program, state.params, batch)}
  options = stage.compiler_options(config["compiler_options"])
  with working(f"compiling for {topology.name}, a minute or several"):
    compiled = compiler.compile_for(lowered, topology, options)
  model = program.model.config
  workload = estimate.training(
      model, batch=config["batch"], length=config["length"])
  about: dict[str, Any] = dict(
      config=name, topology=topology.name, cloud_name=topology.cloud_name,
      chips=topology.chips, slices=topology.slices, mesh=dict(mesh.shape),
      versions=compiler.versions(), options=options,
      granted_bytes=topology.chip.hbm, compile_seconds=compiled.seconds,
      model_flops=workload.model_flops)
  if compiled.refusal:
    return _refused(compiled, about, memory, topology, config, model)
  memory["saved activations"] -= min(
      memory["saved activations"], compiled.host)
  memory["temporaries"] = max(0, compiled.peak - sum(memory.values()))
  facts = hlo.read(compiled.text)
  modelled = estimate.estimate(facts, topology, workload=workload)
  charged = estimate.charges(facts, topology)
  tokens = config["steps"] * workload.tokens
  return report.Plan(
      **about, fits=True, peak_bytes=compiled.peak, memory_bytes=memory,
      program_flops=topology.num_devices * estimate.program_flops(
          facts, window=model.window),
      host_bytes=facts.host_bytes,
      modelled=report.Modelled(
          estimate=modelled, collectives=estimate.by_kind(charged),
          exposed=estimate.by_source(charged),
          budget=estimate.budget(tokens, modelled, topology=topology),
          optimal=estimate.budget(
              estimate.optimal_tokens(model.num_params), modelled,
              topology=topology)))


def lower(program: stage.Program, config: Mapping[str, Any],
          mesh: jax.sharding.Mesh) -> tuple[Any, TrainState, Batch]:
  """The step, lowered for the mesh that is set; its state and batch.

  Raises:
    UserError: a batch that does not divide among the devices.
  """
  _check_batch(config, mesh)
  state = train.abstract_state(program.model, program.optimizer(config))
  state = jax.tree.map(
      lambda leaf, layout: jax.ShapeDtypeStruct(
          leaf.shape, leaf.dtype, sharding=layout),
      state, sharding.concrete_shardings(state, mesh))
  batch = train.abstract_batch(
      config["batch"], config["length"], program.extra)
  return program.step(config).lower(state, batch), state, batch


def of_text(text: str, topology: Topology, *, name: str) -> report.Plan:
  """What the time model makes of a compiled program, whoever wrote it.

  Its tokens and the FLOPs of its model are not in the text: in place of these
  stand the FLOPs that it does, so that `mfu` is the use of the hardware.
  """
  facts = hlo.read(text)
  flops = topology.num_devices * estimate.program_flops(facts)
  modelled = estimate.estimate(
      facts, topology, workload=estimate.Workload(flops, tokens=0))
  charged = estimate.charges(facts, topology)
  return report.Plan(
      config=name, topology=topology.name, cloud_name=topology.cloud_name,
      chips=topology.chips, slices=topology.slices, mesh={}, versions={},
      options={}, fits=True, peak_bytes=0, granted_bytes=topology.chip.hbm,
      memory_bytes={}, compile_seconds=0.0, model_flops=0.0,
      program_flops=flops, host_bytes=facts.host_bytes,
      modelled=report.Modelled(
          estimate=modelled, collectives=estimate.by_kind(charged),
          exposed=estimate.by_source(charged)))


def _check_batch(config: Mapping[str, Any], mesh: jax.sharding.Mesh) -> None:
  """Rows that do not divide would all be worked on by every device."""
  shards = mesh.shape["data"] * mesh.shape["fsdp"]
  parts = shards * config["microbatches"]
  if config["batch"] % parts:
    nearest = max(1, round(config["batch"] / parts)) * parts
    raise UserError(
        f"config.batch={config['batch']} does not divide into"
        f" {config['microbatches']} microbatches on {shards} devices (data x"
        f" fsdp): set config.batch={nearest}")


def _refused(compiled, about, memory, topology, config, model) -> report.Plan:
  """The plan of a step that needs more memory than there is."""
  shortage = report.out_of_memory(compiled.refusal)
  if shortage is None:
    raise UserError(f"the compiler refused: {compiled.refusal.splitlines()[0]}")
  fixed = memory["parameters"] + memory["optimizer"]
  memory["temporaries"] = max(0, shortage.needed_bytes - sum(memory.values()))
  note = report.advice(
      shortage, topology, model=model, mesh=about["mesh"],
      batch=config["batch"], length=config["length"],
      microbatches=config["microbatches"], fixed_bytes=fixed)
  return report.Plan(**about, fits=False, peak_bytes=shortage.needed_bytes,
                     memory_bytes=memory, notes=(note,))


def device_bytes(tree: Any) -> int:
  """Of one device's part of a tree of laid out shapes."""
  return sum(
      math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
      for leaf in jax.tree.leaves(tree))


def _saved(program: stage.Program, params, batch) -> int:
  """Bytes that the forward pass keeps for the backward pass on a device.

  They are what `jax.vjp` closes over, less the parameters and the batch.
  """
  def residuals(params, batch):
    loss = lambda params: program.loss(params, batch, jax.random.key(0))[0]  # noqa: E731
    return jax.vjp(loss, params)[1]

  known = {(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(
      (params, batch))}
  mesh = jax.sharding.get_mesh()
  leaves = [leaf for leaf in jax.tree.leaves(
      jax.eval_shape(residuals, params, batch))
      if (leaf.shape, leaf.dtype) not in known and leaf.sharding]
  shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layout)
            for leaf, layout in zip(
                leaves, sharding.concrete_shardings(leaves, mesh), strict=True)]
  return device_bytes(shapes)


@contextlib.contextmanager
def working(text: str) -> Iterator[None]:
  """Says on stderr what is being waited for."""
  import rich.console
  console = rich.console.Console(stderr=True)
  with console.status(text):
    yield
