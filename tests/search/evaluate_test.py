"""Evaluators: what each says of thoughts, and what it costs."""

import dataclasses

import jax
import jax.numpy as jnp
from lm import search
from lm.data import chat
from lm.data import vocab as vocab_lib
from lm.model import LanguageModel
from lm.types import UserError
import numpy as np
import pytest
from tests.model import tiny
from tests.search.scripted import FLOPS, Maze, Script, go, total

KEY = jax.random.key(0)
VOCAB = vocab_lib.ByteVocab()
THOUGHTS = {"maze:": [go("a", -1.0, 2.0), go("b", -2.0, 1.0),
                      go("a", -3.0, 0.5), ("hm\n", -1.0, 9.0)],
            "maze:go a\n": [go("c", -1.0, 3.0), go("b", -1.0, -1.0)],
            "maze:go b\n": [go("d", -1.0, 4.0), go("e", -1.0, 1.5)]}


@dataclasses.dataclass(frozen=True)
class Known(Maze):
  """One that can be asked about: only through b, d is there a way."""

  def question(self, state):
    return f"{state}?"

  def winnable(self, state):
    return state in "bd"


OPINIONS = {"a?:": -1.0, "b?:": 2.0, "c?:": 3.0, "d?:": 1.0, "e?:": -2.0}


def run(evaluate, problem=Known, *, names=("maze",), **how):
  """(results, script) of a beam: scores are looked at at both depths."""
  answers = {}
  for path, moves in THOUGHTS.items():
    for line, _, _ in moves:
      name = line[3:-1]
      answers[path + line] = [("out " + name, 0.0, 1.0),
                              ("nothing", -1.0, 9.0)]
  script = Script(
      {k.replace("maze", n): v for n in names for k, v in THOUGHTS.items()},
      {k.replace("maze", n): v for n in names for k, v in answers.items()},
      opinions=OPINIONS)
  results = search.solve(
      search.Beam(2, (4, 2)), script, [problem(n) for n in names], KEY,
      evaluate=evaluate, **how)
  return results, script


def scores(result):
  return {n.text[3:-1] + f" at {n.depth}": n.score for n in result.nodes
          if n.status != "merged"}


@pytest.mark.parametrize("name, want", [
    ("value", {"a at 1": 2.0, "b at 1": 1.0, "c at 2": 2.0, "b at 2": -1.0,
               "d at 2": 1.0, "e at 2": 1.0}),
    ("last_value", {"c at 2": 3.0, "d at 2": 4.0, "e at 2": 1.5}),
    ("log_prob", {"a at 1": -1.0, "b at 1": -2.0, "c at 2": -2.0,
                  "d at 2": -3.0}),
    ("self_evaluation", {"a at 1": -1.0, "b at 1": 2.0, "c at 2": 3.0,
                         "b at 2": 2.0, "d at 2": 1.0, "e at 2": -2.0}),
    ("oracle", {"a at 1": -10.0, "b at 1": 10.0, "c at 2": -10.0,
                "b at 2": 10.0, "d at 2": 10.0, "e at 2": -10.0})])
def test_each_says_what_it_is_to_say(name, want):
  (result,), _ = run(name)
  found = scores(result)
  for node, score in want.items():
    assert found[node] == pytest.approx(score), node


@pytest.mark.parametrize("name, answer", [
    ("value", "c"), ("last_value", "d"), ("log_prob", "c"), ("oracle", "d"),
    ("self_evaluation", "c")])
def test_the_search_follows_them(name, answer):
  assert run(name)[0][0].answer == answer


def test_a_state_is_asked_about_once_and_paid_for():
  (result, other), script = run("self_evaluation", names=("maze", "den"))
  asked = [p for p in script.prompts if "?" in p]
  # b comes twice at the start and again after a; neither hm nor a's twin asks.
  assert sorted(asked) == sorted(2 * ["a?:", "b?:", "c?:", "d?:", "e?:"])
  assert [c for c in script.calls if c[0] == "choose"] == [
      ("choose", 4), ("choose", 6)]
  for r, name in (result, "maze"), (other, "den"):
    assert r.cost.generated_tokens == total(script) / 2
    read = len(name) + 2 + 5 * 4  # Two characters and two specials each.
    assert r.cost.forward_tokens == r.cost.generated_tokens + read
    assert r.cost.flops == FLOPS * r.cost.forward_tokens


