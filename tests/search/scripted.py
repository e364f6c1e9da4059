"""A writer that follows a script instead of a model, and problems to go with.

`Script` says which thoughts follow which path, with what value; the search
cannot tell it from a `search.Writer`.
"""

import dataclasses
import re

import numpy as np

from lm.search import Cost
from lm.search.expand import Written


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


@dataclasses.dataclass
class State:
  """What the writer remembers of each row: the text so far, problem first."""
  rows: list[str]


class Script:
  """Writes what a table says.

  Attributes:
    thoughts: {text so far: [(line, log-probability, value), ...]}; the samples
      of one row in one call are dealt in this order, round and round, and the
      greedy one is the likeliest.
    answers: {text so far: [(text, log-probability, value), ...]}.
    tokens: what a line costs, by its text; else one a character.
    calls: (number of rows, live, greedy, line) of each call of `write`.
  """

  def __init__(self, thoughts, answers, vocab):
    self.thoughts, self.answers, self.vocab = thoughts, answers, vocab
    self.calls = []
    self.written = []

  def start(self, prompts, key):
    del key
    names = [self.vocab.decode(p).replace("<|user|>", "").replace(
        "<|assistant|>", ":") for p in prompts]
    return State(names), [
        Cost(0, len(p), float(len(p))) for p in prompts]

  def write(self, state, rows, key, *, line=True, greedy=False, capacity=0):
    del key
    assert capacity == 0 or capacity >= len(rows)
    assert all(0 <= r < len(state.rows) for r in rows)
    table = self.thoughts if line else self.answers
    self.calls.append((len(rows), greedy, line))
    dealt, texts, log_probs, values, after = {}, [], [], [], []
    for row in rows:
      before = state.rows[row]
      choices = table[before]
      if greedy:
        text, log_prob, value = max(choices, key=lambda c: c[1])
      else:
        n = dealt.get(row, 0)
        dealt[row] = n + 1
        text, log_prob, value = choices[n % len(choices)]
      texts.append(text)
      log_probs.append(log_prob)
      values.append(value)
      after.append(before + text)
    num = np.array([len(t) for t in texts])
    self.written += texts
    # Rows of a real state follow the order of the jobs, idle ones last.
    after += ["idle"] * (capacity - len(rows))
    costs = [Cost(int(n), int(n), 10.0 * n) for n in num]
    return State(after), Written(
        texts, num, np.array(log_probs), np.array(values), costs)
