"""A writer that follows a script instead of a model, and problems to go with.

`Script` says which thoughts follow which path, with what value; the search
cannot tell it from a `search.Writer`.
"""

import dataclasses
import re

import numpy as np

from lm import search
from lm.data import vocab as vocab_lib

VOCAB = vocab_lib.ByteVocab(["yes", "no"])
FLOPS = 10.0  # Of every token.


@dataclasses.dataclass(frozen=True)
class Maze:
  """A problem whose thoughts are `go NAME` and whose answer is `out NAME`."""
  name: str = "maze"
  num_thoughts: int = 2

  def prompt(self):
    return self.name

  def read(self, line):
    match = re.fullmatch(r"go (\w+)\n", line)
    return match[1] if match else None

  def read_answer(self, text):
    match = re.search(r"out (\w+)", text)
    return match[1] if match else None


def go(name, log_prob=-1.0, value=0.0):
  return (f"go {name}\n", log_prob, value)


def spoken(prompt):
  """The tokens of a prompt as the tables write it: `question:text so far`."""
  return VOCAB.decode(prompt).replace("<|user|>", "").replace(
      "<|assistant|>", ":")


class Script:
  """Writes what tables say; a token is a character.

  Attributes:
    thoughts: {text so far: [(line, log-probability, value), ...]}; the samples
      of one node in one call are dealt in this order, round and round.
    answers: {text so far: [(text, log-probability, value), ...]}, dealt in the
      same way; the greedy one is the likeliest.
    opinions: {prompt: log-odds of yes}.
    calls: of each call, what it was, and the rows that wrote in it.
    grown: for each call of `grow`, the texts that it continued.
    written: every text.
    prompts: all that were read, as text.
  """
  vocab = VOCAB
  has_values = True
  max_length = 1000
  line_tokens = 10
  answer_tokens = 40
  dearest = FLOPS

  def __init__(self, thoughts, answers=None, *, opinions=None):
    self.thoughts, self.answers = thoughts, answers or {}
    self.opinions = opinions or {}
    self.calls, self.grown, self.written, self.prompts = [], [], [], []

  def _read(self, prompts):
    self.prompts += map(spoken, prompts)
    return [search.Cost(0, len(p), FLOPS * len(p)) for p in prompts]

  def start(self, prompts, key, *, capacity):
    del key
    costs = self._read(prompts)
    return [{0: spoken(p)} | dict.fromkeys(range(1, capacity))
            for p in prompts], costs

  def grow(self, memory, nodes_PR, slots_PR, left_P, key, *, depth):
    del key, depth
    memory = [dict(m) for m in memory]
    self.grown.append([memory[p][nodes_PR[p, r]]
                       for p, r in np.argwhere(nodes_PR >= 0)])
    out = self._deal("grow", self.thoughts, memory, nodes_PR, left_P,
                     max_tokens=self.line_tokens)
    for p, r in np.argwhere(slots_PR >= 0):
      assert memory[p][slots_PR[p, r]] is None  # A slot is written once.
      memory[p][slots_PR[p, r]] = (
          memory[p][nodes_PR[p, r]] + out.texts[p][r])
    return memory, out

  def finish(self, memory, nodes_PR, left_P, key, *, depth, greedy=False,
             max_tokens=None):
    del key, depth
    return self._deal(
        "greedy" if greedy else "finish", self.answers, memory, nodes_PR,
        left_P, greedy=greedy, max_tokens=max_tokens or self.answer_tokens)

  def _deal(self, name, table, memory, nodes_PR, left_P, *, max_tokens,
            greedy=False):
    shape = nodes_PR.shape
    texts = [[""] * shape[1] for _ in range(shape[0])]
    tokens = np.zeros((*shape, max_tokens), np.int32)
    log_probs, values = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    left, dealt = [int(n) for n in left_P], {}
    for p, r in np.argwhere(nodes_PR >= 0):
      before = memory[p][nodes_PR[p, r]]
      choices = table[before]
      n = dealt[p, before] = dealt.get((p, before), -1) + 1
      line = (max(choices, key=lambda c: c[1]) if greedy
              else choices[n % len(choices)])
      text, log_probs[p, r], values[p, r] = line
      text = text[:min(max_tokens, left[p])]
      left[p] -= len(text)
      tokens[p, r, :len(text)] = list(text.encode())
      texts[p][r] = text
      self.written.append(text)
    self.calls.append((name, int((nodes_PR >= 0).sum())))
    num = np.array([[len(t) for t in row] for row in texts])
    return search.Written(texts, tokens, num, log_probs, values, [
        search.Cost(int(n), int(n), FLOPS * n) for n in num.sum(axis=1)])

  def beam(self, memory, b, left_P, *, max_tokens=None):
    """The b likeliest of the answers; less likely ones cost nothing."""
    table = {k: sorted(v, key=lambda c: -c[1]) for k, v in self.answers.items()}
    return self._deal("beam", table, memory,
                      np.zeros((len(left_P), b), np.int32), left_P,
                      max_tokens=max_tokens or self.answer_tokens)

  def choose(self, prompts, options):
    yes, no = options
    assert (VOCAB.decode([yes]), VOCAB.decode([no])) == ("yes", "no")
    costs = self._read(prompts)
    self.calls.append(("choose", len(prompts)))
    odds = np.array([self.opinions[spoken(p)] for p in prompts])
    return np.stack([odds / 2, -odds / 2], axis=1), costs


def total(script):
  """Tokens written."""
  return sum(map(len, script.written))
