"""The decoder-only transformer and its functional face, `LanguageModel`."""

import dataclasses
import functools

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

from lm import masked, sharding
from lm.model import layers, unembed
from lm.model.attention import Attention, make_mask, use_kernel
from lm.model.cache import Cache
from lm.model.config import ModelConfig
from lm.model.dot import activation_dtype, dot
from lm.model.embedding import Head, Table
from lm.model.remat import REMAT
from lm.types import Output, Params, UserError

# Dimension names of every parameter, by the last part of its path; those of a
# block are stacked along a leading `layers` dimension.
_AXES = {
    "table": ("vocab", "embed"),
    "q": ("embed", "heads", None),
    "k": ("embed", "kv_heads", None),
    "v": ("embed", "kv_heads", None),
    "o": ("heads", None, "embed"),
    "q_norm": (None,),
    "k_norm": (None,),
    "q_bias": ("heads", None),
    "k_bias": ("kv_heads", None),
    "v_bias": ("kv_heads", None),
    "gate": ("embed", "mlp"),
    "up": ("embed", "mlp"),
    "down": ("mlp", "embed"),
    "scale": (None,),
    "kernel": ("embed", "vocab"),
    "value": (None,),
    "bias": (),
}


class Block(nn.Module):
  """One pre-norm layer; `kv` are its cached keys and values, or None."""
  config: ModelConfig

  @nn.compact
  def __call__(self, x_BTD, kv, table, mask_BTS, segments_BT, cursor):
    c = self.config
    x_BTD = checkpoint_name(x_BTD, "layer")
    h_BTD = layers.RMSNorm(c, name="attention_norm")(x_BTD)
    h_BTD, kv = Attention(c, name="attention")(
        h_BTD, table=table, mask_BTS=mask_BTS, segments_BT=segments_BT, kv=kv,
        cursor=cursor)
    x_BTD = x_BTD + h_BTD
    h_BTD = layers.RMSNorm(c, name="mlp_norm")(x_BTD)
    return x_BTD + layers.Mlp(c, name="mlp")(h_BTD), kv


@jax.custom_vjp
def _unstack(tree):
  """The layers of a stacked tree, one by one; its gradient stacks them back."""
  length = jax.tree.leaves(tree)[0].shape[0]
  return [jax.tree.map(lambda x, i=i: x[i], tree) for i in range(length)]


_unstack.defvjp(
    lambda tree: (_unstack(tree), None),
    lambda _, grads: (jax.tree.map(lambda *g: jnp.stack(g), *grads),))


