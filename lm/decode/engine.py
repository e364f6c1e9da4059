"""Prefill, step, generate, score, fork: pure functions on an immutable state.

One `step` serves the debugger, the while loop and the search: it chooses a
token for every row, feeds it, and leaves the next logits (and value) behind.
"""

from collections.abc import Sequence
import dataclasses
import functools
import operator

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from lm import masked, sharding
from lm.decode import sampling
from lm.decode.stops import Stops
from lm.model import LanguageModel, cache as cache_lib
from lm.types import Params, UserError


@struct.dataclass
class DecodeState:
  """Where every row stands.

  Attributes:
    cache: keys and values so far.
    logits_BV: float32, of the next token.
    values_B: float32 scalar-head logit at the last token before the end token
      (0 without a head).
    positions_B: int32 position of the next token.
    tokens_BM: int32 generated tokens; M slots.
    log_probs_BM: float32 of those under the model.
    num_B: int32, how many there are.
    done_B: bool, whether the row has stopped.
    stops_BP: states of the stop automata.
    marks_BP: states of the thinking budget's marker automaton.
    seen_BV: bool, tokens in prompt and output (None unless a rule needs it).
    key: of the sampler.
  """

  cache: cache_lib.Cache
  logits_BV: jax.Array
  values_B: jax.Array
  positions_B: jax.Array
  tokens_BM: jax.Array
  log_probs_BM: jax.Array
  num_B: jax.Array
  done_B: jax.Array
  stops_BP: jax.Array
  marks_BP: jax.Array
  seen_BV: jax.Array | None
  key: jax.Array


@dataclasses.dataclass(frozen=True)
class ThinkingBudget:
  """Budget forcing: after `tokens` without `marker`, its ids are forced.

  A hard cap on the tokens before the answer (s1, 2501.19393, section 3.1).

  Attributes:
    tokens: how many a row may think.
    forced: the ids of the marker, fed one by one when the budget is spent.
    marker: the automaton that recognises a marker written freely.
  """
  tokens: jax.Array
  forced: jax.Array
  marker: Stops

  @classmethod
  def build(cls, vocab, marker: str, *, tokens: int, size: int):
    if tokens < 1:
      raise UserError(f"thinking budget {tokens}: allow at least 1 token")
    return cls(jnp.int32(min(tokens, 2**31 - 1)),
               jnp.asarray(vocab.encode(marker), jnp.int32),
               Stops.build(vocab, [marker], size=size))


jax.tree_util.register_dataclass(
    ThinkingBudget, data_fields=["tokens", "forced", "marker"], meta_fields=[])


