"""Chunked token log-probabilities against those of the full logits.

Run as a program, it writes what it found on eight fake devices as JSON.
"""

import contextlib
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import masked
from lm import sharding
from lm.model import unembed
from lm.model.dot import dot

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHAPE = (4, 6, 16, 40)  # B, T, D, V
VOCAB_SIZE = 37
CAP = 3.0
NAMES = ("log_probs", "log_z", "d_x", "d_kernel")
# Relative errors. All is summed in float32, in another order, but bfloat16 has
# gradients of its own activations, and sums over devices that round at each.
EXACT = 2e-6
LIMITS = {
    ("float32", "one"): dict.fromkeys(NAMES, EXACT),
    ("float32", "mesh"): dict.fromkeys(NAMES, EXACT),
    ("bfloat16", "one"): dict.fromkeys(NAMES, EXACT) | {"d_x": 2**-9},
    ("bfloat16", "mesh"):
        dict.fromkeys(NAMES, EXACT) | {"d_x": 2**-7, "d_kernel": 2**-7},
}
DTYPES = ("float32", "bfloat16")
TOKEN = 4 * SHAPE[-1]  # Bytes of the logits of one token.

# Mesh, shape, tokens a chunk, cap.
MESHES = {
    "data, fsdp and tensor": ((2, 2, 1, 2), SHAPE, 4, CAP),
    "three of five tokens, then two": ((1, 4, 2, 1), (4, 10, 16, 40), 3, None),
    "a kernel that fsdp does not divide":
        ((1, 8, 1, 1), (8, 6, 12, 40), 2, CAP),
    "a batch that fsdp does not divide": ((1, 8, 1, 1), SHAPE, 5, None),
    "a vocabulary that tensor does not divide":
        ((2, 2, 1, 2), (4, 6, 16, 41), 100, CAP),
}


def arrays(shape, dtype):
  """Activations, kernel, targets, and cotangents of both results."""
  b, t, d, v = shape
  rng = np.random.default_rng(0)
  x = jnp.asarray(2 * rng.normal(size=(b, t, d)), dtype)
  kernel = jnp.asarray(rng.normal(size=(d, v)), jnp.float32)
  targets = jnp.asarray(rng.integers(0, VOCAB_SIZE, (b, t)), jnp.int32)
  grads = tuple(jnp.asarray(rng.normal(size=(b, t)), jnp.float32)
                for _ in range(2))
  return x, kernel, targets, grads


def from_full_logits(x, kernel, targets, cap):
  logits = dot(x, kernel, dtype=jnp.float32)
  if cap is not None:
    logits = cap * jnp.tanh(logits / cap)
  logits = jnp.where(jnp.arange(kernel.shape[1]) < VOCAB_SIZE, logits, -1e9)
  return masked.token_log_probs(logits, targets)


def chunked(x, kernel, targets, cap, chunk_bytes):
  return unembed.token_log_probs(
      x, kernel, targets, vocab_size=VOCAB_SIZE, logit_cap=cap,
      chunk_bytes=chunk_bytes)


def with_gradients(fn, *args):
  """A program that gives what `NAMES` says."""
  def program(x, kernel, targets, grads):
    out, pull = jax.vjp(lambda x, w: fn(x, w, targets, *args), x, kernel)
    return *out, *pull(grads)
  return jax.jit(program)


def laid_out(x, kernel, targets, grads):
  """The arrays as a training step has them on the mesh that is set."""
  rows = lambda x: sharding.shard(x, "batch", "length")
  return (sharding.shard(x, "batch", "length", None),
          sharding.shard(kernel, "embed", "vocab"), rows(targets),
          tuple(map(rows, grads)))


def errors(shape, dtype, tokens, cap, mesh=None):
  """Relative errors by name; each gradient must lie as its array does."""
  data = arrays(shape, dtype)
  want = with_gradients(from_full_logits, cap)(*data)
  with jax.set_mesh(mesh) if mesh else contextlib.nullcontext():
    data = laid_out(*data)
    got = with_gradients(chunked, cap, TOKEN * tokens)(*data)
  for a, b in zip(got, (*data[3], *data[:2])):
    assert (a.shape, a.dtype, a.sharding) == (b.shape, b.dtype, b.sharding)
  norm = lambda x: float(np.linalg.norm(np.asarray(x, np.float32)))
  return {name: norm(np.asarray(a, np.float32) - np.asarray(b, np.float32))
          / norm(b) for name, a, b in zip(NAMES, got, want)}


def within(limits, found):
  assert all(found[name] < limits[name] for name in NAMES), found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cap", [None, CAP])
