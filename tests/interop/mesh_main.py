"""A child process with eight fake devices: layouts, and peak memory.

    python -m tests.interop.mesh_main FOLDER: an exported model; prints JSON.
"""

import ctypes
import gc
import json
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np

from lm import sharding
from lm.interop import huggingface, layouts
from lm.model import LanguageModel
from tests.model import tiny

MESHES = ((1, 2, 1, 4),)


def on_meshes():
  """Whether parameters lie where `init` puts them, and the largest error."""
  config = tiny.config(qkv_bias=True, qk_norm=True)
  made = {t.name: t.fetch() for t in layouts.tensors(
      config, tiny.params(config))}
  net = LanguageModel(config)
  tokens = tiny.tokens(config, 8, 8)
  shapes = {name: x.shape for name, x in made.items()}
  one = layouts.assemble(config, shapes, made.__getitem__)
  want = np.asarray(jax.jit(net.forward)(one, tokens).logits_BTV)
  errors, placed = [], True
  for mesh in MESHES:
    with jax.set_mesh(sharding.make_mesh(mesh)):
      params = layouts.assemble(config, shapes, made.__getitem__)
      like = jax.eval_shape(net.init, jax.random.key(0))
      placed &= jax.tree.all(jax.tree.map(
          lambda x, y: x.sharding.spec == y.sharding.spec, params, like))
      back = {t.name: t.fetch() for t in layouts.tensors(config, params)}
      placed &= all(np.array_equal(back[n], made[n]) for n in made)
      got = jax.jit(net.forward)(
          params, sharding.shard(jnp.asarray(tokens), "batch", "length"))
      errors.append(float(np.abs(np.asarray(got.logits_BTV) - want).max()))
  return placed, max(errors)


def status(key):
  """A number of bytes that the kernel knows of this process."""
  with open("/proc/self/status") as f:
    return next(int(line.split()[1]) << 10 for line in f
                if line.startswith(key))


def peak(work):
  """Peak memory of `work` beyond what was there and what it returns."""
  gc.collect()
  ctypes.CDLL(None).malloc_trim(0)
  with open("/proc/self/clear_refs", "w") as f:
    f.write("5")  # The peak starts again from here.
  before = status("VmRSS")
  made = jax.block_until_ready(work())
  held = sum(s.data.nbytes for x in jax.tree.leaves(made)
             for s in x.addressable_shards)
  return status("VmHWM") - before - held


def careless(folder):
  """As one would do it: the whole model, then its parts."""
  weights = huggingface.Weights(folder)
  whole = {name: np.array(weights.read(name)) for name in weights.shapes}
  return layouts.assemble(
      huggingface.read_config(folder), weights.shapes, whole.__getitem__)


def memory(folder):
  with jax.set_mesh(sharding.make_mesh()):
    load = lambda: huggingface.load(folder)[1]
    load()  # Compiles; programs stay, weights go.
    weights = huggingface.Weights(folder)
    return {
        "streamed": peak(load), "careless": peak(lambda: careless(folder)),
        "shards": len(weights.files),
        "shard": max(f.size for f in weights.files.values()),
        "tensor": 2 * max(math.prod(s) for s in weights.shapes.values())}


if __name__ == "__main__":
  jax.config.update("jax_disable_most_optimizations", True)
  placed, error = on_meshes()
  print(json.dumps({"placed": placed, "error": error, **memory(sys.argv[1])}))
