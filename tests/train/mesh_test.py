"""Laws 5 to 7 and Muon on meshes of eight fake devices, in a child process."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from tests.train import mesh_main

from lm import model
from lm import optim
from lm import sharding

ROOT = pathlib.Path(__file__).resolve().parents[2]
ONE = str((1, 1, 1, 1))
EIGHT = [str(s) for s in list(mesh_main.MESHES)[1:]]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
  folder = tmp_path_factory.mktemp("mesh")
  done = subprocess.run(
      [sys.executable, "-m", "tests.train.mesh_main", str(folder)], cwd=ROOT,
      env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "8"},
      capture_output=True,
      text=True, timeout=300, check=False)
  assert done.returncode == 0, done.stderr[-3000:]
  assert "rematerialization" not in done.stderr, (
      "a reshard replicates an array on the way:\n" + done.stderr[:1000])
  return json.loads((folder / "found.json").read_text())


def close(a, b, rtol):
  assert set(a) == set(b)
  for name in a:
    np.testing.assert_allclose(a[name], b[name], rtol=rtol, atol=1e-6,
                               err_msg=name)


@pytest.mark.parametrize("shape", EIGHT)
def test_a_mesh_computes_what_one_device_computes(found, shape):
  """Two steps of Muon (resharded kernels) and AdamW, in 1 to 4 microbatches."""
  for step in range(2):
    close(found[shape]["metrics"][step], found[ONE]["metrics"][step], 1e-5)
  close(found[shape]["params"], found[ONE]["params"], 2e-4)


def test_a_seed_is_a_run_on_one_device_and_on_eight(found):
  """Law 5: identical batches; the first loss to 1e-6, the twentieth to 1e-4."""
  one, eight = (found["twenty"][s] for s in (ONE, str((2, 2, 1, 2))))
  assert one["batches"] == eight["batches"]
  assert len(set(one["batches"])) == 20
  assert eight["losses"][0] == pytest.approx(one["losses"][0], rel=1e-6)
  assert eight["losses"][19] == pytest.approx(one["losses"][19], rel=1e-4)
  assert one["losses"][19] < 0.8 * one["losses"][0]  # It was learning.


@pytest.mark.parametrize("shape", [ONE, *EIGHT])
def test_one_compile_serves_all_steps(found, shape):
  assert found[shape]["compiled"] == 1


# By hand, for the mesh with three axes of two (fsdp, context, tensor).
BY_HAND = {
    "layers/attention/q": [[], ["fsdp"], ["tensor"], []],
    "layers/attention/o": [[], ["tensor"], [], ["fsdp"]],
    "layers/mlp/up": [[], ["fsdp"], ["tensor"]],
    "layers/mlp/down": [[], ["tensor"], ["fsdp"]],
    "embed/table": [["tensor"], ["fsdp"]],
    "layers/mlp_norm/scale": [[], ["fsdp"]],
}


@pytest.mark.parametrize("kind", ["toy layout", "restored layout"])
def test_moments_lie_where_their_parameters_lie(found, kind):
  leaves = found[str((1, 2, 2, 2))][kind]
  for name, expected in BY_HAND.items():
    moments = [x for path, x in leaves.items() if path.endswith(name)]
    wanted = 2 if "table" in name or "scale" in name else 1
    assert len(moments) == wanted, (name, list(leaves))
    assert all(spec == expected for _, spec in moments), (name, moments)


@pytest.mark.parametrize("shape", EIGHT)
def test_every_leaf_of_the_models_state_has_its_spec(found, shape):
  """Law 6: the specs that the axis rules give, also for the moments."""
  made = model.LanguageModel(mesh_main.CONFIG)
  sizes = dict(zip(sharding.AXES, json.loads(
      shape.replace("(", "[").replace(")", "]")), strict=True))
  mesh = jax.sharding.AbstractMesh(
      tuple(sizes.values()), tuple(sizes))
  params = dict(optim.flatten_paths(made.abstract()))
  axes = jax.tree.leaves(
      made.axes(), is_leaf=lambda x: isinstance(x, tuple))
  expected = {
      path: mesh_main.padded(sharding.spec(names, leaf.shape, mesh=mesh),
                             leaf.ndim)
      for (path, leaf), names in zip(params.items(), axes, strict=True)}
  moments, scalars = set(), 0
  for path, (dims, spec) in found[shape]["model layout"].items():
    name = next((n for n in params if path.endswith(n)), None)
    if name is None:
      assert dims == spec == [] and path.endswith(("step", "count")), path
      scalars += 1
      continue
    assert dims == list(params[name].shape)
    assert spec == expected[name], (path, spec, expected[name])
    moments.add((path.split("/")[0], name))
  assert moments == {(root, name) for name in params
                     for root in ("params", "opt_state")}
  assert scalars >= 2  # The step and the optimizer's counts.
  sharded = [s for _, s in found[shape]["model layout"].values() if any(s)]
  assert len(sharded) > 10


def test_batches_lie_by_rows_and_length(found):
  assert found[str((2, 2, 1, 2))]["batch"] == [["data", "fsdp"], []]
  assert found[str((2, 1, 2, 2))]["batch"] == [["data"], ["context"]]


def test_checkpoints_cross_meshes_bit_for_bit(found):
  assert found["crossed"] is True
