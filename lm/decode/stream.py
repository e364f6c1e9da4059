"""Answers token by token, over a cache that a conversation keeps.

What two prompts have in common at their beginning is computed once: the cache
is cut back to it, and only what is new is read. Slots, prompts and answers come
in few sizes, so that few programs are compiled. One row, slot = position.
"""

import codecs
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
import functools
import os
import threading
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm import sharding
from lm.decode import engine
from lm.decode import sampling
from lm.model import LanguageModel, cache as cache_lib
from lm.types import Params, UserError

SLOTS = 1024  # The smallest cache; a larger one is twice as large, and so on.
READS = (64, 256)  # Prompts are read in parts of these sizes.
STEPS = 8  # Most tokens between two looks at what was written.
_PATIENCE = 0.05  # Seconds between them, if a token takes less.


def slots_for(config, needed: int) -> int:
  """How many slots the cache gets that shall hold `needed` tokens.

  Room for one padded part of a prompt is left behind the last token.
  """
  most = -(-config.max_length // READS[0]) * READS[0] + READS[-1]
  slots = min(SLOTS, most)
  while slots < needed + READS[-1]:
    slots = min(2 * slots, most)
  return slots


def _parts(count: int) -> Iterator[tuple[int, int]]:
  """(size, tokens in it) of the parts in which `count` tokens are read."""
  while count > 0:
    size = next((s for s in READS if s >= count), READS[-1])
    yield size, min(size, count)
    count -= size


def _empty(config, slots):
  make = functools.partial(cache_lib.empty, config, 1, slots)
  if not jax.sharding.get_abstract_mesh().empty:
    return jax.jit(make)()
  # Nothing to compile for zeros.
  return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype),
                      jax.eval_shape(make))


@functools.partial(jax.jit, static_argnames=("slots",))
def _resized(cache, slots):
  return cache_lib.resize(cache, slots)


@jax.jit
def _key(seed, turn):
  return jax.random.fold_in(jax.random.key(seed), turn)


def _read(model, params, cache, tokens_BT, start, count):
  """Reads part of a prompt into the slots from `start` on.

  Args:
    model: the model; params: its parameters.
    cache: what is in slots from `start` on is forgotten.
    tokens_BT: int32 [1, T]; count: how many of them are meant.
    start: int32 scalar, how many tokens the cache keeps.

  Returns:
    The cache and the float32 logits [1, V] after the last token.
  """
  at_T = jnp.arange(tokens_BT.shape[1], dtype=jnp.int32)[None]
  kept = jnp.arange(cache.slots) < start
  hidden_BTD, cache = model.hidden(
      params, tokens_BT, positions_BT=start + at_T,
      segments_BT=(at_T < count).astype(jnp.int32),
      cache=cache.replace(
          cursor=start, segments_BS=jnp.where(kept, cache.segments_BS, 0)))
  last_B1D = jnp.sum(
      jnp.where((at_T == count - 1)[..., None], hidden_BTD, 0), axis=1,
      keepdims=True, dtype=jnp.float32).astype(hidden_BTD.dtype)
  logits_BV = sharding.shard(
      model.logits(params, last_B1D)[:, 0], "batch", None)
  return cache.replace(cursor=start + count), logits_BV


def _write(model, rules, eos_ids, params, state, budget):
  """One token more, if the answer has not ended.

  No loop: XLA:CPU would first cast all weights, at each call.

  Returns:
    The state, and int32 [3]: the token, how many tokens this is (0 or 1), and
    whether the answer has ended.
  """
  before = state.num_B[0]
  state = engine.step(model, params, state, rules=rules, eos_id=eos_ids,
                      budget=budget)
  at = jnp.arange(state.tokens_BM.shape[1]) == before
  token = jnp.sum(jnp.where(at, state.tokens_BM[0], 0))
  return state, jnp.stack([token, state.num_B[0] - before,
                           state.done_B[0].astype(jnp.int32)])


