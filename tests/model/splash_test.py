"""The TPU's attention kernels: against the reference, and through Mosaic.

Run as a program, it writes what it found on eight fake devices, or what the TPU
compiler made of a step, as JSON.
"""

import contextlib
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys

import jax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import topologies
import jax.numpy as jnp
import numpy as np
import pytest

from lm import sharding
from lm.model import attention
from lm.model import splash
from lm.types import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]
NAMES = ("out", "d_q", "d_k", "d_v")
# Each mesh with [batch, length, heads, kv heads] and a window. 1,536 keys are
# three blocks; a batch of one does not divide data, nor one kv head tensor.
MESHES = {
    (1, 4, 2, 1): ((4, 512, 4, 1), None),
    (1, 2, 2, 2): ((2, 1536, 4, 2), 700),
    (2, 1, 1, 4): ((1, 384, 4, 4), None),
    (1, 1, 4, 2): ((1, 1024, 2, 1), None),
}
# The TPU compiler on a machine without a TPU, beside others of its kind.
TPU = {"TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-8",
       "TPU_WORKER_HOSTNAMES": "localhost", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
       # A cached program would not show that Mosaic takes the kernels.
       "JAX_ENABLE_COMPILATION_CACHE": "0"}


def arrays(shape, dtype="float32", head_dim=32):
  """Queries, keys, values, segments of three examples, and a cotangent."""
  b, t, n, kv = shape
  rng = np.random.default_rng(0)
  normal = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
  q, g = (normal(b, t, n, head_dim) for _ in range(2))
  q = q * head_dim ** -0.5  # Both want them scaled.
  k, v = (normal(b, kv, t, head_dim) for _ in range(2))
  # Other lengths in every row, and none a multiple of a block.
  ends = np.array([[t // 2 + 5 + i, t - 40 + i, t - 19] for i in range(b)])
  row = np.arange(t)
  segments = 1 + (row[None, :, None] >= ends[:, None, :2]).sum(-1)
  segments = np.where(row < ends[:, 2:], segments, 0).astype(np.int32)
  # The loss leaves padding out, so its cotangent is zero.
  return q, k, v, segments, g * (segments > 0)[..., None, None]


def positions(segments_BT):
  """Each row's place in its segment."""
  row = np.broadcast_to(np.arange(segments_BT.shape[1]), segments_BT.shape)
  starts = np.diff(segments_BT, prepend=-1) != 0
  return row - np.maximum.accumulate(np.where(starts, row, 0), axis=1)


def errors(shape, *, window=None, mesh=None, **kwargs):
  """The greatest differences from the reference in float32, by name."""
  q, k, v, segments, g = arrays(shape, **kwargs)
  places = positions(segments)
  mask = attention.make_mask(places, segments, places, segments, window)

  @jax.jit
  def want(*args):
    out, pull = jax.vjp(lambda *a: attention.attend(*a, mask), *args[:3])
    return out, *pull(args[3])

  @jax.jit
  def got(*args):
    out, pull = jax.vjp(
        lambda *a: splash.attend(*a, segments, segments, window=window,
                                 interpret=True), *args[:3])
    return out, *pull(args[3].astype(out.dtype))

  wide = [x.astype(jnp.float32) for x in (q, k, v, g)]
  with jax.set_mesh(mesh) if mesh else contextlib.nullcontext():
    found = [np.asarray(x) for x in got(q, k, v, g)]
  assert all(x.dtype == q.dtype for x in found)
  assert all(np.isfinite(x.astype(np.float32)).all() for x in found)
  real = segments[..., None, None] > 0  # What padding gives is nobody's.
  return {name: float(np.abs((x.astype(np.float32) - y)
                             * (real if name == "out" else 1)).max())
          for name, x, y in zip(NAMES, found, want(*wide))}


@pytest.mark.parametrize("shape, window, kwargs", [
    ((2, 384, 2, 2), None, {}),  # Three blocks of keys; the fused kernel.
    ((1, 384, 4, 1), 100, dict(head_dim=128)),
    ((2, 640, 4, 1), None, {}),  # Five; two kernels.
    ((1, 640, 4, 2), 200, {}),
    ((1, 384, 4, 1), None, dict(dtype="bfloat16")),
    ((2, 640, 2, 2), 1, dict(dtype="bfloat16")),
], ids=str)
def test_kernels_compute_what_the_reference_computes(shape, window, kwargs):
  found = errors(shape, window=window, **kwargs)
  # Values are up to 7; bfloat16 has 8 bits.
  limit = 0.05 if kwargs.get("dtype") == "bfloat16" else 2e-5
  assert max(found.values()) < limit, found


def child(what, folder, **env):
  done = subprocess.run(
      [sys.executable, "-m", "tests.model.splash_test", what, str(folder)],
      cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), **env},
      capture_output=True, text=True, timeout=300, check=False)
  assert done.returncode == 0, done.stderr[-3000:]
  return json.loads((folder / f"{what}.json").read_text())


@pytest.fixture(scope="module")
def on_meshes(tmp_path_factory):
  return child("meshes", tmp_path_factory.mktemp("splash"),
               JAX_NUM_CPU_DEVICES="8")


@pytest.mark.parametrize("shape", map(str, MESHES))
def test_a_mesh_computes_what_the_reference_computes(on_meshes, shape):
  found = on_meshes[shape]
  assert max(found.values()) < 2e-5, found


@pytest.mark.parametrize("shards", [2, 4])
def test_context_shards_do_equal_work(shards):
  kernel = splash.make_kernel(4096, 256, shards=shards)
  for info in (kernel.fwd_mask_info, kernel.dkv_mask_info):
    blocks = np.asarray(info.block_mask).reshape(shards, -1)
    blocks = (blocks > 0).sum(1)
    assert (blocks == blocks[0]).all(), blocks
  rows = splash.row_order(4096, shards)
  assert sorted(rows) == list(range(4096))
  keys_seen = (rows.reshape(shards, -1) + 1).sum(1)
  np.testing.assert_allclose(keys_seen, keys_seen.mean(), rtol=1e-3)


def test_exchange_by_hand():
  np.testing.assert_array_equal(
      splash.row_order(12, 3), [0, 1, 10, 11, 4, 5, 6, 7, 8, 9, 2, 3])


@pytest.mark.parametrize("length, shards", [
    (128, 1), (1152, 1), (1536, 2), (4096, 1), (4096, 4), (32768, 2)])
@pytest.mark.parametrize("head_bytes", [64, 256, 512, 1024])
def test_blocks_divide(length, shards, head_bytes):
  piece = length // (2 * shards if shards > 1 else 1)
  blocks = splash.block_sizes(length, head_bytes, shards=shards)
  for size in (blocks.block_q, blocks.block_q_dkv):
    assert piece % size == 0 and size % splash.LANES == 0
  for size in (blocks.block_kv, blocks.block_kv_dkv):
    assert length % size == 0 and size % splash.LANES == 0
  assert blocks.block_kv % blocks.block_kv_compute == 0
  assert blocks.block_kv_dkv % blocks.block_kv_dkv_compute == 0
  assert blocks.has_backward_blocks


def test_other_lengths_are_refused():
  assert splash.supported(384) and not splash.supported(100)
  q, k, v, segments, _ = arrays((1, 100, 2, 1))
  with pytest.raises(UserError, match="multiples of 128 tokens, not 100"):
    splash.attend(q, k, v, segments, segments)


@pytest.fixture(scope="module")
def for_tpu(tmp_path_factory):
  if importlib.util.find_spec("libtpu") is None:
    pytest.skip("needs the TPU compiler: pip install libtpu")
  return child("tpu", tmp_path_factory.mktemp("tpu"), **TPU)


@pytest.mark.parametrize("saved, forwards", [("q k v attention", 1),
                                             ("q k v", 2)])
def test_mosaic_takes_the_kernels(for_tpu, saved, forwards):
  """And a policy that saves "attention" runs the forward kernel once."""
  program = for_tpu[saved]
  assert len(re.findall(r"%splash_mqa_fwd\S* = .* custom-call", program)
             ) == forwards
  assert len(re.findall(r"%splash_mqa_dkv\S* = .* custom-call", program)) == 1


def on_fake_devices():
  found = {}
  for shape, (sizes, window) in MESHES.items():
    found[str(shape)] = errors(
        sizes, window=window, mesh=sharding.make_mesh(shape))
  with jax.set_mesh(sharding.make_mesh((2, 1, 4, 1))):
    assert splash.supported(1024) and not splash.supported(512)
  return found


def scheduled_for_tpu():
  """The gradient of a layer on eight chips of v5e, by the names it saves."""
  devices = topologies.get_topology_desc(
      platform="tpu", topology_name="v5e:2x4").devices
  mesh = sharding.make_mesh((1, 2, 2, 2), devices=devices)

  def like(dtype, **sizes):
    shape = tuple(sizes.values())
    spec = sharding.spec(tuple(sizes), shape, mesh=mesh)
    return jax.ShapeDtypeStruct(
        shape, dtype, sharding=jax.sharding.NamedSharding(mesh, spec))

  def layer(q, k, v, segments):
    q, k, v = map(checkpoint_name, (q, k, v), ("q", "k", "v"))
    return splash.attend(q, k, v, segments, segments)

  def compiled(saved):
    policy = jax.checkpoint_policies.save_only_these_names(*saved.split())
    kept = jax.checkpoint(layer, policy=policy)
    # The square: the backward pass needs the output too.
    loss = lambda *args: jnp.square(kept(*args).astype(jnp.float32)).sum()
    step = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    return step.lower(
        like("bfloat16", batch=2, length=1024, heads=4, head_dim=128),
        *2 * (like("bfloat16", batch=2, kv_heads=2, length=1024,
                   head_dim=128),),
        like("int32", batch=2, length=1024)).compile().as_text()

  with jax.set_mesh(mesh):
    return {saved: compiled(saved) for saved in ("q k v attention", "q k v")}


if __name__ == "__main__":
  run = {"meshes": on_fake_devices, "tpu": scheduled_for_tpu}[sys.argv[1]]
  path = pathlib.Path(sys.argv[2]) / f"{sys.argv[1]}.json"
  path.write_text(json.dumps(run()))
