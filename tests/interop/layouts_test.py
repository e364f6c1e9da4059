"""The correspondence of names and shapes, and what is refused."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.interop import huggingface, layouts
from lm.model import LanguageModel
from lm.types import UserError
from tests.model import tiny

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def quick_compile():
  """XLA without its costly optimisations: each program runs once."""
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def made():
  """A config, and its tensors by name."""
  config = tiny.config(qkv_bias=True, qk_norm=True)
  params = tiny.params(config)
  return config, {t.name: t.fetch() for t in layouts.tensors(config, params)}


def assemble(config, tensors, **more):
  shapes = {name: x.shape for name, x in tensors.items()}
  return layouts.assemble(config, shapes, tensors.__getitem__, where="HERE",
                          **more)


def test_every_leaf_but_the_scalar_head_has_a_place():
  for changes in (dict(), dict(tied=True, qk_norm=True, scalar_head=True),
                  dict(qkv_bias=True)):
    config = tiny.config(**changes)
    found = {"/".join(k.key for k in path): x.shape for path, x in
             jax.tree_util.tree_flatten_with_path(
                 LanguageModel(config).abstract())[0]}
    found = {k: v for k, v in found.items() if not k.startswith("value/")}
    leaves = layouts.leaves(config)
    assert set(found) == set(leaves)
    for path, leaf in leaves.items():
      shape = tuple(leaf.padded[i] for i in leaf.order)
      assert found[path] == (config.num_layers,) * leaf.stacked + shape, path


def test_kernels_are_theirs_transposed_with_the_heads_side_by_side(made):
  """By hand, against products as torch's Linear makes them: x W^T."""
  config, tensors = made
  params = assemble(config, tensors)
  x = np.random.default_rng(0).normal(size=config.d_model).astype(np.float32)
  attention = params["layers"]["attention"]
  linear = tensors["model.layers.1.self_attn.q_proj.weight"] @ x
  h = config.head_dim
  for head in range(config.num_heads):
    np.testing.assert_allclose(
        x @ attention["q"][1, :, head], linear[head * h:(head + 1) * h],
        rtol=1e-5, atol=1e-5)
  y = np.random.default_rng(1).normal(size=(config.num_heads, h)).astype(
      np.float32)
  np.testing.assert_allclose(
      np.einsum("nh,nhd->d", y, attention["o"][1]),
      tensors["model.layers.1.self_attn.o_proj.weight"] @ y.reshape(-1),
      rtol=1e-4, atol=1e-4)
  np.testing.assert_array_equal(
      params["head"]["kernel"][:, :config.vocab_size],
      tensors["lm_head.weight"].T)
  for rows in (params["embed"]["table"], params["head"]["kernel"].T):
    assert rows.shape[0] == 64 and not np.any(rows[config.vocab_size:])
  np.testing.assert_array_equal(
      attention["k_bias"][0].reshape(-1),
      tensors["model.layers.0.self_attn.k_proj.bias"])


@pytest.mark.parametrize("kind, dtype", [
    (np.float64, "float32"), (np.float32, "bfloat16"), (np.float16, "bfloat16"),
    (jnp.bfloat16, "float32")], ids=["f64", "f32", "f16", "bf16"])
def test_types_are_cast_once(made, kind, dtype):
  config, tensors = made
  tensors = {n: x.astype(kind) for n, x in tensors.items()}
  params = assemble(config, tensors, dtype=dtype)
  assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype(dtype)}
  want = tensors["model.layers.0.mlp.down_proj.weight"].astype(
      np.float32).astype(jnp.dtype(dtype))
  np.testing.assert_array_equal(params["layers"]["mlp"]["down"][0], want.T)


def test_faulty_tensors_are_named(made):
  config, tensors = made
  name = "model.layers.1.mlp.up_proj.weight"

  def fails(changed, *words):
    with pytest.raises(UserError) as e:
      assemble(config, changed)
    assert str(e.value).startswith("HERE") and "\n" not in str(e.value)
    assert all(word in str(e.value) for word in words), e.value

  fails({k: v for k, v in tensors.items() if k != name}, name, "no tensor")
  fails(tensors | {"model.layers.2.mlp.up_proj.weight": tensors[name]},
        "model.layers.2.mlp.up_proj.weight", "no place")
  fails(tensors | {name: tensors[name].T}, name, "[24, 40]", "[40, 24]")
  for bad in (np.nan, np.inf, -np.inf):
    broken = tensors[name].copy()
    broken[-1, -1] = bad
    fails(tensors | {name: broken}, name, "NaN")
  broken = tensors["lm_head.weight"].copy()
  broken[0, 0] = np.nan
  fails(tensors | {"lm_head.weight": broken}, "lm_head.weight")
  with pytest.raises(UserError, match="1000000000 layers"):
    assemble(config.replace(num_layers=10 ** 9), tensors)
  with pytest.raises(UserError, match="float16"):
    assemble(config, tensors, dtype="float16")
  with pytest.raises(UserError, match="scalar_head"):
    assemble(config.replace(scalar_head=True), tensors)


def test_old_rotary_buffers_are_ignored(made):
  config, tensors = made
  more = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": np.ones(4)
          for i in range(2)}
  seen = []
  shapes = {n: x.shape for n, x in (tensors | more).items()}
  layouts.assemble(config, shapes, tensors.__getitem__, tick=seen.append)
  assert sorted(seen) == sorted(tensors)


def test_a_head_beside_a_tied_embedding_must_be_the_same():
  config = tiny.config(tied=True)
  tensors = {t.name: t.fetch() for t in layouts.tensors(
      config, tiny.params(config))}
  table = tensors["model.embed_tokens.weight"]
  assert "head" not in assemble(config, tensors | {"lm_head.weight": table})
  for other in (table + 1, table[:-1]):
    with pytest.raises(UserError, match="tie_word_embeddings"):
      assemble(config, tensors | {"lm_head.weight": other})


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"),
                    reason="peak memory is read from Linux's /proc")
def test_eight_devices_get_their_parts_and_the_host_one_tensor(tmp_path):
  config = tiny.config(vocab_size=16000, d_model=512, num_layers=4, num_heads=8,
                       num_kv_heads=4, head_dim=64, d_mlp=2048)
  params = jax.tree.map(lambda x: np.full(x.shape, 0.5, np.float32),
                        LanguageModel(config).abstract())
  huggingface.export(tmp_path / "in", config, params, None, dtype="bfloat16",
                     shard_gb=0.025)
  done = subprocess.run(
      [sys.executable, "-m", "tests.interop.mesh_main", tmp_path / "in"],
      cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
      env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "8",
           "MALLOC_MMAP_THRESHOLD_": "65536"})  # What is freed, is returned.
  assert done.returncode == 0, done.stderr[-3000:]
  found = json.loads(done.stdout.splitlines()[-1])
  print(found)
  assert found["placed"] and found["error"] < 1e-4
  assert found["shards"] > 2
  limit = 1.3 * (found["shard"] + found["tensor"])
  assert found["streamed"] < limit < found["careless"]
