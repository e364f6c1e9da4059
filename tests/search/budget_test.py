"""Budgets: no strategy passes one, and each uses what it gets."""

import dataclasses

import jax
from lm import search
from lm.data import vocab as vocab_lib
from lm.model import LanguageModel, size
from lm.search.evaluate import evaluator
from lm.search.expand import Expand
from lm.types import UserError
import numpy as np
import pytest
from tests.model import tiny
from tests.search.scripted import Maze, Script, go

KEY = jax.random.key(0)
VOCAB = vocab_lib.ByteVocab()


@dataclasses.dataclass(frozen=True)
class Anything(Maze):
  """Whatever a random model writes is a thought, and an answer."""

  def read(self, line):
    return line

  def read_answer(self, text):
    return text

  def question(self, state):
    return f"{state}?"


PROBLEMS = [Anything(), Anything("a longer maze")]
PROMPT = len("a longer maze") + 2
# Trees of the same size share their programs.
STRATEGIES = {
    "greedy": search.greedy(), "vote": search.self_consistency(2),
    "best of n": search.best_of_n(2), "token beam": search.token_beam(2),
    "tree of thoughts": search.tree_of_thoughts(2, 2),
    "depth first": search.depth_first(2, accept=1.0, expansions=3),
    "best first": search.best_first(2, accept=1.0, expansions=3),
    "mcts": search.mcts(2, simulations=3),
    "stream": search.stream(max_tokens=12), "revision": search.revision(3),
}


@pytest.fixture(scope="module")
def writer():
  config = size("test", vocab_size=VOCAB.size, num_layers=1, scalar_head=True,
                dtype="float32", max_length=128)
  return search.Writer(LanguageModel(config), tiny.params(config), VOCAB,
                       line_tokens=4, answer_tokens=12)


def spent(writer, name, field, limit):
  budget = search.Budget(**{field: limit})
  results = search.solve(
      STRATEGIES[name], writer, PROBLEMS, KEY, budget=budget)
  return [getattr(r.cost, field) for r in results]


@pytest.mark.parametrize("name", STRATEGIES)
def test_caps_hold_and_are_used(writer, name):
  token = writer.dearest
  prompt = PROMPT + len(STRATEGIES[name].prefix)
  read = sum(writer.model.config.flops_per_token(n + 1) for n in range(prompt))
  for field, first, unit in [("generated_tokens", 0, 1),
                             ("forward_tokens", prompt, 1),
                             ("flops", read, token)]:
    before, least = [0, 0], None
    for tokens in (1, 5, 11, 23):
      limit = first + tokens * unit
      found = spent(writer, name, field, limit)
      assert max(found) <= limit
      assert all(b >= a for a, b in zip(before, found)), (before, found)
      before, least = found, least or found
    assert sum(before) > sum(least)
    assert spent(writer, name, field, 10**12) == spent(
        writer, name, field, None)


@pytest.mark.parametrize("evaluate", ["rollouts", "self_evaluation"])
def test_evaluators_keep_to_the_budget_and_leave_an_answer(writer, evaluate):
  for limit in (30, 45, 60):
    results = search.solve(
        STRATEGIES["tree of thoughts"], writer, PROBLEMS, KEY,
        evaluate=evaluate, budget=search.Budget(forward_tokens=PROMPT + limit))
    for r in results:
      assert r.cost.forward_tokens <= PROMPT + limit
      assert r.answer and r.nodes


def test_a_cap_that_is_not_a_multiple_of_anything_is_used_up(writer):
  """Rows stop in the middle of a line."""
  for limit in (1, 2, 3, 7, 12):
    assert spent(writer, "greedy", "generated_tokens", limit) == [limit] * 2
  # Of several answers only those begin that can be paid for to their ends.
  for field, before in (("generated_tokens", 0), ("forward_tokens", PROMPT)):
    assert all(before < n <= before + 7
               for n in spent(writer, "vote", field, before + 7))