@pytest.mark.parametrize("tokens", [0, 5, 8, 24])
def test_values_and_gradients(dtype, cap, tokens):
  """24 tokens by one each, in four of 5 and 4, in three, and at once."""
  within(LIMITS[dtype, "one"], errors(SHAPE, dtype, tokens, cap))


def test_a_mesh_of_one_device_is_none():
  mesh = sharding.make_mesh((1, 1, 1, 1), devices=jax.devices()[:1])
  within(LIMITS["bfloat16", "one"], errors(SHAPE, "bfloat16", 5, CAP, mesh))


def test_padding_of_the_vocabulary_has_no_gradient():
  x, kernel, targets, grads = arrays(SHAPE, "float32")
  kernel = kernel.at[:, VOCAB_SIZE:].set(100.0)  # Would win everything.
  out = with_gradients(chunked, CAP, 5 * TOKEN)(x, kernel, targets, grads)
  want = with_gradients(from_full_logits, CAP)(
      x, kernel[:, :VOCAB_SIZE], targets, grads)
  np.testing.assert_allclose(out[0], want[0], atol=1e-5)
  np.testing.assert_array_equal(out[3][:, VOCAB_SIZE:], 0)


def equations(jaxpr):
  """All equations of a program, those of its loops and calls included."""
  for eqn in jaxpr.eqns:
    yield eqn
    for param in jax.tree.leaves(
        list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
      inner = getattr(param, "jaxpr", param)
      if hasattr(inner, "eqns"):
        yield from equations(inner)


def largest_float32(fn, *args, shape=(4, 16, 8, 40)):
  """Elements of the largest float32 array in the program of `fn`."""
  jaxpr = jax.make_jaxpr(with_gradients(fn, *args))(*arrays(shape, "bfloat16"))
  return max(var.aval.size for eqn in equations(jaxpr.jaxpr)
             for var in eqn.outvars if var.aval.dtype == jnp.float32)


def test_the_full_logits_are_never_made():
  logits = 4 * 16 * 40
  assert largest_float32(from_full_logits, CAP) == logits
  assert largest_float32(chunked, CAP, 64 * TOKEN) == logits
  for tokens in (10, 16, 32):
    chunks = -(-64 // tokens)
    assert largest_float32(chunked, CAP, tokens * TOKEN) == (
        -(-64 // chunks) * 40)


def test_one_chunk_is_no_loop():
  def loops(tokens):
    program = with_gradients(chunked, None, tokens * TOKEN)
    jaxpr = jax.make_jaxpr(program)(*arrays(SHAPE, "float32"))
    return sum(e.primitive.name == "scan" for e in equations(jaxpr.jaxpr))
  assert (loops(24), loops(23)) == (0, 2)


@pytest.fixture(scope="module")
def on_meshes(tmp_path_factory):
  path = tmp_path_factory.mktemp("unembed") / "found.json"
  done = subprocess.run(
      [sys.executable, "-m", "tests.model.unembed_test", str(path)], cwd=ROOT,
      env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "8"},
      capture_output=True, text=True, timeout=300, check=False)
  assert done.returncode == 0, done.stderr[-3000:]
  return json.loads(path.read_text())


@pytest.mark.parametrize("name", MESHES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_mesh_computes_what_one_device_computes(on_meshes, name, dtype):
  within(LIMITS[dtype, "mesh"], on_meshes[name][dtype])


def test_the_kernel_travels_in_the_compute_dtype(on_meshes):
  assert on_meshes["sent"] == {
      "all_gather": ["bfloat16", "bfloat16"],
      "reduce_scatter": ["float32"]}  # On CPU; in bfloat16 on TPU.


def sent(mesh):
  """The dtypes of what collectives gather and scatter, in the program."""
  found = {"all_gather": [], "reduce_scatter": []}
  with jax.set_mesh(mesh):
    jaxpr = jax.make_jaxpr(with_gradients(chunked, CAP, 4 * TOKEN))(
        *laid_out(*arrays(SHAPE, "bfloat16")))
  for eqn in equations(jaxpr.jaxpr):
    if eqn.primitive.name in found:
      found[eqn.primitive.name].append(eqn.invars[0].aval.dtype.name)
  return found


def main(path):
  found = {
      name: {dtype: errors(shape, dtype, tokens, cap, sharding.make_mesh(mesh))
             for dtype in DTYPES}
      for name, (mesh, shape, tokens, cap) in MESHES.items()}
  found["sent"] = sent(sharding.make_mesh((2, 2, 1, 2)))
  path.write_text(json.dumps(found))


if __name__ == "__main__":
  main(pathlib.Path(sys.argv[1]))
