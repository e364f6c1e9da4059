"""Keys and values of a whole tree: each thought's once, shared by its branches.

Beside the prompt's cache every node has a block of M slots. To continue any
nodes, the blocks on their paths are gathered into the rows of an ordinary
decoder cache, thoughts are sampled there, and their blocks are put back: one
jit for a whole expansion. Slots carry their positions, so blocks need not be
full and their order does not matter.
"""

import functools
from typing import Any

from flax import struct
import jax
from jax.sharding import PartitionSpec as P
import jax.numpy as jnp

from lm import decode, sharding
from lm.model import LanguageModel, cache as cache_lib
from lm.types import Params

_KV = ("kv_heads", None, None)


@struct.dataclass
class Memory:
  """What the model remembers of P problems with C nodes each; sharded over P.

  Attributes:
    prompt: cache of the prompts, a row each.
    k_PCKMH: for each layer, rotated keys of every node's block.
    v_PCKMH: for each layer, values.
    parent_PC: the node before; that of the root is itself.
    next_PC: int32 position of the token after the node.
    num_PC: int32 tokens of the node; 0 for the root, whose block is empty.
    values_PC: scalar-head logit after the node.
    logits_PCV: float32, after the node.
  """

  prompt: cache_lib.Cache
  k_PCKMH: tuple[jax.Array, ...]
  v_PCKMH: tuple[jax.Array, ...]
  parent_PC: jax.Array
  next_PC: jax.Array
  num_PC: jax.Array
  values_PC: jax.Array
  logits_PCV: jax.Array


@struct.dataclass
class Rows:
  """What R rows of each problem wrote, on the device.

  Attributes:
    tokens_PRM: int32.
    num_PR: int32, how many there are.
    log_probs_PR: of all of them.
    values_PR: scalar-head logit at the end.
  """

  tokens_PRM: jax.Array
  num_PR: jax.Array
  log_probs_PR: jax.Array
  values_PR: jax.Array


# Problems lie apart on the mesh, so what picks nodes of a problem is local.


def _local(function, out_names, *named):
  """`function(*arrays)` on each device's problems; named: (array, names)."""
  arrays = [x for x, _ in named]
  if jax.sharding.get_abstract_mesh().empty:
    return function(*arrays)
  specs = [sharding.spec(("batch", *names), x.shape) for x, names in named]
  arrays = [jax.sharding.reshard(x, s)
            for x, s in zip(arrays, specs, strict=True)]
  out = jax.eval_shape(function, *(
      jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays))
  rest = sharding.spec((None, *out_names), out.shape)
  return jax.shard_map(
      function, in_specs=tuple(specs), out_specs=P(specs[0][0], *rest[1:]),
  )(*arrays)


def _take(x_PC, nodes_PR, *names):
  """[P R, ...]: the nodes (-1: any) of each problem, one below the other."""
  def local(x, nodes):
    rows = x[jnp.arange(len(x))[:, None], jnp.maximum(nodes, 0)]
    return rows.reshape(-1, *x.shape[2:])
  return _local(local, names, (x_PC, (None, *names)), (nodes_PR, (None,)))


def _put(x_PC, nodes_PR, rows_B, *names):
  """`x_PC` with rows [P R, ...] at the nodes that are not -1."""
  def local(x, nodes, rows):
    there = jnp.where(nodes < 0, x.shape[1], nodes)
    return x.at[jnp.arange(len(x))[:, None], there].set(rows, mode="drop")
  rows_PR = _by_problem(rows_B, nodes_PR.shape[1])
  return _local(local, (None, *names), (x_PC, (None, *names)),
                (nodes_PR, (None,)), (rows_PR, (None, *names)))


