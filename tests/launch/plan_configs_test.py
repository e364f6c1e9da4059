"""Every pod config lowers for its TPU; a narrow one compiles for every chip."""

import json
import os
import pathlib
import subprocess
import sys

import house
from lm.launch import config_file
from lm.launch.plan import record
from lm.launch.plan import report
from lm.launch.plan import topology
import pytest

PODS = sorted(p.relative_to(house.ROOT)
              for p in (house.ROOT / "configs").rglob("*.py")
              if "\nPlanned" in p.read_text())
# The smallest slices with a torus of every kind, and meshes with every axis.
NARROW = {
    "v4:2x2x2": (1, 2, 2, 2), "v5e:4x4": (2, 4, 1, 2),
    "v5p:2x2x2": (1, 8, 1, 1), "v6e:4x4": (1, 4, 2, 2),
    "tpu7x:2x2x1": (1, 4, 2, 1)}
MODEL = dict(
    vocab_size=8192, d_model=512, num_layers=2, num_heads=4, num_kv_heads=2,
    head_dim=128, d_mlp=1024, max_length=1024, remat="save_attention", ring=2)


def narrow():
  config = config_file.load(house.ROOT / "configs/pretrain/llama2_7b.py")
  config = config.to_dict()
  config.update(batch=32, length=1024, compiler_options="", model=dict(MODEL))
  config["vocab"]["size"] = 8192
  return config


def main(path):
  """In a process of its own: what each config lowers and compiles to."""
  import jax
  from experiments.pretrain import run
  from lm import sharding
  from lm.launch.plan import planner
  from lm.launch.plan import topology
  found = {}
  for pod in PODS:
    config = config_file.load(house.ROOT / pod)
    place = topology.parse(config.plan.topology, config.plan.slices)
    config = config.to_dict()
    mesh = sharding.make_mesh(config["mesh"], devices=place.devices())
    with jax.set_mesh(mesh):
      program = run.program(config)
      lowered, state, _ = planner.lower(program, config, mesh)
      text, names = lowered.as_text(), program.model.axes()
      wanted = sharding.tree_shardings(state.params, names, mesh)
      moments = [x for x in jax.tree.leaves(state.opt_state) if x.ndim]
      found[str(pod)] = {
          "loops": text.count("stablehlo.while"), "devices": mesh.size,
          "kernel": text.count("tpu_custom_call"),
          "parameters": jax.tree.map(
              lambda x, y: x.sharding.spec == y.spec, state.params, wanted),
          "moments": len(moments), "leaves": len(jax.tree.leaves(wanted))}
  for name, shape in NARROW.items():
    place = topology.parse(name)
    config = narrow() | {"mesh": dict(zip(sharding.AXES, shape, strict=True))}
    found[name] = json.loads(planner.plan(
        run.program, config, name="narrow", topology=place).to_json())
  found["again"] = json.loads(planner.plan(
      run.program, config, name="narrow", topology=place).to_json())
  path.write_text(json.dumps(found))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
  pytest.importorskip("libtpu", reason="pip install 'deliberate-lm[plan]'")
  path = tmp_path_factory.mktemp("plans") / "found.json"
  process = subprocess.run(
      [sys.executable, __file__, str(path)], cwd=house.ROOT, text=True,
      capture_output=True, env=os.environ | topology.environment() | {
          "PYTHONPATH": f"{house.ROOT}:{house.ROOT / 'tests'}"})
  assert process.returncode == 0, process.stderr[-3000:]
  return json.loads(path.read_text())


def leaves(tree):
  return [x for v in tree.values() for x in leaves(v)] if isinstance(
      tree, dict) else [tree]


@pytest.mark.parametrize("pod", PODS, ids=str)
def test_a_pod_config_lowers_for_its_slice(found, pod):
  plan = config_file.load(house.ROOT / pod).plan
  row = found[str(pod)]
  assert row["devices"] == topology.parse(
      plan.topology, plan.slices).num_devices
  assert row["kernel"] >= 2  # Attention, forward and backward.
  assert all(leaves(row["parameters"]))
  assert row["moments"] == 2 * row["leaves"]
  assert row["loops"] >= 2  # The layers, forward and backward.


@pytest.mark.parametrize("name", NARROW)
def test_a_narrow_model_compiles_for_every_chip(found, name):
  plan = found[name]
  place = topology.parse(name)
  assert plan["fits"] and plan["peak_bytes"] < plan["granted_bytes"]
  # 3 times the forward pass, the head once more, gate, up and o once more.
  assert 1.0 < plan["program_flops"] / plan["model_flops"] < 1.6
  assert plan["model_flops"] == pytest.approx(
      6 * 32 * 1024 * (2 * (512 * 128 * 12 + 3 * 512 * 1024 + 2 * 4 * 128 * 512)
                       + 512 * 8192), rel=1e-6)
  modelled = plan["modelled"]
  assert not modelled["estimate"]["uncharged"]
  assert modelled["estimate"]["attention_seconds"] > 0
  kinds = {row["kind"] for row in modelled["collectives"]}
  assert {"all-gather", "collective-permute"} <= kinds
  assert plan["chips"] == place.chips
  parameters = 4 * (2 * (512 * 128 * 12 + 3 * 512 * 1024) + 2 * 512 * 8192)
  _, fsdp, _, tensor = NARROW[name]
  norms = 4 * 5 * 512
  assert (plan["memory_bytes"]["parameters"]
          == parameters / fsdp / tensor + norms)


def test_a_compiled_program_is_kept_by_its_content(found):
  """To the very seconds that compiling took."""
  assert found["again"] == found[list(NARROW)[-1]]


@pytest.mark.parametrize("pod", PODS, ids=str)
def test_the_recorded_plan_is_the_docstrings(pod):
  """`make plan` writes both; a config that changed since is planned anew."""
  plan = report.from_json(
      (house.ROOT / record.FOLDER / f"{pod.stem}.json").read_text())
  assert plan.config == str(pod) and plan.fits
  assert " ".join(report.lines(plan)) == record.recorded(house.ROOT / pod)
  config = config_file.load(house.ROOT / pod)
  place = topology.parse(config.plan.topology, config.plan.slices)
  assert (plan.topology, plan.slices) == (place.name, place.slices)
  from lm.launch import stage
  assert plan.options == stage.compiler_options(config.compiler_options)


if __name__ == "__main__":
  main(pathlib.Path(sys.argv[1]))
