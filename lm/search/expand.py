"""The expander: the model's own samples for a whole frontier in one call."""

from collections.abc import Sequence
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from lm import decode
from lm.data.vocab import Vocab
from lm.decode import sampling
from lm.model import LanguageModel
from lm.search.tree import Cost
from lm.types import Params, UserError


@functools.partial(jax.jit, static_argnames=("model", "max_tokens"))
def _read(model, params, tokens_BT, lengths_B, key, *, max_tokens):
  return decode.prefill(model, params, tokens_BT, lengths_B,
                        max_tokens=max_tokens, key=key)


@functools.partial(
    jax.jit, static_argnames=("model", "max_tokens", "rules", "eos_id"))
def _write(model, params, state, rows, live, key, stops, *, max_tokens, rules,
           eos_id):
  state = decode.fork(state, rows, max_tokens=max_tokens, key=key, stops=stops)
  state = state.replace(done_B=state.done_B | ~live)
  return decode.run(model, params, state, rules=rules, eos_id=eos_id,
                    stops=stops)


@dataclasses.dataclass(frozen=True)
class Written:
  """What a batch of rows wrote, on the host.

  Attributes:
    texts: of each row.
    num_B: tokens of each row.
    log_probs_B: their summed log-probability.
    values_B: scalar-head logit at the end.
    costs: of each row.
  """
  texts: list[str]
  num_B: np.ndarray
  log_probs_B: np.ndarray
  values_B: np.ndarray
  costs: list[Cost]


@dataclasses.dataclass(frozen=True)
class Writer:
  """A model that continues rows: prompts are read once, prefixes are forked.

  Attributes:
    model: the model, with or without a scalar head.
    params: its parameters.
    vocab: its vocabulary.
    temperature: of the samples.
    min_p: tokens less likely than this share of the likeliest are not sampled
      (2407.01082); 0 samples all. They are left out before the temperature, so
      that a high one is broad among what is plausible, and no further.
    line_tokens: most tokens of a thought.
    answer_tokens: most tokens of everything up to the end.
  """
  model: LanguageModel
  params: Params
  vocab: Vocab
  temperature: float = 1.0
  min_p: float = 0.0
  line_tokens: int = 24
  answer_tokens: int = 96

  @functools.cached_property
  def _newline(self) -> decode.Stops:
    return decode.Stops.build(
        self.vocab, ["\n"], size=self.model.config.padded_vocab)

  def start(self, prompts: Sequence[Sequence[int]], key: jax.Array):
    """Reads the prompts: (decoder state, cost of each)."""
    tokens, lengths = decode.pad_prompts(
        prompts, limit=self.model.config.max_length)
    if tokens.shape[1] > self.model.config.max_length:
      raise UserError(
          f"the prompt has {int(lengths.max())} tokens but the model's context"
          f" is {self.model.config.max_length}: shorten the prompt")
    state = _read(self.model, self.params, tokens, lengths, key,
                  max_tokens=0)
    return state, [self._cost(0, int(n), read=True) for n in lengths]

  def write(self, state, rows: Sequence[int], key: jax.Array, *,
            line: bool = True, greedy: bool = False, capacity: int = 0):
    """Continues the rows `rows` of `state`, a row once for each mention.

    Args:
      state: from `start` or an earlier `write`.
      rows: which rows to continue, in the order of the new rows.
      key: of the sampler.
      line: stop after one line; otherwise write to the end.
      greedy: take the likeliest tokens.
      capacity: rows of the compiled batch; the surplus stays idle.

    Returns:
      The new state and what the rows wrote.
    """
    count = max(capacity, len(rows))
    padded = np.zeros(count, np.int32)
    padded[:len(rows)] = rows
    live = np.arange(count) < len(rows)
    rules = sampling.GREEDY if greedy else (
        *((sampling.MinP(self.min_p),) if self.min_p else ()),
        sampling.Temperature(self.temperature))
    before = np.asarray(state.positions_B)
    state = _write(
        self.model, self.params, state, jnp.asarray(padded), jnp.asarray(live),
        key, self._newline if line else None,
        max_tokens=self.line_tokens if line else self.answer_tokens,
        rules=rules, eos_id=self.vocab.eos_id)
    tokens, num, log_probs, values = jax.device_get(
        (state.tokens_BM, state.num_B, state.log_probs_BM, state.values_B))
    n = len(rows)
    eos = self.vocab.eos_id
    texts = []
    for row, m in zip(tokens[:n], num[:n], strict=True):
      ids = row[:m].tolist()
      texts.append(self.vocab.decode(ids[:-1] if ids[-1] == eos else ids))
    costs = [self._cost(int(before[r]), int(m))
             for r, m in zip(rows, num[:n], strict=True)]
    return state, Written(texts, num[:n], log_probs[:n].sum(-1), values[:n],
                          costs)

  def _cost(self, before: int, count: int, *, read: bool = False) -> Cost:
    """The cost of `count` tokens after `before` others."""
    config = self.model.config
    mean = before + (count + 1) / 2  # Keys that an average token sees.
    return Cost(generated_tokens=0 if read else count, forward_tokens=count,
                flops=count * config.flops_per_token(mean))