@pytest.mark.parametrize("name, tokens", [("greedy", 6), ("token beam", 12)])
def test_no_text_goes_past_the_context(writer, name, tokens):
  """Where tokens would cost more than the dearest, and mean nothing."""
  long = Anything("x" * (128 - 2 - 6))  # Room for six.
  (result,) = search.solve(STRATEGIES[name], writer, [long], KEY)
  assert result.cost.generated_tokens == tokens


@pytest.mark.parametrize("field", [
    "generated_tokens", "forward_tokens", "flops", "seconds"])
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_nothing_to_spend_is_refused(field, value):
  with pytest.raises(UserError, match=rf"budget.{field}={value}"):
    search.Budget(**{field: value})


@pytest.mark.parametrize("budget", [
    search.Budget(forward_tokens=PROMPT - 1), search.Budget(flops=1000.0)])
def test_a_prompt_dearer_than_the_budget_is_refused(writer, budget):
  with pytest.raises(UserError, match="to read the prompt alone"):
    search.solve(search.greedy(), writer, PROBLEMS, KEY, budget=budget)


class Slow(Script):
  """Writes for two seconds at a time."""
  now = 0.0

  def _deal(self, *args, **how):
    out = super()._deal(*args, **how)
    self.now += 2.0 * (self.calls[-1][1] > 0)
    return out


@pytest.mark.parametrize("seconds, expansions", [
    (0.5, 1), (1.9, 1), (2.9, 1), (3.0, 2), (3.9, 2), (4.0, 3), (100.0, 3)])
def test_time_is_kept_to_at_the_pace_so_far(seconds, expansions):
  """Two problems share the two seconds of each expansion: one each."""
  names = ("maze", "den")
  lines = ["", "go a\n", "go b\n"]
  script = Slow(
      {f"{n}:{line}": [go("a", value=1.0), go("b")]
       for n in names for line in lines},
      {f"{n}:{a}{b}": [("out there", 0.0, 0.0)]
       for n in names for a in lines for b in lines})
  strategy = STRATEGIES["depth first"]
  expand = Expand(script, [Maze(n) for n in names], KEY,
                  capacity=1 + strategy.nodes(2))
  meter = search.Meter(search.Budget(seconds=seconds), expand.costs,
                       clock=lambda: script.now)
  results = strategy(expand.tree, expand, evaluator("value"), meter)
  for r in results:
    assert len(r.nodes) == 2 * expansions
    assert r.cost.seconds == expansions + 1 and r.answer == "there"
    # Only the first step, whose pace nobody knows, and the answer may be late.
    assert r.cost.seconds <= max(seconds, 2.0)


def test_left_is_the_least_of_all_limits():
  costs = [search.Cost(10, 20, 300.0), search.Cost(0, 0, 0.0)]
  left = lambda reserve=0, sampled=True, **limits: search.Meter(
      search.Budget(**limits), costs, flops_per_token=10.0).left(
          reserve, sampled=sampled).tolist()
  assert left(generated_tokens=15) == [5, 15]
  assert left(generated_tokens=15, forward_tokens=22) == [2, 15]
  assert left(generated_tokens=15, forward_tokens=22, flops=309.0) == [0, 15]
  assert left(4, generated_tokens=13) == [0, 9]
  assert left(generated_tokens=5) == [0, 5]  # Never negative.
  assert left(sampled=False, generated_tokens=15, forward_tokens=50) == [30, 50]
  assert left() == [2**31 - 1] * 2


def test_costs_add_up():
  cost = search.Cost(1, 2, 3.0, 4.0)
  cost.add(search.Cost(10, 20, 30.0, 40.0))
  assert cost == search.Cost(11, 22, 33.0, 44.0)


def test_counted_flops_are_those_of_the_model(writer):
  """A token that sees n keys costs what the model's formula says of n."""
  (result,) = search.solve(search.greedy(), writer, [Anything()], KEY)
  each = writer.model.config.flops_per_token
  tokens = result.cost.forward_tokens
  assert tokens == 6 + 12
  assert result.cost.flops == pytest.approx(
      sum(each(n) for n in range(1, tokens + 1)))
  assert np.isclose(writer.dearest, each(128))