def _by_problem(x_B, rows: int):
  """[P R, ...] as [P, R, ...], every problem's rows on one device."""
  shape = (len(x_B) // rows, rows, *x_B.shape[1:])
  if jax.sharding.get_abstract_mesh().empty:
    return x_B.reshape(shape)
  lead = sharding.spec(("batch",), shape[:1])[0]
  rest = jax.typeof(x_B).sharding.spec[1:]
  x_B = jax.sharding.reshard(x_B, P(lead, *rest))
  return jax.lax.reshape(x_B, shape, out_sharding=P(lead, None, *rest))


@functools.partial(
    jax.jit, static_argnames=("model", "capacity", "line_tokens"))
def plant(model: LanguageModel, params: Params, tokens_PT, lengths_P, key, *,
          capacity: int, line_tokens: int) -> Memory:
  """Reads the prompts; room for `capacity` nodes of `line_tokens` each."""
  c = model.config
  state = decode.prefill(model, params, tokens_PT, lengths_P, max_tokens=0,
                         key=key)
  problems = len(lengths_P)
  dtype = state.cache.k_BKSH[0].dtype
  block = lambda: sharding.shard(jnp.zeros(
      (problems, capacity, c.num_kv_heads, line_tokens, c.head_dim), dtype),
      "batch", None, *_KV)
  ints = lambda: sharding.shard(
      jnp.zeros((problems, capacity), jnp.int32), "batch", None)
  first = lambda x, value: _put(
      x, jnp.zeros((problems, 1), jnp.int32), value, *(None,) * (x.ndim - 2))
  return Memory(
      prompt=state.cache,
      k_PCKMH=tuple(block() for _ in range(c.num_layers)),
      v_PCKMH=tuple(block() for _ in range(c.num_layers)),
      parent_PC=ints(), next_PC=first(ints(), state.positions_B),
      num_PC=ints(), values_PC=first(
          ints().astype(jnp.float32), state.values_B),
      logits_PCV=first(sharding.shard(jnp.zeros(
          (problems, capacity, state.logits_BV.shape[-1]), jnp.float32),
          "batch", None, None), state.logits_BV))


def _rows(memory: Memory, nodes_PR, *, depth: int, max_tokens: int, key,
          stops) -> decode.DecodeState:
  """A decoder state whose rows go on from the nodes, up to `depth` deep."""
  rows = nodes_PR.shape[1]
  line = memory.k_PCKMH[0].shape[3]
  path = [nodes_PR][:depth]
  for _ in range(depth - 1):
    path.append(_by_problem(_take(memory.parent_PC, path[-1]), rows))
  first_PR = jnp.zeros_like(nodes_PR)

  def gather(prompt_PKTH, block_PCKMH):
    parts = [_take(prompt_PKTH[:, None], first_PR, *_KV)]
    parts += [_take(block_PCKMH, nodes, *_KV) for nodes in path]
    return jnp.concatenate(parts, axis=2)

  positions = [_take(memory.prompt.positions_BS[:, None], first_PR, None)]
  segments = [_take(memory.prompt.segments_BS[:, None], first_PR, None)]
  slot_M = jnp.arange(line, dtype=jnp.int32)
  for nodes in path:
    num_B = _take(memory.num_PC, nodes)
    positions.append((_take(memory.next_PC, nodes) - num_B)[:, None] + slot_M)
    segments.append((slot_M < num_B[:, None]).astype(jnp.int32))
  stack = lambda parts: jnp.concatenate(
      [sharding.shard(x, "batch", None) for x in parts], axis=1)
  cache = cache_lib.Cache(
      tuple(map(gather, memory.prompt.k_BKSH, memory.k_PCKMH)),
      tuple(map(gather, memory.prompt.v_BKSH, memory.v_PCKMH)),
      stack(positions), stack(segments),
      jnp.int32(memory.prompt.slots + len(path) * line))
  cache = cache_lib.resize(cache, cache.slots + max_tokens)
  return decode.resume(
      cache, _take(memory.logits_PCV, nodes_PR, None),
      _take(memory.values_PC, nodes_PR),
      _take(memory.next_PC, nodes_PR), max_tokens=max_tokens, key=key,
      stops=stops)


def _write(model, params, state: decode.DecodeState, nodes_PR, left_P, *,
           rules, eos_id, stops):
  """Runs the rows to their ends, no problem further than its tokens left."""
  rows = nodes_PR.shape[1]
  state = state.replace(done_B=sharding.shard(
      (nodes_PR < 0).reshape(-1), "batch"))

  grid = lambda x: _whole(_by_problem(x, rows))

  def body(carry):
    state, left_P = carry
    live_PR = ~grid(state.done_B)
    live_PR &= grid(state.positions_B) < model.config.max_length
    may_PR = live_PR & (jnp.cumsum(live_PR, axis=1) <= left_P[:, None])
    state = state.replace(done_B=sharding.shard(
        ~may_PR.reshape(-1), "batch"))
    return (decode.step(model, params, state, rules=rules, eos_id=eos_id,
                        stops=stops), left_P - jnp.sum(may_PR, axis=1))

  state, _ = jax.lax.while_loop(
      lambda carry: ~jnp.all(carry[0].done_B), body, (state, left_P))
  return state, Rows(
      grid(state.tokens_BM), grid(state.num_B),
      grid(jnp.sum(state.log_probs_BM, axis=1)), grid(state.values_B))


def _whole(x):
  """A small array on every device."""
  return sharding.shard(x, *(None,) * x.ndim)


_STATIC = ("model", "depth", "max_tokens", "rules", "eos_id")


@functools.partial(jax.jit, static_argnames=_STATIC,
                   donate_argnames="memory")
def grow(model: LanguageModel, params: Params, memory: Memory, nodes_PR,
         slots_PR, left_P, key, stops, *, depth: int, max_tokens: int,
         rules: Any, eos_id: Any) -> tuple[Memory, Rows]:
  """Continues the nodes (-1: none) by a thought each, kept at `slots_PR`.

  Args:
    model: the model; params: its parameters.
    memory: given up.
    nodes_PR, slots_PR: what to continue, and where that goes.
    left_P: tokens that each problem may still have written.
    key: of the sampler; stops: what ends a thought.
    depth: of the deepest node, or more.
    max_tokens: of a thought.
    rules, eos_id: see `decode.step`.
  """
  state = _rows(memory, nodes_PR, depth=depth, max_tokens=max_tokens,
                key=key, stops=stops)
  start = memory.prompt.slots + depth * memory.k_PCKMH[0].shape[3]
  state, rows = _write(model, params, state, nodes_PR, left_P, rules=rules,
                       eos_id=eos_id, stops=stops)
  block = lambda x: jax.lax.slice_in_dim(x, start, start + max_tokens, axis=2)
  put = lambda pool, new: _put(pool, slots_PR, block(new), *_KV)
  kept = lambda pool, new: _put(pool, slots_PR, new)
  return memory.replace(
      k_PCKMH=tuple(map(put, memory.k_PCKMH, state.cache.k_BKSH)),
      v_PCKMH=tuple(map(put, memory.v_PCKMH, state.cache.v_BKSH)),
      parent_PC=kept(memory.parent_PC, jnp.maximum(nodes_PR, 0).reshape(-1)),
      next_PC=kept(memory.next_PC, state.positions_B),
      num_PC=kept(memory.num_PC, state.num_B),
      values_PC=kept(memory.values_PC, state.values_B),
      logits_PCV=_put(memory.logits_PCV, slots_PR, state.logits_BV, None),
  ), rows


@functools.partial(jax.jit, static_argnames=_STATIC)
def finish(model: LanguageModel, params: Params, memory: Memory, nodes_PR,
           left_P, key, *, depth: int, max_tokens: int, rules: Any,
           eos_id: Any) -> Rows:
  """Continues the nodes to the end of the answer; nothing is kept of it."""
  state = _rows(memory, nodes_PR, depth=depth, max_tokens=max_tokens,
                key=key, stops=None)
  return _write(model, params, state, nodes_PR, left_P, rules=rules,
                eos_id=eos_id, stops=None)[1]


@functools.partial(
    jax.jit, static_argnames=("model", "max_tokens", "eos_id"))
def beam(model: LanguageModel, params: Params, memory: Memory, roots_PR,
         left_P, *, max_tokens: int, eos_id: Any) -> tuple[Rows, jax.Array]:
  """Token-level beam search: the R likeliest texts found of each problem.

  At each step the R best of all continuations by one token, of all hypotheses,
  are kept (Graves 2012, 1211.3711, algorithm 1); one that has ended stays as it
  is. A problem ends with its hypotheses, or when its tokens do not last.

  Args:
    model: the model; params: its parameters.
    memory: of the prompts.
    roots_PR: zeros.
    left_P: tokens that each problem may still have fed.
    max_tokens: of a text.
    eos_id: see `decode.step`.

  Returns:
    The texts, likeliest first, and the tokens [P] fed for them.
  """
  width = roots_PR.shape[1]
  state = _rows(memory, roots_PR, depth=0, max_tokens=max_tokens,
                key=jax.random.key(0), stops=None)
  grid = lambda x: _whole(_by_problem(x, width))
  flat = lambda x: sharding.shard(
      x.reshape(-1, *x.shape[2:]), "batch", *(None,) * (x.ndim - 2))
  padding = jnp.arange(model.config.padded_vocab) >= model.config.vocab_size

  def body(carry):
    state, scores_PR, fed_P = carry
    done_PR = grid(state.done_B)
    log_probs_PRV = grid(jax.nn.log_softmax(
        jnp.where(padding, -jnp.inf, state.logits_BV)))
    # What has ended goes on in one way, at no cost.
    stay_V = jnp.where(jnp.arange(log_probs_PRV.shape[-1]) == 0, 0.0, -jnp.inf)
    steps_PRV = jnp.where(done_PR[..., None], stay_V, log_probs_PRV)
    total_PX = (scores_PR[..., None] + steps_PRV).reshape(len(scores_PR), -1)
    scores_PR, chosen_PR = jax.lax.top_k(total_PX, width)
    from_PR, tokens_PR = jnp.divmod(chosen_PR, steps_PRV.shape[-1])
    mine_PR = jnp.arange(len(from_PR))[:, None] * width + from_PR
    took_PR = jnp.take_along_axis(
        steps_PRV.reshape(len(scores_PR), -1), chosen_PR, axis=1)
    state = _reorder(state, flat(mine_PR))
    live_PR = ~grid(state.done_B) & (
        grid(state.positions_B) < model.config.max_length)
    count_P = jnp.sum(live_PR, axis=1)
    may_PR = live_PR & (fed_P + count_P <= left_P)[:, None]
    state = state.replace(done_B=flat(~may_PR))
    return (decode.feed(model, params, state, flat(tokens_PR), flat(took_PR),
                        eos_id=eos_id),
            scores_PR, fed_P + jnp.sum(may_PR, axis=1))

  # All hypotheses begin alike: one of them stands for all.
  scores_PR = jnp.where(jnp.arange(width) == 0, 0.0, -jnp.inf) * jnp.ones(
      roots_PR.shape)
  state, _, fed_P = jax.lax.while_loop(
      lambda carry: ~jnp.all(carry[0].done_B), body,
      (state, scores_PR, jnp.zeros(len(roots_PR), jnp.int32)))
  return Rows(grid(state.tokens_BM), grid(state.num_B),
              grid(jnp.sum(state.log_probs_BM, axis=1)),
              grid(state.values_B)), fed_P


def _reorder(state: decode.DecodeState, rows_B) -> decode.DecodeState:
  """The state whose row i is the old row `rows_B[i]`."""
  take = lambda x: x if x is None else x.at[rows_B].get(
      mode="clip", out_sharding=sharding.out_spec(
          ("batch",) + (None,) * (x.ndim - 1), x.shape))
  fields = {name: take(getattr(state, name)) for name in (
      "logits_BV", "values_B", "positions_B", "tokens_BM", "log_probs_BM",
      "num_B", "done_B", "stops_BP", "marks_BP", "seen_BV")}
  return state.replace(cache=cache_lib.fork(state.cache, rows_B), **fields)
