"""Every layout of the model computes what one device computes."""

import json
import os
import pathlib
import subprocess
import sys

import house
import jax
import jax.numpy as jnp
from lm import model
from lm import objectives
from lm import optim
from lm import sharding
from lm import train
from lm.launch import stage
from lm.types import Batch, UserError
import numpy as np
import pytest

CONFIG = model.ModelConfig(
    vocab_size=250, d_model=32, num_layers=2, num_heads=4, num_kv_heads=2,
    head_dim=8, d_mlp=64, max_length=16, scalar_head=True, dtype="float32")
# Name: mesh, rows of the batch, changes of the model.
LAYOUTS = {
    "fsdp, rings of 2": ((1, 8, 1, 1), 8, dict(ring=2)),
    "fsdp, rings of 4": ((1, 8, 1, 1), 8, dict(ring=4)),
    "fsdp, one ring": ((1, 8, 1, 1), 8, dict(ring=8)),
    "data and fsdp, rings": ((2, 4, 1, 1), 8, dict(ring=2)),
    "all axes, rings": ((1, 2, 2, 2), 8, dict(ring=2)),
    "all axes, scanned": ((1, 2, 2, 2), 8, dict(unroll=1, remat="full")),
    "tied": ((1, 2, 2, 2), 8, dict(ring=2, tied=True)),
    "tensor": ((1, 2, 1, 4), 8, dict()),
    "rows that do not divide": ((1, 8, 1, 1), 6, dict(ring=4)),
    "a width that does not divide": ((1, 8, 1, 1), 8, dict(d_model=36)),
}


def batch(rows):
  rng = np.random.default_rng(0)
  shape = (rows, 16)
  ints = lambda high: jnp.asarray(rng.integers(0, high, shape), jnp.int32)
  segments = jnp.asarray(np.repeat([[1] * 6 + [2] * 8 + [0] * 2], rows, 0))
  positions = jnp.asarray(np.repeat([[*range(6), *range(8), 0, 0]], rows, 0))
  return Batch(
      ints(250), ints(250), jnp.asarray(rng.random(shape), jnp.float32),
      segments.astype(jnp.int32), positions.astype(jnp.int32),
      extra={"values_BT": jnp.asarray(rng.random(shape), jnp.float32),
             "value_weights_BT": jnp.ones(shape, jnp.float32)})


def gradients(config, rows, mesh):
  """The loss and every parameter's gradient."""
  net = model.LanguageModel(config)
  loss = objectives.next_token_and_value(stage.apply_of(net), z_loss=1e-3)
  with jax.set_mesh(mesh):
    params = net.init(jax.random.key(0))
    step = jax.jit(jax.value_and_grad(lambda p, b: loss(p, b, None)[0]))
    found, grads = step(params, train.shard_batch(batch(rows)))
    layouts = {path: (x.sharding.spec, dict(optim.flatten_paths(grads))[path]
                      .sharding.spec) for path, x in
               optim.flatten_paths(params)}
  return float(found), {path: np.asarray(g) for path, g in
                        optim.flatten_paths(grads)}, layouts


def main(path):
  found = {}
  for name, (shape, rows, changes) in LAYOUTS.items():
    config = CONFIG.replace(**changes)
    loss, grads, layouts = gradients(config, rows, sharding.make_mesh(shape))
    one = sharding.make_mesh((1, 1, 1, 1), devices=jax.devices()[:1])
    alone, wanted, _ = gradients(config.replace(ring=None), rows, one)
    found[name] = {
        "loss": abs(loss - alone) / abs(alone),
        "gradients": {path: float(np.abs(grads[path] - w).max()
                                  / np.abs(w).max())
                      for path, w in wanted.items()},
        "moved": [path for path, (a, b) in layouts.items() if a != b]}
  path.write_text(json.dumps(found))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
  path = tmp_path_factory.mktemp("layouts") / "found.json"
  process = subprocess.run(
      [sys.executable, __file__, str(path)], cwd=house.ROOT, text=True,
      capture_output=True, env=os.environ | {
          "PYTHONPATH": f"{house.ROOT}:{house.ROOT / 'tests'}",
          "JAX_PLATFORMS": "cpu",
          "XLA_FLAGS": "--xla_force_host_platform_device_count=8"})
  assert process.returncode == 0, process.stderr[-3000:]
  return json.loads(path.read_text())


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_computes_what_one_device_computes(found, name):
  # Float32; sums in another order.
  assert found[name]["loss"] < 1e-6
  worst = max(found[name]["gradients"].items(), key=lambda item: item[1])
  assert worst[1] < 2e-5, worst


@pytest.mark.parametrize("name", LAYOUTS)
def test_gradients_lie_where_their_parameters_lie(found, name):
  assert found[name]["moved"] == []


def test_a_ring_that_does_not_divide_is_refused(found):
  mesh = jax.sharding.AbstractMesh(
      (1, 8, 1, 1), sharding.AXES,
      axis_types=(jax.sharding.AxisType.Explicit,) * 4)
  spec = jax.sharding.PartitionSpec("fsdp")
  with jax.sharding.use_abstract_mesh(mesh), pytest.raises(
      UserError, match="model.ring=3 does not divide the 8 devices"):
    jax.eval_shape(jax.shard_map(
        lambda x: sharding.reduce_scatter(x, "fsdp", 0, ring=3),
        in_specs=spec, out_specs=spec), jax.ShapeDtypeStruct(
            (64, 8), jnp.float32,
            sharding=jax.sharding.NamedSharding(mesh, spec)))


if __name__ == "__main__":
  main(pathlib.Path(sys.argv[1]))