def pad_prompts(prompts: Sequence[Sequence[int]], *, multiple: int = 8,
                limit: int | None = None):
  """Right-pads ragged prompts: (tokens [B, T], lengths [B]), NumPy int32.

  T is a multiple of `multiple`, so that few lengths are compiled, but padding
  does not take it past `limit` (the model's context).
  """
  if not prompts or not all(len(p) for p in prompts):
    raise UserError("a prompt is empty: give it at least one token")
  longest = max(map(len, prompts))
  length = -(-longest // multiple) * multiple
  if limit is not None:
    length = max(longest, min(length, limit))
  tokens = np.zeros((len(prompts), length), np.int32)
  for row, prompt in zip(tokens, prompts, strict=True):
    row[:len(prompt)] = prompt
  return tokens, np.array([len(p) for p in prompts], np.int32)


def prefill(model: LanguageModel, params: Params, tokens_BT, lengths_B, *,
            max_tokens: int, key: jax.Array, stops: Stops | None = None,
            budget: ThinkingBudget | None = None,
            track_seen: bool = False) -> DecodeState:
  """Reads the prompts.

  Args:
    model: the model; params: its parameters.
    tokens_BT: int32 prompts, right-padded; lengths_B: their lengths.
    max_tokens: slots for generated tokens.
    key: of the sampler.
    stops, budget: what `generate` will be called with.
    track_seen: keep what `RepetitionPenalty` needs.

  Raises:
    UserError: prompt and output do not fit the model's context.
  """
  b, t = tokens_BT.shape
  if t > model.config.max_length:
    raise UserError(
        f"the prompt has {t} tokens but the model's context is"
        f" {model.config.max_length}: shorten the prompt")
  cache = cache_lib.empty(model.config, b, t + max_tokens)
  tokens_BT = sharding.shard(jnp.asarray(tokens_BT), "batch", None)
  lengths_B = sharding.shard(jnp.asarray(lengths_B), "batch")
  positions_BT = sharding.shard(
      jnp.broadcast_to(jnp.arange(t, dtype=jnp.int32), (b, t)), "batch", None)
  segments_BT = (positions_BT < lengths_B[:, None]).astype(jnp.int32)
  hidden_BTD, cache = model.hidden(
      params, tokens_BT, positions_BT=positions_BT, segments_BT=segments_BT,
      cache=cache, fresh=True)
  # One-hot rather than a gather: rows are sharded.
  last_BT = positions_BT == lengths_B[:, None] - 1
  last_B1D = jnp.sum(
      jnp.where(last_BT[..., None], hidden_BTD, 0), axis=1, keepdims=True,
      dtype=jnp.float32).astype(hidden_BTD.dtype)
  logits_BV, values_B = _heads(model, params, last_B1D)
  seen = None
  if track_seen:
    vocab = jnp.arange(logits_BV.shape[-1])
    seen = jnp.any((tokens_BT[..., None] == vocab)
                   & (segments_BT[..., None] > 0), axis=1)
  return DecodeState(
      cache=cache, logits_BV=logits_BV, values_B=values_B,
      positions_B=lengths_B, seen_BV=seen, key=key,
      **_fresh(b, max_tokens, stops, budget))


def _heads(model, params, hidden_B1D):
  logits_BV = sharding.shard(
      model.logits(params, hidden_B1D)[:, 0], "batch", None)
  if model.config.scalar_head:
    return logits_BV, model.values(params, hidden_B1D)[:, 0]
  return logits_BV, sharding.shard(
      jnp.zeros(logits_BV.shape[:1], jnp.float32), "batch")


def _fresh(batch, max_tokens, stops, budget):
  """The fields of a state that has generated nothing yet."""
  rows = lambda x: sharding.shard(x, "batch", *(None,) * (x.ndim - 1))
  states = lambda s: rows(
      s.start(batch) if s is not None else jnp.zeros((batch, 0), jnp.int32))
  return dict(
      tokens_BM=rows(jnp.zeros((batch, max_tokens), jnp.int32)),
      log_probs_BM=rows(jnp.zeros((batch, max_tokens), jnp.float32)),
      num_B=rows(jnp.zeros((batch,), jnp.int32)),
      done_B=rows(jnp.zeros((batch,), bool)),
      stops_BP=states(stops),
      marks_BP=states(budget.marker if budget is not None else None),
  )


def _ends(tokens_B, eos_id: int | tuple[int, ...]):
  """Which of the tokens end their rows."""
  ids = (eos_id,) if isinstance(eos_id, int) else eos_id
  return functools.reduce(operator.or_, (tokens_B == i for i in ids))


def step(model: LanguageModel, params: Params, state: DecodeState, *,
         rules: sampling.Rules, eos_id: int | tuple[int, ...],
         stops: Stops | None = None,
         budget: ThinkingBudget | None = None) -> DecodeState:
  """Chooses one token for every row that is not done, and feeds it.

  `eos_id` is the token that ends a row, or a tuple of several that do.
  """
  key, now = jax.random.split(state.key)
  tokens_B, log_probs_B = sampling.sample(
      now, state.logits_BV, rules, seen_BV=state.seen_BV)
  marks_BP = state.marks_BP
  if budget is not None:
    spent_B = state.num_B - budget.tokens
    marked_B = jnp.any(marks_BP == budget.marker.final_P, axis=-1)
    force_B = (spent_B >= 0) & ~marked_B
    forced_B = budget.forced.at[spent_B].get(
        mode="clip",
        out_sharding=sharding.out_spec(("batch",), spent_B.shape))
    tokens_B = jnp.where(force_B, forced_B, tokens_B)
    forced_log_probs, _ = masked.token_log_probs(
        state.logits_BV[:, None], tokens_B[:, None])
    log_probs_B = jnp.where(force_B, forced_log_probs[:, 0], log_probs_B)
    marks_BP, _ = budget.marker.step(marks_BP, tokens_B)
  return feed(model, params, state.replace(key=key), tokens_B, log_probs_B,
              marks_BP=marks_BP, eos_id=eos_id, stops=stops)


def feed(model: LanguageModel, params: Params, state: DecodeState, tokens_B,
         log_probs_B, *, eos_id: int | tuple[int, ...],
         stops: Stops | None = None, marks_BP=None) -> DecodeState:
  """Appends a token, chosen already, to every row that is not done."""
  marks_BP = state.marks_BP if marks_BP is None else marks_BP
  live_B = ~state.done_B
  slot_BM = jnp.arange(state.tokens_BM.shape[1]) == state.num_B[:, None]
  slot_BM &= live_B[:, None]
  num_B = state.num_B + live_B
  ends_B = _ends(tokens_B, eos_id)
  stopped_B = ends_B | (num_B >= state.tokens_BM.shape[1])
  stops_BP = state.stops_BP
  if stops is not None:
    stops_BP, hit_B = stops.step(stops_BP, tokens_B)
    stopped_B |= hit_B

  hidden_B1D, cache = model.hidden(
      params, tokens_B[:, None], positions_BT=state.positions_B[:, None],
      segments_BT=live_B[:, None].astype(jnp.int32), cache=state.cache)
  logits_BV, values_B = _heads(model, params, hidden_B1D)
  keep = lambda new, old: jnp.where(
      live_B.reshape((-1,) + (1,) * (new.ndim - 1)), new, old)
  seen_BV = state.seen_BV
  if seen_BV is not None:
    hit = tokens_B[:, None] == jnp.arange(seen_BV.shape[-1])
    seen_BV = seen_BV | (hit & live_B[:, None])
  return state.replace(
      cache=cache, seen_BV=seen_BV, num_B=num_B,
      logits_BV=keep(logits_BV, state.logits_BV),
      values_B=jnp.where(
          live_B & ~ends_B, values_B, state.values_B),
      positions_B=state.positions_B + live_B,
      tokens_BM=jnp.where(slot_BM, tokens_B[:, None], state.tokens_BM),
      log_probs_BM=jnp.where(
          slot_BM, log_probs_B[:, None], state.log_probs_BM),
      done_B=state.done_B | stopped_B,
      stops_BP=keep(stops_BP, state.stops_BP),
      marks_BP=keep(marks_BP, state.marks_BP),
  )


def run(model, params, state: DecodeState, *, rules, eos_id, stops=None,
        budget=None) -> DecodeState:
  """Steps until every row is done, in one while loop on the device."""
  return jax.lax.while_loop(
      lambda s: ~jnp.all(s.done_B),
      lambda s: step(model, params, s, rules=rules, eos_id=eos_id,
                     stops=stops, budget=budget),
      state)


def fork(state: DecodeState, rows, *, max_tokens: int, key: jax.Array,
         stops: Stops | None = None,
         budget: ThinkingBudget | None = None) -> DecodeState:
  """A state whose row i goes on from the old row `rows[i]`, nothing generated.

  The prefix's keys and values are taken over, not computed again; the cache
  grows by `max_tokens` slots.
  """
  take = lambda x: x.at[rows].get(
      mode="clip", out_sharding=sharding.out_spec(
          ("batch",) + (None,) * (x.ndim - 1), rows.shape + x.shape[1:]))
  cache = cache_lib.fork(state.cache, rows)
  return DecodeState(
      cache=cache_lib.resize(cache, cache.slots + max_tokens),
      logits_BV=take(state.logits_BV), values_B=take(state.values_B),
      positions_B=take(state.positions_B),
      seen_BV=None if state.seen_BV is None else take(state.seen_BV),
      key=key, **_fresh(rows.shape[0], max_tokens, stops, budget))


def resume(cache: cache_lib.Cache, logits_BV, values_B, positions_B, *,
           max_tokens: int, key: jax.Array,
           stops: Stops | None = None) -> DecodeState:
  """A state that goes on from a cache with `max_tokens` slots to spare."""
  return DecodeState(
      cache=cache, logits_BV=logits_BV, values_B=values_B,
      positions_B=positions_B, seen_BV=None, key=key,
      **_fresh(len(positions_B), max_tokens, stops, None))


@functools.partial(
    jax.jit, static_argnames=("model", "max_tokens", "rules", "eos_id"))
def _generate(model, params, tokens_BT, lengths_B, key, stops, budget, *,
              max_tokens, rules, eos_id):
  track = any(isinstance(r, sampling.RepetitionPenalty) for r in rules)
  state = prefill(
      model, params, tokens_BT, lengths_B, max_tokens=max_tokens, key=key,
      stops=stops, budget=budget, track_seen=track)
  return run(model, params, state, rules=rules, eos_id=eos_id, stops=stops,
             budget=budget)


def generate(model: LanguageModel, params: Params,
             prompts: Sequence[Sequence[int]], *, max_tokens: int,
             eos_id: int | tuple[int, ...], key: jax.Array,
             rules: sampling.Rules = (),
             stops: Stops | None = None,
             budget: ThinkingBudget | None = None) -> DecodeState:
  """Continues ragged prompts, the whole loop in one jit.

  Args:
    model: the model; params: its parameters.
    prompts: token ids of each row.
    max_tokens: most tokens to generate a row.
    eos_id: the token that ends a row, or a tuple of several that do.
    key: of the sampler.
    rules: sampling rules; () samples at temperature 1.
    stops: stop strings besides `eos_id`.
    budget: a cap on the tokens before the answer.

  Returns:
    The final state: tokens_BM, num_B, log_probs_BM, values_B and the cache.

  Raises:
    UserError: an empty prompt, or one that does not fit the context.
  """
  longest = max(map(len, prompts), default=0)
  if longest + max_tokens > model.config.max_length:
    raise UserError(
        f"a prompt of {longest} tokens and {max_tokens} new ones do not fit"
        f" the model's context of {model.config.max_length}: shorten the"
        " prompt or lower max_tokens")
  tokens, lengths = pad_prompts(prompts, limit=model.config.max_length)
  return _generate(model, params, tokens, lengths, key, stops, budget,
                   max_tokens=max_tokens, rules=rules, eos_id=eos_id)


def texts(vocab, state: DecodeState) -> list[str]:
  """The generated text of every row, without the end token."""
  tokens, num = np.asarray(state.tokens_BM), np.asarray(state.num_B)
  rows = [row[:n].tolist() for row, n in zip(tokens, num, strict=True)]
  return [vocab.decode(r[:-1] if r and r[-1] in vocab.eos_ids else r)
          for r in rows]


def score(model: LanguageModel, params: Params, tokens_BT, weights_BT, *,
          segments_BT=None, positions_BT=None):
  """Log-probabilities of given tokens: weighted sum a row, float32 [B].

  `weights_BT[b, t]` weighs the log-probability of `tokens_BT[b, t]` given the
  tokens before it; the first token has none.
  """
  targets_BT = jnp.roll(tokens_BT, -1, axis=1)  # Of the last there is none.
  out = model.forward(params, tokens_BT, positions_BT=positions_BT,
                      segments_BT=segments_BT, targets_BT=targets_BT)
  log_probs_BT, _ = masked.target_log_probs(out, targets_BT)
  return jnp.sum(log_probs_BT[:, :-1] * weights_BT[:, 1:], axis=-1)