def _state(cache, logits_BV, key, *, seen_BV, budget):
  """The state of an answer of which nothing is written yet."""
  ints = lambda *shape: np.zeros(shape, np.int32)
  marks = 0 if budget is None else len(budget.marker.final_P)
  return engine.DecodeState(
      cache=cache, logits_BV=logits_BV, values_B=np.zeros(1, np.float32),
      positions_B=ints(1), tokens_BM=ints(1, cache.slots),
      log_probs_BM=np.zeros((1, cache.slots), np.float32), num_B=ints(1),
      done_B=np.zeros(1, bool), stops_BP=ints(1, 0), marks_BP=ints(1, marks),
      seen_BV=seen_BV, key=key)


class Stream:
  """A model that answers prompts one after another, each as it is written.

  Attributes:
    ids: the tokens that the cache holds.
  """

  def __init__(self, model: LanguageModel, params: Params | None = None, *,
               eos_ids: Sequence[int], rules: sampling.Rules = (),
               seed: int = 0):
    """As `engine.generate`; `eos_ids` are all that end an answer.

    `params` may come later (`params = ...`), after `prepare`.
    """
    self.ids: list[int] = []
    self.params = params
    self._model, self._seed = model, seed
    self._tracks = any(
        isinstance(r, sampling.RepetitionPenalty) for r in rules)
    self._cache: cache_lib.Cache | None = None
    self._turn = 0
    eos_ids = tuple(map(int, eos_ids))
    self._reads = _Programs(functools.partial(_read, model), donated=1)
    self._writes = _Programs(
        functools.partial(_write, model, rules, eos_ids), donated=1)

  def prepare(self, params: Params, budget=None) -> None:
    """Makes the programs of a first short prompt and its answer.

    May run beside the reading of the weights.

    Args:
      params: shapes and dtypes are enough.
      budget: as for `answer`.
    """
    config = self._model.config
    slots = slots_for(config, 1)
    cache = jax.eval_shape(lambda: cache_lib.empty(config, 1, slots))
    scalar = np.int32(0)
    key = self._new_key()
    self._reads.get(params, cache, np.zeros((1, READS[0]), np.int32), scalar,
                    scalar)
    logits = jax.ShapeDtypeStruct((1, config.padded_vocab), jnp.float32)
    seen = np.zeros(logits.shape, bool) if self._tracks else None
    state = _state(cache, logits, key, seen_BV=seen, budget=budget)
    self._writes.get(params, state, budget)

  def answer(self, prompt: Sequence[int], *, max_tokens: int,
             budget: engine.ThinkingBudget | None = None,
             stopped: Callable[[], bool] = lambda: False,
             ) -> Iterator[list[int]]:
    """Continues `prompt`; yields new tokens, an end token among them.

    Args:
      prompt: token ids; what they share with `ids` is not read again.
      max_tokens: most tokens to write.
      budget: a cap on the tokens before the answer.
      stopped: asked between some tokens; true ends the answer.

    Raises:
      UserError: an empty prompt, or prompt and answer do not fit the context.
    """
    limit = self._model.config.max_length
    if not prompt:
      raise UserError("the prompt is empty: give it at least one token")
    if len(prompt) + max_tokens > limit:
      raise UserError(
          f"a prompt of {len(prompt)} tokens and {max_tokens} new ones do not"
          f" fit the model's context of {limit}: shorten the prompt or lower"
          " max_tokens")
    logits_BV = self._feed(list(map(int, prompt)), stopped)
    if logits_BV is None:
      return
    seen_BV = None
    if self._tracks:
      seen_BV = np.zeros(logits_BV.shape, bool)
      seen_BV[0, list(set(prompt))] = True
    # The arrays are handed over to each call, and come back from it.
    state = _state(self._cache, logits_BV, self._new_key(), seen_BV=seen_BV,
                   budget=budget)
    state = state.replace(positions_B=np.array([len(prompt)], np.int32))
    self._turn += 1
    left, steps, done = max_tokens, 1, False
    while left and not done and not stopped():
      began = time.monotonic()
      steps = min(steps, left)
      self._cache = None  # What comes in between leaves none half-way.
      state, reports = self._grown(state, steps), []
      for _ in range(steps):  # All are under way before the first is looked at.
        state, report = self._writes.get(self.params, state, budget)(
            self.params, state, budget)
        reports.append(report)
      rows = [np.asarray(r).tolist() for r in reports]
      new, done = [r[0] for r in rows if r[1]], rows[-1][2]
      self.ids += new
      # While it is ours again: whoever takes the tokens may never come back.
      self._cache = state.cache
      left -= len(new)
      if time.monotonic() - began < _PATIENCE:
        steps = min(2 * steps, STEPS)
      yield new

  def _new_key(self):
    """Of the sampler, for this answer."""
    return _key(np.uint32(self._seed % 2**32), np.uint32(self._turn))

  def _feed(self, prompt, stopped):
    """Reads what is new of a prompt; the logits after it, None if stopped."""
    kept = 0
    if self._cache is not None:
      kept = len(os.path.commonprefix([self.ids, prompt]))
      kept = min(kept, len(prompt) - 1)  # The last one gives the logits.
    slots = slots_for(self._model.config, len(prompt))
    cache, self._cache = self._cache, None
    if cache is None:
      cache = _empty(self._model.config, slots)
    elif cache.slots < slots:
      cache = _resized(cache, slots)
    self.ids, logits_BV = prompt[:kept], None
    for size, count in _parts(len(prompt) - kept):
      if stopped():
        self._cache = cache
        return None
      start = len(self.ids)
      tokens_BT = np.zeros((1, size), np.int32)
      tokens_BT[0, :count] = prompt[start:start + count]
      args = (self.params, cache, tokens_BT, np.int32(start), np.int32(count))
      cache, logits_BV = self._reads.get(*args)(*args)
      self.ids += prompt[start:start + count]
    self._cache = cache
    return logits_BV

  def _grown(self, state, steps):
    """The state with room for so many tokens more."""
    slots = slots_for(self._model.config, len(self.ids) + steps)
    if slots <= state.cache.slots:
      return state
    wider = lambda x: jnp.pad(x, ((0, 0), (0, slots - x.shape[1])))
    return state.replace(
        cache=_resized(state.cache, slots), tokens_BM=wider(state.tokens_BM),
        log_probs_BM=wider(state.log_probs_BM))


