"""The writer: a model that continues any nodes of a tree, in one call."""

from collections.abc import Sequence
import dataclasses
import functools

import jax
import numpy as np

from lm import decode
from lm.data.vocab import Vocab
from lm.decode import prepared, sampling
from lm.model import LanguageModel
from lm.search import memory as memory_lib
from lm.search.budget import Cost
from lm.types import Params, UserError


@dataclasses.dataclass(frozen=True)
class Written:
  """What R rows of each of P problems wrote, on the host.

  Attributes:
    texts: of each row; "" of an idle one.
    tokens_PRM: int32.
    num_PR: tokens of each row.
    log_probs_PR: their summed log-probability.
    values_PR: scalar-head logit at the end.
    costs: of each problem.
  """
  texts: list[list[str]]
  tokens_PRM: np.ndarray
  num_PR: np.ndarray
  log_probs_PR: np.ndarray
  values_PR: np.ndarray
  costs: list[Cost]


@dataclasses.dataclass(frozen=True)
class Writer:
  """A model, and how it writes.

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
  def _prepared(self) -> tuple[LanguageModel, Params]:
    config = self.model.config
    return prepared.model(config), prepared.prepare(config, self.params)

  @functools.cached_property
  def _newline(self) -> decode.Stops:
    return decode.Stops.build(
        self.vocab, ["\n"], size=self.model.config.padded_vocab)

  @property
  def has_values(self) -> bool:
    return self.model.config.scalar_head

  @property
  def max_length(self) -> int:
    return self.model.config.max_length

  @property
  def dearest(self) -> float:
    """FLOPs of a token that sees the whole context."""
    return self.model.config.flops_per_token()

  def start(self, prompts: Sequence[Sequence[int]], key: jax.Array, *,
            capacity: int):
    """Reads the prompts, with room for trees: (memory, cost of each)."""
    limit = self.model.config.max_length
    tokens, lengths = decode.pad_prompts(prompts, limit=limit)
    if tokens.shape[1] > limit:
      raise UserError(
          f"the prompt has {int(lengths.max())} tokens but the model's context"
          f" is {limit}: shorten the prompt")
    memory = memory_lib.plant(
        *self._prepared, tokens, lengths, key, capacity=capacity,
        line_tokens=self.line_tokens)
    return memory, self._costs(np.zeros((len(lengths), 1)), lengths[:, None],
                               sampled=False)

  def grow(self, memory, nodes_PR, slots_PR, left_P, key, *, depth: int):
    """Continues nodes by a thought each: (memory, what was written).

    Args:
      memory: from `start` or an earlier `grow`; given up.
      nodes_PR: what to continue, -1 where nothing.
      slots_PR: the nodes that the thoughts become.
      left_P: tokens that each problem may have written.
      key: of the sampler.
      depth: of the deepest of the nodes, or more.
    """
    before = self._before(memory, nodes_PR)
    memory, rows = memory_lib.grow(
        *self._prepared, memory, nodes_PR, slots_PR, left_P, key,
        self._newline, depth=depth, max_tokens=self.line_tokens,
        rules=_rules(self), eos_id=self.vocab.eos_ids)
    return memory, self._written(rows, before)

  def finish(self, memory, nodes_PR, left_P, key, *, depth: int,
             greedy: bool = False, max_tokens: int | None = None) -> Written:
    """Continues nodes to the end of the answer; arguments as of `grow`."""
    rows = memory_lib.finish(
        *self._prepared, memory, nodes_PR, left_P, key, depth=depth,
        max_tokens=max_tokens or self.answer_tokens,
        rules=sampling.GREEDY if greedy else _rules(self),
        eos_id=self.vocab.eos_ids)
    return self._written(rows, self._before(memory, nodes_PR))

  def _before(self, memory, nodes_PR) -> np.ndarray:
    """Tokens [P, R] that stand before what the nodes are continued by."""
    return np.take_along_axis(
        jax.device_get(memory.next_PC), np.maximum(nodes_PR, 0), axis=1)

  def _written(self, rows: memory_lib.Rows, before_PR) -> Written:
    rows = jax.device_get(rows)
    texts = []
    for tokens_RM, num_R in zip(rows.tokens_PRM, rows.num_PR, strict=True):
      ids = [t[:n].tolist() for t, n in zip(tokens_RM, num_R, strict=True)]
      texts.append([self.vocab.decode(
          i[:-1] if i and i[-1] in self.vocab.eos_ids else i) for i in ids])
    return Written(texts, rows.tokens_PRM, rows.num_PR, rows.log_probs_PR,
                   rows.values_PR, self._costs(before_PR, rows.num_PR))

  def _costs(self, before_PR, num_PR, *, sampled: bool = True) -> list[Cost]:
    """Of each problem: `num` tokens after `before` others, a row each."""
    mean = before_PR + (num_PR + 1) / 2  # Keys that an average token sees.
    config = self.model.config  # Linear in the length, up to a window.
    flops = np.vectorize(config.flops_per_token, otypes=[float])(mean) * num_PR
    total = np.rint(num_PR.sum(axis=1)).astype(int)
    return [Cost(int(n) if sampled else 0, int(n), float(f))
            for n, f in zip(total, flops.sum(axis=1), strict=True)]

  def beam(self, memory, b: int, left_P, *, max_tokens: int | None = None
           ) -> Written:
    """The b likeliest continuations of each prompt by token-level beam."""
    nodes_PR = np.zeros((len(left_P), b), np.int32)
    rows, fed_P = memory_lib.beam(
        *self._prepared, memory, nodes_PR, left_P, eos_id=self.vocab.eos_ids,
        max_tokens=max_tokens or self.answer_tokens)
    written = self._written(rows, self._before(memory, nodes_PR))
    # Hypotheses that were dropped on the way have been paid for too.
    fed_PR = np.asarray(fed_P)[:, None] / b * np.ones_like(nodes_PR)
    return dataclasses.replace(
        written, costs=self._costs(self._before(memory, nodes_PR), fed_PR))

  def choose(self, prompts: Sequence[Sequence[int]], options: Sequence[int]):
    """(log-probabilities [P, options] of the next token, costs)."""
    memory, costs = self._read(prompts)
    logits_PV = jax.device_get(memory.logits_PCV)[:len(prompts), 0]
    shifted = logits_PV - logits_PV.max(axis=1, keepdims=True)
    log_probs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return log_probs[:, list(options)], costs

  def judge(self, prompts: Sequence[Sequence[int]]):
    """(scalar-head logits [P] after the prompts, costs)."""
    memory, costs = self._read(prompts)
    return jax.device_get(memory.values_PC)[:len(prompts), 0], costs

  def _read(self, prompts):
    """(memory of prompts and some surplus, costs); few shapes are compiled."""
    count, limit = len(prompts), self.model.config.max_length
    rows = 2 ** (count - 1).bit_length()
    tokens, lengths = decode.pad_prompts(
        [*prompts, *[[0]] * (rows - count)], limit=limit, multiple=32)
    memory = memory_lib.plant(*self._prepared, tokens, lengths,
                              jax.random.key(0), capacity=1, line_tokens=1)
    return memory, self._costs(
        np.zeros((count, 1)), lengths[:count, None], sampled=False)


def _rules(writer: Writer) -> sampling.Rules:
  return (*((sampling.MinP(writer.min_p),) if writer.min_p else ()),
          sampling.Temperature(writer.temperature))
