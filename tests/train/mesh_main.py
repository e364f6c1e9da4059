"""Run by mesh_test.py on eight fake devices; writes what it found as JSON."""

import hashlib
import json
import pathlib
import sys

import jax
import numpy as np
from tests.train import toy

from lm import model
from lm import objectives
from lm import optim
from lm import sharding
from lm import train
from lm.data import mixture
from lm.data import vocab as vocab_lib
from lm.launch import stage

# Each mesh with a number of microbatches; all must agree with the first.
MESHES = {(1, 1, 1, 1): 1, (2, 1, 2, 2): 1, (2, 2, 1, 2): 4, (1, 2, 2, 2): 2}
CONFIG = model.ModelConfig(
    vocab_size=260, d_model=16, num_layers=4, num_heads=4, num_kv_heads=2,
    head_dim=4, d_mlp=32, max_length=16, scalar_head=True)


def mesh(shape):
  return sharding.make_mesh(shape, devices=jax.devices()[:np.prod(shape)])


def padded(spec, ndim):
  """A spec as a list with an entry (of axis names) for every dimension."""
  entries = [list(e) if isinstance(e, tuple) else [e] if e else []
             for e in spec]
  return entries + [[]] * (ndim - len(entries))


def layout(tree):
  spec = lambda x: x.sharding.spec if x.sharding else ()
  return {path: [list(x.shape), padded(spec(x), x.ndim)]
          for path, x in optim.flatten_paths(tree) if hasattr(x, "shape")}


def losses(tx, microbatches, steps):
  """Metrics of each step, the final state, and how often it compiled."""
  toy_model = toy.Toy()
  step = train.make_step(
      objectives.next_token_and_value(toy_model.apply, z_loss=1e-3), tx,
      seed=0, microbatches=microbatches)
  state = train.init_state(toy_model, tx, jax.random.key(0))
  found = []
  for n in range(steps):
    state, metrics = step(state, train.shard_batch(toy.batch(n)))
    found.append({k: float(v) for k, v in metrics.items()})
  return found, state, step._cache_size()


def plain(tree):
  return {path: np.asarray(x).tolist() for path, x in optim.flatten_paths(tree)
          if hasattr(x, "shape")}


def twenty_steps(folder, shape):
  """A real model on real batches: losses, and the bytes of every batch."""
  games = {"games": {"kind": "game24_value", "count": 400}}
  vocab = vocab_lib.ByteVocab()
  folders = mixture.write(games, vocab, folder / "games", form="examples",
                          length=160, processes=1)
  net = model.LanguageModel(CONFIG.replace(max_length=160, dtype="float32"))
  tx = optim.muon(optim.cosine(5e-3, steps=20, warmup=4))
  step = train.make_step(
      objectives.next_token_and_value(stage.apply_of(net)), tx, seed=3)
  found, batches = [], []
  with jax.set_mesh(mesh(shape)):
    source = mixture.mixed(games, mixture.sources(
        folders, form="examples", length=160, batch=8, seed=3))
    state = train.init_state(net, tx, jax.random.key(3))
    for _ in range(20):
      batch = train.shard_batch(source(state))
      digest = hashlib.sha256()
      for leaf in jax.tree.leaves(batch):
        digest.update(np.asarray(leaf).tobytes())
      batches.append(digest.hexdigest())
      state, metrics = step(state, batch)
      found.append(float(metrics["loss"]) + float(metrics["value_loss"]))
  return {"losses": found, "batches": batches}


def main(folder):
  out = {"twenty": {str(s): twenty_steps(folder, s)
                    for s in ((1, 1, 1, 1), (2, 2, 1, 2))}}
  tx = optim.muon(1e-2)
  whole = None
  for shape, parts in MESHES.items():
    here = out[str(shape)] = {}
    with jax.set_mesh(mesh(shape)):
      here["metrics"], state, here["compiled"] = losses(tx, parts, 2)
      here["params"] = plain(state.params)
      here["toy layout"] = layout(state.opt_state)
      here["model layout"] = layout(train.abstract_state(
          model.LanguageModel(CONFIG), optim.muon(1e-2)))
      batch = train.shard_batch(toy.batch())
      here["batch"] = padded(batch.tokens_BT.sharding.spec, 2)
      if whole is None:
        whole = state
        train.Checkpointer(folder, description={}).save(
            2, state, {"step": 2}, wait=True)
      else:  # Saved on one device, restored here, saved here, ...
        like = train.abstract_state(toy.Toy(), tx)
        found, _ = train.Checkpointer(folder, description={}).restore(like)
        toy.trees_equal(found, whole)
        here["restored layout"] = layout(found.opt_state)
        again = train.Checkpointer(folder / str(shape), description={})
        again.save(2, found, {}, wait=True)
  for shape in list(MESHES)[1:]:  # ... and restored on one.
    again = train.Checkpointer(folder / str(shape), description={})
    with jax.set_mesh(mesh((1, 1, 1, 1))):
      like = train.abstract_state(toy.Toy(), tx)
      toy.trees_equal(again.restore(like)[0], whole)
  out["crossed"] = True
  (folder / "found.json").write_text(json.dumps(out))


if __name__ == "__main__":
  main(pathlib.Path(sys.argv[1]))