class _Programs:
  """A function, compiled once for each size of its arguments.

  Unlike those of `jax.jit`, a program may be asked for with shapes only, by
  another thread, and serves the arrays when they are there.
  """

  def __init__(self, function, *, donated: int):
    self._jitted = jax.jit(function, donate_argnums=donated)
    self._made: dict[Any, futures.Future] = {}
    self._lock = threading.Lock()

  def get(self, *args):
    """The program for arguments of these shapes (parameters aside)."""
    key = tuple((x.shape, x.dtype) for x in jax.tree.leaves(args[1:])
                if hasattr(x, "shape"))
    with self._lock:
      found = self._made.get(key)
      if found is None:
        mine = self._made[key] = futures.Future()
    if found is not None:
      return found.result()
    try:
      mine.set_result(self._jitted.lower(*args).compile())
    except BaseException as e:
      with self._lock:
        del self._made[key]
      mine.set_exception(e)
      raise
    return mine.result()


class Text:
  """Tokens to text as they come: whole characters, no special tokens."""

  def __init__(self, vocab):
    self._vocab = vocab
    self._silent = frozenset(vocab.special_ids) | frozenset(vocab.eos_ids)
    self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
    self._begun = False

  def feed(self, ids: Sequence[int]) -> str:
    """What is certain of the text after these tokens more."""
    raw = b""
    for i in ids:
      if i in self._silent:
        continue
      text = self._vocab.token_bytes(i)
      if not self._begun:
        self._begun = True
        # SentencePiece writes no space before the first word of a text.
        if text[:1] == b" " and self._vocab.decode([i])[:1] != " ":
          text = text[1:]
      raw += text
    return self._decoder.decode(raw)

  def close(self) -> str:
    """The rest: U+FFFD if the last character is not whole, else nothing."""
    return self._decoder.decode(b"", final=True)
