"""Strategies that think in one text: token beam, written search, revision."""

import dataclasses

import numpy as np

from lm.data.problems.task import PREFIXES, WAIT
from lm.search.budget import Cost
from lm.search.result import Result
from lm.search.strategies import Samples, positive, whole_answers
from lm.types import UserError


@dataclasses.dataclass(frozen=True)
class TokenBeam:
  """Beam search over tokens: the likeliest of `b` whole answers."""
  b: int
  prefix: str = ""

  def __post_init__(self):
    positive(b=self.b)

  def nodes(self, num_thoughts: int) -> int:
    del num_thoughts
    return 0

  def __call__(self, tree, expand, evaluate, meter) -> list[Result]:
    del tree, evaluate
    out = expand.writer.beam(expand.memory, self.b, meter.left(closing=True))
    meter.charge(out.costs)
    return whole_answers(expand, out, meter, "log_prob")


def token_beam(b: int) -> TokenBeam:
  """Token-level beam search."""
  return TokenBeam(b)


def stream(*, max_tokens: int = 192, greedy: bool = True) -> Samples:
  """Stream of Search (2404.03683): the model searches in one text.

  It writes wrong turns and the way back too, after a prompt that asks for it;
  only a model that has learnt such texts can.
  """
  return Samples(greedy=greedy, prefix=PREFIXES["streams"],
                 max_tokens=max_tokens)


@dataclasses.dataclass(frozen=True)
class Revision:
  """Sequential revision with budget forcing (s1, 2501.19393, section 3.1).

  Whenever the model ends before it has made `attempts` attempts, the end is
  replaced by "Wait" and it goes on; what it has written is read again. Its last
  answer counts, or the one that the value head likes best.

  Attributes:
    attempts: answers written one after the other, at most.
    choose: 'last' or 'value'.
    prefix: put before each prompt.
  """
  attempts: int = 2
  choose: str = "last"
  prefix: str = PREFIXES["revisions"]

  def __post_init__(self):
    positive(attempts=self.attempts)
    if self.choose not in ("last", "value"):
      raise UserError(f"choose={self.choose!r}: use last or value")

  def nodes(self, num_thoughts: int) -> int:
    del num_thoughts
    return 0

  def __call__(self, tree, expand, evaluate, meter) -> list[Result]:
    del evaluate
    problems = expand.problems
    texts = [""] * len(problems)
    found: list[list[tuple]] = [[] for _ in problems]
    on_P = np.ones(len(problems), bool)
    for attempt in range(self.attempts):
      if attempt:
        longer = [t + WAIT if t[-1:] in ("", "\n") else t + "\n" + WAIT
                  for t in texts]
        on_P = self._read_again(expand, longer, meter)
        texts = [a if on else b for a, b, on in zip(
            longer, texts, on_P, strict=True)]
      if not on_P.any():
        break
      out = expand.finish(tree, np.where(on_P, 0, -1)[:, None], meter,
                          greedy=attempt == 0,
                          closing=attempt == 0)
      for p in np.flatnonzero(on_P):
        texts[p] += out.texts[p][0]
        answer = problems[p].read_answer(out.texts[p][0])
        if answer is not None:
          found[p].append((float(out.values_PR[p, 0]), answer))
    best = [self._best(answers) for answers in found]
    return [Result(answer, text, cost) for answer, text, cost in zip(
        best, texts, meter.costs, strict=True)]

  def _best(self, answers):
    if not answers:
      return None
    return (answers[-1] if self.choose == "last" else max(answers))[1]

  def _read_again(self, expand, texts, meter) -> np.ndarray:
    """Makes the prompts and what was written the memory, where that is in the
    budget and the context: [P]."""
    writer = expand.writer
    prompts = [[*prompt, *writer.vocab.encode(text)] for prompt, text in zip(
        expand.prompts, texts, strict=True)]
    length_P = np.array([len(ids) for ids in prompts])
    on_P = ((length_P < meter.left(sampled=False)) & (meter.left() > 0)
            & (length_P + writer.answer_tokens <= writer.max_length))
    if on_P.any():
      expand.memory, costs = writer.start(
          [ids if on else ids[:1] for ids, on in zip(
              prompts, on_P, strict=True)], expand.next_key(), capacity=1)
      meter.charge([c if on else Cost() for c, on in zip(
          costs, on_P, strict=True)])
    return on_P


def revision(attempts: int = 2, *, choose: str = "last") -> Revision:
  """Sequential revision; see `Revision`."""
  return Revision(attempts, choose=choose)
