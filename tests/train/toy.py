"""A model small enough to compile in a moment, and data it can learn."""

import jax
import jax.numpy as jnp
import numpy as np

from lm import sharding
from lm.types import Batch, Output

V, D, N, H, F, L = 16, 8, 4, 2, 16, 4
SHAPES = {
    "embed": {"table": ((V, D), ("vocab", "embed"))},
    "layers": {
        "attention": {
            "q": ((L, D, N, H), ("layers", "embed", "heads", None)),
            "o": ((L, N, H, D), ("layers", "heads", None, "embed"))},
        "mlp": {"up": ((L, D, F), ("layers", "embed", "mlp")),
                "down": ((L, F, D), ("layers", "mlp", "embed"))},
        "mlp_norm": {"scale": ((L, D), ("layers", "embed"))}},
    "value": {"kernel": ((D,), ("embed",))},
}


def is_pair(x):
  return isinstance(x, tuple) and isinstance(x[0], tuple)


class Toy:
  """Not a transformer: every position predicts from its own token."""

  def init(self, key):
    pairs, tree = jax.tree.flatten(SHAPES, is_leaf=is_pair)
    keys = jax.random.split(key, len(pairs))
    return tree.unflatten(
        sharding.shard(0.3 * jax.random.normal(k, shape), *names)
        for k, (shape, names) in zip(keys, pairs, strict=True))

  def axes(self):
    return jax.tree.map(lambda p: p[1], SHAPES, is_leaf=is_pair)

  def apply(self, params, batch):
    whole = lambda w: sharding.shard(w, *(None,) * w.ndim)
    layers = jax.tree.map(whole, params["layers"])
    table_VD = whole(params["embed"]["table"])
    where = sharding.out_spec(
        ("batch", "length", None), (*batch.tokens_BT.shape, D))
    x = table_VD.at[batch.tokens_BT].get(out_sharding=where)

    def layer(x, w):
      x = x * (1 + w["mlp_norm"]["scale"])
      q = jnp.einsum("btd,dnh->btnh", x, w["attention"]["q"])
      x += jnp.einsum("btnh,nhd->btd", jnp.tanh(q), w["attention"]["o"])
      up = jnp.einsum("btd,df->btf", x, w["mlp"]["up"])
      return x + jnp.einsum("btf,fd->btd", jnp.tanh(up),
                            w["mlp"]["down"]), None

    x, _ = jax.lax.scan(layer, x, layers)
    return Output(
        x, sharding.shard(jnp.einsum("btd,vd->btv", x, table_VD),
                          "batch", "length", "vocab"),
        jnp.einsum("btd,d->bt", x, whole(params["value"]["kernel"])))


def batch(seed=0, rows=8, length=8):
  """Targets that follow from the tokens; token weights very unequal by row."""
  rng = np.random.default_rng(seed)
  tokens = rng.integers(0, V, (rows, length)).astype(np.int32)
  weights = rng.random((rows, length)) * np.linspace(0, 4, rows)[:, None]
  return Batch(
      tokens_BT=tokens, targets_BT=(tokens * 3 + 1) % V,
      weights_BT=weights.astype(np.float32),
      segments_BT=np.ones((rows, length), np.int32),
      positions_BT=np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
      extra={
          "values_BT": (tokens % 2).astype(np.float32),
          "value_weights_BT": (
              rng.random((rows, length)) < 0.3).astype(np.float32)})


class Source:
  """Batch n is a function of n; remembers what it gave."""

  def __init__(self):
    self.step = 0
    self.given = []

  def __call__(self, state):
    made = batch(self.step)
    self.given.append(made)
    self.step += 1
    return made

  def get_state(self):
    return {"step": self.step}

  def set_state(self, state):
    self.step = state["step"]


def trees_equal(a, b):
  """Whether two trees hold the same bits; names the first leaf that differs."""
  left, right = (jax.tree_util.tree_leaves_with_path(t) for t in (a, b))
  assert [p for p, _ in left] == [p for p, _ in right]
  for (path, x), (_, y) in zip(left, right, strict=True):
    x, y = np.asarray(x), np.asarray(y)
    assert x.dtype == y.dtype and x.tobytes() == y.tobytes(), (
        f"{jax.tree_util.keystr(path)}: largest difference"
        f" {np.abs(x - y).max()}")