def _init_blocks(key, config: ModelConfig):
  """The parameters of all layers, stacked along a leading axis L."""
  block = Block(config, parent=None)
  x_BTD = jnp.zeros((1, 1, config.d_model), activation_dtype(config.dtype))
  angles = jnp.zeros((1, 1, config.head_dim // 2))
  args = (x_BTD, None, (angles, angles), jnp.ones((1, 1, 1), bool),
          jnp.ones((1, 1), jnp.int32), 0)
  keys = jax.random.split(key, config.num_layers)
  return jax.vmap(lambda k: block.init(k, *args)["params"])(keys)


def _check_depth(layers_, config: ModelConfig) -> None:
  """Refuses the layers of another model."""
  found = (len(layers_) if isinstance(layers_, tuple)
           else jax.tree.leaves(layers_)[0].shape[0])
  if found != config.num_layers:
    raise UserError(f"the parameters are of {found} layers, the model has"
                    f" {config.num_layers}: give the config that they belong"
                    " to")


def _apply_blocks(config: ModelConfig, stacked, x_BTD, kv, *shared):
  """All layers in turn, unrolled (`unroll` >= L) or under `jax.lax.scan`.

  With a cache they are always unrolled: each layer updates arrays of its own.
  """
  c = config
  block = Block(c, parent=None)

  def apply(x_BTD, kv, params):
    return block.apply({"params": params}, x_BTD, kv, *shared)

  if c.remat != "none":
    apply = jax.checkpoint(apply, policy=REMAT[c.remat].policy,
                           prevent_cse=False)
  on_cpu = sharding.platform() == "cpu"
  unroll = c.unroll or (c.num_layers if on_cpu else 1)
  if isinstance(stacked, tuple):
    unroll = c.num_layers
  if kv is None and unroll < c.num_layers:
    x_BTD, _ = jax.lax.scan(
        lambda x_BTD, params: apply(x_BTD, None, params), x_BTD, stacked,
        unroll=unroll)
    return x_BTD, None
  if kv is not None:
    apply = jax.jit(apply)  # Traced once for all layers.
  new = []
  layers_ = stacked if isinstance(stacked, tuple) else _unstack(stacked)
  for layer, params in enumerate(layers_):
    x_BTD, of_layer = apply(x_BTD, kv and kv[layer], params)
    new.append(of_layer)
  return x_BTD, new


class Transformer(nn.Module):
  """Embeddings, blocks, final norm; the heads are methods of their own."""
  config: ModelConfig

  def setup(self):
    c = self.config
    if c.remat not in REMAT:
      raise UserError(
          f"model.remat={c.remat!r}: choose one of {', '.join(REMAT)}")
    if self.has_variable("params", "layers"):  # Stacked, or one by one.
      self.layers = self.get_variable("params", "layers")
      _check_depth(self.layers, c)
    else:
      self.layers = self.param("layers", _init_blocks, c)
    self.embed = Table(c)
    # Outside of the layers, which `remat` looks after.
    self.final_norm = nn.remat(layers.RMSNorm)(c)
    if not c.tied:
      self.head = Head(c)
    if c.scalar_head:
      self.value = ScalarHead(c)

  def hidden(self, tokens_BT, positions_BT, segments_BT, cache, fresh=False):
    c = self.config
    alone = cache is None or fresh
    x_BTD = self.embed(tokens_BT)
    table = layers.rope_table(c, positions_BT)
    kv, cursor = None, 0
    k_positions, k_segments = positions_BT, segments_BT
    if cache is not None:
      cursor = cache.cursor
      k_positions, k_segments = (
          jax.lax.dynamic_update_slice(
              old, sharding.shard(new, "batch", None), (0, cursor))
          for old, new in ((cache.positions_BS, positions_BT),
                           (cache.segments_BS, segments_BT)))
      kv = list(zip(cache.k_BKSH, cache.v_BKSH, strict=True))
    mask_BTS = None
    if not use_kernel(c, tokens_BT.shape[1], cached=not alone,
                      prompt=cache is not None):
      keys = ((positions_BT, segments_BT) if alone
              else (k_positions, k_segments))
      mask_BTS = make_mask(
          positions_BT, segments_BT,
          *(sharding.shard(y, "batch", None) for y in keys), c.window)
    x_BTD, kv = _apply_blocks(
        c, self.layers, x_BTD, kv, table, mask_BTS, segments_BT, cursor)
    x_BTD = sharding.shard(self.final_norm(x_BTD), *layers.WHOLE)
    if cache is not None:
      cache = Cache(*map(tuple, zip(*kv, strict=True)), k_positions,
                    k_segments, cursor + tokens_BT.shape[1])
    return x_BTD, cache

  def logits(self, x_BTD):
    c = self.config
    kernel_DV = self.embed.kernel() if c.tied else self.head.kernel()
    logits_BTV = dot(
        x_BTD, kernel_DV, layout=(None, "vocab"),
        out=("batch", "length", "vocab"), dtype=jnp.float32, ring=c.ring)
    if c.logit_cap is not None:
      logits_BTV = c.logit_cap * jnp.tanh(logits_BTV / c.logit_cap)
    if c.padded_vocab != c.vocab_size:
      ids = sharding.shard(jnp.arange(c.padded_vocab), "vocab")
      logits_BTV = jnp.where(ids < c.vocab_size, logits_BTV, -1e9)
    return logits_BTV

  def log_probs(self, x_BTD, targets_BT):
    """Of the targets, and the log-normalisers; see `masked.token_log_probs`."""
    c = self.config
    if unembed.fits(targets_BT, c.padded_vocab):
      return masked.token_log_probs(self.logits(x_BTD), targets_BT)
    return unembed.token_log_probs(
        x_BTD, self.embed.kernel() if c.tied else self.head.kernel(),
        targets_BT, vocab_size=c.vocab_size, logit_cap=c.logit_cap, ring=c.ring)

  def values(self, x_BTD):
    return self.value(x_BTD)

  def __call__(self, tokens_BT, positions_BT, segments_BT, cache=None,
               targets_BT=None):
    x_BTD, cache = self.hidden(tokens_BT, positions_BT, segments_BT, cache)
    values = self.values(x_BTD) if self.config.scalar_head else None
    if targets_BT is None:
      return Output(x_BTD, self.logits(x_BTD), values, cache)
    log_probs = self.log_probs(x_BTD, targets_BT)
    return Output(x_BTD, None, values, cache, *log_probs)


class ScalarHead(nn.Module):
  """One float32 logit a position: a value or a reward."""
  config: ModelConfig

  @nn.compact
  def __call__(self, x_BTD):
    w = self.param("value", nn.initializers.zeros, (self.config.d_model,))
    bias = self.param("bias", nn.initializers.zeros, ())
    return jnp.sum(x_BTD.astype(jnp.float32) * w, axis=-1) + bias


@dataclasses.dataclass(frozen=True)
class LanguageModel:
  """A stateless model: every method is a pure function of `params`.

  One forward pass serves training, sampling, scoring and search.
  """
  config: ModelConfig

  @property
  def module(self) -> Transformer:
    return Transformer(self.config)

  def _init(self, key):
    ints = jnp.zeros((1, 2), jnp.int32)
    scanned = Transformer(self.config.replace(unroll=1))  # Quickly traced.
    return scanned.init(key, ints, ints, ints)["params"]

  def init(self, key: jax.Array) -> Params:
    """Float32 parameters, laid out on the mesh that is set."""
    def laid_out(key):
      return jax.tree.map(
          lambda x, names: sharding.shard(x, *names), self._init(key),
          self.axes())
    return jax.jit(laid_out)(key)

  def abstract(self) -> Params:
    """The parameters' shapes and dtypes, without making them."""
    found = _abstract(self, jax.sharding.get_abstract_mesh())
    return jax.tree.map(lambda x: x, found)  # A tree of the caller's own.

  def axes(self) -> Params:
    """The dimension names of every parameter, as a tree like `init`'s."""
    def names(path, _):
      keys = [k.key for k in path]
      return (("layers",) if keys[0] == "layers" else ()) + _AXES[keys[-1]]
    return jax.tree_util.tree_map_with_path(names, self.abstract())

  def _places(self, tokens_BT, positions_BT, segments_BT):
    like = lambda x: sharding.shard(
        jnp.broadcast_to(x, tokens_BT.shape), "batch", "length")
    if positions_BT is None:
      positions_BT = like(jnp.arange(tokens_BT.shape[1], dtype=jnp.int32))
    if segments_BT is None:
      segments_BT = like(jnp.ones((), jnp.int32))
    return positions_BT, segments_BT

  def forward(self, params: Params, tokens_BT, *, positions_BT=None,
              segments_BT=None, cache: Cache | None = None,
              targets_BT=None) -> Output:
    """Logits (and values) of every position; see `types.Output`.

    Args:
      params: from `init`.
      tokens_BT: int32.
      positions_BT: int32; 0..T-1 by default.
      segments_BT: int32, 0 = padding; all 1 by default. With a cache, 1 for
        tokens and 0 for slots to leave empty.
      cache: keys and values so far; the new tokens are written after them.
      targets_BT: int32; if given, their log-probabilities are made instead of
        logits, which may be too many to hold.
    """
    places = self._places(tokens_BT, positions_BT, segments_BT)
    return self.module.apply(
        {"params": params}, tokens_BT, *places, cache, targets_BT)

  def hidden(self, params: Params, tokens_BT, *, positions_BT=None,
             segments_BT=None, cache: Cache | None = None,
             fresh: bool = False):
    """Final activations [B, T, D] and the cache, without the heads.

    `fresh`: the cache is still empty, so the tokens attend to each other only.
    """
    places = self._places(tokens_BT, positions_BT, segments_BT)
    return self.module.apply(
        {"params": params}, tokens_BT, *places, cache, fresh, method="hidden")

  def logits(self, params: Params, hidden_BTD):
    """Float32 logits [B, T, V padded] of final activations."""
    return self.module.apply({"params": params}, hidden_BTD, method="logits")

  def values(self, params: Params, hidden_BTD):
    """Float32 scalar-head logits [B, T] of final activations."""
    if not self.config.scalar_head:
      raise UserError(
          "this model has no scalar head: train one with experiments.value, or"
          " set model.scalar_head=True")
    return self.module.apply({"params": params}, hidden_BTD, method="values")


@functools.lru_cache(maxsize=32)
def _abstract(model: LanguageModel, mesh) -> Params:
  del mesh  # The one that is set; shapes carry it.
  return jax.eval_shape(lambda: model._init(jax.random.key(0)))