def test_what_the_budget_does_not_allow_to_ask_is_not_asked():
  """And what writing the answer takes is left for it."""
  start, first = len("maze") + 2, 3 * len("go a\n") + len("hm\n")
  reserve = 2 * Script.line_tokens
  for extra in (3, 4, 8):
    (result,), script = run("self_evaluation", budget=search.Budget(
        forward_tokens=start + first + reserve + extra))
    asked = [p for p in script.prompts if "?" in p]
    assert asked == ["a?:", "b?:"][:extra // 4]
    assert (result.nodes[1].score == 2.0) == (extra == 8)
    assert result.nodes[1].score in (2.0, np.float32(-1e9))
    assert result.answer is not None
    assert result.cost.forward_tokens <= start + first + reserve + extra
  # Reading is not writing.
  (result,), script = run("self_evaluation", budget=search.Budget(
      generated_tokens=first + reserve + 1))
  assert len([p for p in script.prompts if "?" in p]) >= 2


def test_rollouts_are_the_mean_chance_of_what_answers():
  (result,), script = run("rollouts")
  # Of four completions two say nothing, which is worth 0.
  mean = 0.5 / (1 + np.exp(-1.0))
  want = np.log(mean / (1 - mean))
  played = [n for n in result.nodes if n.status != "unreadable"]
  assert played and all(n.score == pytest.approx(want, abs=1e-4)
                        for n in played)
  assert ("finish", 3 * 4) in script.calls and ("finish", 4 * 4) in script.calls
  assert result.cost.generated_tokens == total(script)


def test_rollouts_leave_enough_for_an_answer():
  budget = search.Budget(generated_tokens=70)
  (result,), script = run("rollouts", budget=budget)
  assert result.answer is not None
  assert 50 < result.cost.generated_tokens <= 70
  assert result.cost.generated_tokens == total(script)


@pytest.mark.parametrize("name, method", [
    ("self_evaluation", "question"), ("oracle", "winnable")])
def test_problems_that_cannot_tell_are_refused(name, method):
  with pytest.raises(UserError, match=rf"{name} asks for {method}.*Maze"):
    run(name, Maze)


def test_unknown_names_are_refused_with_the_known_ones():
  with pytest.raises(UserError, match="'values'.*value, last_value, log_prob"):
    run("values")


@pytest.mark.parametrize("name", ["value", "last_value", "rollouts"])
def test_a_model_without_a_value_head_is_refused_before_it_works(
    monkeypatch, name):
  monkeypatch.setattr(Script, "has_values", False)
  with pytest.raises(UserError, match=f"{name} needs .* value head"):
    run(name)
  assert run("log_prob")[0][0].answer
  script = Script({}, {"maze:": [("out a", 0.0, 0.0)]})
  (result,) = search.solve(search.greedy(), script, [Maze()], KEY)
  assert result.answer == "a"  # Nobody judges it.


def test_a_function_may_judge():
  (result,), _ = run(lambda thoughts: -thoughts.value_PR)
  assert scores(result)["b at 1"] == -1.0
  assert result.answer == "b"  # At -(-1).


class Open(Maze):
  """Reads every line."""

  def read(self, line):
    return line


def test_a_critic_reads_every_path_again_and_is_paid():
  """Its value is that of its own plain forward pass over the whole text."""
  config = tiny.config(vocab_size=VOCAB.size, scalar_head=True, max_length=96)
  judge = search.Writer(LanguageModel(config), tiny.params(config), VOCAB)
  config = tiny.config(vocab_size=VOCAB.size, max_length=96)
  plain = search.Writer(LanguageModel(config), tiny.params(config), VOCAB,
                        line_tokens=6, answer_tokens=8)
  beam = search.tree_of_thoughts(3, 3)
  params = jax.tree.map(jnp.asarray, judge.params)
  solve = lambda evaluate, **budget: search.solve(
      beam, plain, [Open()], jax.random.key(1), evaluate=evaluate,
      budget=search.Budget(**budget))[0]
  result = solve(search.Critic(judge))
  free = solve("log_prob")
  read = 0
  for i, node in enumerate(result.nodes):
    path = search.path_to(result.nodes, i)
    values = []
    for n in range(1, len(path) + 1):
      text = "".join(result.nodes[j].text for j in path[:n])
      ids = chat.encode_prompt(VOCAB, [
          {"role": "user", "content": Open().prompt()}])
      ids += VOCAB.encode(text)
      out = judge.model.forward(params, jnp.array([ids]))
      values.append(float(out.values_BT[0, -1]))
      read += len(ids) if n == len(path) else 0
    assert node.score == pytest.approx(min(values), abs=1e-4)
  extra = result.cost.forward_tokens - result.cost.generated_tokens
  assert extra - (free.cost.forward_tokens
                  - free.cost.generated_tokens) == read
  assert solve(search.Critic(judge), forward_tokens=80
               ).cost.forward_tokens <= 80
